"""Events from Pub/Sub on Dataflow, by Dataflow's own reader, which gives each message exactly once."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from models import progress
from models.record import FORMAT, MARKS, RECORD_SCHEMA, SLICE, SYSTEM_FIELDS
from pipelines.brokers import BrokerError
from pipelines.brokers.pubsub import PubsubBroker

SLICE_US = 1_000_000
MAX_MESSAGES = 10_000
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


@dataclasses.dataclass(eq=False)
class ReadNativePubsub(beam.PTransform):  # type: ignore[misc]
    """All messages of a subscription, as batches of raw JSON records with the columns that ReadStream's have.

    The watermark is Dataflow's: it follows the attribute that the subscription's URI names in `event_time`, of
    milliseconds since 1970 UTC or RFC 3339. Its time must be the event's own, or earlier: else its slice ends
    before the event has come. Without the attribute the watermark would follow the time of publication, and events
    would be scored in no order; so BrokerError.
    """

    broker: PubsubBroker

    def expand(self, pbegin: Any) -> beam.PCollection:
        """Batches whose metadata names their format; see transforms.decode."""
        broker = self.broker
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
        batches = beam.ParDo(BatchMessages(broker.uri)).with_output_types(pa.RecordBatch)
        return pbegin | "Receive" >> receive | "Batch" >> batches


class BatchMessages(beam.DoFn):  # type: ignore[misc]
    """The messages of a bundle → batches, whose timestamps hold no watermark back that has passed their messages."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

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
        batch = batch_messages(self._messages, self._uri, time.time_ns() // 1000)
        self._messages = []
        progress.advance("read", batch.num_rows)
        return batch


def batch_messages(messages: Sequence[PubsubMessage], uri: str, received_us: int) -> pa.RecordBatch:
    """Messages as raw JSON records, to be cut into slices of a second; the time is microseconds since 1970 UTC."""
    rows = len(messages)
    zeros = np.zeros(rows, np.int32)
    ids = [message.message_id or "" for message in messages]
    positions = [int(name) if name.isdecimal() and len(name) < 19 else None for name in ids]
    published = [(message.publish_time - _EPOCH) // _MICROSECOND for message in messages]
    time_type = pa.timestamp("us", tz="UTC")
    arrays = [
        pa.array([message.data for message in messages], pa.binary()),
        pa.array(positions, pa.int64()),
        pa.DictionaryArray.from_arrays(pa.array(zeros), pa.array([uri])),
        pa.array(published, pa.int64()).cast(time_type),
        pa.array(np.full(rows, received_us)).cast(time_type),
        pa.array(ids, pa.string()),
        pa.array(zeros),
        pa.array(zeros.astype(np.int8)),
    ]
    metadata = {FORMAT: b"json", SLICE: str(SLICE_US).encode()}
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([*RECORD_SCHEMA, SYSTEM_FIELDS[MARKS]], metadata))
