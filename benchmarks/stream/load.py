"""The two ends of a measured stream: a publisher that keeps to a schedule, and a reader that notes arrivals.

Each runs in a process of its own (multiprocessing, spawned), so that neither waits for the other.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import signal
import time
from typing import Any

import numpy as np

from pipelines.brokers import open_broker

from .events import DAY_US, NO_DEFECTS, Defects, Int64, Transactions, first_ids, invalid, twice

TICK_SECONDS = 0.01
MOST_PER_PUBLISH = 5000
PROBE_ID = 9_000_000_000
CLOSING_ID = PROBE_ID + 1  # of an event a day after the last one, so that the watermark passes that
DUPLICATE = b"duplicate event id"
ID = re.compile(rb'"TRANSACTION_ID":\s*(\d+)')


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to publish: `count` events at `rate` a second, or as fast as it goes if that is 0.

    An event's time is the time that it is due at (`live`), or the file's.
    """

    source: pathlib.Path
    uri: str
    count: int
    rate: float
    live: bool = True
    defects: Defects = NO_DEFECTS

    def due_us(self, start_us: int) -> Int64:
        """When each event is due."""
        return start_us + (np.arange(self.count) * (1e6 / self.rate)).astype(np.int64)


def now_us() -> int:
    return time.time_ns() // 1000


def publish(plan: Plan, out: pathlib.Path, started: Any, progress: Any) -> None:
    """Publish, and leave `start_us` and for each event the time `sent_us` that the broker had it at.

    It never publishes less because the broker is slow: what is due then waits and goes with the next request.
    """
    _let_the_parent_stop_us()
    transactions = Transactions(plan.source)
    publisher = open_broker(plan.uri).publisher()
    sent_us = np.zeros(plan.count, np.int64)
    start_us = now_us() + 50_000
    due_us = plan.due_us(start_us) if plan.rate else None
    started.value = start_us
    sent, again = 0, list[bytes]()
    while sent < plan.count:
        stop = min(plan.count, sent + MOST_PER_PUBLISH)
        if due_us is not None:
            stop = min(stop, int(np.searchsorted(due_us, now_us(), side="right")))
            if stop == sent:
                time.sleep(TICK_SECONDS / 2)
                continue
        numbers = np.arange(sent, stop)
        times = due_us[sent:stop] if due_us is not None and plan.live else transactions.event_times(numbers)
        messages = transactions.messages(numbers, times, plan.defects)
        repeated = [messages[place] for place in np.flatnonzero(twice(numbers, plan.defects))]
        publisher.publish([*messages, *again])
        again = repeated  # with the next request
        sent_us[sent:stop] = now_us()
        sent = progress.value = stop
        if due_us is not None:
            time.sleep(TICK_SECONDS)
    last = transactions.messages(np.array([CLOSING_ID]), times[-1:] + DAY_US)
    publisher.publish([*again, *last])
    publisher.close()
    np.savez(out, start_us=start_us, sent_us=sent_us)


def expected(plan: Plan) -> tuple[Int64, int, int]:
    """The ids that must be scored, and how many dead letters and duplicates there must be."""
    valid, bad, again = [], 0, 0
    for start in range(0, plan.count, 1 << 20):
        numbers = np.arange(start, min(start + (1 << 20), plan.count))
        spoiled = invalid(numbers, plan.defects)
        valid.append(numbers[~spoiled])
        bad += int(spoiled.sum())
        again += int(twice(numbers, plan.defects).sum())
    return np.concatenate(valid), bad, again


def read(uri: str, out: pathlib.Path, over: Any, seen: Any) -> None:
    """Read a topic until told that it is over; `seen` counts meanwhile.

    It leaves the ids, the arrival times, and which are of dead letters of duplicates.
    """
    _let_the_parent_stop_us()
    subscription = open_broker(uri).subscribe()
    ids: list[Int64] = []
    times: list[Int64] = []
    again: list[list[bool]] = []
    while True:
        messages = subscription.receive(10_000, 0.1)
        if messages is None:
            if over.is_set():
                break
            continue
        now = now_us()
        ids.append(np.array(first_ids(messages.payloads, ID), np.int64))
        times.append(np.full(len(messages), now))
        again.append([DUPLICATE in payload for payload in messages.payloads])
        subscription.acknowledge(messages.receipt)
        seen.value += len(messages)
    subscription.close()
    none = np.empty(0, np.int64)
    seen_again = np.concatenate([*again, none]).astype(bool)
    np.savez(out, ids=np.concatenate(ids or [none]), received_us=np.concatenate(times or [none]), again=seen_again)


def receive(uri: str, out: pathlib.Path, count: int) -> None:
    """Receive and acknowledge `count` messages, and do nothing else with them.

    It leaves how many came after the first call's, in how many `seconds`, and the `cpu` seconds that this took.
    """
    _let_the_parent_stop_us()
    subscription = open_broker(uri).subscribe()
    received, first, began, used = 0, 0, 0.0, 0.0
    while received < count:
        messages = subscription.receive(10_000, 0.1)
        if messages is None:
            continue
        subscription.acknowledge(messages.receipt)
        received += len(messages)
        if not first:
            first, began, used = received, time.monotonic(), time.process_time()
    seconds, cpu = time.monotonic() - began, time.process_time() - used
    subscription.close()
    np.savez(out, count=received - first, seconds=seconds, cpu=cpu)


def _let_the_parent_stop_us() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
