"""The reader's watermark after a failure: it waits for what was handed out to the process before."""

import json

import apache_beam as beam

from models.batches import marks_of
from models.record import IS_LATE
from pipelines.runners import make_pipeline
from pipelines.sources import inlets, reader
from pipelines.sources.acknowledge import Keeper
from tests.kit.given import Given, GivenSubscription
from tests.kit.support import card_fraud, read_stream, transaction

MOST = 100  # messages a round
_found: list = []


def _keep(batch):
    _found.append(batch)


class _Full(GivenSubscription):
    """Of one with a backlog as much as is asked for; what another process had was let go before it was opened."""

    redelivery_seconds = 0.001

    def receive(self, most, seconds):
        self._random = _Always(most)
        return super().receive(most, seconds)


class _Always:
    def __init__(self, number):
        self.integers = lambda low, high: number


class _Backlog(Given):
    def subscribe(self, known=()):
        return _Full(self)


class _CutOff(Keeper):
    was_cut_off = True


class _AfterFailure:
    def open(self, types):
        return _CutOff()


def _read(monkeypatch, numbers):
    """How many records each slice has, and whether one of them is late."""
    _found.clear()
    for module in (inlets, reader):
        monkeypatch.setattr(module, "MAX_MESSAGES", MOST)
    broker = _Backlog([json.dumps(transaction(number)).encode() for number in numbers], 0)
    source = read_stream(card_fraud(), broker, 0, until_idle=True, idle_us=300_000, acknowledge=_AfterFailure())
    pipeline = make_pipeline("DirectRunner", [])
    (pipeline | source)["events"] | beam.Map(_keep)
    pipeline.run().wait_until_finish()
    return [batch.num_rows for batch in _found], any((marks_of(batch) & IS_LATE).any() for batch in _found)


def test_after_a_failure_the_watermark_waits_until_what_is_here_is_taken(monkeypatch):
    """What came again stands behind newer messages, more of them than a round takes, and is not late."""
    slices, is_late = _read(monkeypatch, [*range(5 * MOST, 10 * MOST), *range(5 * MOST)])
    assert sum(slices) == 10 * MOST
    assert not is_late


def test_a_backlog_without_end_does_not_hold_the_watermark_for_ever(monkeypatch):
    """Of more messages than are waited for, the first go out while others are taken."""
    monkeypatch.setattr(reader, "HELD_MESSAGES", 3 * MOST)
    slices, is_late = _read(monkeypatch, range(10 * MOST))
    assert max(slices) < 5 * MOST
    assert sum(slices) == 10 * MOST
    assert not is_late
