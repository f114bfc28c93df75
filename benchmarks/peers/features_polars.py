"""Benchmark peer: the features of the examples taxi and support_routing as hand-written polars scripts.

    python features_polars.py taxi|support_routing INPUT OUTPUT.parquet

They know the whole file in advance and trust it: no contract, no dead letters, no deduplication. An id that headrace
makes of a record is a column of the input here. Rolling windows are differences of running totals, as polars_script.py
has them.
"""

import json
import os
import sys
import time

os.environ.setdefault("POLARS_MAX_THREADS", "2")

import polars as pl

HOUR = 3_600_000_000  # microseconds
DAY = 24 * HOUR


def running(rows: pl.DataFrame, entity: str, values: list[str], ages: list[int]) -> pl.DataFrame:
    """For each row of `rows`, in (time, id) order, its entity's count `n0` and sums `s0.NAME` up to itself, and up to
    each of `ages` microseconds before it (`n7`, `s7.NAME` for the age 7)."""
    first, last = rows["TIME"].min(), rows["TIME"].max()
    span = last - first + max(ages) + 1
    number = pl.col(entity).rank("dense").cast(pl.Int64)
    ordered = rows.select("ROW", "TIME", *values, KEY=number * span + (pl.col("TIME") - first)).sort("KEY", "ROW")
    totals = ordered.with_columns(n0=pl.int_range(1, pl.len() + 1), **{f"s0.{v}": pl.col(v).cum_sum() for v in values})
    totals = totals.with_columns(pl.col("KEY").set_sorted())
    names = ["n", *(f"s.{value}" for value in values)]
    found = [totals.select("ROW", "KEY", pl.col("^[ns]0.*$"))]
    for age in ages:
        then = totals.select((pl.col("KEY") - age).set_sorted())
        now = totals.select("KEY", *(pl.col(f"{n[0]}0{n[1:]}").alias(f"{n[0]}{age}{n[1:]}") for n in names))
        found.append(then.join_asof(now, on="KEY").select(pl.exclude("KEY").fill_null(0)))
    return pl.concat(found, how="horizontal").sort("ROW")


def taxi(source: str) -> pl.DataFrame:
    rows = (
        pl.read_csv(source)
        .filter(~pl.col("payment_type").is_in(["No Charge", "Dispute"]))
        .with_columns(
            TIME=pl.col("trip_start_timestamp") * 1_000_000,
            area=pl.col("pickup_community_area").cast(pl.String).fill_null("unknown"),
            tipped=(pl.col("tips") > 0.2 * pl.col("fare")).cast(pl.Int64),
            CENTS=(pl.col("fare") * 100).round().cast(pl.Int64),
        )
        .sort("TIME", "trip_id")
        .with_row_index("ROW")
    )
    started = pl.from_epoch("TIME", "us")
    totals = running(rows, "area", ["CENTS", "tipped"], [7 * DAY, 30 * DAY, DAY, 91 * DAY])
    windows = {}
    for days in (7, 30):
        count = pl.col("n0") - pl.col(f"n{days * DAY}")
        windows[f"AREA_TRIPS_{days}D"] = count
        windows[f"AREA_FARE_{days}D"] = (pl.col("s0.CENTS") - pl.col(f"s{days * DAY}.CENTS")) / (100 * count)
    count = pl.col(f"n{DAY}") - pl.col(f"n{91 * DAY}")
    tipped = pl.col(f"s{DAY}.tipped") - pl.col(f"s{91 * DAY}.tipped")
    windows["AREA_TIPPED_90D"] = pl.when(count > 0).then(tipped / count).otherwise(0.0)
    miles = pl.col("trip_miles")
    features = rows.select(
        "trip_id",
        hour=started.dt.hour().cast(pl.Int64),
        weekday=started.dt.weekday().cast(pl.Int64) - 1,
        by_card=(pl.col("payment_type") == "Credit Card").cast(pl.Int64),
        no_company=(pl.col("company").fill_null("") == "").cast(pl.Int64),
        length_class=sum(((miles >= bound).cast(pl.Int64) for bound in (0.1, 1, 3, 10)), pl.lit(0)),
        same_area=(pl.col("pickup_community_area") == pl.col("dropoff_community_area")).fill_null(False).cast(pl.Int64),
    )
    return pl.concat([features, totals.select(**windows)], how="horizontal")


def support_routing(source: str) -> pl.DataFrame:
    lower = pl.col("text").str.to_lowercase()
    asks = lower.str.contains("refund", literal=True) | lower.str.contains("invoice", literal=True)
    rows = (
        pl.read_ndjson(source)
        .filter(pl.col("customer_id").is_not_null())
        .with_columns(
            TIME=pl.col("opened").str.to_datetime(time_unit="us", time_zone="UTC").dt.epoch("us"),
            asks_for_money=asks.cast(pl.Int64),
        )
        .sort("TIME", "ticket_id")
        .with_row_index("ROW")
    )
    customer = running(rows, "customer_id", ["asks_for_money"], [7 * DAY, 30 * DAY])
    topic = running(rows, "topic", ["solved_by_bot"], [2 * DAY, 16 * DAY])
    opened = pl.from_epoch("TIME", "us")
    windows = {}
    for days in (7, 30):
        windows[f"CUSTOMER_TICKETS_{days}D"] = pl.col("n0") - 1 - pl.col(f"n{days * DAY}")
        money = pl.col("s0.asks_for_money") - pl.col("MONEY") - pl.col(f"s{days * DAY}.asks_for_money")
        windows[f"CUSTOMER_MONEY_{days}D"] = money
    count = pl.col(f"n{2 * DAY}") - pl.col(f"n{16 * DAY}")
    solved = pl.col(f"s{2 * DAY}.solved_by_bot") - pl.col(f"s{16 * DAY}.solved_by_bot")
    since = pl.col("TIME") - pl.col("TIME").shift(1).over("customer_id")
    features = rows.select(
        "ticket_id",
        "asks_for_money",
        letters=pl.col("text").str.len_chars().cast(pl.Int64),
        is_answer=lower.str.starts_with("re:").cast(pl.Int64),
        hour=opened.dt.hour().cast(pl.Int64),
        is_weekend=(opened.dt.weekday() >= 6).cast(pl.Int64),
        SINCE_LAST=pl.when(since < 30 * DAY).then(since / 1e6),
    )
    by_customer = customer.with_columns(MONEY=rows["asks_for_money"]).select(**windows)
    by_topic = topic.select(TOPIC_BOT_14D=pl.when(count > 0).then(solved / count).otherwise(0.0))
    return pl.concat([features, by_customer, by_topic], how="horizontal")


def main(kind: str, source: str, output: str) -> None:
    begun, begun_cpu = time.perf_counter(), time.process_time()
    features = {"taxi": taxi, "support_routing": support_routing}[kind](source)
    features.write_parquet(output, compression="snappy")
    report = {"rows": features.height, "total_s": round(time.perf_counter() - begun, 3)}
    print(json.dumps({**report, "cpu_s": round(time.process_time() - begun_cpu, 3)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
