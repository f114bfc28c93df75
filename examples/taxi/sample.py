"""Make a file of taxi trips of the shape that Chicago publishes, for a clone that has no real ones.

    python examples/taxi/sample.py trips.csv --rows 15000

The same rows come for the same seed.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.csv

FIRST, LAST = 1_356_998_400, 1_483_228_800  # 2013 to 2016, in seconds since 1970
COMPANIES = ["Taxi Affiliation Services", "Flash Cab", "Blue Ribbon Taxi Association Inc.", "Top Cab Affiliation", None]


def make(rows: int, seed: int) -> pa.Table:
    """The trips, in no order."""
    random = np.random.default_rng(seed)
    started = random.integers(FIRST // 900, LAST // 900, rows) * 900  # published by quarters of an hour
    miles = np.round(random.gamma(1.2, 2.8, rows), 1)
    fare = np.round(3.25 + 2.0 * miles + random.gamma(1, 1.5, rows), 2)
    card = random.random(rows) < 0.35
    share = np.where(card, np.clip(random.normal(0.2, 0.09, rows), 0, None), 0.0)
    paid = np.where(card, "Credit Card", random.choice(["Cash", "No Charge", "Unknown"], rows, p=[0.985, 0.01, 0.005]))
    pickup = random.integers(1, 78, rows)
    dropoff = np.where(random.random(rows) < 0.3, pickup, random.integers(1, 78, rows))
    days = started.astype("M8[s]")

    def sometimes(values: np.ndarray, missing: float) -> pa.Array:
        return pa.array(values, mask=random.random(rows) < missing)

    return pa.table(
        {
            "pickup_community_area": sometimes(pickup, 0.01),
            "fare": fare,
            "trip_start_month": days.astype("M8[M]").astype(int) % 12 + 1,
            "trip_start_hour": started % 86_400 // 3_600,
            "trip_start_day": (started // 86_400 + 4) % 7 + 1,
            "trip_start_timestamp": started,
            "pickup_latitude": np.round(41.7 + 0.004 * pickup, 9),
            "pickup_longitude": np.round(-87.9 + 0.004 * pickup, 9),
            "dropoff_latitude": sometimes(np.round(41.7 + 0.004 * dropoff, 9), 0.03),
            "dropoff_longitude": sometimes(np.round(-87.9 + 0.004 * dropoff, 9), 0.03),
            "trip_miles": miles,
            "pickup_census_tract": pa.nulls(rows, pa.int64()),
            "dropoff_census_tract": sometimes(17_031_000_000 + 100 * dropoff, 0.28),
            "payment_type": paid,
            "company": pa.array(random.choice(np.array(COMPANIES, object), rows, p=[0.35, 0.1, 0.12, 0.1, 0.33])),
            "trip_seconds": sometimes(60 * (1 + (miles * 4).astype(int)), 0.001),
            "dropoff_community_area": sometimes(dropoff, 0.03),
            "tips": np.round(share * fare, 2),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=15_000)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    pyarrow.csv.write_csv(make(flags.rows, flags.seed), flags.file)


if __name__ == "__main__":
    main()
