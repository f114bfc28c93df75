"""What a release changes of the state before it: a champion, a canary, shadows, a holdout, or all back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from models.rollout.records import SHARES, Canary, Holdout, Release, ReleaseError, ReleaseLog, digest, order

_SHARE = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?\s*%")
_HOLDOUT_SALT = "holdout"  # other than a canary's, so that the two are independent
# What of a record is no state, but how it came about.
_ABOUT = {"seq", "effective_from_us", "why", "made_at_us", "author", "approver", "change_id", "prev", "signatures"}


@dataclasses.dataclass(frozen=True)
class Told:
    """What people say of a release."""

    why: str
    author: str
    approver: str | None = None
    change_id: str | None = None


def begin(champion: str, made_at_us: int, author: str) -> Release:
    """Record 0 of a log: the champion of then, from the beginning of time."""
    why = "champion when the log was begun"
    return Release(0, None, champion, None, None, (), None, None, None, why, made_at_us, author, None, None, "")


def follow(log: ReleaseLog, state: Release, made_at_us: int, effective_from_us: int, told: Told) -> ReleaseLog:
    """The log with one more record, of that state; times in microseconds since 1970 UTC.

    Raises:
        ReleaseError: if what is told can't be. That it follows in time, `ReleaseLog.check` says.
    """
    last = log.records[-1]
    record = replace(
        state,
        seq=last.seq + 1,
        effective_from_us=effective_from_us,
        made_at_us=made_at_us,
        prev=digest(last),
        **dataclasses.asdict(told),
    )
    return replace(log, records=(*log.records, record))


def is_same(state: Release, other: Release) -> bool:
    """Whether two records are one state: of equal bundles, shares and thresholds."""
    names = {each.name for each in dataclasses.fields(Release)} - _ABOUT
    return all(getattr(state, name) == getattr(other, name) for name in names)


def with_champion(state: Release, champion: str) -> Release:
    """The state with another champion, which ends a canary."""
    return replace(state, champion=champion, challenger=None, canary=None, shadows=_without(state.shadows, champion))


def with_canary(state: Release, challenger: str, entity: str, per_10000: int) -> Release:
    """The state with a challenger that scores a share of an entity's keys.

    The salt is the challenger's id: a larger share of the same challenger keeps those that are in.
    """
    canary, shadows = Canary(entity, per_10000, challenger), _without(state.shadows, challenger)
    return replace(state, challenger=challenger, canary=canary, shadows=shadows)


def with_shadows(state: Release, shadows: tuple[str, ...]) -> Release:
    """The state with these shadows and no others."""
    return replace(state, shadows=shadows)


def with_fallback(state: Release, fallback: str | None) -> Release:
    """The state with a bundle that scores in place of one that is refused where it lands, or with none."""
    return replace(state, fallback=fallback)


def with_holdout(state: Release, entity: str, per_10000: int) -> Release:
    """The state with a share of an entity's keys that pass whatever their score; with 0, without one."""
    return replace(state, holdout=Holdout(entity, per_10000, _HOLDOUT_SALT) if per_10000 else None)


def with_thresholds(state: Release, thresholds: Mapping[str, float] | None) -> Release:
    """The state with these lowest scores by action, beside those that it has; with None, with those declared."""
    return replace(state, thresholds=None if thresholds is None else {**(state.thresholds or {}), **thresholds})


def rolled_back(log: ReleaseLog, event_time_us: int) -> Release:
    """The state to go back to from the one in effect at an event time; its shadows and holdout stay.

    With a canary, that is the state without it; else champion, thresholds and fallback are those before. A champion to
    which a log came back undoes what was between: after A, B and A again there is nothing before A.

    Raises:
        ReleaseError: if there is none.
    """
    records = [r for r in log.records if r.effective_from_us is None or r.effective_from_us <= event_time_us]
    records.sort(key=order)
    if records and records[-1].canary is not None:
        return replace(records[-1], challenger=None, canary=None)
    before = champions_before(records)[-1] if records else None
    if before is None:
        raise ReleaseError("nothing was before what is in effect: `headrace release PROJECT VERSION` names a champion")
    now = with_champion(records[-1], before.champion)
    return replace(now, thresholds=before.thresholds, fallback=before.fallback)


def champions_before(records: Sequence[Release]) -> list[Release | None]:
    """Of each of some records, in the order of their effect, the one whose champion and thresholds were before its own.

    A champion to which a log came back undoes what was between; None where nothing was before.
    """
    past: list[Release] = []
    found: list[Release | None] = []
    for record in records:
        if len(past) > 1 and _scores_as(past[-2], record):
            past.pop()
        if not past or not _scores_as(past[-1], record):
            past.append(record)
        found.append(past[-2] if len(past) > 1 else None)
    return found


def parse_share(text: str) -> int:
    """A share such as `5%` or `0.25%`, in 10,000ths; ReleaseError if it is none."""
    match = _SHARE.fullmatch(text.strip())
    share = int(match[1]) * 100 + int((match[2] or "").ljust(2, "0")) if match else -1
    if not 0 < share <= SHARES:
        raise ReleaseError(f"{text!r:.80} is no share: write 0.01% to 100%, with at most two decimal places")
    return share


def parse_threshold(text: str) -> tuple[str, float]:
    """An action and the lowest score that is decided so, of `block=0.9`; ReleaseError if it is none."""
    action, _, least = text.partition("=")
    try:
        return action.strip(), float(least)
    except ValueError:
        raise ReleaseError(f"{text!r:.80} is no threshold: write ACTION=SCORE, such as block=0.9") from None


def share_text(per_10000: int) -> str:
    """A share as `parse_share` reads it."""
    return f"{per_10000 / 100:g}%"


def _scores_as(state: Release, other: Release) -> bool:
    """Whether the champions of two states decide alike."""
    return (state.champion, state.thresholds) == (other.champion, other.thresholds)


def _without(shadows: tuple[str, ...], bundle: str) -> tuple[str, ...]:
    return tuple(shadow for shadow in shadows if shadow != bundle)
