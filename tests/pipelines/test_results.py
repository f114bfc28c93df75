"""What a run has left, read again: what a circuit breaker did in it, by its verdicts."""

import json

import pytest

from models.quality.circuit import Circuit
from models.quality.records import Finding, Verdict
from pipelines.results import RunError, circuits_of_run

HOUR = 3_600_000_000


def verdict(hour, circuit, alarm):
    """The verdict on the window that ends at an hour, and the circuit after it."""
    return Verdict.make(
        window_start_us=(hour - 1) * HOUR,
        window_end_us=hour * HOUR,
        rows=100,
        status="alarm" if alarm else "ok",
        judged=True,
        circuit_open=False,
        bundle_id="b1",
        findings=(Finding("score", "psi", "alarm", 9.0, 0.2, "the score has moved"),) if alarm else (),
        measures=(),
        counters={},
        circuit=circuit,
    )


@pytest.fixture
def run(tmp_path):
    """The folder of a run of shops: the circuit opens at hour 2, and closes at hour 4 with a window that has an alarm."""
    opened, closed = Circuit("open", 0, 0, 2 * HOUR), Circuit("closed", 3 * HOUR, 0, 4 * HOUR)
    verdicts = [
        verdict(1, Circuit(since_us=0), False),
        verdict(2, opened, True),
        verdict(3, opened, True),
        verdict(4, closed, True),
        verdict(5, None, False),
    ]
    for number, each in enumerate(verdicts):
        path = tmp_path / "quality" / f"event_day=2018-06-{number + 10}" / "verdicts.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(each.to_json() + "\n")
    (tmp_path / "_SUCCESS.json").write_text(json.dumps({"project": "shops", "events": {}, "files": []}))
    return tmp_path


def test_the_changes_of_the_circuit_are_told_and_why_it_opened(run):
    opened, closed = circuits_of_run(str(run), "shops")
    assert (opened.circuit.state, opened.circuit.from_us) == ("open", 2 * HOUR)
    assert opened.reason.endswith(": the score has moved")
    assert (closed.circuit.state, closed.circuit.from_us) == ("closed", 4 * HOUR)
    assert "moved" not in closed.reason  # an alarm closes nothing


def test_another_project_s_run_is_refused(run):
    with pytest.raises(RunError, match="is a run of the project shops, not of cards"):
        circuits_of_run(str(run), "cards")


@pytest.mark.parametrize("content", ["[1]", "{}", '{"window_end_us": 1}', "{", "[" * 100_000])
def test_verdicts_that_are_none_are_an_error(run, content):
    next((run / "quality").rglob("*.jsonl")).write_text(content + "\n")
    with pytest.raises(RunError, match="verdicts.jsonl is not what a run writes"):
        circuits_of_run(str(run), "shops")


def test_a_folder_that_no_run_has_left_is_an_error(tmp_path):
    with pytest.raises(RunError, match="has no _SUCCESS.json"):
        circuits_of_run(str(tmp_path), "shops")
