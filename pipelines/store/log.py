"""A store whose rows are first added to a log, many entities' at once, and put into tiles once there are enough.

A slice has few rows of many entities: to put each into its tile would cost a stream as much as the slice's scores. Who
reads has the rows of the log beside the tiles, both as they are at one time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from models.store.kinds import ROWS_OF, Kind, Place
from models.store.large import LARGE_BYTES
from models.store.recent import Recent, entry_of, read_entry, tiles_in, write_entry
from models.store.reference import without_replaced
from models.store.tiles import Rows, TileError, merge_tiles
from pipelines.store import Look, Progress, StoreError

# The log is put into tiles when it has so many entries, or rows.
MAX_ENTRIES = 256
MAX_ROWS = 1 << 18
_MEND = "`headrace store check --mend` puts it right"
_WATERMARK, _NEWEST, _DROPPED = "watermark", "newest", "dropped "  # marks; of dropped tiles by their kind
CHANGES, _PROBED = "changes", "probed"
_MOST_LARGE_BYTES = 256 << 20
_PART = 64  # of a large tile: fewer bytes are not worth to write all of it anew


class Found(NamedTuple):
    """What a backend reads at once: marks, entries of the log by number, the last that is in tiles, and tiles.

    All are as they were at one time.
    """

    marks: dict[str, int]
    entries: list[tuple[Any, bytes]]
    settled: Any
    tiles: dict[Place, bytes]


class Backend(Protocol):
    """Where tiles, a log and marks of one feature set are. Methods raise StoreError if it does not answer."""

    name: str  # without a secret

    def read(self, places: Sequence[Place], after: Any) -> Found:
        """Marks, the log's entries after a number, None for all, and the tiles that are there."""

    def log(self, entry: bytes) -> None:
        """Add an entry to the log, with a number larger than those before."""

    def settle(self, until: Any) -> None:
        """Remove the log's entries up to a number, which are in tiles."""

    def add(self, kinds: str, tiles: Mapping[Place, bytes]) -> list[bytes]:
        """Unite tiles of such columns with those that are there; what they are then."""

    def replace(self, tiles: Mapping[Place, tuple[bytes | None, bytes | None]]) -> list[Place]:
        """As `Store.replace`."""

    def marks(self) -> dict[str, int]:
        """Numbers by their names; CHANGES grows with each change of large tiles."""

    def raise_marks(self, marks: Mapping[str, int]) -> None:
        """Have these numbers where they are larger than those there, or none are."""

    def drop(self, kind: str, before_us: int) -> int:
        """As `Store.drop`, of tiles alone."""

    def scan(self, kind: str) -> Iterator[tuple[Place, bytes]]:
        """As `Store.scan`, of tiles alone."""

    def close(self) -> None:
        """Let go of it."""


class LoggedStore:
    """A `Store` over a backend."""

    def __init__(self, backend: Backend, create: bool = False) -> None:
        self._backend = backend
        self._has_gone_back = False
        self._entries = self._rows = 0  # that this process added since the log was last put into tiles
        self._forget()
        if create and CHANGES not in backend.marks():
            backend.raise_marks({CHANGES: 1})

    def _forget(self) -> None:
        """Know nothing of what is there."""
        self._marks: dict[str, int] = {}  # as they were last
        self._recent = Recent()
        self._last: Any = None  # entry that was read
        self._settled: Any = None  # entry up to which the log was in tiles
        self._large: dict[Place, bytes] = {}  # tiles, as they were at so many changes
        self._sizes: dict[Place, int] = {}  # bytes of large tiles that were seen
        self._changes: int | None = None

    def read(self, places: Sequence[Place]) -> dict[Place, bytes]:
        """The tiles that are there of those named."""
        found = self._look(places)
        tiles = found.tiles
        for named, more in self._recent.tiles(places) if len(self._recent) else ():
            merged = merge_tiles(named.kinds, [tiles.get(place) for place in more], list(more.values()))
            tiles |= zip(more, merged, strict=True)
        return tiles

    def look(self, places: Sequence[Place]) -> Look:
        """Tiles, and rows of the log apart."""
        found = self._look(places)
        added: dict[Place, bytes] = {}
        for _, more in self._recent.tiles(places) if len(self._recent) else ():
            added |= more
        dropped = {name.removeprefix(_DROPPED): us for name, us in found.marks.items() if name.startswith(_DROPPED)}
        return Look(found.tiles, added, _progress_of(found.marks), dropped)

    def _look(self, places: Sequence[Place]) -> Found:
        """What the backend has; large tiles are not read again as long as no tile changes."""
        kept = {place: self._large[place] for place in places if place in self._large} if self._large else {}
        asked = [place for place in places if place not in kept] if kept else places
        found = self._backend.read(asked, self._last)
        if not self._see(found.marks):
            return self._look(places)
        for number, content in found.entries:
            self._recent.learn(number, read_entry(content))
            self._last = number
        if found.settled is not None and found.settled != self._settled:
            self._recent.forget(found.settled)
            self._settled = found.settled
        if found.marks.get(CHANGES) != self._changes:
            self._changes = found.marks.get(CHANGES)
            self._large.clear()
            if kept:
                return self._look(places)
        large = {place: tile for place, tile in found.tiles.items() if len(tile) >= LARGE_BYTES}
        if sum(map(len, (*self._large.values(), *large.values()))) > _MOST_LARGE_BYTES:
            self._large.clear()
        self._large |= large
        self._learn(large)
        return found._replace(tiles=found.tiles | kept) if kept else found

    def _see(self, marks: dict[str, int]) -> bool:
        """Whether marks are no less than before; else the store has lost what it had, and nothing is known of it."""
        if any(name not in marks or marks[name] < value for name, value in self._marks.items()):
            self._has_gone_back = True
            self._forget()
            return False
        self._marks = marks
        return True

    def _require_whole(self) -> None:
        """StoreError if the store has lost what it had: what is added to the rest would pass for all."""
        if self._has_gone_back:
            mend = "fill it anew, or start the stream again, which has a journal"
            raise StoreError(f"{self._backend.name}: has less than it had, as a server that keeps nothing: {mend}")

    def append(self, kind: Kind, rows: Rows, keys: pa.Array) -> None:
        """Add rows to the log, and now and then the log to the tiles."""
        if self.enter(kind, rows, keys):
            self.settle()

    def enter(self, kind: Kind, rows: Rows, keys: pa.Array) -> bool:
        """Add rows to the log; whether it should be put into tiles."""
        self._require_whole()
        if len(rows):
            self._backend.log(write_entry(kind, rows, keys))
            self._entries, self._rows = self._entries + 1, self._rows + len(rows)
        return self._entries >= MAX_ENTRIES or self._rows >= MAX_ROWS

    def settle(self, leave_damaged: bool = False, whole: bool = False) -> None:
        """Put the log into tiles, but for what has been dropped; others may do so at the same time.

        Unless it is to be the `whole`, few rows of a large tile stay in the log.
        """
        entries = []
        self._entries = self._rows = 0
        found = self._backend.read((), None)
        for _, content in found.entries:
            try:
                entries.append(read_entry(content))
            except TileError as error:
                if not leave_damaged:
                    raise TileError(f"{error}: {_MEND}") from None
        if found.entries:
            marks = self._backend.marks()
            for named, tiles in tiles_in(entries):
                dropped_us = marks.get(_DROPPED + named.name)
                if dropped_us is not None and named.name.startswith(ROWS_OF):
                    self._unite(named.kinds, tiles, leave_damaged)
                    self._shorten(self._backend.read(list(tiles), found.entries[-1][0]).tiles.items(), dropped_us)
                    continue
                kept = {p: tile for p, tile in tiles.items() if dropped_us is None or p.start_us >= dropped_us}
                few = {} if whole else {p: t for p, t in kept.items() if len(t) * _PART < self._sizes.get(p, 0)}
                if few:
                    self._backend.log(entry_of(named, few))
                self._unite(named.kinds, {p: tile for p, tile in kept.items() if p not in few}, leave_damaged)
            self._backend.settle(found.entries[-1][0])

    def _unite(self, kinds: str, tiles: Mapping[Place, bytes], leave_damaged: bool) -> None:
        try:
            self._learn(dict(zip(tiles, self._backend.add(kinds, tiles), strict=True)))
        except TileError:
            for place, tile in tiles.items():  # to tell which it is
                try:
                    self._backend.add(kinds, {place: tile})
                except TileError as error:
                    if not leave_damaged:
                        raise TileError(f"{place.kind} {place.key!r} at {place.start_us}: {error}: {_MEND}") from None

    def _learn(self, tiles: Mapping[Place, bytes]) -> None:
        self._sizes |= {place: len(tile) for place, tile in tiles.items() if len(tile) >= LARGE_BYTES}

    def add(self, kind: Kind, tiles: Mapping[Place, bytes]) -> None:
        """Unite tiles with those that are there."""
        self._backend.add(kind.kinds, tiles)

    def replace(self, tiles: Mapping[Place, tuple[bytes | None, bytes | None]]) -> list[Place]:
        """Put tiles where what is there is as expected."""
        self.settle(whole=True)
        return self._backend.replace(tiles)

    def progress(self) -> Progress:
        """How far the tiles go."""
        return _progress_of(self._backend.marks())

    def probe(self) -> None:
        """Write a number that says nothing."""
        self._see(self._backend.marks())
        self._require_whole()
        self._backend.raise_marks({_PROBED: self._marks.get(_PROBED, 0) + 1})

    def advance(self, progress: Progress) -> None:
        """Go on as far as that."""
        self._see(self._backend.marks())
        self._require_whole()
        told = {_WATERMARK: progress.watermark_us, _NEWEST: progress.newest_us}
        self._backend.raise_marks({name: us for name, us in told.items() if us is not None})

    def drop(self, kind: str, before_us: int) -> int:
        """Remove the tiles that start before a time; rows of the log that are as old go when it is put into tiles.

        Tiles of a table's rows lose what was replaced by then.
        """
        of_table = kind.startswith(ROWS_OF)
        if of_table and self._backend.marks().get(_DROPPED + kind, before_us - 1) >= before_us:
            return 0  # for which all of them would be read
        self._backend.raise_marks({_DROPPED + kind: before_us})
        if of_table:
            return self._shorten(self._backend.scan(kind), before_us)
        return self._backend.drop(kind, before_us)

    def _shorten(self, tiles: Iterable[tuple[Place, bytes]], before_us: int) -> int:
        """Leave out what was replaced, but of tiles that are damaged or that others change meanwhile; of how many."""
        changes = {}
        for place, tile in tiles:
            with contextlib.suppress(TileError):
                if (shorter := without_replaced(tile, before_us)) is not tile:
                    changes[place] = (tile, shorter)
        return len(changes) - len(self._backend.replace(changes)) if changes else 0

    def scan(self, kind: str) -> Iterator[tuple[Place, bytes]]:
        """All tiles of a kind."""
        self.settle(whole=True)
        return self._backend.scan(kind)

    def close(self) -> None:
        """Let go of it."""
        self._backend.close()


def _progress_of(marks: Mapping[str, int]) -> Progress:
    return Progress(marks.get(_WATERMARK), marks.get(_NEWEST))
