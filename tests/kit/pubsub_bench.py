"""A stream over an embedded Pub/Sub in a process of its own, which a test kills and starts again; what comes out of it."""

import json
import time

import numpy as np

from models.batches import as_batch
from models.codecs import encode_json_lines
from pipelines.brokers import open_broker
from pipelines.pubsub_emulator.broker import Clock
from tests.kit.stream_process import context, run

HOLD_SECONDS = 1.0
CLOCKED = ("published", "ingested", "scored")


class Bench:
    """An embedded Pub/Sub with topics for events, scores and dead letters, and what has come out so far."""

    def __init__(self, server, monkeypatch):
        self.server, self._passed = server, 0.0
        server._broker.clock = Clock(monotonic=lambda: time.monotonic() + self._passed)
        self.subscriptions = {name: server.create("p", name, name)[1] for name in ("events", "scores", "dead")}
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        self.publisher = open_broker("pubsub://p/events").publisher()
        self._readers = {name: open_broker(f"pubsub://p/{name}").subscribe() for name in ("scores", "dead")}
        self.scores, self.dead = {}, []

    def start(self, journal, allowance_us, **options):
        """A stream in a process of its own."""
        arguments = (self.server.address, str(journal), allowance_us, HOLD_SECONDS, options)
        process = context().Process(target=run, args=arguments, daemon=True)
        process.start()
        return process

    def publish_and_kill(self, messages, kills, random, journal, allowance_us, **options):
        """Publish in parts, in each of which the stream is started and killed; the part that is left to publish."""
        *parts, last = np.array_split(np.array(messages, object), kills + 1)
        deaths = []
        for part in parts:
            process = self.start(journal, allowance_us, **options)
            for piece in np.array_split(part, 10):
                self.publisher.publish(piece.tolist())
                time.sleep(random.uniform(0, 0.2))
            time.sleep(random.uniform(0, HOLD_SECONDS + 0.5))
            process.kill()
            process.join()
            deaths.append(process.exitcode)
            self.expire_leases()
            self.collect()
        assert deaths == [-9] * kills
        return last.tolist()

    def expire_leases(self):
        """Let the deadlines of a killed process pass."""
        self._passed += 3600

    def collect(self):
        """Read what came out, and see that no event is scored in two ways."""
        while (messages := self._readers["scores"].receive(10_000, 0.05)) is not None:
            for row in map(json.loads, messages.payloads):
                for name in CLOCKED:
                    assert row.pop(name) is not None
                assert self.scores.setdefault(row["TRANSACTION_ID"], row) == row
            self._readers["scores"].acknowledge(messages.receipt)
        while (messages := self._readers["dead"].receive(10_000, 0.05)) is not None:
            self.dead += map(json.loads, messages.payloads)
            self._readers["dead"].acknowledge(messages.receipt)

    def wait(self, events, seconds=60):
        """Collect until so many events have scores."""
        deadline = time.monotonic() + seconds
        while len(self.scores) < events and time.monotonic() < deadline:
            self.collect()
        assert len(self.scores) == events

    def close(self):
        """Read and publish no more."""
        for each in (self.publisher, *self._readers.values()):
            each.close()


def as_streamed(scores):
    """A batch's scores as a stream publishes them, by id."""
    rows = [json.loads(line) for line in encode_json_lines(as_batch(scores)).splitlines()]
    return {row["TRANSACTION_ID"]: {**row, "late": False} for row in rows}
