"""`headrace publish`: the events of files to a topic, in their order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from models.project.declarations import Project
from pipelines.brokers import open_broker
from pipelines.jobs.status import say_status
from pipelines.sources.payloads import event_times, read_payloads, read_texts
from pipelines.terminal import working

PUBLISH_TICK_SECONDS = 0.05
PUBLISHED_AT_ONCE = 1000
Times = np.ndarray[Any, np.dtype[np.int64]]


def publish(
    project: Project, uris: list[str], topic: str, speed_up: float | None, key: str | None, kafka_config: str | None
) -> int:
    """Publish the records of files as JSON in their order, `speed_up` times as fast as they happened.

    Messages with the same value of the field `key` stay in order, also on a topic of several partitions.
    """
    broker = open_broker(topic, kafka_config=kafka_config)
    publisher = broker.publisher()
    with working("reading"):
        payloads = read_payloads(uris, project.event_type)
        times = event_times(payloads, project)
    name = broker.event_time_attribute  # such as Dataflow's watermark follows
    sent = 0

    def so_far() -> str:
        return f"{sent:,} of {len(payloads):,} events published"

    with working("publishing") as done, say_status(so_far):
        for start, stop in paced(times, speed_up):
            stamps = [{name: str(t)} for t in (times[start:stop] // 1000).tolist()] if name else None
            keys = read_texts(payloads[start:stop], project, key) if key else None
            publisher.publish(payloads[start:stop], stamps, keys)
            done["written"] += stop - start
            sent = stop
    publisher.close()
    return sent


def paced(times_us: Times, speed_up: float | None, over: threading.Event | None = None) -> Iterator[tuple[int, int]]:
    """Places [start, stop) of what is due, a thousand at most, until all are or it is over.

    Args:
        times_us: int64[n], event times in microseconds; what stands before a later one goes out before it.
        speed_up: times as fast as it happened; None for all at once.
        over: ends it early.
    """
    over = over or threading.Event()
    started, first = time.monotonic(), int(times_us[0]) if len(times_us) else 0
    sent = 0
    while sent < len(times_us) and not over.is_set():
        stop = min(sent + PUBLISHED_AT_ONCE, len(times_us))
        if speed_up is not None:
            reached = first + (time.monotonic() - started) * 1e6 * speed_up
            late = np.flatnonzero(times_us[sent:stop] > reached)
            stop = sent + int(late[0]) if len(late) else stop
        if stop == sent:
            over.wait(PUBLISH_TICK_SECONDS)
            continue
        yield sent, stop
        sent = stop
