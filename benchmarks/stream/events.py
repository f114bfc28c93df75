"""The card transactions as the messages of a stream: in the file's order, without end, and some of them bad."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

DAY_US = 86_400_000_000
WINDOW_DAYS = 37  # the widest window of card_fraud, 30 days, behind a delay of 7


@dataclasses.dataclass(frozen=True)
class Defects:
    """Shares of the events that are invalid, and of the valid ones that come twice."""

    invalid: float = 0.0
    duplicate: float = 0.0


NO_DEFECTS = Defects()


def chosen(numbers: Int64, share: float, salt: int) -> Bool:
    """A share of `numbers` that looks random and is always the same, however they are cut into pieces."""
    mixed = (numbers.astype(np.uint64) + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.asarray((mixed >> np.uint64(11)) < np.uint64(int(share * 2**53)))


def invalid(numbers: Int64, defects: Defects) -> Bool:
    """Which events are made bad."""
    return chosen(numbers, defects.invalid, 1)


def twice(numbers: Int64, defects: Defects) -> Bool:
    """Which events are published a second time; none of them is bad."""
    return chosen(numbers, defects.duplicate, 2) & ~invalid(numbers, defects)


def spoil(message: bytes, kind: int) -> bytes:
    """A message with one fault: cut off, below its domain, without a customer, or without a usable time."""
    faults = (
        message[:-20],
        message.replace(b'"TX_AMOUNT":', b'"TX_AMOUNT":-1', 1),
        message.replace(b'"CUSTOMER_ID"', b'"CUSTOMER"', 1),
        message.replace(b'"TX_DATETIME":"', b'"TX_DATETIME":"at ', 1),
    )
    return faults[kind % len(faults)]


def micros_as_text(times_us: Int64) -> list[bytes]:
    """`2018-04-01 00:00:31.000000` for microseconds since 1970 UTC."""
    text = np.datetime_as_string(times_us.astype("datetime64[us]"), unit="us")
    return [b"%s %s" % (each[:10].encode(), each[11:].encode()) for each in text.tolist()]


class Transactions:
    """The rows of a Parquet file as JSON; event n is row n, and begins anew where the file ends."""

    def __init__(self, path: pathlib.Path, rows: int | None = None) -> None:
        table = pq.read_table(path)
        table = table if rows is None else table.slice(0, rows)
        self.times_us: Int64 = table["TX_DATETIME"].cast("int64").to_numpy()
        names = [name for name in table.column_names if name not in ("TRANSACTION_ID", "TX_DATETIME")]
        form = ",".join(f'"{name}":%s' for name in names) + "}"
        columns = [table[name].to_pylist() for name in names]
        self._rest = [(form % values).encode() for values in zip(*columns, strict=True)]

    def __len__(self) -> int:
        return len(self._rest)

    def event_times(self, numbers: Int64) -> Int64:
        """Event times as the file has them; where it begins anew, they go on with the day after its last."""
        span = (self.times_us[-1] // DAY_US - self.times_us[0] // DAY_US + 1) * DAY_US
        return np.asarray(self.times_us[numbers % len(self)] + numbers // len(self) * span)

    def messages(self, numbers: Int64, times_us: Int64, defects: Defects = NO_DEFECTS) -> list[bytes]:
        """Events of these numbers, which become their ids, with these event times."""
        rest, rows = self._rest, len(self._rest)
        found = [
            b'{"TRANSACTION_ID":%d,"TX_DATETIME":"%s",%s' % (number, time, rest[number % rows])
            for number, time in zip(numbers.tolist(), micros_as_text(times_us), strict=True)
        ]
        for place in np.flatnonzero(invalid(numbers, defects)).tolist():
            found[place] = spoil(found[place], int(numbers[place]) // 7)
        return found


def write_history(source: pathlib.Path, target: pathlib.Path, end_us: int) -> int:
    """The file's first 37 days, moved so that they end at `end_us`, with ids of their own; returns the rows."""
    table = pq.read_table(source)
    times: Any = table["TX_DATETIME"].cast("int64").to_numpy()
    table = table.slice(0, int(np.searchsorted(times, times[0] + WINDOW_DAYS * DAY_US)))
    times = times[: len(table)] - (times[0] + WINDOW_DAYS * DAY_US) + end_us
    ids = np.arange(len(table)) + 10_000_000_000
    for name, values in (("TX_DATETIME", times.astype("datetime64[us]")), ("TRANSACTION_ID", ids)):
        table = table.set_column(table.column_names.index(name), name, [values])
    pq.write_table(table, target)
    return len(table)


def write_json(source: pathlib.Path, target: pathlib.Path, rows: int) -> None:
    """The file's first rows as JSON lines, as they would be published."""
    events = Transactions(source, rows)
    with target.open("wb") as file:
        file.writelines(line + b"\n" for line in events.messages(np.arange(len(events)), events.times_us))


def first_ids(payloads: Sequence[bytes], pattern: Any) -> list[int]:
    """The number that `pattern` finds in each payload; -1 where it finds none."""
    return [int(match[1]) if (match := pattern.search(payload)) else -1 for payload in payloads]
