"""Score rows and dead letters to topics of a message broker, a JSON message a row."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import as_int64, column, take_rows, with_column
from models.codecs import encode_json_lines
from models.metrics import LATENCY, ROWS
from models.record import PUBLISHED_AT
from pipelines.brokers import Broker, BrokerError, Publisher
from transforms.metrics import count, observe


@dataclasses.dataclass(eq=False)
class PublishRows(beam.PTransform):
    """A mapping of `scores` and `dead_letters` → messages; `counts` are not needed where nothing ends.

    Rows are at the broker when their bundle ends, and so before the messages that they came from are
    acknowledged. After a crash some are published again, with the same bits.
    """

    scores: Broker
    dead_letters: Broker
    key: str | None = None  # a column of the scores: those of one value keep their order
    quality: Broker | None = None  # of statistics and verdicts, where the project declares `quality`
    quarantine: Broker | None = None  # of rows held back, where its gate is `quarantine`

    def expand(self, pcolls: dict[str, beam.PCollection]) -> beam.PCollection:
        """Nothing comes out."""
        topics = [self.scores, self.dead_letters, self.quality, self.quarantine]
        needed = ", ".join(broker.uri for broker in topics if broker is not None)
        dead = _Publish(self.dead_letters, needed, "dead-lettered", None)
        pcolls["dead_letters"] | "Publish dead letters" >> beam.ParDo(dead)
        if self.quarantine is not None:
            held = _Publish(self.quarantine, needed, "quarantined", self.key)
            pcolls["quarantine"] | "Publish quarantine" >> beam.ParDo(held)
        if self.quality is not None:
            records = (pcolls["statistics"], pcolls["verdicts"]) | "Quality" >> beam.Flatten()
            records | "Publish quality" >> beam.ParDo(_PublishRecords(self.quality, needed))
        scores = _Publish(self.scores, needed, "written", self.key)
        return pcolls["scores"] | "Publish scores" >> beam.ParDo(scores)


def _connect(broker: Broker, needed: str) -> Publisher:
    """Connect to a topic; where that is refused, the error names all topics that the sink needs."""
    try:
        return broker.publisher()
    except BrokerError as error:
        raise BrokerError(f"{error}; the sink needs the topics {needed}") from error


class _Publish(beam.DoFn):
    def __init__(self, broker: Broker, needed: str, step: str, key: str | None) -> None:
        self._broker = broker
        self._needed = needed
        self._key = key
        self._step = step

    def setup(self) -> None:
        self._publisher = _connect(self._broker, self._needed)

    def start_bundle(self) -> None:
        self._payloads: list[bytes] = []
        self._keys: list[str | None] = []
        self._published: list[np.ndarray[Any, np.dtype[np.int64]]] = []

    def process(self, batch: pa.RecordBatch) -> None:
        self._payloads += _fitting(batch, self._broker.max_message_bytes)
        if self._key:
            self._keys += column(batch, self._key).cast(pa.string()).to_pylist()
        if PUBLISHED_AT in batch.schema.names:
            self._published.append(as_int64(column(batch, PUBLISHED_AT).drop_null()))

    def finish_bundle(self) -> None:
        if self._payloads:
            self._publisher.publish(self._payloads, None, self._keys or None)
            count(ROWS, len(self._payloads), step=self._step)
            published = np.concatenate([*self._published, np.empty(0, np.int64)])
            observe(LATENCY, (time.time_ns() // 1000 - published) / 1e6, stage="written")

    def teardown(self) -> None:
        self._publisher.close()


def _fitting(batch: pa.RecordBatch, max_bytes: int) -> list[bytes]:
    """The rows as JSON; a dead letter that a broker would refuse for its size goes without its payload."""
    lines = encode_json_lines(batch).splitlines()
    large = np.flatnonzero(np.array([len(line) for line in lines]) > max_bytes)
    if len(large) and "payload" in batch.schema.names:
        bare = with_column(take_rows(batch, large), "payload", pa.nulls(len(large), pa.binary()))
        for row, line in zip(large.tolist(), encode_json_lines(bare).splitlines(), strict=True):
            lines[row] = line
    return lines


class _PublishRecords(beam.DoFn):
    """Publishes records that can write themselves as JSON."""

    def __init__(self, broker: Broker, needed: str) -> None:
        self._broker = broker
        self._needed = needed

    def setup(self) -> None:
        self._publisher = _connect(self._broker, self._needed)

    def process(self, record: Any) -> None:
        self._publisher.publish([record.to_json().encode()])

    def teardown(self) -> None:
        self._publisher.close()
