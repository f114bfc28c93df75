"""Counts of a stream: of each slice, every event that was read has one outcome, or an error says the numbers."""

import json
import logging

import apache_beam as beam
import pyarrow as pa
import pytest

from models.counts import count_refused, mismatch
from models.record import EVENTS as EVENTS_OF
from pipelines.graph import GraphConfig, build
from pipelines.jobs.status import Status
from pipelines.runners import DIRECT, make_pipeline
from pipelines.sources.feeds import feeds_of
from pipelines.sources.listing import Files
from tests.kit.given import Given
from tests.kit.support import card_fraud, read_stream, tiny_scorer, transaction, write_rows
from transforms.score import Score

pytestmark = pytest.mark.slow

PROJECT = card_fraud()
HOUR = 3_600_000_000


class Nowhere(beam.PTransform):
    def expand(self, pcolls):
        """No sink."""


class LoseSome(beam.PTransform):
    """A scoring step that loses the first row of each batch of more than so many."""

    def __init__(self, score, more_than):
        super().__init__()
        self.score, self.more_than = score, more_than

    def expand(self, pcoll):
        lose = beam.Map(lambda batch: batch.slice(int(batch.num_rows > self.more_than)))
        return pcoll | "Score" >> self.score | "Lose" >> lose.with_output_types(pa.RecordBatch)


def run(payloads, caplog, more_than=10**9, at_arrival=False, **options):
    source = read_stream(
        PROJECT, Given(payloads, 0), HOUR, idle_us=300_000, until_idle=True, at_arrival=at_arrival, **options
    )
    score = Score(PROJECT, tiny_scorer(PROJECT.model.inputs), "bundle", keep_marks=at_arrival)
    config = GraphConfig(
        PROJECT, source, LoseSome(score, more_than), Nowhere(), at_arrival=at_arrival, check_slices=True, shards=2
    )
    pipeline = make_pipeline(DIRECT, [])
    build(pipeline, config)
    with caplog.at_level(logging.ERROR, logger="headrace"):
        pipeline.run().wait_until_finish()
    errors = [record.getMessage() for record in caplog.records if record.name == "headrace"]
    return errors, Status(pipeline.runner)()


def payloads_of(rows):
    return [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]


EVENTS = [transaction(n) for n in range(60)]
# Out of order within the allowance and beyond it, twice, not JSON, and with a forbidden value.
MIXED = payloads_of([*EVENTS[:30], EVENTS[31], EVENTS[30], EVENTS[3], b"no", *EVENTS[32:], EVENTS[40]])
MIXED += payloads_of([transaction(70, TX_AMOUNT=-1.0), transaction(5, TRANSACTION_ID=500)])


@pytest.mark.parametrize("at_arrival", [False, True])
def test_all_that_was_read_is_accounted_for(caplog, tmp_path, at_arrival):
    past = write_rows(tmp_path / "past.jsonl", [transaction(n, TRANSACTION_ID=900 + n) for n in range(-20, 0)])
    history = feeds_of(PROJECT, {EVENTS_OF: Files((past,))})
    errors, status = run(MIXED, caplog, at_arrival=at_arrival, history=history)
    assert errors == []
    assert "2 duplicate, 20 history" in status
    assert "missing" not in status


def test_a_loss_is_told_with_its_numbers_and_the_stream_goes_on(caplog):
    errors, status = run(MIXED, caplog, more_than=20)
    assert errors
    assert all(" events were read, but " in text and " scored" in text for text in errors)
    assert f"{len(errors)} missing" in status


def test_numbers_that_do_not_add_up():
    assert mismatch({"read": 3, "scored": 2, "history": 1, "dead-lettered: Decode: x: y": 9}) is None
    assert (
        mismatch({"read": 3, "scored": 1, "duplicate": 1})
        == "3 events were read, but 2 came out: 1 scored, 1 duplicate"
    )
    assert mismatch({"scored": 1}) == "0 events were read, but 1 came out: 1 scored"


def test_dead_letters_by_outcome():
    columns = {"step": ["Decode", "Deduplicate", "Deduplicate", "Validate", "Decode"], "__marks": [0, 0, 1, 2, 4]}
    batch = pa.RecordBatch.from_pydict({**columns, "__marks": pa.array(columns["__marks"], pa.int8())})
    assert dict(count_refused(batch)) == {"history": 1, "duplicate": 1, "dead-lettered": 2}
