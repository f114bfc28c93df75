"""`headrace quarantine`: release score rows that a bad window held back, or drop them."""

from __future__ import annotations

import json
from typing import Any

from apache_beam.io.filesystems import FileSystems

from pipelines.brokers import open_broker
from pipelines.run import read_success
from pipelines.sinks.files import QUARANTINE, SCORES, SUCCESS
from pipelines.sources.files import SourceError, match_files

IDLE_SECONDS = 5.0
AT_ONCE = 1000
RELEASED = "released-"


class QuarantineError(ValueError):
    """Nothing to release or drop."""


def settle_run(directory: str, release: bool) -> int:
    """Move a run's quarantined rows to its scores, or delete them; returns how many there were.

    `_SUCCESS.json` tells it: the rows become `scored` or `dropped`, and the files stand where they are now. It is
    written last; if the move was cut off, the command again goes on with what is left.
    """
    said: dict[str, Any] = read_success(directory)
    held = [file for file in said["files"] if file["kind"] == QUARANTINE]
    if not held:
        raise QuarantineError(f"{directory}: nothing is in quarantine")
    try:
        left = match_files(FileSystems.join(directory, QUARANTINE, "*"))
    except SourceError:  # all was moved before
        left = []
    if release and left:
        moved = [FileSystems.join(directory, SCORES, RELEASED + path.rsplit("/", 1)[-1]) for path in left]
        FileSystems.rename(left, moved)
    elif left:
        FileSystems.delete(left)
    rows = sum(int(file["rows"]) for file in held)
    others = [file for file in said["files"] if file["kind"] != QUARANTINE]
    said["files"] = [
        *others,
        *({**file, "kind": SCORES, "name": RELEASED + file["name"]} for file in (held if release else ())),
    ]
    events: dict[str, int] = said["events"]
    end = "scored" if release else "dropped"
    events[end] = events.get(end, 0) + events.pop("quarantined", 0)
    path = FileSystems.join(directory, SUCCESS)
    staged = path + ".new"
    with FileSystems.create(staged, compression_type="uncompressed") as file:
        file.write(json.dumps(said, indent=2).encode())
    FileSystems.delete([path])
    FileSystems.rename([staged], [path])
    return rows


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
