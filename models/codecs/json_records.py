"""Records of JSON, one object each."""

from __future__ import annotations

import collections
import json
import re
import secrets
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from models.codecs.columns import RECORD, Columns, coerce_all, decode_dicts
from models.codecs.lines import Bytes, Int64, Mask, as_lines, decode_apart, offsets_and_bytes
from models.faults import RowFaults
from models.project.contract import UNIX_UNITS, Contract, Field

MAX_DEPTH = 100  # of objects and lists in one another
_FEW = 32  # records that are read sooner one by one than in a block: one in a quarter of the time

_OBJECT_LINE = r"^[ \t]*\{[^\n\r]*\}[ \t]*\r?\n?$"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)  # or what begins one: never looked at twice
_STEPS = np.zeros(256, np.int8)  # how much deeper it is behind a byte
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_NOT_FINITE = r"[:\[,]\s*-?(NaN|Inf)"  # which Arrow's reader takes for numbers, and JSON does not have
_NEGATIVE_ZERO = re.compile(rb"-0[\s,}\]]")


def decode_json(payloads: pa.BinaryArray, contract: Contract, refuse_unknown: bool, faults: RowFaults) -> Columns:
    """Decode one JSON object a payload: UTF-8, with white space and a byte order mark if it likes.

    It is JSON of RFC 8259, which has no NaN and no Infinity: in a field of the contract they are numbers that are not
    finite, which no rule lets pass. A field of the contract that stands twice is a fault.
    """

    def decode_block(part: pa.BinaryArray, found: RowFaults) -> Columns:
        columns = _read_block(part, contract, refuse_unknown)
        return decode_each(part, found) if columns is None else coerce_all(columns, contract, found)

    def decode_each(part: pa.BinaryArray, found: RowFaults) -> Columns:
        return decode_dicts(_read_objects(part, contract, found), contract, refuse_unknown, found)

    if len(payloads) <= _FEW:
        return decode_each(payloads, faults)
    return decode_apart(payloads, _are_plain(payloads), faults, decode_block, decode_each)


def _are_plain(payloads: pa.BinaryArray) -> Mask:
    """Which payloads are UTF-8, one line that starts with { and ends with }, and surely not deep."""
    starts, block = offsets_and_bytes(payloads)
    if _are_simple(starts, block):
        plain = np.ones(len(payloads), bool)
    else:
        plain = _to_mask(pc.match_substring_regex(payloads, _OBJECT_LINE))
    try:
        payloads.cast(pa.string())
    except pa.ArrowInvalid:
        plain &= [_is_utf8(payload) for payload in payloads.to_pylist()]
    text = block.tobytes()
    if b"NaN" in text or b"Inf" in text:
        plain &= ~_to_mask(pc.match_substring_regex(payloads, _NOT_FINITE))
    opening = block | 0x20 == ord("{")  # [ differs from { in that bit only
    if np.count_nonzero(opening) >= np.count_nonzero(plain) + MAX_DEPTH:  # as each plain one has one at least
        plain &= np.diff(np.searchsorted(np.flatnonzero(opening), starts)) <= MAX_DEPTH
    return plain


def _are_simple(starts: Int64, block: Bytes) -> bool:
    """Whether all payloads, where each starts in their bytes, are of _OBJECT_LINE without white space around them."""
    ends = starts[1:] - 1
    if (ends < starts[:-1]).any():
        return False
    closed = block[ends] == ord("\n")
    breaks = np.count_nonzero((block == ord("\n")) | (block == ord("\r")))
    opens, closes = block[starts[:-1]] == ord("{"), block[ends - closed] == ord("}")
    return bool(breaks == np.count_nonzero(closed) and opens.all() and closes.all())


def _read_block(payloads: pa.BinaryArray, contract: Contract, refuse_unknown: bool) -> Columns | None:
    """Plain payloads by Arrow's reader; None if one is broken or has a value of another type.

    The reader stops silently at a stray bracket behind a record, and takes several records on a line. So an
    end mark that no payload can know is put behind them: if it is read as the last of n + 1 records, then all
    n lines were read, and as no record can go over a line's end, each line holds one record and nothing else.
    """
    end = f"__end_{secrets.token_hex(8)}"
    lines = b"".join([as_lines(payloads), b'\n{"%s":1}\n' % end.encode()])
    table = _read_table(lines, contract, pa.int64(), end, refuse_unknown)
    if table is None and any(field.is_boolean for field in contract.fields.values()):
        table = _read_table(lines, contract, pa.bool_(), end, refuse_unknown)
    count = len(payloads)
    if table is None or table.num_rows != count + 1 or not table.column(end)[count].is_valid:
        return None
    return {name: table.column(name).chunk(0).slice(0, count) for name in contract.fields}


def _read_table(
    lines: bytes, contract: Contract, boolean: pa.DataType, end: str, refuse_unknown: bool
) -> pa.Table | None:
    """The records by Arrow's reader, with fields of 0 and 1 spelt as `boolean` is; None if one is broken."""
    fields = [(f.name, boolean if f.is_boolean else _loose_type(f)) for f in contract.fields.values()]
    try:
        return pa.json.read_json(
            pa.BufferReader(lines),
            parse_options=pa.json.ParseOptions(
                explicit_schema=pa.schema([*fields, (end, pa.int8())]),
                unexpected_field_behavior="error" if refuse_unknown else "ignore",
            ),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
        ).combine_chunks()
    except pa.ArrowInvalid:
        return None


def _loose_type(field: Field) -> pa.DataType:
    if field.kind == "time":
        return pa.int64() if field.time_format in UNIX_UNITS else pa.string()
    return field.arrow_type


def _read_objects(payloads: pa.BinaryArray, contract: Contract, faults: RowFaults) -> list[dict[str, Any]]:
    """An object for each payload, with nothing in it for one that is none; one fault of a kind for all rows at once."""
    found = [_read_object(payload.rstrip(b"\r\n"), contract) for payload in payloads.to_pylist()]
    refused: dict[tuple[str, str], tuple[list[int], list[Any]]] = {}
    for number, each in enumerate(found):
        if type(each) is dict:
            continue
        if isinstance(each, _Refused):
            reasons, found[number] = [(RECORD, *each)], {}
        else:
            doubled = sorted(each.twice & contract.fields.keys())
            reasons = [(name, "named twice", each.pop(name)) for name in doubled]
        for field, rule, value in reasons:
            rows, values = refused.setdefault((field, rule), ([], []))
            rows.append(number)
            values.append(value)
    for (field, rule), (rows, values) in sorted(refused.items()):
        faults.add(np.array(rows), field, rule, values)
    return found


def _read_object(payload: bytes, contract: Contract) -> Any:
    """A record's members, as an _Ambiguous where some are there twice, or a _Refused."""
    if is_deep(payload):
        return _Refused(f"nested deeper than {MAX_DEPTH} levels", payload)
    decoder = _EXACT if len(payload) > 1000 or _NEGATIVE_ZERO.search(payload) else _PLAIN
    try:
        found = decoder.decode(payload.decode().removeprefix("\ufeff"))
    except ValueError as error:
        return _Refused("not JSON", str(error))
    if not isinstance(found, dict):
        return _Refused("not a JSON object", payload)
    if _has_constant({name: value for name, value in found.items() if name not in contract.fields}):
        return _Refused("not JSON", "NaN or Infinity, which JSON does not have")
    return found


class _Refused(NamedTuple):
    """Why a payload is no record of JSON."""

    rule: str
    value: Any


class _Ambiguous(dict[str, Any]):
    """An object that names some members twice; it has the last of each."""

    def __init__(self, members: list[tuple[str, Any]]) -> None:
        super().__init__(members)
        counts = collections.Counter(name for name, _ in members)
        self.twice = {name for name, count in counts.items() if count > 1}


def _to_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    return found if len(found) == len(members) else _Ambiguous(members)


class _Constant(float):
    """NaN or an infinity, which Python's reader takes though JSON does not have them."""


def _has_constant(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_constant, value.values() if isinstance(value, dict) else value))
    return isinstance(value, _Constant)


class _LongInteger(float):
    """A whole number of more digits than 64 bits need, as the nearest double; its text is those digits."""

    def __new__(cls, text: str) -> _LongInteger:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text


def _parse_int(text: str) -> int | float:
    """A whole number as one with a fraction where that says more (-0), or where nothing needs it exactly."""
    if len(text) > 20:
        return _LongInteger(text)
    return int(text) if text != "-0" else float(text)


# Numbers need a second look where they may be -0, or of more digits than Python makes an integer of.
_PLAIN = json.JSONDecoder(parse_constant=_Constant, object_pairs_hook=_to_object)
_EXACT = json.JSONDecoder(parse_constant=_Constant, object_pairs_hook=_to_object, parse_int=_parse_int)


def is_deep(payload: bytes) -> bool:
    """Whether objects and lists stand in one another deeper than MAX_DEPTH."""
    return payload.count(b"[") + payload.count(b"{") > MAX_DEPTH and _depth(payload) > MAX_DEPTH


def _depth(payload: bytes) -> int:
    bytes_left = np.frombuffer(_STRING.sub(b"", payload), np.uint8)
    return int(np.cumsum(_STEPS[bytes_left], dtype=np.int32).max(initial=0))


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _to_mask(condition: pa.BooleanArray) -> Mask:
    return np.array(condition.to_numpy(zero_copy_only=False), dtype=bool)
