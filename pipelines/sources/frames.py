"""Frames: how records lie in a segment of a journal, so that no damaged bit goes unnoticed.

A segment is frames one after another. A frame is a header of 48 bytes, numbers little-endian, and its payload:

    magic      8 bytes, `HRJRNL2` and a line feed
    journal    8, a random number that all of a journal has in common
    first row  8, the number of its first record in the journal
    length     8, of the payload in bytes
    rows       4, how many records it holds
    before     4, the checksum of the header of the frame before it; 0 for a journal's first frame
    payload    4, CRC-32C of the payload
    checksum   4, CRC-32C of the header up to here

The first frame of a segment has no records: it says where the segment belongs, and binds it to the one before.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import IO

import google_crc32c

MAGIC = b"HRJRNL2\n"
_HEADER = struct.Struct("<8sQQQIIII")
_CHECKED = _HEADER.size - 4
_SEARCHED_BYTES = 1 << 20  # that a frame is looked for in at once


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame that is as it was written; `payload` only if it was asked for."""

    journal: int
    first_row: int
    rows: int
    before: int
    checksum: int
    place: int
    length: int
    payload: bytes | None = None

    @property
    def end_row(self) -> int:
        """The number of the record after its last one."""
        return self.first_row + self.rows

    @property
    def stop(self) -> int:
        """Where the next frame begins."""
        return self.place + _HEADER.size + self.length


@dataclasses.dataclass(frozen=True)
class Gap:
    """Bytes that are no frame, up to the next frame or the end."""

    place: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with a file of a journal, and which of its records are lost by it."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def pack_header(journal: int, first_row: int, rows: int, before: int, payload: bytes) -> tuple[bytes, int]:
    """A frame's header, and its checksum for the frame after it."""
    fields = (MAGIC, journal, first_row, len(payload), rows, before, google_crc32c.value(payload))
    checked = _HEADER.pack(*fields, 0)[:_CHECKED]
    checksum = google_crc32c.value(checked)
    return checked + struct.pack("<I", checksum), checksum


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a segment must be.

    `first_row` is its name, and `journal` the number of its journal, if they are known. Records up to `needed` must be
    there: else bytes at the end that are no frame are what a crash cut off. Payloads are read and verified from the
    record `verify_from` on, and beyond `needed`.
    """

    first_row: int | None = None
    needed: int = 0
    journal: int | None = None
    verify_from: int = 0


ANY = Expected()


def walk(file: IO[bytes], path: str, wanted: Expected) -> Iterator[Frame | Fault]:
    """The sound frames of a segment, and what is wrong between them."""
    expected, before, gap = wanted.first_row, None, None
    journal, needed = wanted.journal, wanted.needed
    for piece in _scan(file, journal, min(wanted.verify_from, needed)):
        if isinstance(piece, Gap):
            gap = piece
            continue
        if journal not in (None, piece.journal):
            yield Fault(path, f"it is of another journal: records {piece.first_row} and on are not of this one")
            return
        journal = piece.journal
        expected = piece.first_row if expected is None else expected
        if gap is not None:
            yield Fault(path, f"bytes {gap.place} to {gap.stop - 1} are damaged: {_records(expected, piece.first_row)}")
        elif piece.first_row > expected:
            yield Fault(path, f"{_records(expected, piece.first_row)} before byte {piece.place}: a part was taken out")
        if piece.first_row < expected:
            yield Fault(
                path, f"record {piece.first_row} comes again at byte {piece.place}, after record {expected - 1}"
            )
        elif gap is None and before not in (None, piece.before):
            yield Fault(path, f"what is at byte {piece.place} was not written after what is before it")
        yield piece
        expected, before, gap = max(expected, piece.end_row), piece.checksum, None
    expected = expected or 0
    if expected < needed:
        place = file.seek(0, 2) if gap is None else gap.place
        lost = _records(expected, needed)
        how = "ends too early, or the segment after it is missing" if gap is None else "is damaged"
        yield Fault(path, f"it {how}, at byte {place}: {lost}")


def _records(first: int, stop: int) -> str:
    if stop <= first:
        return "no record is lost"
    return f"record {first} is lost" if stop == first + 1 else f"records {first} to {stop - 1} are lost"


def _scan(file: IO[bytes], journal: int | None, verify_from: int) -> Iterator[Frame | Gap]:
    size, place = file.seek(0, 2), 0
    while place < size:
        frame, after = _read(file, place, size, verify_from)
        if frame is not None and (place == 0 or journal in (None, frame.journal)):
            yield frame
            journal = frame.journal
            place = frame.stop
            continue
        stop = _find(file, after, size, journal, verify_from)
        yield Gap(place, stop)
        place = stop


def _find(file: IO[bytes], place: int, size: int, journal: int | None, verify_from: int) -> int:
    """Where the next sound frame begins, or the end. What only looks like one has another journal's number."""
    while place < size:
        file.seek(place)
        searched = file.read(_SEARCHED_BYTES)
        found, after = searched.find(MAGIC), place
        while found >= 0:
            frame, after = _read(file, place + found, size, verify_from, journal)
            if frame is not None:
                return place + found
            found = searched.find(MAGIC, max(after - place, 0))
        place = max(after, place + max(len(searched) - len(MAGIC) + 1, 1))
    return size


def _read(
    file: IO[bytes], place: int, size: int, verify_from: int, journal: int | None = None
) -> tuple[Frame | None, int]:
    """The frame at a place if it is sound, and where else the next one may be."""
    file.seek(place)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None, size
    magic, of_journal, first_row, length, rows, before, payload_checksum, checksum = _HEADER.unpack(header)
    sound = magic == MAGIC and google_crc32c.value(header[:_CHECKED]) == checksum and journal in (None, of_journal)
    frame = Frame(of_journal, first_row, rows, before, checksum, place, length)
    if not sound or frame.stop > size:
        return None, place + 1
    if frame.end_row > verify_from:
        payload = file.read(length)
        if google_crc32c.value(payload) != payload_checksum:
            return None, frame.stop
        frame = dataclasses.replace(frame, payload=payload)
    return frame, frame.stop
