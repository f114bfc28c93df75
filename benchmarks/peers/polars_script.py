"""Benchmark peer: the card-fraud features and scores as one hand-written polars + xgboost script.

    python polars_script.py INPUT.parquet MODEL.ubj OUTPUT.parquet

It knows the whole file in advance and trusts it: no validation, no dead letters, no deduplication.

Every rolling window ending at a row is a difference of two running totals of the row's entity. The rows are
laid out entity after entity, each in (time, id) order, with the key `entity's number * span + time`; the span
is wider than the file plus the widest window, so a key less any window still lies past the entity before. The
totals at the start of a window are then one backward as-of join on the key: a linear merge without groups.
"""

import time

STARTED = time.perf_counter()

import json  # noqa: E402  (the clock starts before the imports)
import os  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
from itertools import pairwise  # noqa: E402
from pathlib import Path  # noqa: E402

THREADS = int(os.environ.setdefault("POLARS_MAX_THREADS", "2"))  # polars reads it when imported

import polars as pl  # noqa: E402
import xgboost as xgb  # noqa: E402

IMPORTED = time.perf_counter()

DAY = 86_400_000_000  # microseconds
WINDOWS = {"1DAY": 1, "7DAY": 7, "30DAY": 30}
DELAY = 7
WIDEST = DELAY + max(WINDOWS.values())
ORDER = ("TX_DATETIME", "TRANSACTION_ID")
COLUMNS = ["TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD"]
FEATURES = [
    "TX_DURING_WEEKEND",
    "TX_DURING_NIGHT",
    *(f"CUSTOMER_ID_{kind}_{window}_WINDOW" for window in WINDOWS for kind in ("NB_TX", "AVG_AMOUNT")),
    *(f"TERMINAL_ID_{kind}_{window}_WINDOW" for window in WINDOWS for kind in ("NB_TX", "RISK")),
]
INPUTS = ["TX_AMOUNT", *FEATURES]


def running_totals(rows: pl.DataFrame, entity: str, value: str, ages: list[int]) -> pl.LazyFrame:
    """For each row, the count n and the sum s of `value` over its entity, up to the row itself (n0, s0) and
    up to each of `ages` days before it (n7, s7, ...). Totals run on across entities: only differences count.
    """
    groups = rows.group_by(entity).agg("TIME", "ROW", value)  # rows keep their order within a group
    first, last = rows["TIME"].min(), rows["TIME"].max()
    span = last - first + (WIDEST + 1) * DAY
    if groups.height * span >= 2**63:
        raise OverflowError(f"too many values of {entity} over too long a time for a 64-bit key")
    by_entity = (
        groups.lazy()
        .select("TIME", "ROW", value, START=pl.int_range(pl.len()) * span - first)
        .explode("TIME", "ROW", value)
        .select(
            "ROW",
            KEY=(pl.col("START") + pl.col("TIME")).set_sorted(),
            n=pl.int_range(1, pl.len() + 1),
            s=pl.col(value).cum_sum(),
        )
        .collect()
        .lazy()
    )
    totals = [by_entity.select("ROW", n0="n", s0="s")]
    for age in ages:
        then = by_entity.select((pl.col("KEY") - age * DAY).set_sorted())
        now = by_entity.select("KEY", pl.col("n").alias(f"n{age}"), pl.col("s").alias(f"s{age}"))
        totals.append(then.join_asof(now, on="KEY").select(pl.exclude("KEY").fill_null(0)))
    return pl.concat(totals, how="horizontal")


def window(end: int, days: int) -> tuple[pl.Expr, pl.Expr]:
    """Count and sum of the window of `days` that ends `end` days before the row."""
    return (
        pl.col(f"n{end}") - pl.col(f"n{end + days}"),
        pl.col(f"s{end}") - pl.col(f"s{end + days}"),
    )


def add_features(transactions: pl.DataFrame) -> pl.DataFrame:
    rows = (
        transactions.sort(ORDER)
        .with_row_index("ROW")
        .with_columns(
            pl.col("TX_DATETIME").dt.epoch("us").alias("TIME"),
            (pl.col("TX_AMOUNT") * 100).round().cast(pl.Int64).alias("CENTS"),
        )
    )
    calendar = rows.lazy().select(
        *COLUMNS,
        (pl.col("TX_DATETIME").dt.weekday() >= 6).cast(pl.Int64).alias("TX_DURING_WEEKEND"),  # Monday is 1
        (pl.col("TX_DATETIME").dt.hour() <= 6).cast(pl.Int64).alias("TX_DURING_NIGHT"),
    )
    customer, terminal = [], []
    for name, days in WINDOWS.items():
        count, cents = window(0, days)
        customer.append(count.alias(f"CUSTOMER_ID_NB_TX_{name}_WINDOW"))
        customer.append((cents / (100 * count)).alias(f"CUSTOMER_ID_AVG_AMOUNT_{name}_WINDOW"))
        count, frauds = window(DELAY, days)
        risk = pl.when(count > 0).then(frauds / count).otherwise(0.0)
        terminal.append(count.alias(f"TERMINAL_ID_NB_TX_{name}_WINDOW"))
        terminal.append(risk.alias(f"TERMINAL_ID_RISK_{name}_WINDOW"))
    ages = list(WINDOWS.values())
    delayed = [DELAY, *(DELAY + days for days in ages)]
    plans = [
        calendar,
        running_totals(rows, "CUSTOMER_ID", "CENTS", ages).select("ROW", *customer).sort("ROW").drop("ROW"),
        running_totals(rows, "TERMINAL_ID", "TX_FRAUD", delayed).select("ROW", *terminal).sort("ROW").drop("ROW"),
    ]
    return pl.concat(pl.collect_all(plans), how="horizontal")


def add_scores(features: pl.DataFrame, model: str) -> pl.DataFrame:
    booster = xgb.Booster({"nthread": THREADS}, model_file=model)
    matrix = features.select(pl.col(INPUTS).cast(pl.Float32)).to_numpy()
    score = pl.col("score")
    decision = pl.when(score >= 0.8).then(pl.lit("block")).when(score >= 0.3).then(pl.lit("review"))
    return features.with_columns(pl.Series("score", booster.inplace_predict(matrix))).select(
        "TRANSACTION_ID",
        "TX_DATETIME",
        "CUSTOMER_ID",
        "TERMINAL_ID",
        *FEATURES,
        "score",
        decision.otherwise(pl.lit("approve")).alias("decision"),
    )


def peak_rss_mib() -> float:
    """The peak of this process alone: ru_maxrss may be inherited from the process that started it."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(peak[1]) / 1024, 1) if peak else float("nan")


def main(source: str, model: str, output: str) -> None:
    clock, begun_cpu = [time.perf_counter()], time.process_time()
    transactions = pl.read_parquet(source, columns=COLUMNS)
    clock.append(time.perf_counter())
    features = add_features(transactions)
    clock.append(time.perf_counter())
    scores = add_scores(features, model)
    clock.append(time.perf_counter())
    scores.write_parquet(output, compression="snappy")
    clock.append(time.perf_counter())
    phases = ("read_s", "features_s", "score_s", "write_s")
    report = {
        "rows": scores.height,
        "import_s": IMPORTED - STARTED,
        **{phase: end - start for phase, (start, end) in zip(phases, pairwise(clock), strict=True)},
        "total_s": clock[-1] - clock[0],
        "cpu_s": time.process_time() - begun_cpu,
    }
    report = {name: round(value, 4) for name, value in report.items()} | {"peak_rss_mib": peak_rss_mib()}
    print(json.dumps(report))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: python {sys.argv[0]} INPUT.parquet MODEL.ubj OUTPUT.parquet")
    main(*sys.argv[1:])
