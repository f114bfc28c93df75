"""When a stream's source acknowledges its messages: after their bundle, their journal, or a checkpoint of an engine's.

An `Acknowledge` is configuration and pickles; it opens a `Keeper`, which is asked in each round of a reader.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from models.batches import column, with_column
from models.record import PARTITION, RecordType
from pipelines.brokers import BrokerError, Transactional
from pipelines.sources.ahead import Int64
from pipelines.sources.journal import JournalError
from pipelines.sources.journal_writer import JournalWriter
from pipelines.sources.records import NO_TIME_US, about, decode_raw, probe_records, times_of, type_number
from pipelines.sources.replay import Replay

_LOG = logging.getLogger("headrace")
STEP_US = 100_000  # the watermark moves in steps of at least this much event time


class Keeper:
    """Acknowledges a message when the bundle is finished in which the last of its records went out.

    `end_us` is how far a former process had come, None if it is not known. With `is_restored`, the engine has the state
    that the past left. With `was_cut_off`, messages that a former process had received come again only after a while.
    """

    end_us: int | None = None
    is_restored = False
    was_cut_off = False

    def begin_round(self, finalizer: Any, estimator: Any) -> Any:
        """The finalizer that this round's acknowledgements are to be registered with."""
        return finalizer

    def past(self) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        """(slice end, decoded records) of what went out before."""
        return iter(())

    def left(self) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        """Records that were received and did not go out, with their times."""
        return iter(())

    def take_ids(self) -> list[str]:
        """The ids of the messages that are kept, once."""
        return []

    def keep(self, batches: Sequence[pa.RecordBatch]) -> bool:
        """Whether the messages of raw records may be acknowledged as soon as this round's bundle is finished."""
        return False

    def passed(self, records: int, end_us: int, newest_us: int, finalizer: Any) -> None:
        """So many records went out in this round, as the slice that ends at `end_us`; 0 if it is only reached."""

    def close(self, in_order: bool) -> None:
        """The stream ends; not in order if messages of a former process may still come."""


class Acknowledge(Protocol):
    """How a stream makes sure that no message is lost."""

    def open(self, types: Mapping[int, RecordType]) -> Keeper:
        """What keeps messages of these record types, by their numbers."""


NEVER_US = 1 << 60  # of a horizon that no event is beyond


@dataclasses.dataclass(frozen=True)
class AfterBundle:
    """A message is acknowledged when the bundle that it was scored in is finished."""

    def open(self, types: Mapping[int, RecordType]) -> Keeper:
        """It keeps nothing."""
        return Keeper()


@dataclasses.dataclass(frozen=True)
class AfterJournal:
    """A message is acknowledged when it is on disk; what is older than `horizon_us` is in no window any more.

    Where the sink publishes by transactions, `sink` is what it does so by: each round's are committed at its end, and
    they know what was done as the journal's marks do.
    """

    folder: str
    horizon_us: int = NEVER_US
    sink: Transactional | None = None

    def open(self, types: Mapping[int, RecordType]) -> Keeper:
        """JournalError if there is a journal that is not whole, or that another process writes to."""
        writer = JournalWriter(pathlib.Path(self.folder))
        if self.sink is None:
            return _Journal(self, types, writer)
        try:
            return _Transactions(self, types, writer, self.sink)
        except (BrokerError, JournalError):
            writer.close(in_order=False)
            raise


@dataclasses.dataclass(frozen=True)
class AfterCheckpoint:
    """A message is acknowledged when a checkpoint of Flink's holds what came of it; see deploy/flink's job server.

    Messages that were not acknowledged come again after a failure; what the checkpoint holds of them makes them
    duplicates.
    """

    def open(self, types: Mapping[int, RecordType]) -> Keeper:
        """What goes on from a checkpoint if there is one."""
        return _Checkpoints()


class _Journal(Keeper):
    def __init__(self, options: AfterJournal, types: Mapping[int, RecordType], writer: JournalWriter) -> None:
        self._types = types
        self._writer = writer
        look = functools.partial(probe_records, types)
        self._replay = Replay(self._writer.found, self._decode, look, options.horizon_us)
        self.end_us = self._replay.end_us
        self.was_cut_off = self._replay.crashed

    def _decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Int64]:
        """Records with their times; those of a feed that this stream is run without stay as they are."""
        records = self._types.get(type_number(batch))
        if records is None:
            return batch, np.full(batch.num_rows, NO_TIME_US)
        decoded = with_column(decode_raw(batch, records), PARTITION, column(batch, PARTITION))
        told = {**(decoded.schema.metadata or {}), **about(records.number)}
        return decoded.replace_schema_metadata(told), times_of(decoded, records)

    def past(self) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        return self._replay.past()

    def left(self) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        replay = self._replay
        for number in replay.found:
            self._writer.mark(f"aside {number}")
        yield from replay.pending
        yield from ((batch, np.full(batch.num_rows, NO_TIME_US)) for batch in replay.set_aside)
        replay.pending, replay.set_aside = [], []
        self._writer.mark("started")  # what the broker hands out from here on may be lost with the process

    def take_ids(self) -> list[str]:
        ids, self._replay.message_ids = self._replay.message_ids, []
        return ids

    def keep(self, batches: Sequence[pa.RecordBatch]) -> bool:
        if batches:
            self._writer.append(batches)
        return True

    def passed(self, records: int, end_us: int, newest_us: int, finalizer: Any) -> None:
        if records:
            finalizer.register(functools.partial(self._writer.mark, self._mark(end_us, newest_us)))

    def _mark(self, end_us: int, newest_us: int) -> str:
        return f"emitted {self._writer.rows} {end_us} {newest_us}"

    def close(self, in_order: bool) -> None:
        self._writer.close(in_order)


class _Transactions(_Journal):
    """Commits what the round has published, and then marks it; of a kill between the two, the broker has the mark."""

    def __init__(
        self, options: AfterJournal, types: Mapping[int, RecordType], writer: JournalWriter, sink: Transactional
    ) -> None:
        self._outbox = sink.open_outbox(f"headrace-{writer.number:016x}")
        self._failed: BrokerError | None = None
        try:
            if self._outbox.mark is not None:
                writer.adopt(self._outbox.mark)
            super().__init__(options, types, writer)
        except JournalError:
            self._outbox.close()
            raise
        if self.was_cut_off and self._outbox.mark is None:
            _LOG.warning(
                "the broker knows of no transaction of the journal %s: what a process before it has published without "
                "a mark comes once more",
                options.folder,
            )

    def begin_round(self, finalizer: Any, estimator: Any) -> Any:
        if self._failed is not None:
            raise self._failed
        return finalizer

    def passed(self, records: int, end_us: int, newest_us: int, finalizer: Any) -> None:
        finalizer.register(functools.partial(self._commit, records, self._mark(end_us, newest_us)))

    def _commit(self, records: int, mark: str) -> None:
        """At the end of a round all is in the outbox that its slice gives; rows may come of time alone, too."""
        try:
            if self._outbox.commit(mark) or records:
                self._writer.mark(mark)
        except BrokerError as error:  # what a finalizer raises is only logged
            self._failed = error
            _LOG.error("%s", error)

    def close(self, in_order: bool) -> None:
        self._outbox.close()
        super().close(in_order and self._failed is None)


class _Checkpoints(Keeper):
    def __init__(self) -> None:
        self._rounds = 0
        # Called back once, and to be called at the next checkpoint; appended to by another thread.
        self._ripe: collections.deque[Callable[[], None]] = collections.deque()

    def begin_round(self, finalizer: Any, estimator: Any) -> Any:
        reached = estimator.current_watermark()
        if not self._rounds and reached is not None:
            self.is_restored = self.was_cut_off = True
            self.end_us = int(reached.micros) - STEP_US // 2
        self._rounds += 1
        while self._ripe:
            finalizer.register(self._ripe.popleft())
        return _AtSecondCheckpoint(finalizer, self._ripe)


@dataclasses.dataclass
class _AtSecondCheckpoint:
    """A finalizer that puts what it is called with into `ripe`.

    At the end of a checkpoint, Beam finalizes every bundle that was finished by then, even those that began after
    the checkpoint did. So what a bundle wants to have acknowledged goes into the first bundle after that, and is
    acknowledged with it.
    """

    finalizer: Any
    ripe: collections.deque[Callable[[], None]]

    def register(self, callback: Callable[[], None]) -> None:
        ripe = self.ripe
        self.finalizer.register(lambda: ripe.append(callback))
