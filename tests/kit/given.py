"""A broker whose messages a test has at hand."""

import dataclasses

import numpy as np

from pipelines.brokers import Messages

SECOND = 1_000_000


@dataclasses.dataclass
class Given:
    """A broker that hands out payloads in calls of a random size."""

    payloads: list
    seed: int
    most: int = 60
    uri: str = "given://messages"
    traceparents: list | None = None

    def subscribe(self, known=()):
        return GivenSubscription(self)


class GivenSubscription:
    redelivery_seconds = 0.0

    def __init__(self, given):
        self._given, self._next, self._random = given, 0, np.random.default_rng(given.seed)

    def receive(self, most, seconds):
        start = self._next
        self._next = min(start + int(self._random.integers(1, self._given.most)), len(self._given.payloads))
        names = [str(n) for n in range(start, self._next)]
        times = [2_000_000_000 * SECOND] * len(names)
        payloads = self._given.payloads[start : self._next]
        traced = self._given.traceparents and self._given.traceparents[start : self._next]
        return Messages(payloads, names, times, [0] * len(names), None, names, traceparents=traced) if names else None

    def acknowledge(self, receipt):
        assert receipt

    def partitions(self):
        return frozenset({0})

    def backlog(self):
        return 0

    def close(self):
        pass
