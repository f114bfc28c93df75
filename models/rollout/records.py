"""Release records: each is the whole state of a project's models from an event time on, and names the one before.

A record's canonical form is JSON by RFC 8785, its times ISO 8601 in UTC with microseconds; its digest, which the next
one holds as `prev`, is that form's SHA-256. So a log that was changed anywhere but at its end breaks, and can't be
mended without writing all records after it anew.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

import rfc8785

from models.errors import HeadraceError

MAX_RECORD_BYTES = 64 << 10
MAX_RECORDS = 100_000
MAX_TEXT = 1_000  # characters of a reason or a name
SHARES = 10_000  # into which entities are hashed
HOLDOUT = "holdout"  # the decision of an event that is held out
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BUNDLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
Clock = Literal["wall", "event"]
_Share = TypeVar("_Share", bound="Share")


class ReleaseError(HeadraceError, ValueError):
    """A release record or log that can't be, or a release that can't be made."""


@dataclass(frozen=True)
class Share:
    """A share of an entity's keys: those with hash(salt, key) % 10,000 < per_10000."""

    entity: str  # as the project declares it
    per_10000: int  # 0 to 10,000
    salt: str

    def __post_init__(self) -> None:
        _require_text("entity", self.entity)
        _require_text("salt", self.salt)
        if type(self.per_10000) is not int or not 0 <= self.per_10000 <= SHARES:
            raise ReleaseError(f"per_10000 is a whole number from 0 to {SHARES}, not {self.per_10000!r}")


@dataclass(frozen=True)
class Canary(Share):
    """The entities whose events the challenger scores."""


@dataclass(frozen=True)
class Holdout(Share):
    """The entities whose events pass whatever their score."""


@dataclass(frozen=True)
class Release:
    """The state of a project's models from an event time on.

    Fields:
        seq: 0, 1, 2, … in the order of writing.
        effective_from_us: event time in microseconds since 1970 UTC; None of record 0 alone, which holds from the
            beginning of time.
        champion: id of the model bundle that scores.
        challenger: id of the one that scores the canary's entities; None without a canary.
        canary: the challenger's share; None without a challenger.
        shadows: ids of bundles that score every event beside, each once, neither champion nor challenger.
        holdout: entities that pass whatever their score, or None.
        fallback: id of the bundle that scores in place of one that is refused where it lands, or None.
        thresholds: action → the lowest score that is decided so, in place of what the project declares; or None.
        why: the reason, one line.
        made_at_us: when it was made, by the log's clock; None of record 0 alone, if nobody made it.
        author: who made it.
        approver: who agreed, or None.
        change_id: id of the change that it is part of, or None.
        prev: digest of the record before, 64 hexadecimal digits; "" of record 0.
        signatures: none yet; a record with some is of a later version, and refused.

    Raises:
        ReleaseError: at construction, if a field can't be.
    """

    seq: int
    effective_from_us: int | None
    champion: str
    challenger: str | None
    canary: Canary | None
    shadows: tuple[str, ...]
    holdout: Holdout | None
    fallback: str | None
    thresholds: Mapping[str, float] | None = field(hash=False)
    why: str
    made_at_us: int | None
    author: str
    approver: str | None
    change_id: str | None
    prev: str
    signatures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if type(self.seq) is not int or not 0 <= self.seq < MAX_RECORDS:
            raise ReleaseError(f"seq is a whole number from 0 to {MAX_RECORDS - 1}")
        if (self.seq == 0) != (self.effective_from_us is None):
            raise ReleaseError("record 0, and no other, holds from the beginning of time: effective_from is null there")
        if self.seq and self.made_at_us is None:
            raise ReleaseError("made_at is missing")
        if not isinstance(self.prev, str) or not (_DIGEST.fullmatch(self.prev) if self.seq else self.prev == ""):
            raise ReleaseError('prev is the SHA-256 of the record before, and "" of record 0')
        for name in ("effective_from_us", "made_at_us"):
            if getattr(self, name) is not None:
                _text_of(getattr(self, name))
        optional = [bundle for bundle in (self.challenger, self.fallback) if bundle is not None]
        for bundle in (self.champion, *self.shadows, *optional):
            if not isinstance(bundle, str) or not _BUNDLE.fullmatch(bundle):
                raise ReleaseError(f"{bundle!r:.80} is no id of a bundle")
        if (self.challenger is None) != (self.canary is None):
            raise ReleaseError("a challenger and the canary that is its share come together")
        if self.challenger == self.champion:
            raise ReleaseError(f"bundle {self.champion} is champion and challenger")
        if len({self.champion, self.challenger, *self.shadows}) != 2 + len(self.shadows):
            raise ReleaseError("a shadow comes twice, or is champion or challenger, too")
        for action, least in (self.thresholds or {}).items():
            _require_text("an action of thresholds", action)
            if type(least) is not float or not abs(least) < float("inf"):
                raise ReleaseError(f"the threshold of {action} is a finite number, not {least!r}")
        for name in ("why", "author", "approver", "change_id"):
            if getattr(self, name) is not None or name in ("why", "author"):
                _require_text(name, getattr(self, name))
        if self.signatures:
            raise ReleaseError("has signatures, which this version can't verify: install a later one")

    @property
    def bundles(self) -> tuple[str, ...]:
        """The ids of all bundles that it names, each once, the champion first."""
        named = (self.champion, self.challenger, *self.shadows, self.fallback)
        return tuple(dict.fromkeys(bundle for bundle in named if bundle is not None))


def canonical(release: Release) -> bytes:
    """The record as JSON by RFC 8785; ReleaseError if it is larger than MAX_RECORD_BYTES."""
    told: dict[str, Any] = {}
    for each in fields(release):
        value = getattr(release, each.name)
        if isinstance(value, Share):
            value = {"entity": value.entity, "per_10000": value.per_10000, "salt": value.salt}
        elif each.name.endswith("_us"):
            value = None if value is None else _text_of(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        told[each.name.removesuffix("_us")] = value
    content = rfc8785.dumps(told)
    if len(content) > MAX_RECORD_BYTES:
        raise ReleaseError(f"a record is larger than {MAX_RECORD_BYTES} bytes")
    return content


def digest(release: Release) -> str:
    """SHA-256 of the canonical form, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(release)).hexdigest()


def from_json(content: bytes) -> Release:
    """The record of a canonical form; ReleaseError if it is not one, to the byte."""
    if len(content) > MAX_RECORD_BYTES:
        raise ReleaseError(f"a record is larger than {MAX_RECORD_BYTES} bytes")
    told = parse(content)
    names = {each.name.removesuffix("_us"): each.name for each in fields(Release)}
    if set(told) != set(names):
        wrong = ", ".join(sorted(repr(name)[:80] for name in set(told) ^ set(names)))
        raise ReleaseError(f"a record has exactly the keys {', '.join(sorted(names))}; wrong or missing: {wrong}")
    told |= {name: _micros_of(name, told[name]) for name in ("effective_from", "made_at")}
    told |= {"canary": _share(Canary, told["canary"]), "holdout": _share(Holdout, told["holdout"])}
    told |= {name: _texts(name, told[name]) for name in ("shadows", "signatures")}
    told["thresholds"] = _numbers(told["thresholds"])
    release = Release(**{names[name]: value for name, value in told.items()})
    if canonical(release) != content:
        raise ReleaseError("is not in the canonical form of RFC 8785")
    return release


def read_record(seq: int, content: bytes) -> Release:
    """As `from_json`, of a log's record of that number, which errors name."""
    try:
        return from_json(content)
    except ReleaseError as error:
        raise ReleaseError(f"record {seq}: {error}") from None


def parse(content: bytes) -> dict[str, Any]:
    """The members of an object of JSON; ReleaseError if it is none."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):  # also of texts that are not UTF-8
        raise ReleaseError("is not JSON") from None
    if not isinstance(told, dict):
        raise ReleaseError("is no object of JSON")
    return told


@dataclass(frozen=True)
class ReleaseLog:
    """All release records of a project, in the order of writing.

    Fields:
        clock: what `made_at` is: `wall`, the time of day of whoever made it, or `event`, an event time.
        lead_us: microseconds, at least, from when a record is made to when it takes effect.
        records: at least record 0, or none of a log that is not begun.
    """

    clock: Clock
    lead_us: int
    records: tuple[Release, ...]

    def check(self, entities: Collection[str]) -> None:
        """ReleaseError for the first record that does not follow from the one before, or names no entity of these."""
        if self.clock not in ("wall", "event"):
            raise ReleaseError(f"clock is wall or event, not {self.clock!r}")
        if type(self.lead_us) is not int or not 0 <= self.lead_us < 1 << 53:
            raise ReleaseError(f"lead is a whole number of microseconds, not {self.lead_us!r}")
        prev, before_us = "", None
        for seq, release in enumerate(self.records):
            for fault in self._faults(release, seq, prev, before_us, entities):
                raise ReleaseError(f"record {seq}: {fault}")
            prev = digest(release)
            before_us = before_us if release.made_at_us is None else release.made_at_us

    def _faults(
        self, release: Release, seq: int, prev: str, before_us: int | None, entities: Collection[str]
    ) -> Iterator[str]:
        made_us, from_us = release.made_at_us, release.effective_from_us
        if release.seq != seq:
            yield f"has seq {release.seq}: one is missing, or out of order"
        if release.prev != prev:
            yield f"does not follow record {seq - 1}, which has the digest {prev}; one of the two was changed"
        if made_us is not None and before_us is not None and made_us < before_us:
            yield f"was made at {_text_of(made_us)}, which is before the one before it, made at {_text_of(before_us)}"
        if made_us is not None and from_us is not None and from_us < made_us + self.lead_us:
            earliest = _text_of(made_us + self.lead_us)
            yield f"takes effect at {_text_of(from_us)}, which is before {earliest}, when it is known everywhere"
        for share in (release.canary, release.holdout):
            if share is not None and share.entity not in entities:
                there = ", ".join(sorted(entities)) or "none"
                yield f"{share.entity!r} is no entity of the project; there are: {there}"

    def in_effect(self, event_time_us: int) -> Release | None:
        """The record for events of that time, microseconds since 1970 UTC; None of a log without records.

        Of those with `effective_from` at or before it, the last by (effective_from, seq): of two from one time the
        later written, and what is planned for later than another is not undone by it.
        """
        found = [r for r in self.records if r.effective_from_us is None or r.effective_from_us <= event_time_us]
        return max(found, key=order, default=None)


def order(release: Release) -> tuple[int, int]:
    """What the later of two records has the larger of: when it takes effect, in microseconds, and its seq."""
    return (-(1 << 62) if release.effective_from_us is None else release.effective_from_us, release.seq)


def time_text(time_us: int | None) -> str:
    """An event time in ISO 8601, as records have it, or that it is the beginning of time."""
    return "the beginning of time" if time_us is None else _text_of(time_us)


def _text_of(time_us: int) -> str:
    try:
        if type(time_us) is not int:
            raise OverflowError
        time = _EPOCH + datetime.timedelta(microseconds=time_us)
    except OverflowError:
        raise ReleaseError(f"{time_us!r} is no time of the years 1 to 9999, in microseconds since 1970") from None
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _micros_of(name: str, text: Any) -> int | None:
    if text is None:
        return None
    try:
        if not isinstance(text, str) or not _TIME.fullmatch(text):
            raise ValueError
        return (datetime.datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND
    except ValueError:
        raise ReleaseError(f"{name} is a time such as 2018-06-08T00:00:00.000000Z, not {text!r:.80}") from None


def _share(kind: type[_Share], told: Any) -> _Share | None:
    if told is None:
        return None
    if not isinstance(told, dict) or set(told) != {"entity", "per_10000", "salt"}:
        raise ReleaseError(f"{kind.__name__.lower()} is null or has entity, per_10000 and salt")
    return kind(**told)


def _texts(name: str, told: Any) -> tuple[str, ...]:
    if not isinstance(told, list) or not all(isinstance(each, str) for each in told):
        raise ReleaseError(f"{name} is a list of texts")
    return tuple(told)


def _numbers(told: Any) -> dict[str, float] | None:
    if told is None:
        return None
    if not isinstance(told, dict) or not all(type(each) in (int, float) for each in told.values()):
        raise ReleaseError("thresholds is null or a mapping of numbers")
    try:
        return {name: float(each) for name, each in told.items()}
    except OverflowError:
        raise ReleaseError("thresholds holds a number that is too large") from None


def _require_text(name: str, text: Any) -> None:
    fits = isinstance(text, str) and 0 < len(text) <= MAX_TEXT and text.isprintable() and text == text.strip()
    if not fits:
        raise ReleaseError(f"{name} is a line of 1 to {MAX_TEXT} characters, not {text!r:.80}")
