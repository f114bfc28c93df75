"""The coders of record batches: what an engine moves between processes and keeps in state."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
from apache_beam.utils.timestamp import Timestamp

from models.batches import is_provisional

# Engines move a batch several times between processes, which costs more than LZ4 does; below this size it does not.
COMPRESS_BYTES = 1 << 16
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)


class RecordBatchCoder(beam.coders.Coder):
    """A record batch as an Arrow IPC stream, LZ4 if large: a slice costs its own rows, not its parent's buffers.

    It is not deterministic: batches that are equal may differ in their dictionaries or in what lies under a null.
    """

    def encode(self, value: pa.RecordBatch) -> bytes:
        """The stream's bytes: schema, dictionaries, one batch."""
        sink = pa.BufferOutputStream()
        options = _COMPRESSED if value.nbytes >= COMPRESS_BYTES else None
        with pa.ipc.new_stream(sink, value.schema, options=options) as writer:
            columns = [_without_spare_values(column) for column in value.columns]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=value.schema))
        return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """The batch; its buffers are views of `encoded`."""
        with pa.ipc.open_stream(pa.py_buffer(encoded)) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """The batch's bytes in memory; Beam's metrics ask for it, and its own way of telling is to encode."""
        return int(value.nbytes)

    def to_type_hint(self) -> type:
        """pa.RecordBatch."""
        return pa.RecordBatch  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)


class GatherOnDisk(beam.GroupByKey):
    """A GroupByKey of batches that may be too many for memory: an engine that keeps groups there puts these on disk."""


class LazyBatch:
    """A record batch that may be there encoded, and is decoded when it is looked at; it is encoded once at most.

    So one that an engine brings to a step and that the step puts into its state costs neither. `provisional` tells
    whether its rows are provisional, without a look.
    """

    def __init__(self, batch: pa.RecordBatch | None = None, encoded: bytes = b"", provisional: bool = False) -> None:
        self._batch = batch
        self._encoded = encoded
        self.provisional = provisional if batch is None else is_provisional(batch)

    @property
    def batch(self) -> pa.RecordBatch:
        """The rows."""
        if self._batch is None:
            self._batch = _CODER.decode(self._encoded)
        return self._batch

    @property
    def encoded(self) -> bytes:
        """What RecordBatchCoder makes of the rows."""
        if not self._encoded:
            self._encoded = _CODER.encode(self._batch)
        return self._encoded

    @property
    def nbytes(self) -> int:
        """Bytes of what is there."""
        return len(self._encoded) if self._batch is None else int(self._batch.nbytes)


class LazyBatchCoder(beam.coders.Coder):
    """A byte, 1 for provisional rows, and what RecordBatchCoder makes of the batch; not deterministic, as that is."""

    def encode(self, value: LazyBatch) -> bytes:
        """The batch's bytes, which it keeps."""
        return bytes([value.provisional]) + value.encoded

    def decode(self, encoded: bytes) -> LazyBatch:
        """A batch that is not decoded yet."""
        return LazyBatch(encoded=encoded[1:], provisional=encoded[0] == 1)

    def estimate_size(self, value: LazyBatch) -> int:
        """The bytes of what is there of it."""
        return value.nbytes

    def to_type_hint(self) -> type:
        """LazyBatch."""
        return LazyBatch

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


_CODER = RecordBatchCoder()
beam.coders.registry.register_coder(LazyBatch, LazyBatchCoder)


def _without_spare_values(values: pa.Array) -> pa.Array:
    """A dictionary column with no more values than rows; any other as it is."""
    if not pa.types.is_dictionary(values.type) or len(values.dictionary) <= len(values):
        return values
    return values.dictionary_decode().dictionary_encode().cast(values.type)


def timestamp_of(event_time_us: int) -> Timestamp:
    """A Beam timestamp."""
    return Timestamp(micros=event_time_us)
