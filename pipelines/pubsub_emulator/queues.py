"""The order in which the messages of one subscription may be delivered."""

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator

from pipelines.pubsub_emulator.messages import Batch, Consumer, Delivery, Lane


class DeliveryQueue:
    """Messages that wait to be delivered, and of each ordering key also those that were and are unacked.

    Invariant: a lane with waiting messages is in exactly one place. While messages of its key are
    outstanding it is parked with the consumer that holds them (so they arrive in order), else anybody
    may have it. Redelivered messages without a key and new ones take turns, so that neither a message that
    fails again and again nor a long backlog keeps the other from being delivered.
    """

    def __init__(self, ordered: bool) -> None:
        self.waiting = 0
        self._ordered = ordered
        self._open: deque[Delivery | Lane] = deque()
        self._again: deque[Delivery | Lane] = deque()
        self._parked: dict[Consumer, OrderedDict[Lane, None]] = {}
        self._delayed: list[tuple[float, int, Delivery | Lane]] = []
        self._tie = itertools.count()
        self._turn = 0
        self._lanes: dict[str, Lane] = {}

    def add(self, delivery: Delivery) -> None:
        """Take in a new message."""
        self.waiting += 1
        key = delivery.message.key
        if not (self._ordered and key):
            self._open.append(delivery)
            return
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        delivery.lane = lane
        lane.waiting.append(delivery)
        if not lane.place:
            self._offer(lane)

    def take(self, consumer: Consumer, batch: Batch, now: float) -> None:
        """Move messages that are due to `batch`, until it is full or none is left for `consumer`."""
        self.end_delays(now)
        while not batch.full:
            sources = [source for source in (self._parked.get(consumer), self._again, self._open) if source]
            if not sources:
                break
            self._turn += 1
            for place in range(len(sources)):
                source = sources[(self._turn + place) % len(sources)]
                end = batch.share(len(sources) - place)
                if isinstance(source, OrderedDict):
                    self._take_parked(source, consumer, batch, end)
                else:
                    self._take_open(source, consumer, batch, end)
        self.waiting -= len(batch.deliveries)

    def settle(self, delivery: Delivery) -> list[Delivery]:
        """A delivered message is acked; returns the messages that will never be delivered again.

        With an ordering key, that is not the message itself while one before it is unacked: if that one
        fails, both are redelivered.
        """
        lane = delivery.lane
        if lane is None:
            return [delivery]
        delivery.acked = True
        settled = []
        while lane.outstanding and lane.outstanding[0].acked:
            settled.append(lane.outstanding.popleft())
        if not lane.outstanding:
            self._release(lane)
        return settled

    def fail(self, delivery: Delivery, *, until: float | None, drop: bool) -> list[Delivery]:
        """A delivered message was nacked or its deadline passed: have it and its followers redelivered.

        Not before the time `until`, if there is one; not the message itself if `drop`. Returns the messages
        of the same key that had been delivered after it: they are taken back.
        """
        lane = delivery.lane
        if lane is None:
            if not drop:
                self.waiting += 1
                if until is None:
                    self._again.append(delivery)
                else:
                    heapq.heappush(self._delayed, (until, next(self._tie), delivery))
            return []
        newest_first = []
        while lane.outstanding[-1] is not delivery:
            newest_first.append(lane.outstanding.pop())
        lane.outstanding.pop()
        kept = newest_first if drop else [*newest_first, delivery]
        for each in kept:
            each.acked = False
            lane.waiting.appendleft(each)
        self.waiting += len(kept)
        if lane.place == "parked":
            self._unpark(lane)
        if not lane.place:
            if lane.waiting and until is not None:
                lane.place = "delayed"
                heapq.heappush(self._delayed, (until, next(self._tie), lane))
            elif not lane.outstanding:
                self._release(lane)
            elif lane.waiting:
                self._offer(lane)
        return newest_first

    def end_delays(self, now: float) -> bool:
        """Have what waited for a backoff to end delivered; whether there was any."""
        ended = False
        while self._delayed and self._delayed[0][0] <= now:
            _, _, item = heapq.heappop(self._delayed)
            ended = True
            if isinstance(item, Delivery):
                self._again.append(item)
            else:
                item.place = ""
                self._offer(item)
        return ended

    def unsettled(self) -> Iterator[Delivery]:
        """Every message it knows: the waiting ones, and those outstanding that have a key."""
        for item in itertools.chain(self._open, self._again, (item for _, _, item in self._delayed)):
            if isinstance(item, Delivery):
                yield item
        for lane in self._lanes.values():
            yield from lane.outstanding
            yield from lane.waiting

    def _take_open(self, source: deque[Delivery | Lane], consumer: Consumer, batch: Batch, end: int) -> None:
        picked = batch.deliveries
        while source and len(picked) < end:
            item = source[0]
            if isinstance(item, Delivery):
                if not batch.fits(item):
                    return
                batch.add(item)
                source.popleft()
            elif batch.fits(item.waiting[0]):
                source.popleft()
                self._take_lane(item, consumer, batch, end)
            else:
                return

    def _take_parked(self, lanes: OrderedDict[Lane, None], consumer: Consumer, batch: Batch, end: int) -> None:
        while lanes and len(batch.deliveries) < end:
            lane = next(iter(lanes))
            if not batch.fits(lane.waiting[0]):
                return
            self._unpark(lane)
            self._take_lane(lane, consumer, batch, end)

    def _take_lane(self, lane: Lane, consumer: Consumer, batch: Batch, end: int) -> None:
        lane.place = ""
        lane.consumer = consumer
        while lane.waiting and len(batch.deliveries) < end and batch.fits(lane.waiting[0]):
            delivery = lane.waiting.popleft()
            batch.add(delivery)
            lane.outstanding.append(delivery)
        if lane.waiting:
            self._offer(lane)

    def _offer(self, lane: Lane) -> None:
        if lane.outstanding:
            assert lane.consumer is not None
            lane.place = "parked"
            self._parked.setdefault(lane.consumer, OrderedDict())[lane] = None
        else:
            lane.place = "open"
            self._open.append(lane)

    def _unpark(self, lane: Lane) -> None:
        assert lane.consumer is not None
        lanes = self._parked[lane.consumer]
        del lanes[lane]
        if not lanes:
            del self._parked[lane.consumer]
        lane.place = ""

    def _release(self, lane: Lane) -> None:
        """None of its messages is outstanding: anybody may have the next."""
        if lane.place == "parked":
            self._unpark(lane)
        lane.consumer = None
        if lane.place:
            return
        if lane.waiting:
            self._offer(lane)
        else:
            del self._lanes[lane.key]
