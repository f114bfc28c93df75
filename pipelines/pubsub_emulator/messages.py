"""What a subscription keeps of a message, who holds it, and what is handed out at once."""

import math
from collections import deque
from typing import Any, Literal

# What Python keeps of a message beside its bytes (measured): the two records below, its lease, its places in
# the queues; and, at worst, a lane for its key alone. Counted, so that any backlog is bounded.
OVERHEAD_BYTES = 550
KEY_OVERHEAD_BYTES = 1200


class Message:
    """A published message, shared by the subscriptions of its topic and never changed.

    `body` is the serialised PubsubMessage as it is delivered; `number` its message id as a number.
    """

    __slots__ = ("body", "key", "number", "published_ns")

    def __init__(self, number: int, published_ns: int, key: str, body: bytes) -> None:
        self.number = number
        self.published_ns = published_ns
        self.key = key
        self.body = body

    @property
    def cost(self) -> int:
        """Bytes of memory it counts for in each subscription or snapshot that keeps it."""
        return len(self.body) + OVERHEAD_BYTES + (KEY_OVERHEAD_BYTES if self.key else 0)


class Consumer:
    """Who asks for messages: a stream with its flow control, or a single Pull."""

    __slots__ = ("held_bytes", "held_messages", "max_bytes", "max_messages")

    def __init__(self, max_messages: int = 0, max_bytes: int = 0) -> None:
        # As in Google's service, a bound that is not positive is none.
        self.max_messages = max_messages if max_messages > 0 else math.inf
        self.max_bytes = max_bytes if max_bytes > 0 else math.inf
        self.held_messages = 0
        self.held_bytes = 0


class Delivery:
    """One message on its way through one subscription."""

    __slots__ = ("ack_id", "acked", "bucket", "consumer", "failures", "lane", "message")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.failures = 0  # nacks and missed deadlines
        self.lane: Lane | None = None
        self.acked = False  # only told apart within a lane, where an earlier message may still be unacked
        # Set while it is leased:
        self.ack_id = ""
        self.bucket: set[str] = set()
        self.consumer: Consumer | None = None


class Lane:
    """The messages of one ordering key; `outstanding` were delivered, all to `consumer`, before `waiting`.

    `place` says where the lane waits for its turn: nowhere, among the messages anybody may have, with its
    consumer, or for a retry's backoff to end.
    """

    __slots__ = ("consumer", "key", "outstanding", "place", "waiting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.waiting: deque[Delivery] = deque()
        self.outstanding: deque[Delivery] = deque()
        self.consumer: Consumer | None = None
        self.place: Literal["", "open", "parked", "delayed"] = ""


class Batch:
    """Deliveries picked for one response: at most `count` and `room` bytes, the first up to `first_room`."""

    __slots__ = ("_bytes", "_count", "_first_room", "_room", "deliveries", "full")

    def __init__(self, count: int, room: float = math.inf, first_room: float = math.inf) -> None:
        self.deliveries: list[Delivery] = []
        self.full = count <= 0
        self._bytes = 0
        self._count = count
        self._room = room
        self._first_room = first_room

    def share(self, parts: int) -> int:
        """The size the batch has after one of `parts` sources gave its part of what is missing."""
        missing = self._count - len(self.deliveries)
        return len(self.deliveries) + math.ceil(missing / parts)

    def fits(self, delivery: Delivery) -> bool:
        """Whether it may be added; the batch is full from the first that may not."""
        limit = self._room if self.deliveries else self._first_room
        self.full = self.full or self._bytes + len(delivery.message.body) > limit
        return not self.full

    def add(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._bytes += len(delivery.message.body)
        self.full = len(self.deliveries) >= self._count


PbMessage = Any  # google.pubsub_v1 has no types for its raw protobuf classes
