"""What an entity with very many events costs a request, beside one with few.

    PYTHONPATH=. .venv/bin/python benchmarks/hot_key.py [--events 1000000] [--requests 400] [--absorb] [--aggregates]

Fills an embedded store with a month of the example's transactions, of which one customer has so many and another a
hundred, and asks the endpoint's service for both, in turns, in this process and without HTTP. With --absorb each event
is added to the store before the next. With --aggregates customers have extremes, ends and different values of windows,
too.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import tempfile
import time

import numpy as np
import pyarrow as pa

from models.features.row import before_windows
from models.project.project import load_project
from models.record import EVENT_TIME, TIMESTAMP
from models.store.kinds import keys_of, kinds_of, rows_of
from pipelines.serve.models import OneModel
from pipelines.serve.service import Service
from pipelines.store import Store, open_store
from tests.kit.support import tiny_scorer

MEAN = "CUSTOMER_ID_AVG_AMOUNT_{window}_WINDOW: mean(TX_AMOUNT)\n"
OTHERS = """
        LEAST_{window}: min(TX_AMOUNT)
        MOST_{window}: max(TX_AMOUNT)
        FIRST_{window}: first(TX_AMOUNT)
        THIRD_{window}: last(TX_AMOUNT, 3)
        PAUSE_{window}: since_last
        PLACES_{window}: distinct(TERMINAL_ID)
"""
EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "card_fraud"
START_US, SPAN_US = 1_525_132_800_000_000, 30 * 86_400_000_000
HOT, COLD = 1, 2
TERMINALS = 2_000


def fill(store: Store, project: object, customer: int, number: int, terminals: int) -> None:
    """A customer's events, evenly over thirty days."""
    random = np.random.default_rng(customer)
    times = START_US + np.sort(random.integers(0, SPAN_US // 1_000_000, number)) * 1_000_000
    columns = {
        "TRANSACTION_ID": pa.array(np.arange(number) + customer * 10**9),
        "CUSTOMER_ID": pa.array(np.full(number, customer)),
        "TERMINAL_ID": pa.array(random.integers(0, terminals, number)),
        "TX_AMOUNT": pa.array(np.round(random.uniform(1, 100, number), 2)),
        "TX_FRAUD": pa.array(random.integers(0, 2, number)),
        EVENT_TIME: pa.array(times).cast(TIMESTAMP),
    }
    batch = before_windows(pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), project)
    for kind in (kind for kind in kinds_of(project).values() if kind.is_of_events):
        for at in range(0, number, 100_000):
            part = batch.slice(at, 100_000)
            store.append(kind, rows_of(kind, part), keys_of(kind, part))
    store.settle()


def with_others(folder: pathlib.Path) -> pathlib.Path:
    """The example in a folder, with features of more kinds."""
    (folder / "schema.pbtxt").write_text((EXAMPLE / "schema.pbtxt").read_text())
    text = (EXAMPLE / "project.yaml").read_text()
    assert MEAN in text
    (folder / "project.yaml").write_text(text.replace(MEAN, MEAN.rstrip() + OTHERS))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--absorb", action="store_true")
    parser.add_argument("--aggregates", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-hot-") as scratch:
        project = load_project(with_others(pathlib.Path(scratch)) if asked.aggregates else EXAMPLE)
        store = open_store(f"{scratch}/store.db", project.feature_set, create=True)
        fill(store, project, HOT, asked.events, TERMINALS)
        fill(store, project, COLD, 100, TERMINALS)
        model = OneModel(project, tiny_scorer(project.model.inputs), "bundle")
        service = Service(project, model, store, asked.absorb, 10.0)
        took: dict[int, list[tuple[float, float]]] = {HOT: [], COLD: []}
        random = np.random.default_rng(0)
        for number in range(asked.requests):
            for customer in took:
                second = str(np.datetime64(START_US + SPAN_US + number * 1_000_000, "us")).replace("T", " ")
                event = {"TRANSACTION_ID": 9 * 10**9 + 2 * number + customer, "TX_DATETIME": second, "TX_AMOUNT": 25.5}
                event |= {"CUSTOMER_ID": customer, "TERMINAL_ID": int(random.integers(TERMINALS)), "TX_FRAUD": 0}
                started, processor = time.perf_counter(), time.process_time()
                reply = service._score([json.dumps(event).encode()], False, 0)  # in this thread, for its processor time
                took[customer].append((time.perf_counter() - started, time.process_time() - processor))
                assert reply.scored == 1, reply.answers
        first = f"first request of the hot key {took[HOT][0][0]:.2f} s"
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {first}\n")
        print("| events of the customer | p50, ms | p99, ms | processor p50, ms | processor p99, ms |")
        print("|---|---|---|---|---|")
        for customer, number in ((HOT, asked.events), (COLD, 100)):
            found = 1000 * np.array(took[customer][10:])
            p50, p99 = np.percentile(found, 50, axis=0), np.percentile(found, 99, axis=0)
            print(f"| {number:,} | {p50[0]:.2f} | {p99[0]:.2f} | {p50[1]:.2f} | {p99[1]:.2f} |")
        service.close()


if __name__ == "__main__":
    main()
