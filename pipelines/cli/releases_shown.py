"""What people see of a release log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from models.predictors.versions import Version
from models.quality.circuit import Noted, change_line
from models.rollout.changes import share_text
from models.rollout.records import Release, ReleaseLog, Share, canonical, digest, order, time_text

_HASH_SHOWN = 12  # digits


def log_lines(log: ReleaseLog, versions: Sequence[Version], noted: Sequence[Noted] = ()) -> Iterator[str]:
    """All records, in the order of writing: when they take effect and their hashes, what they say, and who said it.

    Behind each stands what the circuit breaker made of it.
    """
    numbers = _numbers(versions)
    for record in log.records:
        approved = f", approved by {record.approver}" if record.approver else ""
        change = f", change {record.change_id}" if record.change_id else ""
        yield f"release {record.seq}  from {_time(record)}  {digest(record)[:_HASH_SHOWN]}"
        yield f"  {_said(record, numbers)}"
        yield f"  {record.author}{approved}{change}: {record.why}"
        yield from (f"  {change_line(each)}" for each in noted if _release_of(each, log) == record.seq)


def as_json(name: str, log: ReleaseLog, versions: Sequence[Version], noted: Sequence[Noted] = ()) -> str:
    """All of a log as JSON, and of each record its hash and its bundles' versions; signatures are none yet.

    Changes of the circuit breaker stand beside the records, where there are some.
    """
    numbers = _numbers(versions)
    records = [
        {
            **{name: value for name, value in json.loads(canonical(record)).items() if name != "signatures"},
            "digest": digest(record),
            "versions": {bundle: numbers.get(bundle) for bundle in record.bundles},
        }
        for record in log.records
    ]
    told: dict[str, Any] = {"project": name, "clock": log.clock, "lead_us": log.lead_us, "records": records}
    if noted:
        told["circuit"] = [
            {
                "state": each.circuit.state,
                "from": time_text(each.circuit.from_us),
                "release": _release_of(each, log),
                "reason": each.reason,
            }
            for each in noted
        ]
    return json.dumps(told, indent=2, ensure_ascii=False)


def newest_lines(name: str, log: ReleaseLog, versions: Sequence[Version]) -> Iterator[str]:
    """What the newest record says, and which records take effect after it nonetheless."""
    numbers, new = _numbers(versions), log.records[-1]
    yield f"{name}: release {new.seq} from {_time(new)}: {_said(new, numbers)}"
    for record in sorted(log.records, key=order):
        if order(record) > order(new):
            champion = _named(record.champion, numbers)
            yield f"release {record.seq} still takes effect from {_time(record)}: champion {champion}"


def _release_of(noted: Noted, log: ReleaseLog) -> int | None:
    """The number of the release in effect before a change of the circuit."""
    release = log.in_effect((noted.circuit.from_us or 0) - 1)
    return None if release is None else release.seq


def _said(record: Release, numbers: dict[str, int]) -> str:
    said = [f"champion {_named(record.champion, numbers)}"]
    if record.challenger:
        said.append(f"canary {_named(record.challenger, numbers)} with {_share(record.canary)}")
    if record.shadows:
        said.append(f"shadows {', '.join(_named(shadow, numbers) for shadow in record.shadows)}")
    if record.holdout:
        said.append(f"holdout {_share(record.holdout)}")
    if record.fallback:
        said.append(f"fallback {_named(record.fallback, numbers)}")
    if record.thresholds is not None:
        said.append(f"thresholds {', '.join(f'{action} {least:g}' for action, least in record.thresholds.items())}")
    return ", ".join(said)


def _numbers(versions: Sequence[Version]) -> dict[str, int]:
    return {version.bundle_id: version.version for version in versions}


def _named(bundle: str | None, numbers: dict[str, int]) -> str:
    """A bundle as people name it: by its version, if that is known, and its id."""
    return f"{numbers[bundle]} ({bundle})" if bundle in numbers else str(bundle)


def _share(share: Share | None) -> str:
    return f"{share_text(share.per_10000)} of {share.entity}" if share else ""


def _time(record: Release) -> str:
    return time_text(record.effective_from_us).replace(".000000Z", "Z")
