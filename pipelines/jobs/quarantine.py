"""`headrace quarantine`: release score rows that a bad window held back, or drop them."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from typing import Any

from models.errors import HeadraceError
from pipelines.brokers import open_broker
from pipelines.results import read_success
from pipelines.sinks.folder import Folder, claim, staging_of
from pipelines.sinks.listed import QUARANTINE, SCORES, SUCCESS, Written, place_of, released

IDLE_SECONDS = 5.0
AT_ONCE = 1000


class QuarantineError(HeadraceError, ValueError):
    """Nothing to release or drop, or files that are not as the run left them."""


def settle_run(directory: str, release: bool) -> int:
    """Move a run's quarantined rows to its scores, or delete them; returns how many there were.

    `_SUCCESS.json` tells it: the rows become `scored` or `dropped`, and the files stand where they are now. It is
    written last; if the move was cut off, the command again goes on with what is left. Files that the run did not
    write stay as they are; QuarantineError if one is in the way.
    """
    folder, run_id = Folder(directory), uuid.uuid4().hex
    if not folder.is_file(SUCCESS):
        raise QuarantineError(f"{directory}: has no {SUCCESS}: it is not the folder of a finished run")
    with claim(folder, run_id):
        said: dict[str, Any] = read_success(directory)
        held = [_listed(folder, file) for file in said["files"] if file["kind"] == QUARANTINE]
        if not held:
            raise QuarantineError(f"{directory}: nothing is in quarantine")
        freed = [dataclasses.replace(f, kind=SCORES, name=released(f.place).split("/", 1)[1]) for f in held]
        waiting = [file for file in held if _is_there(folder, file)]
        gone = [file for file in freed if _is_there(folder, file)]
        if release:
            kept = {released(file.place) for file in waiting} | {file.place for file in gone}
            for file in held:
                if released(file.place) not in kept:
                    raise QuarantineError(f"{folder.join(file.place)}: was dropped already: go on with --drop")
            folder.move([(file.place, released(file.place)) for file in waiting])
        else:
            folder.remove([file.place for file in [*waiting, *gone]])
        others = [file for file in said["files"] if file["kind"] != QUARANTINE]
        settled = [dataclasses.asdict(dataclasses.replace(f, outcomes={"scored": f.rows})) for f in freed]
        files = [*others, *(settled if release else ())]
        said["files"] = sorted(files, key=lambda file: (file["kind"], file["name"]))
        events: dict[str, int] = said["events"]
        end = "scored" if release else "dropped"
        events[end] = events.get(end, 0) + events.pop("quarantined", 0)
        said["events"] = dict(sorted(events.items()))
        folder.write(SUCCESS, json.dumps(said, indent=2).encode(), staging_of(run_id))
        folder.remove_staging(staging_of(run_id))
    return sum(file.rows for file in held)


def _listed(folder: Folder, file: Mapping[str, Any]) -> Written:
    try:
        place_of(file)
        return Written(**file)
    except (ValueError, TypeError):
        raise QuarantineError(f"{folder.join(SUCCESS)}: is not what a run writes") from None


def _is_there(folder: Folder, file: Written) -> bool:
    """Whether a file stands where it is listed; QuarantineError if what stands there is another."""
    if not folder.is_file(file.place):
        return False
    if folder.sha256(file.place) != file.sha256:
        raise QuarantineError(f"{folder.join(file.place)}: is not what the run wrote: move it away")
    return True


def settle_topic(source: str, to: str | None) -> int:
    """Publish what a subscription of quarantined rows holds to `to`, or drop it; returns how many rows there were."""
    subscription = open_broker(source).subscribe()
    publisher = open_broker(to).publisher() if to else None
    rows = 0
    try:
        while (messages := subscription.receive(AT_ONCE, IDLE_SECONDS)) is not None:
            if publisher is not None:
                publisher.publish(messages.payloads)
            subscription.acknowledge(messages.receipt)
            rows += len(messages)
    finally:
        subscription.close()
        if publisher is not None:
            publisher.close()
    return rows
