"""Decode: records as a source gives them to columns of the contract's types."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.codecs import RECORD, decode_avro, decode_csv, decode_json, decode_rows
from models.contract import Contract
from models.faults import RowFaults
from models.project import Project
from transforms.batches import (
    COLUMNS,
    FORMAT,
    HISTORY,
    PAYLOAD,
    POSITION,
    SLICE,
    SOURCE,
    SYSTEM_FIELDS,
    column,
)
from transforms.dead_letters import make_dead_letters, split_good

DEAD = "dead"


@dataclasses.dataclass(eq=False)
class Decode(beam.PTransform):  # type: ignore[misc]
    """Batches of records → batches of decoded rows, and dead letters for what is not of its format.

    The format stands in a batch's schema metadata, since it is the source's affair: `json`, `csv` (with the
    header's names), `avro` (with the writer's schema), `rows` (typed columns) or `unreadable` (a part of a
    file that its source could not read; each row of it becomes a dead letter).
    """

    project: Project

    def expand(self, pcoll: beam.PCollection) -> beam.DoOutputsTuple:
        """Main output: decoded batches; output `dead`: dead letters."""
        return pcoll | "Decode" >> beam.FlatMap(self._decode).with_output_types(
            pa.RecordBatch, dead=pa.RecordBatch
        ).with_outputs(DEAD, main="rows")

    def _decode(self, batch: pa.RecordBatch) -> Iterator[Any]:
        event = self.project.event
        refuse = event.unknown_fields == "refuse"
        decoded, faults = decode_batch(batch, self.project.contract, event.max_bytes, refuse)
        if faults.bad.any():
            reported = batch
            if PAYLOAD in decoded.schema.names and column(decoded, PAYLOAD).null_count == 0:
                reported = decoded
            dead = make_dead_letters(reported, faults.rows, faults.reasons(), "Decode", event.id)
            yield beam.pvalue.TaggedOutput(DEAD, dead)
        good = split_good(decoded, faults.bad)
        if good.num_rows:
            yield good


def decode_batch(
    batch: pa.RecordBatch, contract: Contract, max_bytes: int, refuse_unknown: bool
) -> tuple[pa.RecordBatch, RowFaults]:
    """The contract's columns and the system's, row for row, and what could not be decoded."""
    metadata = batch.schema.metadata
    kind = metadata[FORMAT].decode()
    faults = RowFaults(batch.num_rows)
    if kind == "rows":
        columns = decode_rows(batch, contract, refuse_unknown, faults)
    else:
        payloads = column(batch, PAYLOAD)
        lengths = pc.binary_length(payloads).to_numpy(zero_copy_only=False)
        too_large = np.flatnonzero(lengths > max_bytes)
        if kind != "unreadable" and len(too_large):
            faults.add(too_large, RECORD, f"larger than {max_bytes} bytes", [str(n) for n in lengths[too_large]])
            payloads = pc.if_else(pa.array(lengths > max_bytes), _blank(kind, metadata), payloads)
        columns = _decode_payloads(kind, payloads, metadata, contract, refuse_unknown, faults)
    arrays = [columns[name] for name in contract.fields]
    fields = list(contract.arrow_schema)
    for name in (SOURCE, POSITION, HISTORY):
        arrays.append(column(batch, name))
        fields.append(SYSTEM_FIELDS[name])
    arrays.append(column(batch, PAYLOAD) if PAYLOAD in batch.schema.names else pa.nulls(batch.num_rows, pa.binary()))
    fields.append(SYSTEM_FIELDS[PAYLOAD])
    schema = pa.schema(fields, {FORMAT: metadata[FORMAT], SLICE: metadata[SLICE]})
    return pa.RecordBatch.from_arrays(arrays, schema=schema), faults


def _blank(kind: str, metadata: dict[bytes, bytes]) -> bytes:
    """A record without values, in place of one that is too large to parse."""
    if kind == "csv":
        return b"," * (len(json.loads(metadata[COLUMNS])) - 1) + b"\n"
    return b"{}\n"


def _decode_payloads(
    kind: str,
    payloads: pa.BinaryArray,
    metadata: dict[bytes, bytes],
    contract: Contract,
    refuse_unknown: bool,
    faults: RowFaults,
) -> dict[str, pa.Array]:
    if kind == "json":
        return decode_json(payloads, contract, refuse_unknown, faults)
    if kind == "csv":
        return decode_csv(payloads, json.loads(metadata[COLUMNS]), contract, refuse_unknown, faults)
    if kind == "avro":
        writer_schema = fastavro.parse_schema(json.load(io.BytesIO(metadata[COLUMNS])))
        return decode_avro(payloads, writer_schema, contract, refuse_unknown, faults)
    if kind == "unreadable":
        why = metadata[COLUMNS].decode()
        faults.add(np.arange(len(payloads)), RECORD, "unreadable", [why] * len(payloads))
        return {name: pa.nulls(len(payloads), field.arrow_type) for name, field in contract.fields.items()}
    raise ValueError(f"a source gave a batch of the unknown format {kind!r}")
