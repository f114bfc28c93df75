"""Card transactions to try things on: any number of rows, from a seed, like the Fraud Detection Handbook's.

The formulas are those of the handbook's chapter 3, "Transaction data simulator"
(https://fraud-detection-handbook.github.io/fraud-detection-handbook/Chapter_3_GettingStarted/SimulatedDataset.html).
Three things differ, so that any size takes the same short time and has the same share of fraud:

- rows are drawn from all customers and days, which is the handbook's Poisson process given its total;
- the handbook's radius of 5 around a customer is a square of nine cells of a grid over the same map;
- compromises are already under way on the first day, where the handbook's first four weeks have fewer.

All random numbers are integers, and so is all arithmetic up to one division of cents by 100: no result
depends on the processor, its mathematical library or the number of threads.
"""

from __future__ import annotations

import datetime
import filecmp
import functools
import math
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Literal

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import HeadraceError

Integers = npt.NDArray[np.int64]
Format = Literal["parquet", "csv", "jsonl", "avro"]

START = datetime.date(2018, 4, 1)
SCHEMA = pa.schema(
    {
        "TRANSACTION_ID": pa.int64(),
        "TX_DATETIME": pa.timestamp("us"),
        "CUSTOMER_ID": pa.int64(),
        "TERMINAL_ID": pa.int64(),
        "TX_AMOUNT": pa.float64(),
        "TX_TIME_SECONDS": pa.int64(),
        "TX_TIME_DAYS": pa.int64(),
        "TX_FRAUD": pa.int64(),
        "TX_FRAUD_SCENARIO": pa.int64(),
    }
)

_TIME = SCHEMA.get_field_index("TX_DATETIME")
_AMOUNT = SCHEMA.get_field_index("TX_AMOUNT")

_DAY = 86_400
_TERMINALS_A_CELL = 9  # so that nine cells hold about the 79 terminals within the handbook's radius
_SCENARIO_1_CENTS = 220_00
_TERMINAL_COMPROMISES = (2, 10_000, 28)  # a day, of so many, for so many days
_CUSTOMER_COMPROMISES = (3, 5_000, 14)


def generate_transactions(rows: int, seed: int = 0, days: int = 75, start: datetime.date = START) -> pa.Table:
    """Make exactly `rows` transactions of the `days` from `start`, as `SCHEMA`, ordered by time and id.

    TRANSACTION_ID counts from 0; TX_DATETIME has whole seconds and no zone; TX_TIME_SECONDS and TX_TIME_DAYS
    count from midnight of `start`; TX_AMOUNT is above 0 and the double nearest to a number of two decimals;
    TX_FRAUD is 0 or 1, and TX_FRAUD_SCENARIO is 0 where honest, else

    1. an amount above 220;
    2. any transaction of a terminal compromised for 28 days;
    3. one in three of a customer compromised for 14 days, its amount multiplied by 5.

    There are about 1.92 transactions a customer a day and two terminals a customer, as in the handbook. The
    same arguments give the same bytes. ValueError if `rows` or `seed` is negative or `days` is less than 1.
    """
    if rows < 0 or seed < 0 or days < 1:
        raise ValueError(f"need rows >= 0, seed >= 0, days >= 1: got rows={rows}, seed={seed}, days={days}")
    rng = np.random.Generator(np.random.PCG64(seed))
    customers = max(3, rows * 100 // (days * 192))
    terminals = 2 * customers

    # Times are independent of all else, so sorting them first leaves no other column to reorder.
    time = rng.integers(days, size=rows) * _DAY + _draw_second_of_day(rng, rows)
    time.sort()
    day = time // _DAY

    activity = 1 + rng.permutation(customers) * 64 // customers  # 1 to 64, as the handbook's rate of 0 to 4
    ballot = np.repeat(np.arange(customers), activity)
    customer = ballot[rng.integers(len(ballot), size=rows)]
    terminal = _draw_terminal(rng, customer, customers, terminals)
    # As the handbook's mean of 5 to 100.
    mean_cents = 500 + (2 * rng.permutation(customers) + 1) * 9500 // (2 * customers)
    cents = _draw_cents(rng, mean_cents[customer])

    scenario = np.where(cents > _SCENARIO_1_CENTS, 1, 0)
    scenario[_draw_compromised(rng, terminals, days, *_TERMINAL_COMPROMISES)[terminal, day]] = 2
    abused = _draw_compromised(rng, customers, days, *_CUSTOMER_COMPROMISES)[customer, day]
    abused &= rng.integers(3, size=rows) == 0
    scenario[abused] = 3
    cents[abused] *= 5

    columns = {
        "TRANSACTION_ID": np.arange(rows),
        "TX_DATETIME": np.datetime64(start, "us") + time.astype("m8[s]"),
        "CUSTOMER_ID": customer,
        "TERMINAL_ID": terminal,
        "TX_AMOUNT": cents / 100,
        "TX_TIME_SECONDS": time,
        "TX_TIME_DAYS": day,
        "TX_FRAUD": (scenario > 0).astype(np.int64),
        "TX_FRAUD_SCENARIO": scenario,
    }
    return pa.table(columns, schema=SCHEMA)


@functools.cache
def _normal_quantiles() -> Integers:
    """The normal distribution's quantiles at 0, 1/4096, ..., 1 in units of 2**-20, cut at 4 deviations."""
    inner = [statistics.NormalDist().inv_cdf(i / 4096) for i in range(1, 4096)]
    return np.array([round(z * 2**20) for z in [-4.0, *inner, 4.0]])


def _draw_normal(rng: np.random.Generator, size: int) -> Integers:
    """Standard normal numbers in units of 2**-20, by the table and a straight line between its entries."""
    quantiles = _normal_quantiles()
    uniform = rng.integers(1 << 32, size=size)
    low = uniform >> 20
    below = quantiles[low]
    normal: Integers = below + ((quantiles[low + 1] - below) * (uniform & 0xFFFFF) >> 20)
    return normal


def _draw_second_of_day(rng: np.random.Generator, size: int) -> Integers:
    """Around noon with a deviation of 20,000 s; what falls outside the day is drawn again."""
    second: Integers = _DAY // 2 + (20_000 * _draw_normal(rng, size) >> 20)
    while len(outside := np.flatnonzero((second < 0) | (second >= _DAY))):
        second[outside] = _DAY // 2 + (20_000 * _draw_normal(rng, len(outside)) >> 20)
    return second


def _draw_cents(rng: np.random.Generator, mean: Integers) -> Integers:
    """Normal with a deviation of half the mean; what is not above 0 is drawn evenly up to twice the mean."""
    cents = mean + (mean * _draw_normal(rng, len(mean)) >> 21)
    negative = np.flatnonzero(cents <= 0)
    cents[negative] = 1 + (2 * mean[negative] * rng.integers(1 << 32, size=len(negative)) >> 32)
    return cents


def _draw_terminal(rng: np.random.Generator, customer: Integers, customers: int, terminals: int) -> Integers:
    """For each row one of the terminals in the customer's cell of the map and the eight around it.

    The cells hold equally many terminals, give or take one, so that no customer is without.
    """
    side = max(1, math.isqrt(terminals // _TERMINALS_A_CELL))
    cells = side * side
    place = rng.integers(cells, size=customers)[customer]
    step = rng.integers(9, size=len(customer))
    x = np.clip(place % side + step % 3 - 1, 0, side - 1)
    y = np.clip(place // side + step // 3 - 1, 0, side - 1)
    cell = y * side + x
    # Before they are given shuffled ids, cell c has terminals c, c + cells, c + 2 * cells, ...
    in_cell = (terminals - cell - 1) // cells + 1
    nth = in_cell * rng.integers(1 << 32, size=len(customer)) >> 32
    ids: Integers = rng.permutation(terminals)
    return ids[cell + cells * nth]


def _draw_compromised(
    rng: np.random.Generator, entities: int, days: int, a_day: int, of: int, length: int
) -> npt.NDArray[np.bool_]:
    """Say whether each entity is compromised on each day: `a_day` in `of` begin a day, for `length` days."""
    span = days + length - 1  # one that begins before our days may still last into them
    runs = max(1, a_day * entities * span // of)
    begins = (2 * np.arange(runs) + 1) * span // (2 * runs) - (length - 1)
    chosen = rng.permutation(entities)[np.arange(runs) % entities]
    compromised = np.zeros((entities, days), dtype=bool)
    for entity, begin in zip(chosen.tolist(), begins.tolist(), strict=True):
        compromised[entity, max(0, begin) : begin + length] = True
    return compromised


class SampleError(HeadraceError, ValueError):
    """A sample that would take the place of other files."""


def write_sample(
    directory: pathlib.Path,
    rows: int,
    seed: int = 0,
    days: int = 75,
    start: datetime.date = START,
    format: Format = "parquet",
    on_rows: Callable[[int], None] | None = None,
) -> list[pathlib.Path]:
    """Write what `generate_transactions` makes, one file a day, also of a day without rows; return the files.

    A file is named `transactions-2018-04-01.parquet` and appears whole or not at all. In CSV and JSON lines
    times are `YYYY-MM-DD HH:MM:SS`, in Avro timestamp-micros. `on_rows` gets the rows of each file written.
    SampleError, and nothing is written, if a file of one of the names is there with other bytes.
    """
    write = _WRITERS[format]
    table = generate_transactions(rows, seed, days, start)
    ends = np.searchsorted(table["TX_TIME_DAYS"].to_numpy(), np.arange(days + 1)).tolist()
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"transactions-{start + datetime.timedelta(days=day)}.{format}" for day in range(days)]
    with tempfile.TemporaryDirectory(dir=directory, prefix=".sample-") as unfinished:
        made = [pathlib.Path(unfinished, name) for name in names]
        for path, first, end in zip(made, ends[:-1], ends[1:], strict=True):
            write(table.slice(first, end - first), path)
            target = directory / path.name
            if os.path.lexists(target) and not (target.is_file() and filecmp.cmp(path, target, shallow=False)):
                raise SampleError(f"{target}: is there already and is not replaced: name another folder")
            if on_rows is not None:
                on_rows(end - first)
        for path in made:
            if not os.path.lexists(directory / path.name):
                os.replace(path, directory / path.name)
    return [directory / name for name in names]


def _write_csv(table: pa.Table, path: pathlib.Path) -> None:
    lines = pc.binary_join_element_wise(*_as_texts(table), ",").to_pylist()
    path.write_text("".join(f"{line}\n" for line in [",".join(SCHEMA.names), *lines]), newline="\n")


def _write_jsonl(table: pa.Table, path: pathlib.Path) -> None:
    texts = _as_texts(table)
    texts[_TIME] = pc.binary_join_element_wise('"', texts[_TIME], '"', "")
    named = zip(SCHEMA.names, texts, strict=True)
    members = [pc.binary_join_element_wise(f'"{name}":', text, "") for name, text in named]
    lines = pc.binary_join_element_wise(*members, ",").to_pylist()
    path.write_text("".join(f"{{{line}}}\n" for line in lines), newline="\n")


def _as_texts(table: pa.Table) -> list[pa.ChunkedArray]:
    """Each column as text; an amount has a decimal point even if whole, so that readers infer a double."""
    columns = table.columns
    columns[_TIME] = columns[_TIME].cast(pa.timestamp("s"))  # a text of microseconds would end in .000000
    texts = [column.cast(pa.string()) for column in columns]
    has_point = pc.match_substring(texts[_AMOUNT], ".")
    with_point = pc.binary_join_element_wise(texts[_AMOUNT], "0", ".")
    texts[_AMOUNT] = pc.if_else(has_point, texts[_AMOUNT], with_point)
    return texts


def _write_avro(table: pa.Table, path: pathlib.Path) -> None:
    # As an integer, since fastavro takes a datetime without zone to be of this machine's zone.
    microseconds = table.set_column(_TIME, "TX_DATETIME", table["TX_DATETIME"].cast(pa.int64()))
    with path.open("wb") as file:
        records = microseconds.to_pylist()
        fastavro.writer(file, _AVRO_SCHEMA, records, codec="deflate", sync_marker=_AVRO_MARKER)


_AVRO_TYPES = {
    pa.int64(): "long",
    pa.float64(): "double",
    pa.timestamp("us"): {"type": "long", "logicalType": "timestamp-micros"},
}
_AVRO_MARKER = b"transactions1234"  # fixed, since fastavro's is random
_AVRO_SCHEMA = {
    "type": "record",
    "name": "Transaction",
    "fields": [{"name": field.name, "type": _AVRO_TYPES[field.type]} for field in SCHEMA],
}
_WRITERS: dict[Format, Callable[[pa.Table, pathlib.Path], None]] = {
    "parquet": pq.write_table,
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "avro": _write_avro,
}
