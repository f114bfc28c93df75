"""Inlets: what a stream has of each feed while it runs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import same_text, take_rows, with_column
from models.record import PAYLOAD, RECORD_SCHEMA, TIMESTAMP
from pipelines.brokers import Messages
from pipelines.sources.ahead import Ahead, Int64
from pipelines.sources.feeds import Feed, Topic
from pipelines.sources.records import NO_TIME_US, about
from pipelines.sources.values import Values, attribute_times_us

MAX_MESSAGES = 10_000
MAX_AHEAD = 5_000_000  # records that wait for the watermark; with more, no message is taken until some are out
REMEMBERED_IDS = 1_000_000


class Raw(NamedTuple):
    """Raw records of one format, and what their messages' attributes say, where there is any.

    `heard` are event times int64[n], and `traceparents` are of who is to be told of their way.
    """

    batch: pa.RecordBatch
    heard: Int64 | None
    traceparents: Sequence[str | None] | None = None


class SeenIds:
    """The ids of messages that were received, of each feed; the oldest are forgotten."""

    def __init__(self) -> None:
        self._known: dict[str, None] = {}

    def add(self, names: Sequence[str]) -> Int64:
        """The places of those that are new."""
        new = np.array([place for place, name in enumerate(names) if name not in self._known], np.int64)
        self._known.update(dict.fromkeys(names))
        for name in list(itertools.islice(self._known, max(len(self._known) - REMEMBERED_IDS, 0))):
            del self._known[name]
        return new

    def names(self, prefix: str) -> list[str]:
        """All that begin with a prefix, without it."""
        return [name.removeprefix(prefix) for name in self._known if name.startswith(prefix)]


class Inlet:
    """A feed's subscription, and its records that are ahead of the watermark."""

    def __init__(self, feed: Feed[Topic], seen: SeenIds) -> None:
        self.feed = feed
        self.records = feed.record_type
        self.ahead = Ahead()
        self.subscription: Any = None
        self._seen = seen
        self._prefix = f"{self.records.name}/" if self.records.number else ""

    def open(self) -> None:
        """Connect; BrokerError if the broker's messages are not those any more that were received before."""
        self.subscription = self.feed.source.broker.subscribe(self._seen.names(self._prefix))

    def receive(self, wait_seconds: float) -> Messages | None:
        """Messages, if there are any and there is room."""
        if len(self.ahead) >= MAX_AHEAD:
            return None
        messages: Messages | None = self.subscription.receive(MAX_MESSAGES, wait_seconds)
        return messages

    def to_batches(self, messages: Messages) -> list[Raw]:
        """The messages that were not received before, as raw records."""
        number = self.records.number
        names = [self._prefix + name for name in messages.ids] if number else list(messages.ids)
        source = self.feed.source
        return to_batches(messages, names, self._seen.add(names), source.broker.uri, source.values, number)

    def partitions(self) -> set[int]:
        """The partitions that are this feed's, numbered apart from all other feeds'."""
        return {self.apart(partition) for partition in self.subscription.partitions()}

    def apart(self, partitions: Any) -> Any:
        """The numbers of partitions, apart from all other feeds'."""
        return partitions + (self.records.number << 32)

    def acknowledge(self, receipts: Sequence[Any]) -> None:
        """Acknowledge messages; where nothing was to be waited for, a receipt is None."""
        for receipt in receipts:
            if receipt is not None:
                self.subscription.acknowledge(receipt)

    def close(self) -> None:
        """Give back what was not acknowledged."""
        if self.subscription is not None:
            self.subscription.close()


def to_batches(
    messages: Messages, names: Sequence[str], places: Int64, uri: str, values: Values, number: int = 0
) -> list[Raw]:
    """The messages at `places` as raw records of one format each; `names` are the ids of all."""
    rows = len(places)
    if not rows:
        return []
    ids = pa.array(names, pa.string()).take(pa.array(places))
    arrays = [
        pa.nulls(rows, pa.binary()),
        # A broker's number of a message, where its id ends in one: `17`, or `topic/partition/17`.
        pc.struct_field(pc.extract_regex(ids, r"(?:^|/)(?P<n>[0-9]{1,18})$"), [0]).cast(pa.int64()),
        same_text(uri, rows),
        pa.array(np.asarray(messages.published_us, np.int64)[places]).cast(TIMESTAMP),
        pa.array(np.full(rows, time.time_ns() // 1000)).cast(TIMESTAMP),
        ids,
        pa.array(np.asarray(messages.partitions)[places].astype(np.int32)),
    ]
    common = pa.RecordBatch.from_arrays(arrays, schema=RECORD_SCHEMA)
    all_new = rows == len(messages)
    payloads = messages.payloads if all_new else [messages.payloads[place] for place in places.tolist()]
    heard = None
    if messages.event_times is not None:
        heard = attribute_times_us([messages.event_times[place] for place in places.tolist()])
        heard = np.asarray(heard.fill_null(NO_TIME_US).to_numpy())
    batches = []
    schemas = messages.schemas
    if schemas is not None and not all_new:
        schemas = [schemas[place] for place in places.tolist()]
    for group in values.split(payloads, schemas):
        part = common if len(group.rows) == rows else take_rows(common, group.rows)
        batch = with_column(part, PAYLOAD, group.payloads).replace_schema_metadata({**group.metadata, **about(number)})
        traced = None
        if messages.traceparents is not None:
            traced = [messages.traceparents[place] for place in places[group.rows].tolist()]
        batches.append(Raw(batch, None if heard is None else heard[group.rows], traced))
    return batches
