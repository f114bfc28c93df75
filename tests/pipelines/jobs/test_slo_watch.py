"""A watch over a run that goes on: alerts to sinks, and outages of what it asks."""

import json
import logging
import threading

from models.objectives import Ratio
from models.project.objectives import Objectives
from pipelines.jobs.slo_watch import watch
from pipelines.monitoring.scrape import ScrapeError
from tests.kit.support import card_fraud

PROJECT = card_fraud().model_copy(update={"slo": Objectives.model_validate({"valid": {"target": 0.99, "minimum": 10}})})


def looks(stopped, found):
    """What is read, one after another; then it is stopped."""
    left = list(found)

    def read():
        each = left.pop(0)
        if not left:
            stopped.set()
        if isinstance(each, Exception):
            raise each
        return [Ratio("valid", "good", 0.99, *each)]

    return read


def test_a_burn_is_told_once_and_an_outage_harms_nothing(tmp_path, caplog):
    stopped, sink = threading.Event(), tmp_path / "alerts.jsonl"
    down = ScrapeError("nobody answers")
    found = [(0, 1000), (0, 1100), down, down, (400, 1500), (800, 2000)]
    with caplog.at_level(logging.WARNING, "headrace"):
        watch(PROJECT, looks(stopped, found), [f"file:{sink}"], 0.001, stopped)
    (alert,) = map(json.loads, sink.read_text().splitlines())
    assert (alert["event"], alert["feature"], alert["kind"]) == ("open", "valid", "budget")
    assert "page" in alert["text"]
    assert "400 of 500 are not good" in alert["text"]
    assert [record.message for record in caplog.records] == ["nobody answers", "it can be read again"]


def test_a_good_run_is_not_told_of(tmp_path):
    stopped, sink = threading.Event(), tmp_path / "alerts.jsonl"
    watch(PROJECT, looks(stopped, [(0, n) for n in range(0, 1000, 100)]), [f"file:{sink}"], 0.001, stopped)
    assert not sink.exists()
