"""Logs of releases for tests."""

import dataclasses
from typing import Any

import numpy as np

from models.predictors.registry import register
from models.rollout.records import Canary, Release, ReleaseLog, digest
from pipelines.jobs.released import Released
from pipelines.sources.payloads import event_times
from tests.kit.bundles import make_bundle
from tests.kit.support import tiny_scorer

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
    """Scorers at hand, by the ids of bundles, None of other features; what can't score has its fault in `faults`."""

    scorers: dict
    faults: dict = dataclasses.field(default_factory=dict)

    def __call__(self, bundle_id):
        return self.scorers[bundle_id]

    def decisions_of(self, bundle_id):
        return None

    def is_other(self, bundle_id):
        return bundle_id in self.scorers and self.scorers[bundle_id] is None

    def fault_of(self, bundle_id):
        return self.faults.get(bundle_id, None if bundle_id in self.scorers else "there is no such bundle")


@dataclasses.dataclass(frozen=True, eq=False)
class GivenLog(Released):
    """A log at hand; one that grows is read by a function."""

    read_log: Any = None
    grows: bool = False

    def newest(self):
        return None

    def read(self):
        log = self.read_log() if callable(self.read_log) else self.read_log
        log.check(self.project.entities)
        return log


def given_log(project, log, bundles, **options):
    return GivenLog("given", project, bundles, read_log=log, **options)


def five_releases(project, payloads, entity):
    """A log with a canary of 10 %, one of 50 %, a promotion, another and a rollback, in the middle of events."""
    times = np.sort(event_times(payloads, project))
    at = [int(times[len(times) * part // 6]) for part in range(1, 6)]
    old, new, worse = ids = ("old", "new", "worse")
    log = make_log(
        old,
        {"at": at[0], "challenger": new, "canary": canary(entity, 1000), "shadows": (worse,)},
        {"at": at[1], "canary": canary(entity, 5000)},
        {"at": at[2], "champion": new, "challenger": None, "canary": None, "shadows": ()},
        {"at": at[3], "champion": worse},
        {"at": at[4], "champion": new},
    )
    scorers = {name: tiny_scorer(project.model.inputs, seed) for seed, name in enumerate(ids)}
    return given_log(project, log, GivenBundles(scorers))


LOOKS = {"looks": 0}


def grown(log):
    """A log of which each look finds one record more, from record 0 on."""
    LOOKS["looks"] += 1
    return dataclasses.replace(log, records=log.records[: LOOKS["looks"]])


def register_bundles(folder, project, uri, seeds):
    """Register a bundle of a small model a seed for the project in a folder; their ids."""
    names, found = project.model.inputs, []
    for seed in seeds:
        told = {
            "schema": (folder / "schema.pbtxt").read_bytes(),
            "project": (folder / "project.yaml").read_bytes(),
            "feature_definitions": project.feature_definitions(),
        }
        bundle = dataclasses.replace(make_bundle(names, seed), **told)
        register(bundle, project.name, uri)
        found.append(bundle.bundle_id)
    return found
