"""Release logs for tests."""

import dataclasses

from models.rollout.records import Canary, Holdout, Release, ReleaseLog, digest

LEAD_US = 5_000_000
FIRST = Release(0, None, "a", None, None, (), None, None, None, "first", 0, "ann", None, None, "")
ENTITIES = ("customer", "terminal")


def log_of(*states, first=FIRST, lead_us=LEAD_US, clock="event"):
    """A log of record 0 and then records with these fields, each made when the one before took effect."""
    log = ReleaseLog(clock, lead_us, (first,))
    for state in states:
        last = log.records[-1]
        made = state.pop("made_at_us", last.effective_from_us or 0)
        fields = {"why": "because", "made_at_us": made, "effective_from_us": made + lead_us, **state}
        record = dataclasses.replace(last, seq=last.seq + 1, prev=digest(last), **fields)
        log = dataclasses.replace(log, records=(*log.records, record))
    return log


def chain():
    """A log with all that a record may hold: a canary, a larger one, a promotion with a shadow, a rollback."""
    return log_of(
        {"challenger": "b", "canary": Canary("customer", 1000, "b"), "why": "ten percent – für 1 €"},
        {"canary": Canary("customer", 5000, "b"), "holdout": Holdout("terminal", 100, "holdout"), "author": "bo"},
        {"champion": "b", "challenger": None, "canary": None, "shadows": ("c", "d"), "approver": "cy"},
        {"champion": "a", "thresholds": {"block": 0.9, "look": -1e-7}, "fallback": "b", "change_id": "c-7"},
    )
