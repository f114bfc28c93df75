"""Marks: what was done of a journal's records, in a file beside each segment.

Its first line, of one length, is written anew in its place after each append and before the broker is told:

    headrace marks 2 journal ID first ROW synced ROWS lines LINES CHECKSUM

The first ROWS records were on disk then, and LINES lines of this file. Then come lines of their number, a text and a
CRC-32C of both, of the journal and of the file's first record:

    emitted ROWS END NEWEST   of the first ROWS records, all up to the event time END were scored and written;
                              none of them is later than NEWEST (times in microseconds)
    aside ROW                 this record crashes the decoder
    next ROW                  there is a segment that begins with this record
    started                   a stream begins to receive
    stopped                   the stream ended in good order

What follows the last line feed was cut off by a crash. Files of before had no first line and no checksums: their lines
end in a full stop, and what is none is passed over.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np

from pipelines.sources.frames import Fault

_HEADER = re.compile(
    rb"headrace marks 2 journal ([0-9a-f]{16}) first (\d{20}) synced (\d{20}) lines (\d{20}) ([0-9a-f]{8})\n"
)
_LINE = re.compile(rb"(\d{1,19}) ([ -~]{1,100}) ([0-9a-f]{8})")
_MARK = re.compile(r"emitted -?\d{1,19} -?\d{1,19} -?\d{1,19}|aside \d{1,19}|next \d{1,19}|started|stopped", re.ASCII)
_OLD_ENDING = " ."
_MOST = (1 << 63) - 1
_SYNC_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class MarksFile:
    """What a file of marks says: up to which record the journal was on disk, and texts up to byte `end`."""

    path: str
    first_row: int
    texts: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    journal: int | None = None  # none in files without checksums
    synced: int = 0
    end: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Marks:
    """What the marks of a journal say: int64 columns of what was emitted, records set aside, a good end."""

    rows: np.ndarray[Any, np.dtype[np.int64]]
    ends_us: np.ndarray[Any, np.dtype[np.int64]]
    newest_us: np.ndarray[Any, np.dtype[np.int64]]
    aside: frozenset[int]
    stopped: bool
    next_row: int = 0  # the last segment begins there or later

    @staticmethod
    def of(texts: Sequence[str]) -> Marks:
        """The marks of a journal's files, in their order."""
        emitted, aside, next_row = [], set(), 0
        for text in texts:
            word, *numbers = text.split()
            if word == "emitted":
                emitted.append([int(number) for number in numbers])
            elif word == "aside":
                aside.add(int(numbers[0]))
            elif word == "next":
                next_row = int(numbers[0])
        columns = np.array(emitted, np.int64).reshape(-1, 3).T
        told = [text for text in texts if not text.startswith("next ")]
        return Marks(columns[0], columns[1], columns[2], frozenset(aside), told[-1:] == ["stopped"], next_row)


def parse_marks(data: bytes, path: str, first_row: int) -> MarksFile:
    """The marks of a file, with checksums or without."""
    header = _HEADER.match(data)
    if header is None:
        return _parse_old(data, path, first_row)
    journal, first, synced, durable = int(header[1], 16), *(int(header[place]) for place in (2, 3, 4))
    if _first_line(journal, first, synced, durable) != header[0]:
        return MarksFile(path, first_row, faults=(Fault(path, "its first line is damaged: its marks can't be told"),))
    faults = []
    if first != first_row:
        faults.append(Fault(path, f"it is of the segment that begins with record {first}, not of this name's"))
    seed, texts, expected, end = _seed(journal, first), [], 0, header.end()
    *lines, _ = data[end:].split(b"\n")
    for line in lines:
        match = _LINE.fullmatch(line)
        number = int(match[1]) if match else expected
        if match is None or _checksum(seed, line[:-9]) != match[3] or not _is_mark(text := match[2].decode()):
            faults.append(Fault(path, f"the line at byte {end} is damaged"))
        else:
            if number != expected:
                faults.append(Fault(path, f"the line at byte {end} is number {number}, and should be {expected}"))
            texts.append(text)
        expected = number + 1
        end += len(line) + 1
    if expected < durable:
        faults.append(Fault(path, f"it was cut off at byte {len(data)}: it had {durable} lines, and has {expected}"))
    return MarksFile(path, first_row, tuple(texts), tuple(faults), journal, synced, end)


def _parse_old(data: bytes, path: str, first_row: int) -> MarksFile:
    lines = data.splitlines()
    if data.startswith(b"headrace") or b" marks 2 journal " in data or any(map(_LINE.fullmatch, lines)):
        return MarksFile(path, first_row, faults=(Fault(path, "its first line is damaged: its marks can't be told"),))
    texts = [line.decode(errors="replace") for line in lines]
    marks = [text.removesuffix(_OLD_ENDING) for text in texts if text.endswith(_OLD_ENDING)]
    return MarksFile(path, first_row, tuple(mark for mark in marks if _is_mark(mark)))


def _is_mark(text: str) -> bool:
    """Whether a text is a mark, with numbers of 64 bits."""
    return _MARK.fullmatch(text) is not None and all(abs(int(number)) <= _MOST for number in text.split()[1:])


def _first_line(journal: int, first_row: int, synced: int, lines: int) -> bytes:
    text = b"headrace marks 2 journal %016x first %020d synced %020d lines %020d " % (journal, first_row, synced, lines)
    return text + b"%08x\n" % google_crc32c.value(text)


def _seed(journal: int, first_row: int) -> int:
    return google_crc32c.value(b"%016x %020d " % (journal, first_row))  # type: ignore[no-any-return]


def _checksum(seed: int, line: bytes) -> bytes:
    return b"%08x" % google_crc32c.extend(seed, line)


class MarksWriter:
    """Writes marks to a file; OSError if it can't.

    They survive the process at once, and the machine when they are synced. `keep` does so now and then: from then on
    the first line tells if they are missing.
    """

    def __init__(
        self, path: pathlib.Path, journal: int, first_row: int, synced: int, texts: Sequence[str] = ()
    ) -> None:
        """Make a file of the given marks, over one that is there."""
        self._journal, self.first_row, self._seed = journal, first_row, _seed(journal, first_row)
        self.path, self.synced, self._lines, self._durable = path, synced, 0, 0
        lines = b"".join(self._next_line(text) for text in texts)
        content = _first_line(journal, first_row, synced, 0) + lines
        made = path.with_name(f".{path.name}.new")
        self._file = os.open(made, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._end = 0
        self._append(content)
        self.sync()
        os.replace(made, path)

    @classmethod
    def reopen(cls, found: MarksFile) -> MarksWriter:
        """Go on with a file; what a crash cut off in it is taken away."""
        assert found.journal is not None
        writer = cls.__new__(cls)
        writer.path, writer.synced = pathlib.Path(found.path), found.synced
        writer._journal, writer.first_row = found.journal, found.first_row
        writer._seed = _seed(found.journal, found.first_row)
        writer._lines, writer._durable, writer._end = len(found.texts), 0, found.end
        writer._file = os.open(found.path, os.O_RDWR)
        os.ftruncate(writer._file, found.end)
        writer.sync()
        return writer

    def add(self, text: str) -> None:
        """Append a mark."""
        self._append(self._next_line(text))

    def keep(self, synced: int) -> None:
        """Note that so many of the journal's records are on disk."""
        if time.monotonic() - self._synced_at > _SYNC_SECONDS:
            self.sync()
        self.synced = synced
        self._write_first_line()

    def sync(self) -> None:
        """Wait until the marks are on disk."""
        os.fsync(self._file)
        self._synced_at = time.monotonic()
        self._durable = self._lines
        self._write_first_line()

    def close(self) -> None:
        os.close(self._file)

    def _next_line(self, text: str) -> bytes:
        numbered = b"%d %s" % (self._lines, text.encode())
        self._lines += 1
        return b"%s %s\n" % (numbered, _checksum(self._seed, numbered))

    def _append(self, data: bytes) -> None:
        write_all(self._file, data, self._end)
        self._end += len(data)

    def _write_first_line(self) -> None:
        write_all(self._file, _first_line(self._journal, self.first_row, self.synced, self._durable), 0)


def write_all(file: int, data: bytes, place: int) -> None:
    """Write at a place of a file, all of it or an OSError."""
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, place)
        place += written
        left = left[written:]
