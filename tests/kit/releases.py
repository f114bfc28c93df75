"""Logs of releases for tests."""

import dataclasses

from models.rollout.records import Canary, Release, ReleaseLog, digest

LEAD = 1_000_000


def make_log(champion, *changes, clock="event", lead_us=LEAD):
    """A log of record 0 with a champion, and then of whole states: each the one before with some fields changed.

    `at` is when a change takes effect, in microseconds since 1970; it is made `lead_us` before, or `made_at_us`.
    """
    none = dict.fromkeys(("challenger", "canary", "holdout", "fallback", "thresholds", "approver", "change_id"))
    release = Release(0, None, champion, shadows=(), why="first", made_at_us=None, author="test", prev="", **none)
    records = [release]
    for change in changes:
        at = change.pop("at")
        told = {"made_at_us": at - lead_us, "why": "a change", **change}
        before = records[-1]
        records.append(
            dataclasses.replace(before, seq=before.seq + 1, effective_from_us=at, prev=digest(before), **told)
        )
    return ReleaseLog(clock, lead_us, tuple(records))


def canary(entity, per_10000, salt="salt"):
    return Canary(entity, per_10000, salt)
