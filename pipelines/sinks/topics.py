"""Score rows and dead letters to topics of a message broker, a JSON message a row."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import as_dictionary, column, take_rows, with_column, without
from models.codecs import encode_json_lines
from models.metrics import FIRST_ROW, FRESHNESS, LATENCY, RESENT_SECONDS, ROWS
from models.objectives import WRITTEN
from models.project.declarations import Project
from models.record import BUNDLE_ID, DEAD_LETTER_SCHEMA, DECISION, INGESTED_AT, PUBLISHED_AT, SCORED_AT, SOURCE
from models.routes import FALLBACK, LABEL_METRICS, SHADOWS, topic_beside, topic_of
from models.score import take_decided
from models.totals import TABLE
from pipelines.brokers import Broker, BrokerError, Publisher
from pipelines.monitoring.traces import Leaving, Traces
from pipelines.process import running_seconds
from transforms.metrics import count, gauge, observe

DEAD = "dead-lettered"


@dataclasses.dataclass(eq=False)
class PublishRows(beam.PTransform):
    """A mapping of `scores` and `dead_letters` → messages; `counts` are not needed where nothing ends.

    Rows are at the broker when their bundle ends, and so before the messages that they came from are
    acknowledged. After a crash some are published again, with the same bits. A message has the attributes `project`,
    and where its row has them `decision` and `bundle_id`, to be filtered by without reading it.
    """

    scores: Broker
    dead_letters: Broker
    key: str | None = None  # a column of the scores: those of one value keep their order
    quality: Broker | None = None  # of statistics and verdicts, where the project declares `quality`
    quarantine: Broker | None = None  # of rows held back, where its gate is `quarantine`
    aggregates: Broker | None = None  # of tables of aggregates, where the project declares some
    label_metrics: Broker | None = None  # of records of label metrics, where the project declares them
    project: str = ""  # the name that messages say
    shadow: Broker | None = None  # of the rows of shadows, where releases are followed
    fallback: Broker | None = None  # of rows with the fallback decision; with the scores, if not given
    routed: Mapping[str, Broker] = dataclasses.field(default_factory=dict)  # of decisions whose rows go elsewhere
    event_time: str = ""  # the column of score rows that says how fresh they are
    traces: Traces | None = None  # which rows' way is told, and to where

    def expand(self, pcolls: dict[str, beam.PCollection]) -> beam.PCollection:
        """Nothing comes out."""
        topics = [self.scores, self.dead_letters, self.quality, self.quarantine, self.aggregates, self.label_metrics]
        topics += self.routed.values()
        needed = ", ".join(dict.fromkeys(broker.uri for broker in topics if broker is not None))
        project = self.project
        dead = _Publish(self.dead_letters, needed, DEAD, project, traces=self.traces)
        pcolls["dead_letters"] | "Publish dead letters" >> beam.ParDo(dead)
        if self.quarantine is not None:
            held = _Publish(self.quarantine, needed, "quarantined", project, self.key, traces=self.traces)
            pcolls["quarantine"] | "Publish quarantine" >> beam.ParDo(held)
        if self.quality is not None:
            records = (pcolls["statistics"], pcolls["verdicts"]) | "Quality" >> beam.Flatten()
            records | "Publish quality" >> beam.ParDo(_PublishRecords(self.quality, needed, project))
        if self.aggregates is not None:
            tables = _Publish(self.aggregates, needed, "aggregated", project, TABLE)
            pcolls["aggregates"] | "Publish aggregates" >> beam.ParDo(tables)
        if self.label_metrics is not None:
            measured = _Publish(self.label_metrics, needed, "measured", project, BUNDLE_ID)
            pcolls[LABEL_METRICS] | "Publish label metrics" >> beam.ParDo(measured)
        if self.shadow is not None:
            shadowed = _Publish(self.shadow, self.shadow.uri, "written of shadows", project, self.key, lazy=True)
            pcolls[SHADOWS] | "Publish shadows" >> beam.ParDo(shadowed)
        if FALLBACK in pcolls:
            unscored = _Publish(self.fallback or self.scores, needed, "fallback", project)
            rows = pcolls[FALLBACK] | "Without source" >> beam.Map(without, SOURCE).with_output_types(pa.RecordBatch)
            rows | "Publish fallback" >> beam.ParDo(unscored)
        elsewhere = {name: broker for name, broker in self.routed.items() if broker.uri != self.scores.uri}
        told = self.event_time, self.traces
        by_topic = {broker.uri: broker for broker in elsewhere.values()}
        for uri, broker in by_topic.items():
            own = tuple(name for name, other in elsewhere.items() if other.uri == uri)
            routed = _Publish(broker, needed, WRITTEN, project, self.key, own, False, False, *told)
            pcolls["scores"] | f"Publish {' and '.join(own)}" >> beam.ParDo(routed)
        scores = _Publish(self.scores, needed, WRITTEN, project, self.key, tuple(elsewhere), True, False, *told)
        return pcolls["scores"] | "Publish scores" >> beam.ParDo(scores)


def sink_topics(project: Project, sink: str, dead_letters: str | None = None, shadows: bool = False) -> dict[str, str]:
    """The URIs of all topics that a stream of a project writes to, by what they hold; with `shadows`, theirs, too."""
    kinds = ["dead-letters"]
    if project.quality is not None:
        kinds += ["quality", *(["quarantine"] if project.quality.gate == "quarantine" else [])]
    kinds += ["aggregates"] if project.aggregates else []
    kinds += ["label-metrics"] if project.label_metrics else []
    kinds += ["shadow"] if shadows else []
    beside = {kind.replace("-", "_"): topic_of(sink, kind) for kind in kinds}
    return {"scores": sink, **beside, **({"dead_letters": dead_letters} if dead_letters else {})}


def routed_topics(project: Project, sink: str) -> dict[str, str]:
    """The URIs of the topics of those decisions that the project sends elsewhere than to `sink`."""
    return {decision: topic_beside(sink, place) for decision, place in project.sinks.items()}


def _connect(broker: Broker, needed: str) -> Publisher:
    """Connect to a topic; where that is refused, the error names all topics that the sink needs."""
    try:
        return broker.publisher()
    except BrokerError as error:
        raise BrokerError(f"{error}; the sink needs the topics {needed}: headrace topics makes them") from error


class _Publish(beam.DoFn):
    """Of `decisions` the rows of these alone, with `others` all but them; of none all rows.

    What is `lazy` connects when the first rows come.
    """

    def __init__(
        self,
        broker: Broker,
        needed: str,
        step: str,
        project: str,
        key: str | None = None,
        decisions: tuple[str, ...] = (),
        others: bool = False,
        lazy: bool = False,
        event_time: str = "",
        traces: Traces | None = None,
    ) -> None:
        self._broker = broker
        self._needed = needed
        self._project = project
        self._key = key
        self._step = step
        self._decisions, self._others = decisions, others
        self._lazy = lazy
        self._event_time = event_time
        self._traces = traces

    def setup(self) -> None:
        self._tracer = self._traces.tracer() if self._traces else None
        self._publisher = None if self._lazy else _connect(self._broker, self._needed)
        self._described = self._has_written = False

    def start_bundle(self) -> None:
        self._payloads: list[bytes] = []
        self._attributes: list[dict[str, str]] = []
        self._keys: list[str | None] = []
        self._times: list[pa.RecordBatch] = []
        self._leaving: list[Leaving] = []

    def process(self, batch: pa.RecordBatch) -> None:
        self._publisher = self._publisher or _connect(self._broker, self._needed)
        if not self._described:
            self._publisher.describe(_fields(DEAD_LETTER_SCHEMA if self._step == DEAD else batch.schema))
            self._described = True
        if self._decisions:
            batch = take_decided(batch, self._decisions, self._others)
        self._payloads += _fitting(batch, self._broker.max_message_bytes)
        attributes = attributes_of(batch, self._project)
        if self._tracer and (leaving := self._tracer.leave(batch, attributes, self._step == DEAD)):
            self._leaving.append(leaving)
        self._attributes += attributes
        if self._key:
            self._keys += column(batch, self._key).cast(pa.string()).to_pylist()
        if self._step == WRITTEN and PUBLISHED_AT in batch.schema.names:
            names = (PUBLISHED_AT, INGESTED_AT, SCORED_AT, *([self._event_time] if self._event_time else ()))
            self._times.append(batch.select(names))

    def finish_bundle(self) -> None:
        if self._payloads and self._publisher:
            self._publisher.publish(self._payloads, self._attributes, self._keys or None)
            count(ROWS, len(self._payloads), step=self._step)
            self._observe(time.time_ns() // 1000)
            if self._tracer:
                self._tracer.left(self._leaving, self._step, time.time_ns())

    def _observe(self, now_us: int) -> None:
        """How long score rows took, by stage, and from their events."""
        if not self._times:
            return
        times = pa.Table.from_batches(self._times).drop_null()
        published, ingested, scored, *event = (times[name].cast(pa.int64()).to_numpy() for name in times.schema.names)
        for stage, reached in (("ingested", ingested), ("scored", scored), (WRITTEN, now_us)):
            observe(LATENCY, (reached - published) / 1e6, stage=stage)
        for happened in event:
            observe(FRESHNESS, (now_us - happened[published - happened <= RESENT_SECONDS * 1e6]) / 1e6)
        if not self._has_written:
            self._has_written = True
            gauge(FIRST_ROW, _first_row_seconds())

    def teardown(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
        if self._tracer:
            self._tracer.flush()


@functools.cache
def _first_row_seconds() -> float | None:
    """For how long this process had run when it was first asked, which is at its first rows."""
    return running_seconds()


def attributes_of(batch: pa.RecordBatch, project: str) -> list[dict[str, str]]:
    """The attributes of each row's message; rows that say the same have one dict together."""
    made, of_rows = [_present(project=project)], np.zeros(batch.num_rows, np.int64)
    for name in (DECISION, BUNDLE_ID):
        if name in batch.schema.names:
            values = column(batch, name)
            encoded = as_dictionary(values)
            texts = [*encoded.dictionary.to_pylist(), None]
            places = encoded.indices.fill_null(len(texts) - 1).to_numpy()
            made = [{**each, **_present(**{name: text})} for each in made for text in texts]
            of_rows = of_rows * len(texts) + places
    return [made[place] for place in of_rows.tolist()]


def _present(**attributes: str | None) -> dict[str, str]:
    return {name: value for name, value in attributes.items() if value}


def _fitting(batch: pa.RecordBatch, max_bytes: int) -> list[bytes]:
    """The rows as JSON; a dead letter that a broker would refuse for its size goes without its payload."""
    lines = encode_json_lines(batch).splitlines()
    large = np.flatnonzero(np.array([len(line) for line in lines]) > max_bytes)
    if len(large) and "payload" in batch.schema.names:
        bare = with_column(take_rows(batch, large), "payload", pa.nulls(len(large), pa.binary()))
        for row, line in zip(large.tolist(), encode_json_lines(bare).splitlines(), strict=True):
            lines[row] = line
    return lines


def _fields(schema: pa.Schema) -> dict[str, str]:
    """Avro's types of the fields that rows have as JSON."""
    kinds = {"boolean": pa.types.is_boolean, "long": pa.types.is_integer, "double": pa.types.is_floating}
    return {each.name: next((name for name, is_it in kinds.items() if is_it(each.type)), "string") for each in schema}


class _PublishRecords(beam.DoFn):
    """Publishes records that can write themselves as JSON."""

    def __init__(self, broker: Broker, needed: str, project: str) -> None:
        self._broker = broker
        self._needed = needed
        self._project = project

    def setup(self) -> None:
        self._publisher = _connect(self._broker, self._needed)

    def process(self, record: Any) -> None:
        self._publisher.publish([record.to_json().encode()], [_present(project=self._project)])

    def teardown(self) -> None:
        self._publisher.close()
