"""What flows between the steps: Arrow record batches, and how they are split and joined.

models.record names the columns that are headrace's own. The element timestamp of a batch after decoding is the end of
its slice: event time is cut into slices of a length that the source chooses (`SLICE` in the schema's metadata), and a
batch holds events of one slice only. So whoever waits until the watermark passes a slice's end has all of its events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.order import order_by
from models.record import (
    EVENT_TIME,
    INGESTED,
    IS_PROVISIONAL,
    MARKS,
    PUBLISHED,
    SLICE,
    TIMESTAMP,
)

Keys = np.ndarray[Any, Any]
_INT64 = pa.int64()
_OF_DTYPE = {"l": _INT64, "d": pa.float64()}


def concat_batches(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """All rows of `batches`, of one schema, one after another; what are parts of one column in a row is not copied."""
    if len(batches) == 1:
        return batches[0]
    columns = [_concat(parts) for parts in zip(*(batch.columns for batch in batches), strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=batches[0].schema)


def _concat(parts: Sequence[pa.Array]) -> pa.Array:
    first = parts[0]
    if not pa.types.is_dictionary(first.type):
        whole = _whole(parts)
        return pa.concat_arrays(parts) if whole is None else whole
    dictionary = _buffers(first.dictionary)
    if all(_buffers(part.dictionary) == dictionary for part in parts[1:]):
        indices = _concat([part.indices for part in parts])
        return pa.DictionaryArray.from_arrays(indices, first.dictionary, ordered=first.type.ordered, safe=False)
    return _one_chunk(pa.chunked_array(parts).unify_dictionaries())


def _whole(parts: Sequence[pa.Array]) -> pa.Array | None:
    """The column that parts are of if they follow one another there, as those of a batch that was cut do."""
    first, rows = parts[0], 0
    if pa.types.is_nested(first.type) or isinstance(first.type, pa.BaseExtensionType):
        return None
    buffers, start, _ = _buffers(first)
    for part in parts:
        found = _buffers(part)
        if found[:2] != (buffers, start + rows):
            return None
        rows += len(part)
    return pa.Array.from_buffers(first.type, rows, first.buffers(), offset=start)


def _buffers(values: pa.Array) -> tuple[list[tuple[int, int] | None], int, int]:
    """Where in memory a column's values are, the place of its first row among those there, and its rows."""
    found = [None if buffer is None else (buffer.address, buffer.size) for buffer in values.buffers()]
    return found, values.offset, len(values)


def same_text(text: str, rows: int) -> pa.DictionaryArray:
    """A dictionary column of `rows` rows that all have one text."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


def as_dictionary(values: pa.Array) -> pa.DictionaryArray:
    """Values as codes and the distinct ones, which they may be already."""
    return values if pa.types.is_dictionary(values.type) else values.dictionary_encode()


def as_batch(table: pa.Table) -> pa.RecordBatch:
    """A table as one batch."""
    columns = [_one_chunk(column) for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def take_rows(batch: pa.RecordBatch, rows: Keys) -> pa.RecordBatch:
    """The given rows, in that order."""
    indices = pa.array(rows)
    return pa.RecordBatch.from_arrays([c.take(indices) for c in batch.columns], schema=batch.schema)


def partition(batch: pa.RecordBatch, keys: Keys) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Split a batch by an integer key per row: (key, its rows in their order) for every key that occurs."""
    if not len(keys):
        return
    if (keys[0] == keys).all():
        yield int(keys[0]), batch
        return
    ordered, sorted_batch = keys, batch
    if (keys[1:] < keys[:-1]).any():
        order = order_by(keys)
        ordered, sorted_batch = keys[order], take_rows(batch, order)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [len(keys)]])
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield int(ordered[start]), sorted_batch.slice(start, stop - start)


def times_us(batch: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The event times of a batch, int64[n], microseconds since 1970 UTC."""
    return as_int64(column(batch, EVENT_TIME))


def as_int64(values: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A column of integers or times without nulls as int64[n]; times are microseconds since 1970 UTC."""
    if values.type != _INT64:
        values = values.view(_INT64) if values.type == TIMESTAMP else values.cast(_INT64)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def as_column(values: np.ndarray[Any, Any]) -> pa.Array:
    """int64[n] or float64[n] as a column of the same memory: as pa.array makes it, in a third of the time."""
    return pa.Array.from_buffers(_OF_DTYPE[values.dtype.char], len(values), [None, pa.py_buffer(values)])


def as_float64(values: pa.Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A column of numbers as float64[n], missing ones as NaN."""
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def ranks_of(values: pa.Array) -> np.ndarray[Any, Any]:
    """Numbers [n] that order a column of numbers or texts without nulls; equal ones have one number."""
    if not pa.types.is_string(values.type):
        return as_float64(values)
    return np.asarray(pc.rank(values, sort_keys="ascending", tiebreaker="dense").to_numpy())


def column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column by its name; KeyError if it isn't there, or is there twice."""
    place = batch.schema.get_field_index(name)
    if place < 0:  # Arrow would take it for the last column
        raise KeyError(f"no one column {name!r} among {batch.schema.names}")
    return batch.column(place)


def marks_of(batch: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.int8]]:
    """The marks of a batch, int8[n]."""
    return np.asarray(column(batch, MARKS).to_numpy())


def is_provisional(batch: pa.RecordBatch) -> bool:
    """Whether a batch's rows, which all are or none, are provisional."""
    return MARKS in batch.schema.names and bool(marks_of(batch)[0] & IS_PROVISIONAL)


def system_names(batch: pa.RecordBatch, *names: str) -> tuple[str, ...]:
    """The names given, and those of the stream's times if the batch has them."""
    return (*names, *(name for name in (PUBLISHED, INGESTED) if name in batch.schema.names))


def slice_ends_of(batch: pa.RecordBatch, event_time_us: Keys, cuts_us: Sequence[int] = ()) -> Keys:
    """The end of the slice of each row with these event times, as the batch's metadata says.

    Slices of a length end at the `cuts_us`, ascending, too.
    """
    declared = batch.schema.metadata[SLICE]
    if declared.startswith(b"="):
        return np.full(len(event_time_us), int(declared[1:]))
    ends = slice_ends(event_time_us, int(declared))
    if not cuts_us:
        return ends
    cuts = np.append(np.asarray(cuts_us, np.int64), np.iinfo(np.int64).max)
    return np.minimum(ends, cuts[np.searchsorted(cuts, event_time_us, side="right")])


def slice_ends(event_time_us: Keys, slice_us: int) -> Keys:
    """The end of the slice that each event lies in: the least multiple of `slice_us` after it.

    A slice is whole milliseconds, since runners keep element timestamps to the millisecond.
    """
    if slice_us <= 0 or slice_us % 1000:
        raise ValueError(f"a slice of {slice_us} us: it must be whole milliseconds, at least one")
    return (event_time_us // slice_us + 1) * slice_us


def with_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    """The batch with a column of that name, in place of the one it has or at the end; metadata stays."""
    place = batch.schema.get_field_index(name)
    return batch.append_column(name, values) if place < 0 else batch.set_column(place, name, values)


def without(batch: pa.RecordBatch, *names: str) -> pa.RecordBatch:
    """The batch without some of its columns."""
    kept = [field for field in batch.schema if field.name not in names]
    return pa.RecordBatch.from_arrays([column(batch, f.name) for f in kept], schema=pa.schema(kept))


def key_column(batch: pa.RecordBatch, names: Sequence[str]) -> pa.Array:
    """The key that columns of integers or texts are together: of one the column itself, of several texts; null where
    one of them is; of none 0 in all rows.
    """
    if not names:
        return pa.array(np.zeros(batch.num_rows, np.int64))
    columns = [column(batch, name) for name in names]
    if len(columns) == 1:
        return columns[0]
    texts = [values.cast(pa.string()) for values in columns]
    parts = [part for text in texts for part in (pc.binary_length(text).cast(pa.string()), text)]
    return pc.binary_join_element_wise(*parts, ":")


def shard_of(keys: pa.Array, shards: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """A shard int16[n] in [0, shards) for each key, the same everywhere and always."""
    if shards == 1:
        return np.zeros(len(keys), np.int16)
    return (hash_keys(keys) % np.uint64(shards)).astype(np.int16)


def hash_keys(keys: pa.Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A hash uint64[n] of integers, floats, times or strings that is the same everywhere and always; null is 0."""
    if pa.types.is_dictionary(keys.type):
        indices = keys.indices.cast(pa.int64()).fill_null(len(keys.dictionary)).to_numpy()
        return np.asarray(np.append(hash_keys(keys.dictionary), np.uint64(0))[indices])
    if pa.types.is_string(keys.type) or pa.types.is_binary(keys.type):
        hashes = _hash_strings(keys.cast(pa.binary()).fill_null(b""))  # there may be bytes under a null
    else:
        numbers = keys.cast(pa.float64() if pa.types.is_floating(keys.type) else pa.int64())
        hashes = (numbers.fill_null(0) if numbers.null_count else numbers).to_numpy().view(np.uint64)
    # The finaliser of MurmurHash3 (Appleby, public domain): every input bit moves every output bit.
    hashes = hashes ^ (hashes >> np.uint64(33))
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes *= np.uint64(factor)
        hashes ^= hashes >> np.uint64(33)
    return hashes


def _hash_strings(keys: pa.Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A polynomial hash of each string's bytes modulo 2**64."""
    _, offsets_buffer, data_buffer = keys.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[keys.offset : keys.offset + len(keys) + 1].astype(np.int64)
    if not len(keys) or offsets[-1] == offsets[0]:
        return np.zeros(len(keys), np.uint64)
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64) + np.uint64(1)
    offsets = offsets - offsets[0]
    lengths = np.diff(offsets)
    place = np.arange(len(data)) - np.repeat(offsets[:-1], lengths)
    powers = np.cumprod(np.full(int(lengths.max()), 0x9E3779B97F4A7C15, np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(data * powers[place])])
    return np.asarray(sums[offsets[1:]] - sums[offsets[:-1]])
