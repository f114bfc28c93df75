"""The journal: every message of a stream as it came, on disk before it is acknowledged, and what was done of it.

A journal is a folder of segments, each named by the number of its first record: frames (pipelines.sources.frames), of
which each holds what was on disk at once, as an Arrow IPC stream of raw records. Segments of before are one Arrow IPC
stream without checksums; they are still read. Beside each segment lie its marks (pipelines.sources.marks).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa

from models.batches import column, partition
from models.errors import HeadraceError
from models.record import (
    COLUMNS,
    FORMAT,
    PARTITION,
    RECORD_SCHEMA,
    SOURCE_TYPE,
)
from pipelines.sources.frames import ANY, MAGIC, Expected, Fault, Frame, walk
from pipelines.sources.records import about, type_number

ENDING = ".journal"
MARKS_ENDING = ".marks"

_FORMAT = "__format"
_COLUMNS = "__columns"
_SCHEMA = pa.schema([*RECORD_SCHEMA, pa.field(_FORMAT, SOURCE_TYPE), pa.field(_COLUMNS, SOURCE_TYPE)])
_CONTINUATION = b"\xff\xff\xff\xff"  # that an Arrow IPC stream begins with


class JournalError(HeadraceError, RuntimeError):
    """A journal that can't be used, such as one that another stream writes to."""


@dataclasses.dataclass(frozen=True)
class OldBatch:
    """A batch of a segment without checksums, in a frame's place."""

    first_row: int
    rows: int
    batch: pa.RecordBatch
    journal = None
    before = checksum = 0

    @property
    def end_row(self) -> int:
        """The number of the record after its last one."""
        return self.first_row + self.rows


def segment_name(first_row: int) -> str:
    """The name of the segment that begins with a record."""
    return f"{first_row:012d}{ENDING}"


def number_of(path: str | os.PathLike[str], ending: str = ENDING) -> int | None:
    """The number of the first record of a segment, or of its marks; None for other files."""
    name = os.fspath(path).rsplit("/", 1)[-1]
    stem = name.removesuffix(ending)
    return int(stem) if stem != name and stem.isascii() and stem.isdecimal() and len(stem) < 19 else None


def segments(directory: pathlib.Path) -> list[pathlib.Path]:
    """A journal's segments, oldest first."""
    numbered = [(number, path) for path in directory.iterdir() if (number := number_of(path)) is not None]
    return [path for _, path in sorted(numbered)]


def open_file(path: str) -> IO[bytes]:
    """A file of a local journal, or of one on any filesystem that Beam knows."""
    if "://" not in path:
        return open(path, "rb")
    from apache_beam.io.filesystems import FileSystems

    return FileSystems.open(path, compression_type="uncompressed")  # type: ignore[no-any-return]


def pieces_of(file: IO[bytes], path: str, wanted: Expected = ANY) -> Iterator[Frame | OldBatch | Fault]:
    """The sound pieces of a segment and its faults, as `walk` gives them; of one without checksums, its batches."""
    file.seek(0)
    start = file.read(len(MAGIC))
    if not start.startswith(_CONTINUATION):
        found = False
        for piece in walk(file, path, wanted):
            found = True
            yield piece
        if not found and start.strip(b"\0") and not MAGIC.startswith(start):
            yield Fault(path, "it is not a segment of a journal: take it out of here")
        return
    file.seek(0)
    row = wanted.first_row or 0
    for batch in _read_old(file.read()):
        yield OldBatch(row, batch.num_rows, batch)
        row += batch.num_rows
    if row < wanted.needed:
        yield Fault(path, f"records {row} to {wanted.needed - 1} are lost: it was cut off, or is damaged from there on")


def batches_of(piece: Frame | OldBatch, path: str) -> list[pa.RecordBatch]:
    """The raw batches of a piece, each of one format; JournalError if its bytes are sound and still no records."""
    if isinstance(piece, OldBatch):
        return list(_from_journal(piece.batch))
    if not piece.rows:
        return []
    try:
        with pa.ipc.open_stream(pa.py_buffer(piece.payload)) as reader:
            found = list(reader) if reader.schema == _SCHEMA else None
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise JournalError(f"{path}: at byte {piece.place}: no Arrow records: {error}") from None
    if found is None or sum(batch.num_rows for batch in found) != piece.rows:
        raise JournalError(f"{path}: at byte {piece.place}: records of another version of headrace")
    return [part for batch in found for part in _from_journal(batch)]


def read_segment(
    data: bytes | IO[bytes], path: str = "a segment", first_row: int | None = None, needed: int = 0
) -> Iterator[pa.RecordBatch]:
    """The batches of a segment, each of one format; JournalError where it is damaged.

    What a crash cut off at its end was never acknowledged, if it is beyond the record `needed`.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    for piece in pieces_of(file, path, Expected(first_row, needed)):
        if isinstance(piece, Fault):
            raise refusal([piece])
        yield from batches_of(piece, path)


def read_segment_file(path: str | os.PathLike[str], needed: int = 0) -> Iterator[pa.RecordBatch]:
    """The batches of the segment at a path, as `read_segment` gives them, frame by frame."""
    name = os.fspath(path)
    with contextlib.closing(open_file(name)) as file:
        yield from read_segment(file, name, number_of(name), needed)


def refusal(faults: Sequence[Fault]) -> JournalError:
    """One line that names the first fault, and says what can be done."""
    folder = faults[0].path.rpartition("/")[0] or "."
    more = f" ({len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return JournalError(
        f"{faults[0]}{more}: restore it from a copy; or see `headrace journal check {folder}`, and save what is sound "
        f"by `headrace journal recover {folder} --to NEW_FOLDER`"
    )


def to_payload(batches: Sequence[pa.RecordBatch]) -> bytes:
    """Raw batches as the payload of a frame."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(_to_journal(batch))
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _read_old(data: bytes) -> Iterator[pa.RecordBatch]:
    """The whole batches of a segment without checksums, up to what can't be read."""
    with contextlib.suppress(StopIteration, pa.ArrowException, ValueError, EOFError, OSError):
        reader = pa.ipc.open_stream(data)
        while reader.schema == _SCHEMA:
            batch = reader.read_next_batch()
            batch.validate(full=True)  # or the process may end where a damaged one is used
            yield batch


def _partitions_of(batch: pa.RecordBatch) -> pa.Array:
    """What stands for the partition on disk: that of the broker for events, for other record types less than 0."""
    number = type_number(batch)
    return pa.array(np.full(batch.num_rows, -number, np.int32)) if number else column(batch, PARTITION)


def _numbers_of(partitions: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The number int64[n] of each record's type, by what `_partitions_of` gave."""
    return np.asarray(np.maximum(-partitions.to_numpy().astype(np.int64), 0))


def _to_journal(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its format as columns, so that all of a journal has one schema."""
    metadata = batch.schema.metadata
    same = pa.array(np.zeros(batch.num_rows, np.int32))
    told = [metadata[FORMAT].decode(), metadata.get(COLUMNS, b"").decode()]
    formats = [pa.DictionaryArray.from_arrays(same, pa.array([text])) for text in told]
    *records, _ = (column(batch, name) for name in RECORD_SCHEMA.names)
    return pa.RecordBatch.from_arrays([*records, _partitions_of(batch), *formats], schema=_SCHEMA)


def _from_journal(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    formats, texts = (column(batch, name) for name in (_FORMAT, _COLUMNS))
    records = pa.RecordBatch.from_arrays(batch.columns[: len(RECORD_SCHEMA)], schema=RECORD_SCHEMA)
    pairs: Any = formats.indices.to_numpy() * np.int64(len(texts.dictionary)) + texts.indices.to_numpy()
    numbers = _numbers_of(column(records, PARTITION))
    types = int(numbers.max(initial=0)) + 1
    for key, part in partition(records, pairs * types + numbers):
        pair, number = divmod(key, types)
        kind, columns = divmod(pair, len(texts.dictionary))
        metadata = {
            FORMAT: formats.dictionary[kind].as_py(),
            COLUMNS: texts.dictionary[columns].as_py(),
            **about(number),
        }
        yield part.replace_schema_metadata(metadata)
