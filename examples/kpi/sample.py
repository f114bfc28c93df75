"""Make a folder of orders.csv and customers.csv, of customers who move and change.

    python examples/kpi/sample.py shop --rows 20000

The same rows come for the same seed.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.csv

START, DAYS, CUSTOMERS = np.datetime64("2025-01-01"), 365, 1500


def orders(rows: int, random: np.random.Generator) -> pa.Table:
    """Orders in no order, a few of customers whom no table knows."""
    seconds = random.integers(0, DAYS * 86_400, rows)
    return pa.table(
        {
            "order_id": np.arange(rows),
            "ordered": np.datetime_as_string(START.astype("M8[s]") + seconds, unit="s"),
            "customer_id": random.integers(0, CUSTOMERS + 20, rows),
            "amount": np.round(random.lognormal(4, 1, rows), 2),
            "is_return": (random.random(rows) < 0.04).astype(int),
        }
    )


def customers(random: np.random.Generator) -> pa.Table:
    """For each customer one to three rows, each valid to where the next begins; some customers leave."""
    rows = []
    for customer in range(CUSTOMERS):
        changes = [-400, *sorted(random.choice(DAYS, int(random.integers(0, 3)), replace=False).tolist())]
        ends = [*changes[1:], int(random.integers(200, DAYS)) if random.random() < 0.1 else None]
        segment = str(random.choice(["private", "business"], p=[0.8, 0.2]))
        for begin, end in zip(changes, ends, strict=True):
            if end is not None and end <= begin:
                continue
            region = str(random.choice(["north", "south", "west"]))
            rows.append((customer, str(START + begin), None if end is None else str(START + end), region, segment))
    names = ["customer_id", "valid_from", "valid_to", "region", "segment"]
    return pa.table({name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    random = np.random.default_rng(flags.seed)
    flags.folder.mkdir(parents=True, exist_ok=True)
    pyarrow.csv.write_csv(orders(flags.rows, random), flags.folder / "orders.csv")
    pyarrow.csv.write_csv(customers(random), flags.folder / "customers.csv")


if __name__ == "__main__":
    main()
