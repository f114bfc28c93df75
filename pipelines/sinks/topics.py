"""Score rows and dead letters to topics of a message broker, a JSON message a row."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import pyarrow as pa

from models import progress
from models.codecs import encode_json_lines
from pipelines.brokers import Broker


@dataclasses.dataclass(eq=False)
class PublishRows(beam.PTransform):  # type: ignore[misc]
    """A mapping of `scores` and `dead_letters` → messages; `counts` are not needed where nothing ends.

    Rows are at the broker when their bundle ends, and so before the messages that they came from are
    acknowledged. After a crash some are published again, with the same bits.
    """

    scores: Broker
    dead_letters: Broker

    def expand(self, pcolls: dict[str, beam.PCollection]) -> beam.PCollection:
        """Nothing comes out."""
        pcolls["dead_letters"] | "Publish dead letters" >> beam.ParDo(_Publish(self.dead_letters, "dead-lettered"))
        return pcolls["scores"] | "Publish scores" >> beam.ParDo(_Publish(self.scores, "written"))


class _Publish(beam.DoFn):  # type: ignore[misc]
    def __init__(self, broker: Broker, step: str) -> None:
        self._broker = broker
        self._step = step

    def setup(self) -> None:
        self._publisher = self._broker.publisher()

    def start_bundle(self) -> None:
        self._payloads: list[bytes] = []

    def process(self, batch: pa.RecordBatch) -> None:
        self._payloads += encode_json_lines(batch).splitlines()

    def finish_bundle(self) -> None:
        if self._payloads:
            self._publisher.publish(self._payloads)
            progress.advance(self._step, len(self._payloads))

    def teardown(self) -> None:
        self._publisher.close()
