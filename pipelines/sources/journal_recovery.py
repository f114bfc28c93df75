"""Copies what is sound of a journal into a new one, with new numbers where records are lost."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator

import pyarrow as pa

from pipelines.sources.frames import Expected, Fault, Frame
from pipelines.sources.journal import JournalError, OldBatch, batches_of, open_file, pieces_of
from pipelines.sources.journal_check import Journal, Segment, examine
from pipelines.sources.journal_writer import JournalWriter

_TOGETHER_BYTES = 1 << 20  # of records that are written at once


@dataclasses.dataclass(frozen=True)
class Recovered:
    """What was copied: how many records and marks, and the first and the last of each lot of records that is lost."""

    records: int
    marks: int
    lost: tuple[tuple[int, int], ...]
    faults: tuple[Fault, ...]


def recover(folder: str, to: pathlib.Path) -> Recovered:
    """Write what is sound of a journal to a new folder, which is there in whole or not at all.

    Records keep their order; those behind lost ones get lower numbers, in the marks, too. The old folder is only read.

    Raises:
        JournalError: if there is no journal, or something in the new one's place.
    """
    if to.exists():
        raise JournalError(f"{to}: is there: name a new folder")
    found = examine(folder, thorough=True, need_marks=True)
    if not found.segments and not found.files:
        raise JournalError(f"{folder}: has no journal")
    made = to.with_name(f".{to.name}.{os.getpid()}")
    numbers = _Numbers(_first_row(found))
    writer = JournalWriter(made, first_row=numbers.expected)
    try:
        marks = _copy(found, writer, numbers)
        writer.close(in_order=False)
        os.rename(made, to)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    numbers.skip_to(max([0, *(segment.needed for segment in found.segments), *(file.synced for file in found.files)]))
    return Recovered(writer.rows - numbers.first, marks, tuple(numbers.lost), found.faults)


def _first_row(found: Journal) -> int:
    own = [segment for segment in found.segments if segment.journal in (None, found.number)]
    marked = [file.first_row for file in found.files if file.journal == found.number]
    return min([*(min(segment.begins, segment.first_row) for segment in own), *marked], default=0)


def _copy(found: Journal, writer: JournalWriter, numbers: _Numbers) -> int:
    """Copy the records, and behind those of each segment its marks; how many marks there are."""
    files = sorted((file for file in found.files if file.journal in (None, found.number)), key=lambda f: f.first_row)
    marks = 0
    for segment in sorted(found.segments, key=lambda segment: segment.begins):
        while files and files[0].first_row < segment.begins:
            marks += _copy_marks(files.pop(0).texts, writer, numbers)
        _copy_records(segment, found.number, writer, numbers)
    for file in files:
        marks += _copy_marks(file.texts, writer, numbers)
    return marks


def _copy_records(segment: Segment, journal: int | None, writer: JournalWriter, numbers: _Numbers) -> None:
    together: list[pa.RecordBatch] = []
    for piece in _pieces(segment, journal):
        if piece.rows and piece.first_row >= numbers.expected:
            numbers.skip_to(piece.first_row)
            numbers.take(piece.rows)
            together += batches_of(piece, segment.path)
            if sum(batch.nbytes for batch in together) >= _TOGETHER_BYTES:
                writer.append(together)
                together = []
    writer.append(together)


def _pieces(segment: Segment, journal: int | None) -> Iterator[Frame | OldBatch]:
    with contextlib.closing(open_file(segment.path)) as file:
        for piece in pieces_of(file, segment.path, Expected(segment.first_row, journal=journal)):
            if not isinstance(piece, Fault):
                yield piece


def _copy_marks(texts: tuple[str, ...], writer: JournalWriter, numbers: _Numbers) -> int:
    copied = 0
    for text in texts:
        word, *told = text.split()
        if word == "emitted":
            text = f"emitted {min(numbers.new(int(told[0])), writer.rows)} {told[1]} {told[2]}"
        elif word == "aside":
            if not numbers.has(int(told[0])):
                continue
            text = f"aside {numbers.new(int(told[0]))}"
        elif word == "next":  # the writer says so itself
            continue
        writer.mark(text)
        copied += 1
    return copied


class _Numbers:
    """Which number a record has in the new journal: its own less the lost ones before it."""

    def __init__(self, first: int) -> None:
        self.first = self.expected = first
        self.lost: list[tuple[int, int]] = []

    def skip_to(self, row: int) -> None:
        """All up to a record are lost."""
        if row > self.expected:
            self.lost.append((self.expected, row - 1))
            self.expected = row

    def take(self, rows: int) -> None:
        """So many records are there."""
        self.expected += rows

    def has(self, row: int) -> bool:
        """Whether a record is there."""
        return row < self.expected and self.new(row + 1) > self.new(row)

    def new(self, row: int) -> int:
        """The number of a record, or of the next one that is there."""
        before = bisect.bisect_right(self.lost, (row, 1 << 62))
        lost = sum(last - first + 1 for first, last in self.lost[:before])
        inside = self.lost[before - 1][1] + 1 - row if before and self.lost[before - 1][1] >= row else 0
        return row - lost + inside
