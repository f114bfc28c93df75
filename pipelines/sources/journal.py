"""The journal: every message of a stream as it came, on disk before it is acknowledged, and what was done of it.

A journal is a folder of segments, each an Arrow IPC stream of raw records and named by the number of its first
one. A segment that a crash cut off is read up to its last whole batch. Beside it lie its marks, lines of text that
end in a full stop:

    emitted ROWS END NEWEST   of the first ROWS records, all up to the event time END were scored and written;
                              none of them is later than NEWEST (times in microseconds)
    aside ROW                 this record crashes the decoder
    started                   a stream begins to receive
    stopped                   the stream ended in good order
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pathlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa

from transforms.batches import (
    COLUMNS,
    FORMAT,
    INGESTED,
    PAYLOAD,
    POSITION,
    PUBLISHED,
    SOURCE,
    SOURCE_TYPE,
    SYSTEM_FIELDS,
    column,
    partition,
)

ENDING = ".journal"
MARKS_ENDING = ".marks"
SEGMENT_BYTES = 64 << 20

MESSAGE = "__message"
PARTITION = "__partition"
LABEL_PARTITION = -1  # of labels, which come from a topic of their own
_FORMAT = "__format"
_COLUMNS = "__columns"
RECORD_SCHEMA = pa.schema(
    [
        *(SYSTEM_FIELDS[name] for name in (PAYLOAD, POSITION, SOURCE, PUBLISHED, INGESTED)),
        pa.field(MESSAGE, pa.string()),  # the broker's id
        pa.field(PARTITION, pa.int32()),
    ]
)
_SCHEMA = pa.schema([*RECORD_SCHEMA, pa.field(_FORMAT, SOURCE_TYPE), pa.field(_COLUMNS, SOURCE_TYPE)])


_MARK = re.compile(r"(emitted -?\d{1,19} -?\d{1,19} -?\d{1,19}|aside \d{1,19}|started|stopped) \.", re.ASCII)


class JournalError(RuntimeError):
    """A journal that can't be used, such as one that another stream writes to."""


class JournalWriter:
    """Appends raw batches to a folder of segments; each append is on disk when it returns.

    One process at a time may write to a journal. `rows` is how many records it holds.
    """

    def __init__(self, directory: pathlib.Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise JournalError(f"{directory}: is a file; a journal is a folder") from None
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._lock = (directory / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise JournalError(f"{directory}: another stream writes to this journal") from None
        existing = segments(directory)
        self._writing = threading.Lock()  # an engine may call finalizers in a thread of their own
        self.rows = first_row(existing[-1]) + count_rows(existing[-1]) if existing else 0
        self._open: _Segment | None = None

    def append(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches and wait until they are on disk; JournalError if they can't be."""
        try:
            with self._writing:
                self._append(batches)
        except OSError as error:
            raise JournalError(
                f"{self._directory}: cannot be written: {error.strerror or error}; what was not written was not "
                "acknowledged and comes again: mend this, and start again"
            ) from error

    def _append(self, batches: Sequence[pa.RecordBatch]) -> None:
        if self._open is None or self._open.file.tell() > self._segment_bytes:
            self._end_segment()
            self._open = _Segment.create(self._directory / f"{self.rows:012d}{ENDING}")
            folder = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(folder)  # the segment's name is on disk too
            finally:
                os.close(folder)
        for batch in batches:
            self._open.writer.write_batch(_to_journal(batch))
        self._open.raw.flush()
        os.fsync(self._open.raw.fileno())
        self.rows += sum(batch.num_rows for batch in batches)

    def mark(self, line: str) -> None:
        """Note what was done. It survives the process, and need not survive the machine: work done twice is equal."""
        with self._writing:
            last = [self._directory / f"{self.rows:012d}{ENDING}", *segments(self._directory)][-1]
            with last.with_suffix(MARKS_ENDING).open("a") as file:
                file.write(f"\n{line} .")  # what a crash cut off before is a line by itself

    def close(self, in_order: bool = True) -> None:
        """End the open segment, and say so if the stream has ended in good order."""
        self._end_segment()
        if in_order:
            self.mark("stopped")
        self._lock.close()

    def _end_segment(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


@dataclasses.dataclass
class _Segment:
    raw: Any
    file: pa.PythonFile
    writer: pa.ipc.RecordBatchStreamWriter

    @classmethod
    def create(cls, path: pathlib.Path) -> Self:
        raw = path.open("wb")  # what may be there of that name holds no whole record
        file = pa.PythonFile(raw, "w")
        return cls(raw, file, pa.ipc.new_stream(file, _SCHEMA))

    def close(self) -> None:
        self.writer.close()
        self.file.close()
        self.raw.close()


@dataclasses.dataclass(frozen=True, eq=False)
class Marks:
    """What the marks of a journal say: int64 columns of what was emitted, records set aside, a good end."""

    rows: np.ndarray[Any, np.dtype[np.int64]]
    ends_us: np.ndarray[Any, np.dtype[np.int64]]
    newest_us: np.ndarray[Any, np.dtype[np.int64]]
    aside: frozenset[int]
    stopped: bool
    any: bool = True  # a stream was here before

    @staticmethod
    def read(directory: pathlib.Path) -> Marks:
        """The marks of all segments; a line that a crash cut off, or else is none, is passed over."""
        emitted: list[list[int]] = []
        aside: set[int] = set()
        stopped = False
        for path in sorted(directory.glob(f"*{MARKS_ENDING}")):
            for line in path.read_text(errors="replace").splitlines():
                match = _MARK.fullmatch(line)
                word, *numbers = match[1].split() if match else [""]
                stopped = word == "stopped"
                if word == "emitted":
                    emitted.append([int(number) for number in numbers])
                elif word == "aside":
                    aside.add(int(numbers[0]))
        columns = np.array(emitted, np.int64).reshape(-1, 3).T
        used = any(path.suffix in (ENDING, MARKS_ENDING) for path in directory.iterdir())
        return Marks(columns[0], columns[1], columns[2], frozenset(aside), stopped, used)


def segments(directory: pathlib.Path) -> list[pathlib.Path]:
    """A journal's segments, oldest first."""
    return sorted(path for path in directory.glob(f"*{ENDING}") if path.stem.isdecimal())


def check_whole(directory: pathlib.Path, marks: Marks) -> None:
    """JournalError if records are missing that were there once, but for the oldest, which may be deleted."""
    paths = segments(directory)
    end = first_row(paths[0]) if paths else 0
    for path in paths:
        if first_row(path) != end:
            raise JournalError(f"{path}: records {end} to {first_row(path)} before it are missing: restore them")
        end += count_rows(path)
    done = int(marks.rows[-1]) if len(marks.rows) else 0
    if end < done:
        raise JournalError(
            f"{directory}: {done} records were scored, but it ends at record {end}: restore its last segment; or begin "
            "in an empty folder, with earlier events as --history"
        )


def first_row(segment: pathlib.Path) -> int:
    """The number of a segment's first record."""
    return int(segment.stem)


def count_rows(segment: pathlib.Path) -> int:
    """How many whole records a segment holds."""
    return sum(batch.num_rows for batch in _read_batches(_map(segment)))


def read_segment(data: pa.Buffer | bytes) -> Iterator[pa.RecordBatch]:
    """The whole batches of a segment, each of one format; what a crash cut off was never acknowledged."""
    for batch in _read_batches(data):
        yield from _from_journal(batch)


def read_segment_file(path: pathlib.Path) -> Iterator[pa.RecordBatch]:
    """The whole batches of a segment on disk, without reading it into memory at once."""
    return read_segment(_map(path))


def _map(path: pathlib.Path) -> pa.Buffer | bytes:
    return pa.memory_map(str(path)).read_buffer() if path.stat().st_size else b""


def _read_batches(data: pa.Buffer | bytes) -> Iterator[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_stream(data)
    except (pa.ArrowInvalid, EOFError, OSError):
        return
    while True:
        try:
            yield reader.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, EOFError, OSError):
            return


def _to_journal(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its format as columns, so that all of a journal has one schema."""
    metadata = batch.schema.metadata
    same = pa.array(np.zeros(batch.num_rows, np.int32))
    texts = [metadata[FORMAT].decode(), metadata.get(COLUMNS, b"").decode()]
    formats = [pa.DictionaryArray.from_arrays(same, pa.array([text])) for text in texts]
    return pa.RecordBatch.from_arrays(
        [*(column(batch, name) for name in RECORD_SCHEMA.names), *formats], schema=_SCHEMA
    )


def _from_journal(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    formats, about = (column(batch, name) for name in (_FORMAT, _COLUMNS))
    records = pa.RecordBatch.from_arrays(batch.columns[: len(RECORD_SCHEMA)], schema=RECORD_SCHEMA)
    pairs = formats.indices.to_numpy() * np.int64(len(about.dictionary)) + about.indices.to_numpy()
    for pair, part in partition(records, pairs):
        kind, columns = divmod(pair, len(about.dictionary))
        metadata = {FORMAT: formats.dictionary[kind].as_py(), COLUMNS: about.dictionary[columns].as_py()}
        yield part.replace_schema_metadata(metadata)
