"""Scores at arrival, and the corrections that follow."""

import json
import threading

import numpy as np
import pyarrow as pa
import pytest

from models.batches import as_batch
from models.record import CORRECTION, LATE
from models.sample import write_sample
from models.score import find_changed
from pipelines.graph import GraphConfig, build
from pipelines.jobs.parity import arrival_order
from pipelines.runners import make_pipeline
from pipelines.sources.payloads import read_payloads
from tests.kit.given import Given
from tests.kit.streams import DAY, SECOND, Collect, _found, stream
from tests.kit.support import card_fraud, read_stream, run_graph, tiny_scorer, transaction
from transforms.score import Score

pytestmark = pytest.mark.serial


def last_said(scores):
    """The rows that hold in the end: a correction takes the place of what was said before."""
    rows = {row["TRANSACTION_ID"]: place for place, row in enumerate(scores.to_pylist())}
    return scores.take(list(rows.values())).sort_by([("TX_DATETIME", "ascending"), ("TRANSACTION_ID", "ascending")])


def test_corrected_scores_are_those_of_batch(tmp_path):
    write_sample(tmp_path, 3000, seed=2, days=4, format="jsonl")
    (tmp_path / "bad.jsonl").write_bytes(b"nonsense\n")
    payloads = read_payloads([f"{tmp_path}/*.jsonl"])
    allowance = 6 * 3600 * SECOND
    order = arrival_order(payloads, card_fraud(), allowance, 5, 0.05)
    scores, dead = stream([payloads[place] for place in order], allowance, True)
    batch = run_graph(tmp_path / "batch", [f"{tmp_path}/*.jsonl"])
    corrections = scores.filter(scores[CORRECTION])
    first = scores.filter(pa.compute.invert(scores[CORRECTION]))
    assert 0 < len(corrections) < len(first) == 3000
    assert not any(scores[LATE].to_pylist())
    assert last_said(scores).select(batch.scores.schema.names).cast(batch.scores.schema).equals(batch.scores)
    steps = dead["step"].to_pylist()
    assert steps.count("Decode") == 1  # once, though the record passed twice
    assert steps.count("Deduplicate") == len(order) - len(payloads)


def test_in_order_nothing_is_corrected(tmp_path):
    payloads = [json.dumps(transaction(n)).encode() for n in range(300)]
    scores, _ = stream(payloads, SECOND, True)
    assert len(scores) == 300
    assert not any(scores[CORRECTION].to_pylist())
    in_event_time, _ = stream(payloads, SECOND, False)
    names = [name for name in in_event_time.schema.names if name not in ("published", "ingested", "scored")]
    assert last_said(scores).select(names).equals(in_event_time.select(names))


def test_a_late_event_is_scored_and_marked_and_finds_its_windows():
    """It comes a day and more behind the watermark; its own features are those of its true place."""
    rows = [transaction(n, CUSTOMER_ID=1, TERMINAL_ID=1) for n in range(100)]
    late = transaction(80, CUSTOMER_ID=1, TERMINAL_ID=1, TX_DATETIME=str(rows[80]["TX_DATETIME"]))
    order = [json.dumps(row).encode() for row in [*rows[:80], *rows[81:], late]]
    for at_arrival in (False, True):
        scores, dead = stream(order, SECOND, at_arrival)
        assert dead is None
        kept = last_said(scores)
        assert kept["TRANSACTION_ID"].to_pylist() == list(range(100))
        assert [n for n, is_late in enumerate(kept[LATE].to_pylist()) if is_late] == [80]
        counts = kept["CUSTOMER_ID_NB_TX_30DAY_WINDOW"].to_pylist()
        assert counts[80] == 81
        assert counts[79] == 80
        seen = [count - place for place, count in enumerate(counts[81:], 81)]
        assert seen == sorted(seen)  # those said before it came are not changed
        assert seen[0] == 0


def test_changed_rows_are_found_by_any_bit_and_by_missing_partners():
    batch = pa.RecordBatch.from_pydict(
        {"id": [1, 2, 3, 4], "x": [0.0, 1.0, None, 2.0], "d": pa.array(["a", "b", "a", "b"]).dictionary_encode()}
    )
    assert find_changed(batch, batch, "id").num_rows == 0
    assert find_changed(batch.slice(1), batch, "id").num_rows == 0
    other = pa.RecordBatch.from_pydict(
        {"id": [4, 3, 2, 1], "x": [2.0, 0.0, 1.0, -0.0], "d": pa.array(["a", "a", "b", "a"]).dictionary_encode()}
    )
    assert find_changed(batch, other, "id").column(0).to_pylist() == [1, 3, 4]
    assert find_changed(batch, other.slice(0, 3), "id").column(0).to_pylist() == [1, 3, 4]
    table = as_batch(pa.Table.from_batches([batch]))
    assert find_changed(table, batch.slice(0, 2), "id").column(0).to_pylist() == [3, 4]


def test_an_event_just_after_a_slice_is_still_known_to_the_next(tmp_path):
    """Events a millisecond apart, in order: none is left out while it goes from provisional to final."""
    start = np.datetime64("2018-04-01T00:00:00.000")
    rows = [transaction(n, CUSTOMER_ID=1, TERMINAL_ID=1, TX_DATETIME=str(start + n)) for n in range(3000)]
    scores, _ = stream([json.dumps(row).encode() for row in rows], 50_000, True)
    assert scores["TRANSACTION_ID"].to_pylist() == list(range(3000))
    assert scores["CUSTOMER_ID_NB_TX_1DAY_WINDOW"].to_pylist() == list(range(1, 3001))


def test_in_silence_the_newest_event_is_scored_too(monkeypatch):
    """Its time is no whole step of the watermark, and the stream does not end."""
    monkeypatch.setattr("pipelines.sources.reader.WAIT_SECONDS", 0.0)
    payload = json.dumps(transaction(1, TX_DATETIME="2018-04-01T10:00:00.341")).encode()
    project = card_fraud()
    _found.update(scores=[], dead_letters=[])
    pipeline = make_pipeline("DirectRunner", [])
    source = read_stream(project, Given([payload], 0), SECOND, idle_us=100_000)
    build(
        pipeline, GraphConfig(project, source, Score(project, tiny_scorer(project.model.inputs), "bundle"), Collect())
    )
    timer = threading.Timer(2.0, pipeline.runner.stop)
    timer.start()
    pipeline.run().wait_until_finish()
    timer.join()
    assert [batch.num_rows for batch in _found["scores"]] == [1]


@pytest.mark.parametrize("at_arrival", [False, True])
def test_a_dead_letter_of_a_stream_has_the_whole_message_whatever_step_refused_it(at_arrival):
    """One that can't be decoded, one that breaks the contract, and a duplicate."""
    rows = [json.dumps(transaction(n, note=f"message {n}")).encode() for n in range(6)]
    bad = [b"no json", json.dumps(transaction(9, TX_AMOUNT=-1.0, note="low")).encode() + b"\n"]
    again = json.dumps(transaction(2, note="again", TX_DATETIME="2018-04-01T23:00:00")).encode()
    scores, dead = stream([*rows, *bad, again], DAY, at_arrival)
    assert scores["TRANSACTION_ID"].to_pylist() == list(range(6))
    letters = {row["step"]: (row["format"], row["payload"]) for row in dead.to_pylist()}
    assert letters == {
        "Decode": ("json", bad[0]),
        "Validate": ("json", bad[1].rstrip()),
        "Deduplicate": ("json", again),
    }
    assert len(dead) == 3
