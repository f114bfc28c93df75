"""Events from Pub/Sub on Dataflow, by Dataflow's own reader, which gives each message exactly once."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from models.batches import with_column
from models.metrics import ROWS
from models.record import MARKS, SLICE
from pipelines.brokers import BrokerError, Messages
from pipelines.brokers.pubsub import PubsubBroker
from pipelines.sources.feeds import Feed, Topic
from pipelines.sources.inlets import to_batches
from transforms.metrics import count

SLICE_US = 1_000_000
MAX_MESSAGES = 10_000
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


@dataclasses.dataclass(eq=False)
class ReadNativePubsub(beam.PTransform):
    """All messages of a subscription, as batches of raw JSON records with the columns that ReadStream's have.

    The watermark is Dataflow's: it follows the attribute that the subscription's URI names in `event_time`, of
    milliseconds since 1970 UTC or RFC 3339. Its time must be the event's own, or earlier: else its slice ends
    before the event has come. Without the attribute the watermark would follow the time of publication, and events
    would be scored in no order; so BrokerError.
    """

    feed: Feed[Topic]

    def expand(self, pbegin: Any) -> dict[str, beam.PCollection]:
        """{name of the feed: its batches}; their metadata names their format, see transforms.decode."""
        broker = self.feed.source.broker
        assert isinstance(broker, PubsubBroker)
        if broker.event_time_attribute is None:
            raise BrokerError(
                f"{broker.uri}: on Dataflow the watermark follows an attribute of the messages that holds the "
                f"event's time: name it, as in pubsub://{broker.project}/{broker.name}?event_time=ATTRIBUTE"
            )
        try:
            receive = ReadFromPubSub(
                subscription=f"projects/{broker.project}/subscriptions/{broker.name}",
                with_attributes=True,
                timestamp_attribute=broker.event_time_attribute,
            )
        except ValueError as error:
            raise BrokerError(f"{broker.uri}: {error}") from None
        batches = beam.ParDo(BatchMessages(self.feed)).with_output_types(pa.RecordBatch)
        return {self.feed.name: pbegin | "Receive" >> receive | "Batch" >> batches}


class BatchMessages(beam.DoFn):
    """The messages of a bundle → batches, whose timestamps hold no watermark back that has passed their messages."""

    def __init__(self, feed: Feed[Topic]) -> None:
        self._feed = feed

    def start_bundle(self) -> None:
        self._messages: list[PubsubMessage] = []
        self._newest = MIN_TIMESTAMP

    def process(
        self, message: PubsubMessage, timestamp: Timestamp = beam.DoFn.TimestampParam
    ) -> Iterator[TimestampedValue]:
        self._messages.append(message)
        self._newest = max(self._newest, timestamp)
        if len(self._messages) == MAX_MESSAGES:
            yield TimestampedValue(self._take(), self._newest)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._messages:
            yield GlobalWindows.windowed_value(self._take(), self._newest)

    def _take(self) -> pa.RecordBatch:
        batch = batch_messages(self._messages, self._feed)
        self._messages = []
        count(ROWS, batch.num_rows, step="read")
        return batch


def batch_messages(messages: Sequence[PubsubMessage], feed: Feed[Topic]) -> pa.RecordBatch:
    """Messages as raw JSON records, to be cut into slices of a second."""
    ids = [message.message_id or "" for message in messages]
    received = Messages(
        payloads=[message.data for message in messages],
        ids=ids,
        published_us=[(message.publish_time - _EPOCH) // _MICROSECOND for message in messages],
        partitions=[0] * len(messages),
        event_times=None,
        receipt=None,
    )
    source, number = feed.source, feed.record_type.number
    ((batch, *_),) = to_batches(received, ids, np.arange(len(ids)), source.broker.uri, source.values, number)
    marked = with_column(batch, MARKS, pa.array(np.zeros(len(ids), np.int8)))
    return marked.replace_schema_metadata({**marked.schema.metadata, SLICE: str(SLICE_US).encode()})
