"""`headrace publish`: the events of files to a topic, in their order."""

from __future__ import annotations

import time

from models.project.declarations import Project
from pipelines.brokers import open_broker
from pipelines.jobs.status import say_status
from pipelines.sources.payloads import event_times, read_payloads, read_texts
from pipelines.terminal import working

PUBLISH_TICK_SECONDS = 0.05


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
    started, first = time.monotonic(), int(times[0]) if len(times) else 0
    sent = 0

    def so_far() -> str:
        return f"{sent:,} of {len(payloads):,} events published"

    with working("publishing") as done, say_status(so_far):
        while sent < len(payloads):
            stop = min(sent + 1000, len(payloads))
            if speed_up is not None:
                reached = first + (time.monotonic() - started) * 1e6 * speed_up
                later = next((i for i in range(sent, stop) if times[i] > reached), stop)
                if later == sent:
                    time.sleep(PUBLISH_TICK_SECONDS)
                    continue
                stop = later
            stamps = [{name: str(t)} for t in (times[sent:stop] // 1000).tolist()] if name else None
            keys = read_texts(payloads[sent:stop], project, key) if key else None
            publisher.publish(payloads[sent:stop], stamps, keys)
            done["written"] += stop - sent
            sent = stop
    publisher.close()
    return sent
