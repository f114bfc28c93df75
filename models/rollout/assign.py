"""Which release an event belongs to, and which model scores it: by its event time and its entity alone.

Of the releases that have taken effect at or before an event's own time, the last by (effective_from, seq) is the
event's. Its canary has the events of the entities in its share:

    part(entity, salt) = fmix(fmix(entity) ^ fmix(salt)) mod 10,000      in the share if part < per_10000

where fmix is the finaliser of MurmurHash3 (Appleby, public domain) over 64 bits, of a whole number its two's
complement, of a text the sum of (byte + 1) · p**place modulo 2**64 with p = 0x9E3779B97F4A7C15 and places from 1 on,
as `models.batches.hash_keys` has it. It is the same on every machine; a larger share keeps the entities of a smaller
one of the same salt, and shares of other salts are independent. An event without the entity is in no share.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from models.batches import hash_keys
from models.record import (
    BUNDLE,
    EVENT_TIME,
    HELD_OUT,
    HOLDOUT_SHARE,
    INSTEAD,
    INSTEAD_THRESHOLDS,
    RELEASE_NUMBER,
    RELEASE_ROLE,
    SHADOWS,
    SINCE,
    SYSTEM_FIELDS,
    THRESHOLDS,
)
from models.rollout.changes import champions_before
from models.rollout.records import SHARES, Release, ReleaseError, Share, canonical, from_json, order

CHAMPION, CANARY, SHADOW, FALLBACK = ("champion", "canary", "shadow", "fallback")
RECORD = "record"  # a column of release records in their canonical form

_COLUMNS = (RELEASE_NUMBER, RELEASE_ROLE, BUNDLE, SHADOWS, THRESHOLDS, HELD_OUT, HOLDOUT_SHARE)
Int64 = np.ndarray[Any, np.dtype[np.int64]]
Rows = np.ndarray[Any, np.dtype[np.bool_]]


class Assigned(NamedTuple):
    """Of each event, the number int32[n] of its release, and what that says, as dictionaries of strings [n].

    That is the role and id of the bundle that scores it, a JSON list of the ids of shadows, and a JSON object of
    thresholds, "" where the project's own hold. `holdout`, bool[n], tells which pass whatever their score, and
    `holdout_share`, int32[n], the share of keys that do in 10,000ths, 0 where there is no holdout.
    """

    release: pa.Array
    role: pa.DictionaryArray
    bundle: pa.DictionaryArray
    shadows: pa.DictionaryArray
    thresholds: pa.DictionaryArray
    holdout: pa.BooleanArray
    holdout_share: pa.Array

    def columns(self) -> dict[str, pa.Array]:
        """As the columns that go between steps."""
        return dict(zip(_COLUMNS, self, strict=True))


class Releases:
    """Release records, ready to be asked for those of many events at once."""

    def __init__(self, releases: Iterable[Release]) -> None:
        """Records in any order; of several of one `seq`, which are equal, one counts."""
        self.by_seq = {release.seq: release for release in releases}
        self._ordered = sorted(self.by_seq.values(), key=order)
        self._from_us = np.array([order(release)[0] for release in self._ordered], np.int64)
        self._seq = np.array([release.seq for release in self._ordered], np.int32)
        champions = [release.champion for release in self._ordered]
        scoring, self._bundles = _codes([*champions, *(r.challenger or r.champion for r in self._ordered)])
        self._champion, self._challenger = scoring[: len(champions)], scoring[len(champions) :]
        self._shadows, self._shadow_lists = _codes([json.dumps(release.shadows) for release in self._ordered])
        self._thresholds, self._threshold_texts = _codes([thresholds_text(release) for release in self._ordered])

    def __len__(self) -> int:
        return len(self.by_seq)

    def assign(self, times_us: Int64, keys: Mapping[str, pa.Array]) -> Assigned:
        """The release, role and bundle of each event.

        Args:
            times_us: event times int64[n], microseconds since 1970 UTC.
            keys: by the names of the entities that shares are of, the events' keys [n]: integers or texts.

        Raises:
            ReleaseError: if an event is of a time before all records, which none is where record 0 is there.
        """
        place = np.searchsorted(self._from_us, times_us, side="right") - 1
        if len(place) and place.min() < 0:
            raise ReleaseError("events are of a time before all release records: record 0 is missing")
        holdouts = [release.holdout for release in self._ordered]
        shares = np.array([share.per_10000 if share else 0 for share in holdouts], np.int32)
        is_canary = self._inside(place, [release.canary for release in self._ordered], keys)
        bundle = np.where(is_canary, self._challenger[place], self._champion[place]).astype(np.int32)
        return Assigned(
            pa.array(self._seq[place]),
            pa.DictionaryArray.from_arrays(pa.array(is_canary.astype(np.int32)), pa.array([CHAMPION, CANARY])),
            pa.DictionaryArray.from_arrays(pa.array(bundle), self._bundles),
            pa.DictionaryArray.from_arrays(pa.array(self._shadows[place]), self._shadow_lists),
            pa.DictionaryArray.from_arrays(pa.array(self._thresholds[place]), self._threshold_texts),
            pa.array(self._inside(place, holdouts, keys)),
            pa.array(shares[place]),
        )

    def instead(self, times_us: Int64, role: pa.DictionaryArray) -> dict[str, pa.Array]:
        """What scores an event where a circuit breaker is open, by the event's time and role, as columns.

        `__since`, int64[n], is when what scores took effect, microseconds since 1970 UTC; null of a champion's events
        while there is a canary, as then it is the canary that falls back, to the champion. `__instead` is the bundle,
        "" where there is none: the release's fallback, or the champion before; `__instead_thresholds` are its own.
        """
        place = np.searchsorted(self._from_us, times_us, side="right") - 1
        is_canary = np.asarray(role.indices) == 1
        runs_canary = np.array([release.canary is not None for release in self._ordered], bool)[place]
        kept = runs_canary & ~is_canary
        since, before = self._circuits
        columns = {SINCE: pa.array(since[place], mask=kept)}
        for name, (codes, texts) in zip((INSTEAD, INSTEAD_THRESHOLDS), before, strict=True):
            columns[name] = pa.DictionaryArray.from_arrays(pa.array(np.where(kept, np.int32(0), codes[place])), texts)
        return columns

    @functools.cached_property
    def _circuits(self) -> tuple[Int64, list[tuple[np.ndarray[Any, np.dtype[np.int32]], pa.Array]]]:
        """Of each record since when what scores does so; and codes and texts of bundle and thresholds in its place."""
        since, bundles, thresholds = self._from_us.copy(), [""], [""]
        for at, (release, before) in enumerate(zip(self._ordered, champions_before(self._ordered), strict=True)):
            if at and _scoring(release) == _scoring(self._ordered[at - 1]):
                since[at] = since[at - 1]
            if release.canary is not None:
                bundle, by = release.champion, release
            elif release.fallback is not None:
                bundle, by = release.fallback, release
            else:
                bundle, by = ("", release) if before is None else (before.champion, before)
            bundles.append(bundle)
            thresholds.append(thresholds_text(by))
        return since, [(codes[1:], texts) for codes, texts in map(_codes, (bundles, thresholds))]

    def _inside(self, place: Int64, shares: Sequence[Share | None], keys: Mapping[str, pa.Array]) -> Rows:
        """Which events, bool[n], are in the share, if there is one, of the record whose place each has."""
        inside = np.zeros(len(place), bool)
        wanted = [shares[at] for at in np.unique(place).tolist()]
        for entity, salt in sorted({(share.entity, share.salt) for share in wanted if share is not None}):
            mine = (s.per_10000 if s and (s.entity, s.salt) == (entity, salt) else 0 for s in shares)
            parts = parts_of(keys[entity], salt)
            inside |= (parts >= 0) & (parts < np.fromiter(mine, np.int64, len(shares))[place])
        return inside


def parts_of(keys: pa.Array, salt: str) -> Int64:
    """The part int64[n] from 0 to 9,999 of each entity; -1 of an event without one."""
    mixed = hash_keys(keys) ^ hash_keys(pa.array([salt]))[0]
    parts = (hash_keys(pa.array(mixed.view(np.int64))) % np.uint64(SHARES)).astype(np.int64)
    return np.where(np.asarray(keys.is_valid()), parts, -1)


def to_batch(releases: Iterable[Release]) -> pa.RecordBatch:
    """Records as rows: when they take effect, and their canonical form, binary."""
    found = list(releases)
    times = pa.array([order(release)[0] for release in found], pa.int64()).cast(SYSTEM_FIELDS[EVENT_TIME].type)
    records = pa.array([canonical(release) for release in found], pa.binary())
    return pa.RecordBatch.from_arrays([times, records], names=[EVENT_TIME, RECORD])


def from_batch(batch: pa.RecordBatch) -> list[Release]:
    """The records of such rows."""
    return [from_json(record) for record in batch.column(1).to_pylist()]


def thresholds_text(release: Release) -> str:
    """A release's thresholds as a JSON object, or "" where the project's own hold."""
    return json.dumps(dict(release.thresholds), sort_keys=True) if release.thresholds else ""


def _scoring(release: Release) -> tuple[Any, ...]:
    """What of a release decides how events are scored."""
    return (release.champion, release.challenger, release.canary, release.thresholds)


def _codes(texts: list[str]) -> tuple[np.ndarray[Any, np.dtype[np.int32]], pa.Array]:
    """A code int32[n] for each text, and the texts by their codes."""
    encoded = pa.array(texts, pa.string()).dictionary_encode()
    return np.asarray(encoded.indices.to_numpy()), encoded.dictionary
