"""Decode: records as a source gives them to columns of the contract's types."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import column, system_names, with_column
from models.codecs import (
    RECORD,
    Columns,
    decode_apart,
    decode_avro,
    decode_csv,
    decode_json,
    decode_rows,
    parse_writer_schema,
    record_lengths,
)
from models.derive import derive
from models.faults import RowFaults
from models.project.contract import Contract
from models.record import COLUMNS, FAULTS, FORMAT, MARKS, PAYLOAD, POSITION, SLICE, SOURCE, SYSTEM_FIELDS, RecordType

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def decode_batch(
    batch: pa.RecordBatch, contract: Contract, max_bytes: int, refuse_unknown: bool = False
) -> tuple[pa.RecordBatch, RowFaults]:
    """The contract's columns and the system's, row for row, and what could not be decoded."""
    metadata = batch.schema.metadata
    kind = metadata[FORMAT].decode()
    faults = RowFaults(batch.num_rows)
    if kind == "rows":
        payload = pa.nulls(batch.num_rows, pa.binary())
        _check_size(_row_bytes(batch), max_bytes, faults)
        columns = decode_rows(batch, contract, refuse_unknown, faults, json.loads(metadata.get(COLUMNS) or b"[]"))
    else:
        payload = column(batch, PAYLOAD)
        if kind != "unreadable":
            _check_size(record_lengths(payload), max_bytes, faults)
        columns = decode_apart(
            payload,
            ~faults.bad,
            faults,
            lambda part, found: _decode_payloads(kind, part, metadata, contract, refuse_unknown, found),
            lambda part, _: _nothing(len(part), contract),
        )
    names = system_names(batch, SOURCE, POSITION, MARKS)
    origin = [column(batch, name) for name in names]
    fields = [*contract.arrow_schema, *(SYSTEM_FIELDS[name] for name in (*names, PAYLOAD))]
    schema = pa.schema(fields, {FORMAT: metadata[FORMAT], SLICE: metadata[SLICE]})
    arrays = [*(columns[name] for name in contract.fields), *origin, payload]
    return pa.RecordBatch.from_arrays(arrays, schema=schema), faults


def decode_early(batch: pa.RecordBatch, records: RecordType) -> pa.RecordBatch:
    """What `decode_once` gives, with the faults as a column; it is not decoded again later."""
    decoded, faults = _decode(batch, records)
    return with_column(decoded, FAULTS, faults.as_column())


def decode_once(batch: pa.RecordBatch, records: RecordType) -> tuple[pa.RecordBatch, RowFaults]:
    """What `decode_batch` gives and the derived fields, of raw records or of those that `decode_early` has decoded."""
    if FAULTS not in batch.schema.names:
        return _decode(batch, records)
    schema = batch.schema.remove(batch.schema.get_field_index(FAULTS))
    rows = pa.RecordBatch.from_arrays([column(batch, name) for name in schema.names], schema=schema)
    return rows, RowFaults.read(column(batch, FAULTS))


def _decode(batch: pa.RecordBatch, records: RecordType) -> tuple[pa.RecordBatch, RowFaults]:
    decoded, faults = decode_batch(batch, records.read, records.max_bytes, records.refuses_unknown)
    return derive(decoded, records), faults


def _check_size(sizes: np.ndarray[Any, Any], max_bytes: int, faults: RowFaults) -> None:
    rows = np.flatnonzero(sizes > max_bytes)
    faults.add(rows, RECORD, f"larger than {max_bytes} bytes", sizes[rows].tolist())


def _row_bytes(batch: pa.RecordBatch) -> np.ndarray[Any, Any]:
    """The bytes of text in each row; what else it holds is of one size in all of them."""
    sizes = np.zeros(batch.num_rows, np.int64)
    for values in batch.columns:
        kind = values.type
        if any(is_text(kind) for is_text in _TEXTS):
            sizes += pc.binary_length(values).fill_null(0).to_numpy()
    return sizes


def _nothing(rows: int, contract: Contract) -> Columns:
    return {name: pa.nulls(rows, field.arrow_type) for name, field in contract.fields.items()}


def _decode_payloads(
    kind: str,
    payloads: pa.BinaryArray,
    metadata: dict[bytes, bytes],
    contract: Contract,
    refuse_unknown: bool,
    faults: RowFaults,
) -> Columns:
    if kind == "json":
        return decode_json(payloads, contract, refuse_unknown, faults)
    if kind == "csv":
        return decode_csv(payloads, json.loads(metadata[COLUMNS]), contract, refuse_unknown, faults)
    if kind == "avro":
        writer_schema = parse_writer_schema(metadata[COLUMNS])
        return decode_avro(payloads, writer_schema, contract, refuse_unknown, faults)
    if kind == "unreadable":
        why = metadata[COLUMNS].decode()
        faults.add(np.arange(len(payloads)), RECORD, "unreadable", [why] * len(payloads))
        return _nothing(len(payloads), contract)
    raise ValueError(f"a source gave a batch of the unknown format {kind!r}")
