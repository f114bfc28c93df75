"""Blocks of text records: as one buffer for Arrow's readers, or in two parts that are read differently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.codecs.columns import Columns
from models.faults import RowFaults

Decoder = Callable[[pa.BinaryArray, RowFaults], Columns]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Int64 = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def decode_apart(
    payloads: pa.BinaryArray, first: Mask, faults: RowFaults, decode_first: Decoder, decode_others: Decoder
) -> Columns:
    """Decode the payloads of the mask `first` one way and the others another, each in one block."""
    if first.all():
        return decode_first(payloads, faults)
    if not first.any():
        return decode_others(payloads, faults)
    parts, places = [], []
    for decode, rows in (
        (decode_first, np.flatnonzero(first)),
        (decode_others, np.flatnonzero(~first)),
    ):
        found = RowFaults(len(rows))
        parts.append(decode(payloads.take(pa.array(rows)), found))
        faults.include(found, rows)
        places.append(rows)
    back = pa.array(np.argsort(np.concatenate(places), kind="stable"))
    return {name: pa.concat_arrays([part[name] for part in parts]).take(back) for name in parts[0]}


def offsets_and_bytes(payloads: pa.BinaryArray) -> tuple[Int64, Bytes]:
    """Where each payload starts in their bytes, int64[n+1], and the bytes."""
    _, offsets, values = payloads.buffers()
    starts = np.frombuffer(offsets, np.int32)[payloads.offset : payloads.offset + len(payloads) + 1]
    block = np.frombuffer(values, np.uint8) if values is not None else np.empty(0, np.uint8)
    return starts.astype(np.int64) - starts[0], block[starts[0] : starts[-1]]


def as_lines(payloads: pa.BinaryArray) -> pa.Buffer:
    """Payloads without line ends, but for one at an end, as the lines of a buffer; copied only if they aren't."""
    starts, block = offsets_and_bytes(payloads)
    ends = starts[1:-1] - 1
    if (ends >= 0).all() and (block[ends] == ord("\n")).all():
        return pa.py_buffer(block)
    if not ((block == ord("\n")) | (block == ord("\r"))).any():
        return pa.py_buffer(offsets_and_bytes(pc.binary_join_element_wise(payloads, b"\n", b""))[1][:-1])
    return pa.py_buffer(b"\n".join([payload.rstrip(b"\r\n") for payload in payloads.to_pylist()]))


def record_lengths(payloads: pa.BinaryArray) -> Int64:
    """The bytes int64[n] of each payload, less those that end its line: a record is as long in a file as alone."""
    starts, block = offsets_and_bytes(payloads)
    ends = starts[1:].astype(np.int64)
    for end in b"\n\r":
        inside = ends > starts[:-1]
        ends = ends - (inside & (block[np.maximum(ends - 1, 0)] == end)) if len(block) else ends
    return np.asarray(ends - starts[:-1])
