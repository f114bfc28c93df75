"""A store in Redis: a hash of tiles by key for each kind and start, and the starts of each kind in a sorted set.

Tiles are united here and put there if what was read is still there, by a script; else they are united once more.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from models.redact import redact
from models.store.kinds import Place
from models.store.large import LARGE_BYTES
from models.store.tiles import merge_tiles
from pipelines.store import StoreError
from pipelines.store.log import CHANGES, Found

if TYPE_CHECKING:
    from redis import Redis

_FORMS = (
    "write redis://HOST[:PORT][/DATABASE], with TLS rediss://, and USER:$NAME@ before HOST, where NAME is the variable "
    "with the password"
)
_QUERY = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")  # files of TLS, which a URL may name
_ROUND = 2_000  # tiles that one script puts
_TRIES = 100

# What is there of pairs (hash, key).
_READ = """
local found = {}
for i = 1, #ARGV, 2 do found[#found + 1] = redis.call('HGET', ARGV[i], ARGV[i + 1]) end
return found
"""
# Of triples (key, SHA-1 of what is there, "" of nothing, tile, "" of none) puts those where it is still so, and gives
# the places of the others. That a large tile has changed is counted in the same step, which no kill comes between.
_PUT = """
local others, changed, large = {}, false, tonumber(ARGV[3])
for i = 4, #ARGV, 3 do
  local there = redis.call('HGET', KEYS[1], ARGV[i])
  if (there and redis.sha1hex(there) or '') == ARGV[i + 1] then
    changed = changed or (there and #there >= large) or #ARGV[i + 2] >= large
    if ARGV[i + 2] == '' then
      redis.call('HDEL', KEYS[1], ARGV[i])
    else
      redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
    end
  else
    others[#others + 1] = (i - 4) / 3
  end
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('ZADD', KEYS[2], ARGV[1], ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
if changed then redis.call('HINCRBY', KEYS[3], ARGV[2], 1) end
return others
"""
_RAISE = """
for i = 1, #ARGV, 2 do
  local there = tonumber(redis.call('HGET', KEYS[1], ARGV[i]))
  if not there or there < tonumber(ARGV[i + 1]) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
"""


Number = tuple[int, int]  # of an entry of the log


class RedisBackend:
    """A backend in a database of Redis."""

    def __init__(self, uri: str, feature_set: str, wait_seconds: float) -> None:
        self.name = redact(uri)
        self._prefix = f"headrace:{feature_set}"
        self._log, self._settled, self._marks = (f"{self._prefix}:{part}" for part in ("log", "settled", "marks"))
        self._redis = _connect(uri, wait_seconds)
        with self._told():
            self._redis.ping()

    def read(self, places: Sequence[Place], after: Number | None) -> Found:
        """In one round trip."""
        with self._told(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(self._marks)
            pipe.xrange(self._log, f"({_text(after)}" if after else "-", "+")
            pipe.get(self._settled)
            rounds = self._ask(pipe, places)
            marks, entries, settled, *answers = pipe.execute()
            numbered = [(_number(number), entry[b"rows"]) for number, entry in entries]
            told = _marks_of(marks), numbered, _number(settled) if settled else None
        return Found(*told, _tiles_of(rounds, answers))

    def log(self, entry: bytes) -> None:
        """An entry of a stream."""
        with self._told():
            self._redis.xadd(self._log, {"rows": entry})

    def settle(self, until: Number) -> None:
        """Trim the stream."""
        following = (until[0], until[1] + 1)
        with self._told(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._settled, _text(until))
            pipe.xtrim(self._log, minid=_text(following), approximate=False)
            pipe.execute()

    def add(self, kinds: str, tiles: Mapping[Place, bytes]) -> list[bytes]:
        """Unite tiles with those that are there; other writers may come between, and nothing of theirs is lost."""
        left, united = dict(tiles), dict(tiles)
        for _ in range(_TRIES):
            if not left:
                return list(united.values())
            before = self._read_tiles(list(left))
            merged = merge_tiles(kinds, [before.get(place) for place in left], list(left.values()))
            united |= dict(zip(left, merged, strict=True))
            both = {place: (before.get(place), tile) for place, tile in zip(left, merged, strict=True)}
            left = {place: left[place] for place in self.replace(both)}
        raise StoreError(f"{self.name}: others wrote the same tiles {_TRIES} times while they were united")

    def replace(self, tiles: Mapping[Place, tuple[bytes | None, bytes | None]]) -> list[Place]:
        """Put tiles where what is there is as expected, each by itself."""
        by_start = collections.defaultdict(list)
        for place, (before, tile) in tiles.items():
            if before != tile:
                by_start[place.kind, place.start_us].append(place)
        rounds = [(at, all_[n : n + _ROUND]) for at, all_ in by_start.items() for n in range(0, len(all_), _ROUND)]
        with self._told(), self._redis.pipeline(transaction=False) as pipe:
            for (kind, start_us), places in rounds:
                arguments: list[Any] = [start_us, CHANGES, LARGE_BYTES]
                for place in places:
                    before, tile = tiles[place]
                    told = "" if before is None else hashlib.sha1(before, usedforsecurity=False).hexdigest()
                    arguments += [place.key, told, tile or b""]
                pipe.eval(_PUT, 3, self._tiles(kind, start_us), self._starts(kind), self._marks, *arguments)
            answers = pipe.execute()
        return [places[int(n)] for (_, places), others in zip(rounds, answers, strict=True) for n in others]

    def marks(self) -> dict[str, int]:
        """All of them."""
        with self._told():
            told: Any = self._redis.hgetall(self._marks)
            return _marks_of(told)

    def raise_marks(self, marks: Mapping[str, int]) -> None:
        """In one step."""
        with self._told():
            self._redis.eval(_RAISE, 1, self._marks, *(part for pair in marks.items() for part in pair))

    def drop(self, kind: str, before_us: int) -> int:
        """Remove the tiles that start before a time."""
        with self._told():
            starts: Any = self._redis.zrangebyscore(self._starts(kind), "-inf", f"({before_us}")
            dropped = 0
            for start in starts:
                with self._redis.pipeline(transaction=True) as pipe:
                    pipe.hlen(self._tiles(kind, int(start)))
                    pipe.unlink(self._tiles(kind, int(start)))
                    pipe.zrem(self._starts(kind), start)
                    pipe.hincrby(self._marks, CHANGES)
                    dropped += pipe.execute()[0]
            return dropped

    def scan(self, kind: str) -> Iterator[tuple[Place, bytes]]:
        """All tiles, those of one start as they are when they are come to."""
        with self._told():
            starts: Any = self._redis.zrange(self._starts(kind), 0, -1)
            for start in starts:
                found = dict(self._redis.hscan_iter(self._tiles(kind, int(start)), count=_ROUND))
                for key in sorted(found):
                    yield Place(kind, key.decode(), int(start)), found[key]

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _read_tiles(self, places: Sequence[Place]) -> dict[Place, bytes]:
        with self._told(), self._redis.pipeline(transaction=False) as pipe:
            rounds = self._ask(pipe, places)
            return _tiles_of(rounds, pipe.execute())

    def _ask(self, pipe: Any, places: Sequence[Place]) -> list[Sequence[Place]]:
        """Ask for tiles, by and by."""
        rounds = [places[start : start + _ROUND] for start in range(0, len(places), _ROUND)]
        for some in rounds:
            pairs = [part for kind, key, start_us in some for part in (self._tiles(kind, start_us), key)]
            pipe.eval(_READ, 0, *pairs)
        return rounds

    def _tiles(self, kind: str, start_us: int) -> str:
        return f"{self._prefix}:tiles:{kind}:{start_us}"

    def _starts(self, kind: str) -> str:
        return f"{self._prefix}:starts:{kind}"

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """StoreError for what the server or the network says, and for keys with what headrace does not write."""
        from redis.exceptions import RedisError

        try:
            yield
        except (RedisError, OSError) as error:
            raise StoreError(f"{self.name}: {redact(str(error))}") from None
        except (KeyError, ValueError):
            what = "holds what headrace did not write: remove these keys, and fill it anew"
            raise StoreError(f"{self.name}: {self._prefix}:* {what}") from None


def _tiles_of(rounds: Sequence[Sequence[Place]], answers: Sequence[Any]) -> dict[Place, bytes]:
    pairs = [pair for some, found in zip(rounds, answers, strict=True) for pair in zip(some, found, strict=True)]
    return {place: tile for place, tile in pairs if tile is not None}


def _marks_of(told: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in told.items()}


def _text(number: Number) -> str:
    return f"{number[0]}-{number[1]}"


def _number(text: bytes) -> Number:
    first, _, second = text.decode().partition("-")
    return int(first), int(second)


def check_redis(uri: str) -> None:
    """StoreError for a URL that can't be a Redis store's, or with a secret in it."""
    import importlib.util

    if importlib.util.find_spec("redis") is None:
        raise StoreError(f"{redact(uri)}: a store in Redis needs redis, which is not installed: pip install redis")
    _parts(uri)


def _parts(uri: str) -> dict[str, Any]:
    """What a client is told of a URL, but for the password; StoreError if it can't be."""
    try:
        url = urllib.parse.urlsplit(uri)
        port, database = url.port or 6379, int(url.path.strip("/") or 0)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query)))
    except ValueError:
        raise StoreError(f"{redact(uri)}: is no URL of Redis: {_FORMS}") from None
    if not url.hostname or not set(query) <= set(_QUERY) or (query and url.scheme != "rediss"):
        raise StoreError(f"{redact(uri)}: is no URL of Redis: {_FORMS}; of a query there may be {', '.join(_QUERY)}")
    if url.password is not None and not url.password.startswith("$"):
        raise StoreError(f"{redact(uri)}: has a password in it: put it into a variable, and {_FORMS}")
    told: dict[str, Any] = {"host": url.hostname, "port": port, "db": database, **query}
    told |= {"username": urllib.parse.unquote(url.username)} if url.username else {}
    told |= {"ssl": True, "ssl_check_hostname": True} if url.scheme == "rediss" else {}
    if url.password is not None:
        told["password"] = url.password[1:]
    return told


def _connect(uri: str, wait_seconds: float) -> Redis:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    told = _parts(uri)
    if "password" in told:
        variable = told["password"]
        if variable not in os.environ:
            raise StoreError(f"{redact(uri)}: needs the environment variable after its $, which is not set")
        told["password"] = os.environ[variable]
    once = Retry(NoBackoff(), 0)
    return Redis(**told, socket_timeout=wait_seconds, socket_connect_timeout=wait_seconds, retry=once)
