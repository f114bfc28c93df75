"""A stream over a real Kafka in a process of its own, which a test kills and starts again, and what comes out of it."""

import contextlib
import json
import time

import numpy as np

from pipelines.brokers import open_broker
from pipelines.sources.payloads import read_texts
from tests.kit.kafka import QUICK
from tests.kit.stream_process import context, run_between
from tests.kit.support import card_fraud

HOUR = 3_600_000_000
CLOCKED = ("published", "ingested", "scored")


class Bench:
    """A real Kafka with topics for events, scores and dead letters, and what has come out so far.

    Of the decisions `routed`, rows have one more topic.
    """

    def __init__(self, kafka, partitions, routed=()):
        self.kafka, self._routed = kafka, routed
        topics = [kafka.topic(partitions) for _ in range(4 if routed else 3)]
        self._uris = [f"kafka://{kafka.servers}/{topic}" for topic in topics]
        self.publisher = open_broker(self._uris[0], settings=QUICK).publisher()
        self._readers = [open_broker(uri, settings=QUICK).tail(from_start=True) for uri in self._uris[1:]]
        self.scores, self.dead = {}, []

    def start(self, journal, *, transactional=False, stretch_seconds=0.0, **options):
        """A stream in a process of its own, which waits for a broker that is down at its start, too."""
        events, *sinks = (open_broker(f"{uri}?group=stream", settings=QUICK, connect_seconds=300) for uri in self._uris)
        if transactional:
            sinks = [
                open_broker(uri, settings=QUICK, connect_seconds=300, outbox=str(journal)) for uri in self._uris[1:]
            ]
            options["sink"] = sinks[0]
        options["routed"] = {decision: sinks[2] for decision in self._routed}
        arguments = ([events, *sinks[:2]], str(journal), HOUR, {**options, "stretch_seconds": stretch_seconds})
        process = context().Process(target=run_between, args=arguments, daemon=True)
        process.start()
        return process

    def publish(self, messages):
        """Events, each to its customer's partition."""
        self.publisher.publish(messages, keys=read_texts(messages, card_fraud(), "CUSTOMER_ID"))

    def publish_and_kill(self, messages, kills, random, journal, broker_kills=(), at_sight=False, **options):
        """Publish in parts, in each of which the stream is started and killed; the part that is left to publish.

        It is killed at random moments; with `at_sight` also as soon as rows can be read that are not committed, or are.
        """
        *parts, last = np.array_split(np.array(messages, object), kills + 1)
        deaths = []
        for number, part in enumerate(parts):
            isolation = ("read_uncommitted", "read_committed", None)[number % 3] if at_sight else None
            sight = self._reader(1, isolation, from_start=False) if isolation else None
            process = self.start(journal, **options)
            for piece in np.array_split(part, 5):
                self.publish(piece.tolist())
                time.sleep(random.uniform(0, 0.2))
            if number in broker_kills:
                with self.kafka.down():
                    time.sleep(random.uniform(0, 1))
            if number % 3 == 2 and not at_sight:
                self.wait_for_more()  # so that it is killed at work, however slow the machine is
            if sight is None or sight.receive(1, 60) is None:
                time.sleep(random.uniform(1, 4))
            process.kill()
            if sight is not None:
                sight.close()
            process.join()
            deaths.append(process.exitcode)
            self.collect()
        assert deaths == [-9] * kills
        return last.tolist()

    def collect(self):
        """Read what came out, and see that no event is scored in two ways."""
        scores, dead, *routed = self._readers
        for reader in (scores, *routed):
            while (messages := reader.receive(10_000, 0.1)) is not None:
                for row in map(json.loads, messages.payloads):
                    for name in CLOCKED:
                        assert row.pop(name) is not None
                    assert self.scores.setdefault(row["TRANSACTION_ID"], row) == row
                reader.acknowledge(messages.receipt)
        while (messages := dead.receive(10_000, 0.1)) is not None:
            self.dead += map(json.loads, messages.payloads)
            dead.acknowledge(messages.receipt)

    def wait(self, events, duplicates=0):
        """Collect until so many events are scored and so many refused as duplicates; more are not."""
        self._wait_for(events, duplicates)
        assert (len(self.scores), len(self.twice)) == (events, duplicates)

    def wait_for_more(self):
        """Collect until one more event is scored."""
        self._wait_for(len(self.scores) + 1, 0)

    def _wait_for(self, events, duplicates, seconds=240):
        deadline = time.monotonic() + seconds
        while (len(self.scores) < events or len(self.twice) < duplicates) and time.monotonic() < deadline:
            self.collect()
        assert len(self.scores) >= events

    @property
    def twice(self):
        """The ids of the events that were refused."""
        return {letter["event_id"] for letter in self.dead}

    def finish(self, process):
        """End a stream in good order, and collect what it left."""
        process.terminate()
        process.join(30)
        assert process.exitcode == 0
        self.collect()

    def read_all(self, isolation):
        """All rows of each topic that is written to from its beginning, as a reader of an isolation level gets them."""
        found = []
        for place in range(1, len(self._uris)):
            reader = self._reader(place, isolation, from_start=True)
            rows, deadline = [], time.monotonic() + 60
            with contextlib.closing(reader):
                while (messages := reader.receive(10_000, 0.5)) is not None or reader.backlog() != 0:
                    if messages is not None:
                        rows += map(json.loads, messages.payloads)
                        reader.acknowledge(messages.receipt)
                    assert time.monotonic() < deadline
            found.append(rows)
        return found

    def _reader(self, place, isolation, from_start):
        reader = open_broker(self._uris[place], settings={**QUICK, "isolation.level": isolation}).tail(from_start)
        deadline = time.monotonic() + 30
        while not from_start and not (reader.receive(1, 0.1) is None and reader.backlog() is not None):
            assert time.monotonic() < deadline  # to be there before what is to be seen
        return reader

    def close(self):
        """Disconnect."""
        for each in (self.publisher, *self._readers):
            each.close()
