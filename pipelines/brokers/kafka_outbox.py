"""Publishing to Kafka by transactions: rows for several topics, and a mark of what they are, all of it or nothing.

A transaction also commits an offset of a group that has the name of the transactional id: how many transactions there
were, with the mark as its metadata. So whether a transaction was committed can always be told, also by another process,
and one of which that is not known (the process was killed, the broker did not answer, the coordinator gave it up) is
neither lost nor made twice: a new producer of the same id ends what the one before has left open, and then looks.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from pipelines.brokers import BrokerError
from pipelines.brokers.kafka_client import log
from pipelines.brokers.kafka_publisher import PRODUCER, headers_of

if TYPE_CHECKING:
    from pipelines.brokers.kafka import KafkaBroker

# Of a transaction, messages may not wait for ever; those of one that has timed out are sent again by the next.
_SETTINGS = {name: value for name, value in PRODUCER.items() if name.startswith(("queue.", "delivery."))}
# The coordinator refuses a transaction while it completes the one before, which takes it some milliseconds.
_DEFAULTS = {"retry.backoff.ms": 5}
# Answers of a coordinator that changes, or has not completed a transaction.
_WAIT = {"NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS", "UNSTABLE_OFFSET_COMMIT"}
_WAIT |= {"_TIMED_OUT", "_TIMED_OUT_QUEUE", "_TRANSPORT", "_WAIT_COORD", "REQUEST_TIMED_OUT", "_ALL_BROKERS_DOWN"}
# Ends of a transaction, or a producer, after which a new producer may do the same again.
_AGAIN = {"_FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH", "INVALID_PRODUCER_ID_MAPPING", "INVALID_TXN_STATE"}
_AGAIN |= {"_MSG_TIMED_OUT", "_TIMED_OUT", "REQUEST_TIMED_OUT", "UNKNOWN_PRODUCER_ID", "OUT_OF_ORDER_SEQUENCE_NUMBER"}
_AGAIN |= {"_INCONSISTENT", "_PURGE_QUEUE", "_PURGE_INFLIGHT", "_GAPLESS_GUARANTEE", "TRANSACTION_ABORTABLE"}
_CALL_SECONDS, _SLICE_SECONDS, _PAUSE_SECONDS, _SLOW_SECONDS, _CLOSE_SECONDS = 1.0, 0.2, 0.05, 5.0, 10.0

_open: dict[str, KafkaOutbox] = {}


class _Row(NamedTuple):
    topic: str
    payload: bytes
    key: str | None
    headers: list[tuple[str, bytes]]


class KafkaOutbox:
    """What the threads of a process publish until it is committed; one thread commits."""

    def __init__(self, broker: KafkaBroker, name: str) -> None:
        """`name` is the transactional id; publishers of this process find it by the broker's `outbox`."""
        self._broker, self._name = broker, name
        self._lock, self._rows = threading.Lock(), list[_Row]()
        self._closed, self._nonce = threading.Event(), os.urandom(4).hex()
        self._refused: list[KafkaError] = []
        self._settling: threading.Thread | None = None
        self._consumer, _ = broker.connect_consumer(name)
        self._producer, self._waits = self._connect(), False
        try:
            until = time.monotonic() + broker.connect_seconds
            self._insist(lambda: self._producer.init_transactions(_CALL_SECONDS), until)
            self._number, told = self._look(until)
            self.mark = told.partition(" ")[2] or None
        except KafkaException as failure:
            self.close()
            raise BrokerError(f"{broker.uri}: {failure.args[0].str()}") from None
        _open[broker.outbox or name] = self

    def put(self, rows: Sequence[_Row]) -> None:
        """Let rows wait for the transaction that is committed next."""
        with self._lock:
            self._rows += rows

    def commit(self, mark: str) -> bool:
        """Publish what waits, with `mark`, and return when it is committed; False if nothing waits.

        It waits and tries again while the broker is down, until `close` is called meanwhile. BrokerError if Kafka
        refuses, or somebody else publishes in this name.
        """
        with self._lock:
            rows, self._rows = self._rows, []
        if not rows:
            return False
        outcome: list[BaseException | None] = []

        def settle() -> None:
            try:
                while not self._attempt(rows, self._number + 1, mark):
                    pass
                outcome.append(None)
            except BaseException as error:  # noqa: BLE001  commit raises it
                outcome.append(error)

        # librdkafka's calls last as long as an outage, and a thread in one hears no signal.
        self._settling, began = threading.Thread(target=settle, name="kafka-commit", daemon=True), time.monotonic()
        self._settling.start()
        while not outcome:
            self._settling.join(_SLICE_SECONDS)
            if self._closed.is_set():
                raise BrokerError("closed")
            self._say(not outcome and time.monotonic() - began > _SLOW_SECONDS)
        if outcome[0] is not None:
            raise outcome[0]
        self._number, self.mark = self._number + 1, mark
        self._say(False)
        return True

    def close(self) -> None:
        """Disconnect; of what waits for a commit nothing is there, of one under way all or nothing, with its mark."""
        self._closed.set()
        _open.pop(self._broker.outbox or self._name, None)
        if self._settling is None or not self._settling.is_alive():  # else it ends with the process
            self._leave(self._producer, self._consumer)

    def _say(self, waits: bool) -> None:
        if waits != self._waits:
            self._waits = waits
            what = f"no commit for {_SLOW_SECONDS:.0f} s; waiting for one" if waits else "commits again"
            log.warning("Kafka, %s: %s", self._broker.uri, what)

    def _attempt(self, rows: Sequence[_Row], number: int, mark: str) -> bool:
        """Whether the rows are committed; if not, the transaction is aborted and may be made again."""
        self._refused.clear()
        try:
            self._send(rows, number, mark)
            return True
        except KafkaException as failure:
            error = next(iter(self._refused), failure.args[0])
            if not (error.retriable() or error.name() in _AGAIN | _WAIT):
                raise BrokerError(f"{self._broker.uri}: {error.str()}") from None
        log.warning("Kafka, %s: a transaction has ended, and is looked for: %s", self._broker.uri, error.str())
        self._leave(self._producer)
        self._producer = self._connect()
        try:
            self._insist(lambda: self._producer.init_transactions(_CALL_SECONDS))
            found = self._look()
        except KafkaException as failure:
            raise BrokerError(f"{self._broker.uri}: {failure.args[0].str()}") from None
        if found == (number, f"{self._nonce} {mark}"):
            return True
        if found[0] != self._number:
            raise BrokerError(f"{self._broker.uri}: another stream publishes in the name {self._name}, by this journal")
        return False

    def _send(self, rows: Sequence[_Row], number: int, mark: str) -> None:
        producer = self._producer
        producer.begin_transaction()
        for topic, payload, key, headers in rows:
            producer.produce(topic, payload, key, headers=list(headers), on_delivery=self._delivered)
        place = TopicPartition(self._broker.topic, 0, number, f"{self._nonce} {mark}")
        group = self._consumer.consumer_group_metadata()
        # Both last as long as a transaction may. They could be called again then, but may never return from that.
        producer.send_offsets_to_transaction([place], group, -1)
        producer.commit_transaction(-1)

    def _delivered(self, error: KafkaError | None, _: Any) -> None:
        if error is not None:
            self._refused.append(error)

    def _look(self, until: float | None = None) -> tuple[int, str]:
        """The number of the last transaction that was committed, whose it was and its mark; 0 if none is known."""
        place = [TopicPartition(self._broker.topic, 0)]
        (found,) = self._insist(lambda: self._consumer.committed(place, timeout=_CALL_SECONDS), until)
        if found.error is not None:
            raise KafkaException(found.error)
        return (found.offset, found.metadata or "") if found.offset > 0 else (0, "")

    def _insist(self, call: Callable[[], Any], until: float | None = None) -> Any:
        """What a call answers, once it does not ask to be called again."""
        while not self._closed.is_set():
            try:
                return call()
            except KafkaException as failure:
                error = failure.args[0]
                over = until is not None and time.monotonic() > until
                if over or not (error.retriable() or error.name() in _WAIT):
                    raise
            self._closed.wait(_PAUSE_SECONDS)
        raise BrokerError("closed")

    def _connect(self) -> Producer:
        producer, outage = self._broker.connect_producer(_DEFAULTS, {**_SETTINGS, "transactional.id": self._name})
        outage.connected = True
        return producer

    def _leave(self, producer: Producer, *others: Any) -> None:
        """Let go of clients, which may take long to end where the broker does not answer."""

        def leave() -> None:
            with contextlib.suppress(KafkaException, RuntimeError, SystemError):  # its transaction has ended, or it has
                producer.purge()
                producer.close()
            for each in others:
                each.close()

        leaving = threading.Thread(target=leave, name="kafka-outbox-close", daemon=True)
        leaving.start()
        leaving.join(_CLOSE_SECONDS)


class OutboxPublisher:
    """A Publisher whose messages are those of the process's outbox, and go with its next transaction."""

    def __init__(self, outbox: str, topic: str) -> None:
        self._outbox, self._topic = outbox, topic

    def publish(
        self,
        payloads: Sequence[bytes],
        attributes: Sequence[dict[str, str]] | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> None:
        """Returns at once; messages are at the broker when the outbox has committed them."""
        count = len(payloads)
        headers = headers_of([{}] * count if attributes is None else attributes)
        rows = zip(payloads, keys or [None] * count, headers, strict=True)
        _open[self._outbox].put([_Row(self._topic, *row) for row in rows])

    def describe(self, fields: Mapping[str, str]) -> None:
        """Does nothing: a registry is another server."""

    def close(self) -> None:
        """Does nothing: it has no connection of its own."""
