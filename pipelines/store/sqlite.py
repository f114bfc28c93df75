"""The embedded store: an SQLite file in WAL mode, which one process at a time writes and several read.

Tiles are found by kind, start and key, in an index apart from them: in one tree, SQLite would read all of a large tile
to see that it is another's. Those of a kind that have passed are one range. A commit is on disk before the process
ends, however it ends; a power failure may take the last ones with it, in order, watermarks among them.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.store.kinds import Place
from models.store.large import LARGE_BYTES
from models.store.tiles import merge_tiles
from pipelines.store import StoreError
from pipelines.store.log import CHANGES, Found

_APPLICATION = 0x68727374  # "hrst", by which a file is known as a store
_VERSION = 3
_CACHE_KIB = 32 << 10  # of pages, of one connection
_TABLES = """
CREATE TABLE IF NOT EXISTS marks (feature_set TEXT, name TEXT, value INTEGER, PRIMARY KEY (feature_set, name))
WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kinds (id INTEGER PRIMARY KEY, feature_set TEXT, name TEXT, UNIQUE (feature_set, name));
CREATE TABLE IF NOT EXISTS tiles (kind INTEGER, start INTEGER, key TEXT, content BLOB, UNIQUE (kind, start, key));
CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY AUTOINCREMENT, feature_set TEXT, content BLOB);
"""
_SETTLED = "settled"
_SELECT = "SELECT key, start, content FROM tiles WHERE kind = ? AND start IN ({}) AND key IN ({})"
_ROUND = 2_000  # keys of one statement


class SqliteBackend:
    """A backend in a file."""

    def __init__(self, path: str, feature_set: str, create: bool, wait_seconds: float) -> None:
        self.name, self._feature_set = path, feature_set
        self._kinds: dict[str, int] = {}
        self._lock = threading.RLock()
        with self._told():
            if not os.path.isfile(path):
                if not create or os.path.lexists(path):
                    made_by = "`headrace store fill` or `headrace run --store` makes one"
                    raise StoreError(f"{path}: no store is there: {made_by}")
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._connection = sqlite3.connect(path, wait_seconds, isolation_level=None, check_same_thread=False)
            with contextlib.ExitStack() as failed:
                failed.callback(self._connection.close)
                self._prepare()
                failed.pop_all()

    def read(self, places: Sequence[Place], after: int | None) -> Found:
        """In one transaction of reading, which waits for no writer."""
        starts = collections.defaultdict(list)
        for kind, key, start in places:
            starts[kind, key].append(start)
        keys = collections.defaultdict(list)  # which most often have the same starts
        for (kind, key), wanted in starts.items():
            keys[kind, tuple(wanted)].append(key)
        found = {}
        with self._reading():
            execute, marks = self._connection.execute, self.marks()
            select = "SELECT id, content FROM log WHERE id > ? AND feature_set = ? ORDER BY id"
            entries = execute(select, (after or 0, self._feature_set)).fetchall()
            for (kind, at_starts), of in keys.items():
                if (number := self._number(kind)) is None:
                    continue
                for some in (of[at : at + _ROUND] for at in range(0, len(of), _ROUND)):
                    select = _SELECT.format(_holes(len(at_starts)), _holes(len(some)))
                    for key, start, content in execute(select, (number, *at_starts, *some)):
                        found[Place(kind, key, start)] = _bytes_of(content)
        return Found(marks, [(n, _bytes_of(content)) for n, content in entries], marks.get(_SETTLED), found)

    def log(self, entry: bytes) -> None:
        """One row more."""
        with self._writing():
            self._connection.execute("INSERT INTO log (feature_set, content) VALUES (?, ?)", (self._feature_set, entry))

    def settle(self, until: int) -> None:
        """Remove rows of the log."""
        with self._writing():
            self._connection.execute("DELETE FROM log WHERE id <= ? AND feature_set = ?", (until, self._feature_set))
            self._raise(_SETTLED, until)

    def add(self, kinds: str, tiles: Mapping[Place, bytes]) -> list[bytes]:
        """Unite tiles with those that are there, in one transaction."""
        if not tiles:
            return []
        places = list(tiles)
        with self._writing():
            before = [self._content(place) for place in places]
            merged = merge_tiles(kinds, before, list(tiles.values()))
            self._put({place: tile for place, old, tile in zip(places, before, merged, strict=True) if old != tile})
            self._change([*before, *merged])
        return merged

    def replace(self, tiles: Mapping[Place, tuple[bytes | None, bytes | None]]) -> list[Place]:
        """Put tiles where what is there is as expected, in one transaction."""
        with self._writing():
            others = [place for place, (old, _) in tiles.items() if self._content(place) != old]
            self._put({place: tile for place, (old, tile) in tiles.items() if place not in others and old != tile})
            self._change([tile for both in tiles.values() for tile in both])
        return others

    def marks(self) -> dict[str, int]:
        """All of them."""
        with self._told():
            select = "SELECT name, value FROM marks WHERE feature_set = ?"
            marks = dict(self._connection.execute(select, (self._feature_set,)).fetchall())
            if not all(isinstance(name, str) and isinstance(value, int) for name, value in marks.items()):
                raise StoreError(f"{self.name}: is damaged: fill a new one")
            return marks

    def raise_marks(self, marks: Mapping[str, int]) -> None:
        """In one transaction."""
        with self._writing():
            for name, value in marks.items():
                self._raise(name, value)

    def drop(self, kind: str, before_us: int) -> int:
        """Remove the tiles that start before a time."""
        with self._writing():
            which, of = "kind = ? AND start < ?", (self._made(kind), before_us)
            select = f"SELECT max(length(content)) FROM tiles WHERE {which}"
            self._change([], self._connection.execute(select, of).fetchone()[0] or 0)
            return self._connection.execute(f"DELETE FROM tiles WHERE {which}", of).rowcount

    def scan(self, kind: str) -> Iterator[tuple[Place, bytes]]:
        """All tiles, as they are when this is called."""
        with self._told():
            select = "SELECT key, start, content FROM tiles WHERE kind = ? ORDER BY start, key"
            for key, start, content in self._connection.execute(select, (self._number(kind),)):
                yield Place(kind, key, start), _bytes_of(content)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _prepare(self) -> None:
        execute = self._connection.execute
        (application,) = execute("PRAGMA application_id").fetchone()
        (objects,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
        (version,) = execute("PRAGMA user_version").fetchone()
        if objects and application != _APPLICATION:
            raise StoreError(f"{self.name}: is a database of another program: name another file")
        if objects and version != _VERSION:
            raise StoreError(f"{self.name}: is a store of another version of headrace: fill a new one")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        if not objects:
            with self._writing():
                for statement in _TABLES.split(";"):
                    execute(statement)
                execute(f"PRAGMA application_id = {_APPLICATION}")
                execute(f"PRAGMA user_version = {_VERSION}")

    def _raise(self, name: str, value: int) -> None:
        upsert = (
            "INSERT INTO marks (feature_set, name, value) VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET value = max(value, excluded.value)"
        )
        self._connection.execute(upsert, (self._feature_set, name, value))

    def _change(self, tiles: Sequence[bytes | None], most: int = 0) -> None:
        """Note that tiles were changed, if one of them is large."""
        if max([most, *(len(tile) for tile in tiles if tile is not None)]) < LARGE_BYTES:
            return
        upsert = (
            "INSERT INTO marks (feature_set, name, value) VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET value = value + 1"
        )
        self._connection.execute(upsert, (self._feature_set, CHANGES))

    def _content(self, place: Place) -> bytes | None:
        select = "SELECT content FROM tiles WHERE kind = ? AND start = ? AND key = ?"
        row = self._connection.execute(select, (self._number(place.kind), place.start_us, place.key)).fetchone()
        return None if row is None else _bytes_of(row[0])

    def _put(self, tiles: Mapping[Place, bytes | None]) -> None:
        rows = [(self._made(place.kind), place.start_us, place.key, tile) for place, tile in tiles.items()]
        gone = [row[:3] for row in rows if row[3] is None]
        self._connection.executemany("DELETE FROM tiles WHERE kind = ? AND start = ? AND key = ?", gone)
        replace = "REPLACE INTO tiles (kind, start, key, content) VALUES (?, ?, ?, ?)"
        self._connection.executemany(replace, [row for row in rows if row[3] is not None])

    def _made(self, kind: str) -> int:
        """The number of a kind, which gets one if it has none."""
        if (number := self._number(kind)) is not None:
            return number
        insert = "INSERT INTO kinds (feature_set, name) VALUES (?, ?)"
        self._connection.execute(insert, (self._feature_set, kind))
        return self._made(kind)

    def _number(self, kind: str) -> int | None:
        """The number of a kind, None of one that was never written."""
        if kind not in self._kinds:
            select = "SELECT id FROM kinds WHERE feature_set = ? AND name = ?"
            row = self._connection.execute(select, (self._feature_set, kind)).fetchone()
            if row is None:
                return None
            self._kinds[kind] = row[0]
        return self._kinds[kind]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """All as it is at one time."""
        with self._told():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, of which all or nothing is there."""
        with self._told():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._kinds.clear()  # some may have been made just now
                if self._connection.in_transaction:  # of a disk that is full it has gone back by itself
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """StoreError for what SQLite and the file system say."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise StoreError(f"{self.name}: {error}") from None
            except OSError as error:
                raise StoreError(f"{self.name}: {error.strerror or error}") from None


@functools.cache
def _holes(number: int) -> str:
    return ", ".join("?" * number)


def _bytes_of(content: Any) -> bytes:
    """What stands there; nothing, which is a damaged tile, where it is of another type."""
    return content if isinstance(content, bytes) else b""
