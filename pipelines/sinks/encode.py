"""The rows of a file: gathered, in order, and encoded part by part."""

from __future__ import annotations

import collections
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.batches import as_int64, column, concat_batches, partition, take_rows
from models.codecs import encode_json_lines
from models.order import is_in_place, sort_order
from pipelines.spill import Spill

ROWS_AT_ONCE = 1 << 17  # that a file is encoded in; a row group of Parquet
SORTED_ROWS = 1 << 15  # at once, where rows are sorted on disk
LOOKED_AT_ROWS = 1 << 11  # to choose how a file's columns are encoded


def gather(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """All rows of the batches, which are taken out of their list: a column at a time, so that none is there twice."""
    names = batches[0].schema.names
    columns = [list(batch.columns) for batch in batches]
    batches.clear()
    gathered = [
        concat_batches([pa.RecordBatch.from_arrays([part.pop(0)], names=[name]) for part in columns]).column(0)
        for name in names
    ]
    return pa.RecordBatch.from_arrays(gathered, names=names)


def in_order(batch: pa.RecordBatch, first: str, second: str) -> Iterator[pa.RecordBatch]:
    """The rows sorted by two columns, in parts of ROWS_AT_ONCE."""
    numbers = _numbers(batch, first)
    order = None
    if not (numbers[1:] > numbers[:-1]).all():
        order = sort_order(column(batch, second), numbers)
        order = None if is_in_place(order) else order
    for start in range(0, batch.num_rows, ROWS_AT_ONCE):
        if order is None:
            yield batch.slice(start, ROWS_AT_ONCE)
        else:
            yield take_rows(batch, order[start : start + ROWS_AT_ONCE])


def in_order_on_disk(batches: Iterable[pa.RecordBatch], first: str, second: str) -> Iterator[pa.RecordBatch]:
    """What `in_order` gives of all rows of batches, which may be too many for memory: they are sorted on disk.

    The batches are gone through twice. Rows of one number in `first` have to fit into memory.
    """
    numbers = np.concatenate([_numbers(batch, first) for batch in batches])
    if len(numbers) <= ROWS_AT_ONCE:
        yield from in_order(gather(list(batches)), first, second)
        return
    edges = np.arange(SORTED_ROWS, len(numbers), SORTED_ROWS)
    numbers.partition(edges)
    edges = np.unique(numbers[edges])
    del numbers
    spill, places = Spill(), collections.defaultdict[int, list[tuple[int, int]]](list)
    for batch in _at_once(batches, SORTED_ROWS):
        for number, rows in partition(batch, np.searchsorted(edges, _numbers(batch, first), side="right")):
            places[number].append(spill.append([rows]))
    parts = ([rows for place in places[number] for rows in spill.read(*place)] for number in sorted(places))
    yield from _at_once((rows for part in parts for rows in in_order(gather(part), first, second)), ROWS_AT_ONCE)


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return as_int64(column(batch, name).cast(pa.int64()).fill_null(0))


def _at_once(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `size`, but for the last."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= size:
            whole = gather(waiting)
            while rows >= size:
                yield whole.slice(0, size)
                whole, rows = whole.slice(size), rows - size
            waiting = [whole]
    if rows:
        yield gather(waiting)


def encode(parts: Iterator[pa.RecordBatch], kind: str, file: Any) -> None:
    """Write the rows, of one part at least, to a file as Parquet, or as JSON lines if `kind` is jsonl."""
    if kind == "jsonl":
        for part in parts:
            file.write(encode_json_lines(part))
        return
    plain = (_plain(part) for part in parts)
    first = next(plain)
    with pq.ParquetWriter(file, first.schema, compression="snappy", use_dictionary=_repeated(first)) as writer:
        for part in itertools.chain([first], plain):
            writer.write_batch(part)


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch without dictionaries."""
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _repeated(batch: pa.RecordBatch) -> list[str]:
    """The columns whose values come again and again in the first rows: others take a dictionary four times as long."""
    rows = batch.slice(0, LOOKED_AT_ROWS)
    columns = zip(rows.schema.names, rows.columns, strict=True)
    return [name for name, c in columns if pa.types.is_nested(c.type) or 2 * len(c.unique()) <= rows.num_rows]


class Digested:
    """A file that is written, and its SHA-256."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Nothing: who opened it closes it."""

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
