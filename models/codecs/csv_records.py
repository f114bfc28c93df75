"""Records of CSV, one a payload, as RFC 4180 says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from models.codecs.columns import RECORD, Columns, coerce, fits_int64, wrong_type
from models.codecs.lines import Mask, as_lines, decode_apart, offsets_and_bytes
from models.codecs.rfc4180 import BYTE_ORDER_MARK, NotCsv, misplaced, split_fields
from models.faults import UNKNOWN_FIELD, RowFaults
from models.project.contract import UNIX_UNITS, Contract, Field

_INT_TEXT = r"^[+-]?[0-9]{1,19}$"
_FLOAT_TEXT = r"^[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|(?i:nan|inf|infinity))$"
_ODD = BYTE_ORDER_MARK[0]  # in text no character but odd ones starts with it


def decode_csv(
    payloads: pa.BinaryArray,
    header: Sequence[str],
    contract: Contract,
    refuse_unknown: bool,
    faults: RowFaults,
) -> Columns:
    """Decode one record of CSV a payload; an empty field is a missing value."""
    for name in header if refuse_unknown else ():
        if name not in contract.fields:
            faults.add(np.arange(len(payloads)), name, UNKNOWN_FIELD)
    table = _read_block(payloads, header)
    if table is None:
        table = decode_apart(
            payloads,
            _are_plain(payloads, len(header)),
            faults,
            lambda part, _: _read_plain(part, header),
            lambda part, found: _read_each(part, header, found),
        )
    return {
        name: _parse_text(table[name], field, faults) if name in table else pa.nulls(len(payloads), field.arrow_type)
        for name, field in contract.fields.items()
    }


def _read_block(payloads: pa.BinaryArray, header: Sequence[str]) -> Columns | None:
    """All records by Arrow's reader, or None where one may be broken or need more care."""
    starts, block = offsets_and_bytes(payloads)
    if not len(block) or (block == ord('"')).any() or (block == ord("\r")).any():
        return None
    lengths = np.diff(starts)
    last = block[starts[1:] - 1] == ord("\n")
    if (lengths - last).min() < 1 or np.count_nonzero(block == ord("\n")) != np.count_nonzero(last):
        return None
    if (block[starts[:-1]] == _ODD).any():
        return None
    try:
        return _read_plain(payloads, header)
    except pa.ArrowInvalid:
        return None


def _are_plain(payloads: pa.BinaryArray, fields: int) -> Mask:
    """Which payloads Arrow's reader surely reads as we mean it: UTF-8, so many fields, all quotes in their place."""
    starts, block = offsets_and_bytes(payloads)
    quotes = np.flatnonzero(block == ord('"'))
    plain = np.diff(np.searchsorted(quotes, starts)) % 2 == 0
    if not plain.all():
        even = np.flatnonzero(plain)
        if len(even):
            plain[even] = _are_plain(payloads.take(pa.array(even)), fields)
        return np.asarray(plain)
    plain[np.searchsorted(starts, misplaced(block, quotes, starts), "right") - 1] = False

    def count(byte: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        places = np.flatnonzero(block == ord(byte))
        if len(quotes):
            places = places[np.searchsorted(quotes, places) % 2 == 0]
        return np.diff(np.searchsorted(places, starts))

    padded = np.concatenate([np.zeros(2, np.uint8), block, np.zeros(1, np.uint8)])
    newline = (padded[starts[1:] + 1] == ord("\n")) & (np.diff(starts) > 0)
    returned = newline & (padded[starts[1:]] == ord("\r")) & (np.diff(starts) > 1)
    plain &= count(",") == fields - 1
    plain &= (count("\n") == newline) & (count("\r") == returned)
    plain &= np.diff(starts) > newline.astype(int) + returned
    plain &= padded[starts[:-1] + 2] != _ODD
    try:
        payloads.cast(pa.string())
    except pa.ArrowInvalid:
        odd = np.diff(np.searchsorted(np.flatnonzero(block >= 0x80), starts)) > 0
        plain &= ~odd
    return np.asarray(plain)


def _read_plain(payloads: pa.BinaryArray, header: Sequence[str]) -> Columns:
    lines = as_lines(payloads)
    table = pa.csv.read_csv(
        pa.BufferReader(lines),
        read_options=pa.csv.ReadOptions(
            column_names=list(header), use_threads=False, block_size=max(len(lines) + 1, 1 << 16)
        ),
        parse_options=pa.csv.ParseOptions(ignore_empty_lines=False, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in header}, null_values=[""], strings_can_be_null=True
        ),
    ).combine_chunks()
    if table.num_rows != len(payloads):
        raise pa.ArrowInvalid(f"{table.num_rows} rows in {len(payloads)} records")
    return {name: table.column(name).chunk(0) for name in header}


def _read_each(payloads: pa.BinaryArray, header: Sequence[str], faults: RowFaults) -> Columns:
    """Each record on its own: broken ones and odd ones."""
    rows: list[Sequence[str | None]] = []
    for number, payload in enumerate(payloads.to_pylist()):
        row: Sequence[str | None] = [None] * len(header)
        try:
            text = payload.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
            found = split_fields(text) if text else []
            if len(found) == len(header):
                row = [value or None for value in found]
            else:
                rule = f"not a line of {len(header)} fields"
                faults.add(np.array([number]), RECORD, rule, [f"{len(found)} fields"])
        except (NotCsv, UnicodeDecodeError) as error:
            faults.add(np.array([number]), RECORD, "not a line of CSV", [str(error)])
        rows.append(row)
    return {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(header)}


def _parse_text(text: pa.StringArray, field: Field, faults: RowFaults) -> pa.Array:
    """A column of text as the field's type; what is not of it becomes null and a fault."""
    if field.kind == "string" or (field.kind == "time" and field.time_format not in UNIX_UNITS):
        return coerce(text, field, faults)
    is_float = field.kind == "float"
    target = pa.float64() if is_float else pa.int64()
    trimmed = pc.utf8_trim_whitespace(text)
    fits = pc.match_substring_regex(trimmed, _FLOAT_TEXT if is_float else _INT_TEXT)
    good = pc.if_else(fits.fill_null(False), trimmed, None)
    try:
        numbers = good.cast(target)
    except pa.ArrowInvalid:  # a plus sign, or 19 digits and beyond 64 bits
        parse: Callable[[str], Any] = float if is_float else int
        values = [None if v is None else parse(v) for v in good.to_pylist()]
        numbers = pa.array([v if is_float or (v is not None and fits_int64(v)) else None for v in values], target)
    wrong = pc.and_(pc.is_valid(text), pc.is_null(numbers))
    if pc.any(wrong).as_py():
        faults.add(np.flatnonzero(wrong.to_numpy(zero_copy_only=False)), field.name, wrong_type(field), text)
    return coerce(numbers, field, faults)
