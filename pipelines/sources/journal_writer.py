"""Appends what a stream receives to its journal."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipelines.sources.frames import pack_header
from pipelines.sources.journal import ENDING, MARKS_ENDING, JournalError, segment_name, to_payload
from pipelines.sources.journal_check import Journal, examine
from pipelines.sources.marks import Marks, MarksFile, MarksWriter, write_all

SEGMENT_BYTES = 64 << 20


class JournalWriter:
    """Appends raw batches to a folder of segments; each append is on disk, and noted in the marks, when it returns.

    One process at a time may write to a journal. `found` is what was there, and whole, or else it is a JournalError;
    `rows` is how many records there are. After an append or a mark that failed, nothing more can be written: what is
    on disk is looked at anew by the next start.
    """

    def __init__(self, directory: pathlib.Path, segment_bytes: int = SEGMENT_BYTES, first_row: int = 0) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise JournalError(f"{directory}: is a file; a journal is a folder") from None
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._lock = (directory / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise JournalError(f"{directory}: another stream writes to this journal") from None
        self._failed: str | None = None
        self._segment: int | None = None  # the open file
        try:
            self.found: Journal = examine(str(directory), need_marks=True).require_whole()
            with self._said():
                self._begin(first_row)
        except JournalError:
            self._lock.close()
            raise

    def _begin(self, first_row: int) -> None:
        self._writing = threading.Lock()  # an engine may call finalizers in a thread of their own
        self._end = 0
        found = self.found
        self.rows = max(found.end_row, first_row)
        last = found.segments[-1] if found.segments else None
        self._checksum = last.checksum if last is not None else 0
        number = found.number
        self._number = int.from_bytes(os.urandom(8), "little") if number is None else number
        if last is not None:
            file = os.open(last.path, os.O_RDONLY)
            os.fsync(file)  # a killed process may have written what it did not sync
            os.close(file)
        file_of_marks = found.files[-1] if found.files else None
        if file_of_marks is not None and file_of_marks.journal is not None:
            self._marks = MarksWriter.reopen(file_of_marks)
        else:
            # Marks without checksums are left as they are, unless they have this very name.
            texts = [text for file in found.files if file.first_row == self.rows for text in file.texts]
            self._marks = self._new_marks(self.rows, texts)
        self._marks.keep(self.rows)

    def append(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write batches and wait until they are on disk; JournalError if they can't be."""
        if not sum(batch.num_rows for batch in batches):
            return
        with self._writing, self._said():
            if self._segment is None or self._end > self._segment_bytes:
                self._next_segment()
            rows = sum(batch.num_rows for batch in batches)
            self._write_frame(rows, to_payload(batches))
            self.rows += rows
            self._marks.keep(self.rows)

    def mark(self, text: str) -> None:
        """Note what was done. It survives the process, and need not survive the machine: work done twice is equal."""
        with self._writing, self._said():
            self._marks.add(text)

    @property
    def number(self) -> int:
        """What the frames and marks of this journal, and no other's, have in common."""
        return self._number

    def adopt(self, mark: str) -> None:
        """Take a mark of what was done, as another place has it, if it tells of more than the last one that is here.

        JournalError if it tells of records that are not here.
        """
        told, known = Marks.of([mark]), self.found.marks
        if told.rows[0] > self.rows:
            raise JournalError(
                f"{self._directory}: holds {self.rows} records, and {told.rows[0]} were scored and published by it: it "
                "is an older copy; give the stream the newest, or another --journal"
            )
        if not len(known.rows) or (told.rows[0], told.ends_us[0]) > (known.rows[-1], known.ends_us[-1]):
            self.mark(mark)
            file = MarksFile(str(self._marks.path), self.rows, (mark,))
            self.found = dataclasses.replace(self.found, files=(*self.found.files, file))

    def close(self, in_order: bool = True) -> None:
        """End the open segment, and say so if the stream has ended in good order."""
        try:
            if self._failed is None:
                if in_order:
                    self.mark("stopped")
                with self._writing, self._said():
                    self._marks.sync()
        finally:
            self._marks.close()
            if self._segment is not None:
                os.close(self._segment)
                self._segment = None
            self._lock.close()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Say in one line what could not be written, and write nothing more."""
        if self._failed is not None:
            raise JournalError(self._failed)
        try:
            yield
        except OSError as error:
            self._failed = (
                f"{self._directory}: cannot be written: {error.strerror or error}; what was not written was not "
                "acknowledged and comes again: mend this, and start again"
            )
            if self._segment is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._segment, self._end)  # what is not acknowledged must not seem to be there
            raise JournalError(self._failed) from error

    def _next_segment(self) -> None:
        if self._segment is not None:
            os.close(self._segment)
            self._segment = None
        before = self._marks
        if self._marks.first_row != self.rows:
            before.sync()
            self._marks = self._new_marks(self.rows)
        path = self._directory / segment_name(self.rows)
        self._segment, self._end = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), 0
        self._write_frame(0, b"")
        self._sync_folder()
        if before is not self._marks:
            before.add(f"next {self.rows}")
            before.sync()
            before.close()

    def _new_marks(self, first_row: int, texts: Sequence[str] = ()) -> MarksWriter:
        path = self._directory / segment_name(first_row).replace(ENDING, MARKS_ENDING)
        return MarksWriter(path, self._number, first_row, first_row, texts)

    def _write_frame(self, rows: int, payload: bytes) -> None:
        assert self._segment is not None
        header, checksum = pack_header(self._number, self.rows, rows, self._checksum, payload)
        write_all(self._segment, header, self._end)
        write_all(self._segment, payload, self._end + len(header))
        os.fsync(self._segment)
        self._end += len(header) + len(payload)
        self._checksum = checksum

    def _sync_folder(self) -> None:
        folder = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(folder)  # the names are on disk too
        finally:
            os.close(folder)
