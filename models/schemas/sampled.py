"""Columns of records without a contract: what types they have, and which of them no contract can hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from models.codecs import Columns, decode_csv
from models.codecs.times import times_from_timestamps
from models.faults import RowFaults
from models.project.contract import Contract, Field, SchemaError
from models.record import TIMESTAMP

MAX_COLUMNS = 2000
_MAX_SHOWN_NAME = 80

_INT_TEXT = r"^\s*[+-]?(0|[1-9][0-9]{0,18})\s*$"
_FLOAT_TEXT = r"^\s*[+-]?((0|[1-9][0-9]*)?\.[0-9]*|(0|[1-9][0-9]{0,18}))([eE][+-]?[0-9]+)?\s*$"
_TYPES = {
    pa.int64(): "whole numbers",
    pa.float64(): "numbers",
    pa.string(): "text",
    pa.bool_(): "true and false",
    TIMESTAMP: "times",
}


class Unusable(str):
    """Why a column can't be a field of a contract."""


@dataclasses.dataclass
class SampledColumns:
    """Rows that were read, column by column; of one with values of several types, or of none that is known, why.

    A row that could not be read counts as `broken` and is in no column.
    """

    rows: int = 0
    broken: int = 0
    _typed: dict[str, list[pa.Array]] = dataclasses.field(default_factory=dict)
    _texts: dict[str, list[pa.Array]] = dataclasses.field(default_factory=dict)  # of CSV: types are still to be found
    _unusable: dict[str, Unusable] = dataclasses.field(default_factory=dict)
    _names: dict[str, None] = dataclasses.field(default_factory=dict)  # in the order in which they came

    def add_typed(self, names: Sequence[str], columns: Sequence[pa.Array]) -> None:
        """Add rows of typed columns, as Parquet and Avro have them."""
        self.rows += len(columns[0]) if columns else 0
        for name, column in zip(names, columns, strict=True):
            self._add(name, _canonical(column))

    def add_json(self, payloads: Iterable[bytes]) -> None:
        """Add JSON objects, one a payload."""
        rows = []
        for payload in payloads:
            try:
                row = json.loads(payload.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                self.broken += 1
        self.rows += len(rows)
        for name in dict.fromkeys(name for row in rows for name in row):
            self._add(name, _from_values([row.get(name) for row in rows]))

    def add_csv(self, payloads: pa.BinaryArray, header: Sequence[str]) -> None:
        """Add lines of CSV; an empty field is missing."""
        contract = Contract({name: Field(name, "string") for name in header}, b"")
        faults = RowFaults(len(payloads))
        texts = decode_csv(payloads, header, contract, False, faults)
        good = pa.array(~faults.bad)
        self.broken += int(faults.bad.sum())
        self.rows += len(payloads) - int(faults.bad.sum())
        for name in header:
            self._note(name)
            self._texts.setdefault(name, []).append(texts[name].filter(good))

    def _add(self, name: str, column: pa.Array | Unusable) -> None:
        self._note(name)
        if isinstance(column, Unusable):
            self._unusable.setdefault(name, column)
        else:
            self._typed.setdefault(name, []).append(column)

    def _note(self, name: str) -> None:
        self._names[name] = None
        if len(self._names) > MAX_COLUMNS:
            raise SchemaError(f"more than {MAX_COLUMNS} different fields in {self.rows} rows: these are no field names")

    def columns(self) -> Columns:
        """Name → int64, float64, string, bool or timestamp[us, UTC], of `rows` values each."""
        found = {name: self._column(name) for name in self._names}
        return {name: column for name, column in found.items() if not isinstance(column, Unusable)}

    def unusable(self) -> dict[str, str]:
        """Name → why it can't be a field, in the order in which they came."""
        found = {name: self._column(name) for name in self._names}
        return {name: str(column) for name, column in found.items() if isinstance(column, Unusable)}

    def _column(self, name: str) -> pa.Array | Unusable:
        if not name or not name.isprintable():
            return Unusable("its name has characters that can't be seen")
        if name.startswith("__"):
            return Unusable("names starting with __ are headrace's own")
        if name in self._unusable:
            return self._unusable[name]
        parts = list(self._typed.get(name, []))
        if name in self._texts:
            parts.append(_read_text(pa.concat_arrays(self._texts[name])))
        types = {part.type for part in parts} - {pa.null()}
        if types == {pa.int64(), pa.float64()}:
            types = {pa.float64()}
        if not types:
            return Unusable("no row that was read has a value, so its type is not known")
        if len(types) > 1:
            return Unusable(f"has values of several types: {', '.join(sorted(_TYPES[t] for t in types))}")
        kind = types.pop()
        parts = [part.cast(kind, safe=False) for part in parts]
        return pa.concat_arrays([*parts, pa.nulls(self.rows - sum(map(len, parts)), kind)])


def _canonical(column: pa.Array) -> pa.Array | Unusable:
    """A column as one of the types that a contract has, or null where it has no type."""
    types = pa.types
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if types.is_null(kind) or types.is_boolean(kind):
        return column
    try:
        if types.is_integer(kind):
            return column.cast(pa.int64())
        if types.is_floating(kind) or types.is_decimal(kind):
            return column.cast(pa.float64(), safe=False)
        if types.is_timestamp(kind) or types.is_date(kind):
            return times_from_timestamps(column)
        if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
            text = column.cast(pa.string())
            text.validate(full=True)
            return text
    except pa.ArrowInvalid:
        return Unusable("has bytes that are not UTF-8 text, or whole numbers beyond 64 bits")
    return Unusable(f"is of type {str(kind)[:_MAX_SHOWN_NAME]}; a field has one number, text or truth value a row")


def _from_values(values: Sequence[Any]) -> pa.Array | Unusable:
    """A column from what JSON has."""
    types = {type(value) for value in values if value is not None}
    if types & {list, dict}:
        return Unusable("has lists or objects; a field has one number, text or truth value a row")
    if types == {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if len(types) > 1:
        kinds = {int: "numbers", float: "numbers", bool: "true and false", str: "text"}
        return Unusable(f"has values of several types: {', '.join(sorted({kinds[t] for t in types}))}")
    try:
        return pa.array(values)
    except (OverflowError, pa.ArrowException):
        return Unusable("has whole numbers beyond 64 bits")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return Unusable("has text that is not Unicode")


def _read_text(text: pa.StringArray) -> pa.Array:
    """Text as numbers, if all of it is; not where that would lose a leading zero or a digit, as of a code."""
    if text.null_count == len(text):
        return pa.nulls(len(text))
    for pattern, kind in ((_INT_TEXT, pa.int64()), (_FLOAT_TEXT, pa.float64())):
        if pc.all(pc.match_substring_regex(text, pattern)).as_py():
            try:
                return pc.replace_substring_regex(pc.utf8_trim_whitespace(text), r"^\+", "").cast(kind)
            except pa.ArrowInvalid:  # beyond 64 bits
                continue
    return text
