"""Whether a journal is whole: what its marks say was on disk must be there, in one piece."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pipelines.sources.frames import Expected, Fault
from pipelines.sources.journal import (
    ENDING,
    MARKS_ENDING,
    number_of,
    open_file,
    pieces_of,
    refusal,
    segment_name,
)
from pipelines.sources.marks import Marks, MarksFile, parse_marks

_ALL = 1 << 62


@dataclasses.dataclass
class Segment:
    """A segment as it was found: its records are `first_row` to `end_row` - 1, those that are damaged aside."""

    path: str
    first_row: int
    needed: int  # its records reach at least up to this one
    end_row: int
    begins: int = 0  # by its first frame, whatever its name is
    journal: int | None = None
    checksum: int = 0  # of its last frame
    before: int | None = None  # the checksum of the last frame of the segment before it


@dataclasses.dataclass(frozen=True, eq=False)
class Journal:
    """A journal as it was found."""

    folder: str
    segments: tuple[Segment, ...]
    files: tuple[MarksFile, ...]  # of marks
    faults: tuple[Fault, ...]

    @property
    def end_row(self) -> int:
        """How many records it has held."""
        return max([0, *(segment.end_row for segment in self.segments)])

    @property
    def number(self) -> int | None:
        """What its frames have in common; None if it has none."""
        return next(iter(numbers_of(self.files, self.segments)), None)

    @property
    def marks(self) -> Marks:
        """What its marks say."""
        return Marks.of([text for file in self.files for text in file.texts])

    def require_whole(self) -> Journal:
        """JournalError if anything is wrong with it."""
        if self.faults:
            raise refusal(self.faults)
        return self


def numbers_of(files: Sequence[MarksFile], segments: Sequence[Segment]) -> list[int]:
    """The numbers of journals that are found, the most frequent one first."""
    numbers = [*(file.journal for file in files), *(segment.journal for segment in segments)]
    found = [number for number in numbers if number is not None]
    return sorted(dict.fromkeys(found), key=lambda number: -found.count(number))


def examine(folder: str, thorough: bool = False, need_marks: bool = False) -> Journal:
    """What is in a journal and what is wrong with it, but for its oldest segments, which may be deleted.

    If it is not `thorough`, records that were on disk for sure are only counted; their checksums are compared when
    they are read. With `need_marks`, segments without their marks are a fault; without, a folder that has none at all
    is none.
    """
    # The marks first: a stream may be writing, and what they tell of is there already.
    files, synced = _read_all_marks(folder)
    paths = _numbered(folder, ENDING)
    number = next(iter(numbers_of(files, ())), None)
    faults = [fault for file in files for fault in file.faults]
    found = []
    for path, needed in _needed(paths, synced).items():
        segment, wrong = _examine_segment(path, needed, number, 0 if thorough else _ALL)
        found.append(segment)
        faults += wrong
        number = segment.journal if number is None else number
    faults += _between(found)
    faults += _missing_before(found, files)
    faults += _missing(folder, found, synced, Marks.of([text for file in files for text in file.texts]).next_row)
    faults += _strangers(files, number)
    if need_marks or files:
        faults += _without_marks(found, files)
    return Journal(folder, tuple(found), files, tuple(faults))


def check_segments(paths: Sequence[str]) -> None:
    """JournalError if segments are damaged or cut off; if they are all of a folder, also if others are missing."""
    faults: list[Fault] = []
    for folder, asked in _by_folder(paths).items():
        journal = examine(folder, thorough=True)
        whole = len(asked) >= len(journal.segments)
        concerned = {number_of(path) for path in asked}
        faults += [fault for fault in journal.faults if whole or _number_of_fault(fault) in concerned]
    for path in sorted({path for path in paths if number_of(path) is None}):
        with contextlib.closing(open_file(path)) as file:
            faults += [piece for piece in pieces_of(file, path) if isinstance(piece, Fault)]
    if faults:
        raise refusal(faults)


def needed_row(path: str) -> int:
    """Up to which record a segment has to reach: up to the next one; the last one up to what was on disk."""
    for folder in _by_folder([path]):
        number = number_of(path) or 0
        later = [other for name in _numbered(folder, ENDING) if (other := number_of(name) or 0) > number]
        return later[0] if later else _read_all_marks(folder, number)[1]
    return 0


def _by_folder(paths: Sequence[str]) -> dict[str, set[str]]:
    """Segments by the folder that they are in, without files that only have their ending."""
    by_folder: dict[str, set[str]] = {}
    for path in paths:
        if number_of(path) is not None:
            folder = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
            by_folder.setdefault(folder, set()).add(path)
    return by_folder


def _number_of_fault(fault: Fault) -> int | None:
    number = number_of(fault.path)
    return number_of(fault.path, MARKS_ENDING) if number is None else number


def _read_all_marks(folder: str, from_row: int = 0) -> tuple[tuple[MarksFile, ...], int]:
    """The files of marks, of a segment and later ones, and how many records they say were on disk."""
    paths = [path for path in _numbered(folder, MARKS_ENDING) if (number_of(path, MARKS_ENDING) or 0) >= from_row]
    files = tuple(_read_marks(path) for path in paths)
    emitted = Marks.of([text for file in files for text in file.texts]).rows
    return files, max([0, *(file.synced for file in files), *emitted[-1:].tolist()])


def _marks_of(path: str) -> str:
    return path.removesuffix(ENDING) + MARKS_ENDING


def _numbered(folder: str, ending: str) -> list[str]:
    """The paths of a folder's segments, or of their marks, oldest first."""
    if "://" in folder:
        from apache_beam.io.filesystems import FileSystems

        names = [found.path.rpartition("/")[2] for found in FileSystems.match([f"{folder}/*"])[0].metadata_list]
    else:
        names = os.listdir(folder)
    numbered = sorted((number, name) for name in names if (number := number_of(name, ending)) is not None)
    return [name if folder == "." else f"{folder.rstrip('/')}/{name}" for _, name in numbered]


def _read_marks(path: str) -> MarksFile:
    with contextlib.closing(open_file(path)) as file:
        return parse_marks(file.read(), path, number_of(path, MARKS_ENDING) or 0)


def _needed(paths: Sequence[str], synced: int) -> dict[str, int]:
    """A segment reaches up to the next one; the last one up to what was on disk."""
    ends = [*(number_of(path) or 0 for path in paths[1:]), synced]
    return {path: max(end, number_of(path) or 0) for path, end in zip(paths, ends, strict=False)}


def _examine_segment(path: str, needed: int, journal: int | None, verify_from: int) -> tuple[Segment, list[Fault]]:
    first_row = number_of(path) or 0
    segment, faults = Segment(path, first_row, needed, first_row, first_row), []
    with contextlib.closing(open_file(path)) as file:
        for piece in pieces_of(file, path, Expected(first_row, needed, journal, verify_from)):
            if isinstance(piece, Fault):
                faults.append(piece)
                continue
            if segment.before is None:
                segment.journal, segment.before, segment.begins = piece.journal, piece.before, piece.first_row
            segment.end_row = max(segment.end_row, piece.end_row)
            segment.checksum = piece.checksum
    return segment, faults


def _between(found: Sequence[Segment]) -> Iterator[Fault]:
    """Segments that do not go on where the one before ended."""
    for before, segment in pairwise(found):
        if segment.journal is None and before.journal is not None and segment.end_row > segment.first_row:
            yield Fault(segment.path, "it has no checksums, and the segment before it has: it is of another journal")
        elif before.end_row > segment.first_row:
            again = f"records {segment.first_row} to {before.end_row - 1}"
            yield Fault(segment.path, f"{again} are in {before.path} already: one of the two is not of this journal")
        elif (
            before.end_row == segment.first_row
            and segment.before is not None
            and None not in (segment.journal, before.journal)
            and segment.before != before.checksum
        ):
            yield Fault(segment.path, f"it was not written after {before.path}: one of the two is of another copy")


def _missing_before(found: Sequence[Segment], files: Sequence[MarksFile]) -> Iterator[Fault]:
    """Segments before the first one whose marks are there: what is deleted on purpose goes with its marks."""
    for file in files if found else ():
        if file.first_row < found[0].first_row:
            path = file.path.removesuffix(MARKS_ENDING) + ENDING
            yield Fault(path, "it is missing, and its marks are there: if it was deleted on purpose, delete them, too")


def _missing(folder: str, found: Sequence[Segment], end: int, next_row: int) -> Iterator[Fault]:
    """The last segment, if marks tell of it and there is none."""
    last = found[-1].first_row if found else None
    if (last is None and end > 0) or (last is not None and last < next_row):
        path = f"{folder.rstrip('/')}/{segment_name(next_row)}"
        yield Fault(path, f"it is missing: marks tell of it, and of {end} records")


def _strangers(files: Sequence[MarksFile], number: int | None) -> Iterator[Fault]:
    for file in files:
        if file.journal not in (None, number):
            yield Fault(file.path, "it is of another journal")


def _without_marks(found: Sequence[Segment], files: Sequence[MarksFile]) -> Iterator[Fault]:
    """Segments whose marks are gone: what was done of their records can't be told."""
    having = {file.first_row for file in files if file.journal is not None or file.faults}
    for segment in found:
        if segment.journal is not None and segment.end_row > segment.first_row and segment.first_row not in having:
            yield Fault(_marks_of(segment.path), "it is missing or empty: what was done of its records can't be told")
