"""Logs of releases for tests."""

import dataclasses
from typing import Any

from models.rollout.records import Canary, Release, ReleaseLog, digest
from pipelines.jobs.releases import Released

LEAD = 1_000_000


def make_log(champion, *changes, clock="event", lead_us=LEAD):
    """A log of record 0 with a champion, and then of whole states: each the one before with some fields changed.

    `at` is when a change takes effect, in microseconds since 1970; it is made `lead_us` before, or `made_at_us`.
    """
    none = dict.fromkeys(("challenger", "canary", "holdout", "fallback", "thresholds", "approver", "change_id"))
    release = Release(0, None, champion, shadows=(), why="first", made_at_us=None, author="test", prev="", **none)
    records = [release]
    for change in changes:
        change = dict(change)
        at = change.pop("at")
        told = {"made_at_us": at - lead_us, "why": "a change", **change}
        before = records[-1]
        records.append(
            dataclasses.replace(before, seq=before.seq + 1, effective_from_us=at, prev=digest(before), **told)
        )
    return ReleaseLog(clock, lead_us, tuple(records))


def canary(entity, per_10000, salt="salt"):
    return Canary(entity, per_10000, salt)


@dataclasses.dataclass(frozen=True, eq=False)
class GivenBundles:
    """Scorers at hand, by the ids of bundles; what can't score has its fault in `faults`."""

    scorers: dict
    faults: dict = dataclasses.field(default_factory=dict)

    def __call__(self, bundle_id):
        return self.scorers[bundle_id]

    def fault_of(self, bundle_id):
        return self.faults.get(bundle_id, None if bundle_id in self.scorers else "there is no such bundle")


@dataclasses.dataclass(frozen=True, eq=False)
class GivenLog(Released):
    """A log at hand; one that grows is read by a function."""

    read_log: Any = None
    grows: bool = False

    def read(self):
        log = self.read_log() if callable(self.read_log) else self.read_log
        log.check(self.project.entities)
        return log


def given_log(project, log, bundles, **options):
    return GivenLog("given", project, bundles, log, **options)
