"""A circuit breaker in the graph: after bad windows a release falls back, the same in batch, stream and replay."""

import functools

import numpy as np
import pyarrow as pa
import pytest

from models import metrics
from models.quality.circuit import Circuit
from models.rollout.assign import parts_of
from models.rollout.instead import SALT
from pipelines.jobs.parity import compare_tables
from pipelines.runners import FN_API
from pipelines.sources import release_feed as following
from tests.kit.breakers import (
    HOUR,
    PER_HOUR,
    SECOND,
    at,
    batch,
    flaky,
    hour_of,
    log_with,
    make,
    shop,
    shuffled,
    stream,
)
from tests.kit.releases import LOOKS, canary, grown, make_log

pytestmark = pytest.mark.slow

PROJECT = shop()


def said(output):
    return {row["id"]: (row["release"], row["role"], row["bundle_id"]) for row in output.scores.to_pylist()}


def same(one, other):
    names = [n for n in one.scores.schema.names if n not in ("published", "ingested", "scored", "late")]
    found = compare_tables("rows", one.scores, other.scores, names)
    assert found.different == 0, found.first
    assert found.rows


@pytest.mark.parametrize("bad", ["nan", "constant", "shifted"])
def test_a_bad_release_falls_back_from_the_end_of_its_first_whole_window(tmp_path, bad):
    events = make(hours=10)
    output, counted = batch(PROJECT, tmp_path, events, log_with(bad))
    rows = said(output)
    for event in events:
        hour = hour_of(event)
        wanted = (0, "champion", "old") if hour < 4.5 else (1, "champion", bad) if hour < 6 else (1, "fallback", "old")
        assert rows[event["id"]] == wanted
    # What falls back is what the old one would have said, and what was decided instead is told.
    alone = {row["id"]: row for row in batch(PROJECT, tmp_path / "old", events, make_log("old"))[0].scores.to_pylist()}
    for row in output.scores.to_pylist():
        fell = row["role"] == "fallback"
        assert (row["shadow_decision"] is not None) == fell
        if fell or row["release"] == 0:
            assert all(row[name] == alone[row["id"]][name] for name in ("score", "decision"))
    assert metrics.by_label(counted, metrics.FALLEN_BACK) == {"previous": sum(hour_of(e) >= 6 for e in events)}
    assert metrics.by_label(counted, metrics.CIRCUIT_CHANGES) == {"open": 1}


def expected_of_flaky(event):
    """Open from hour 9, half-open from 11 on, closed from 13; open at 14, half-open at 16, closed at 18."""
    hour, part = hour_of(event), int(parts_of(pa.array([event["card"]]), SALT)[0])
    if hour < 4.5:
        return (0, "champion", "old")
    falls = 9 <= hour < 11 or 14 <= hour < 16
    falls |= (11 <= hour < 13 or 16 <= hour < 18) and part >= 3000
    return (1, "fallback", "old") if falls else (1, "champion", "flaky")


def test_a_release_is_tried_by_a_share_and_closes_when_it_holds(tmp_path):
    events, log = flaky()
    output, counted = batch(PROJECT, tmp_path, events, log)
    assert said(output) == {event["id"]: expected_of_flaky(event) for event in events}
    assert metrics.by_label(counted, metrics.CIRCUIT_CHANGES) == {"open": 2, "half_open": 2, "closed": 2}
    assert metrics.value_of(counted, metrics.CIRCUIT) == 0
    roles = {hour: {said(output)[e["id"]][1] for e in events if int(hour_of(e)) == hour} for hour in (10, 11, 13)}
    assert roles == {10: {"fallback"}, 11: {"fallback", "champion"}, 13: {"champion"}}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stream_is_batch_however_events_arrive(tmp_path, seed):
    events, log = flaky()
    one, counted = batch(PROJECT, tmp_path / "batch", events, log)
    other, streamed = stream(PROJECT, tmp_path / "stream", shuffled(events, seed), log, seed, shards=1 + seed)
    same(one, other)
    for metric in (metrics.FALLEN_BACK, metrics.CIRCUIT_CHANGES, metrics.CIRCUIT):
        assert metrics.by_label(streamed, metric) == metrics.by_label(counted, metric)


def test_the_engines_of_this_process_agree(tmp_path):
    events, log = flaky()
    one, _ = batch(PROJECT, tmp_path / "one", events, log)
    other, _ = batch(PROJECT, tmp_path / "other", events, log, FN_API, 6 * HOUR * SECOND, shards=1)
    assert one.digest == other.digest
    same(one, other)


def test_a_canary_falls_back_to_the_champion_whose_own_rows_stay(tmp_path):
    events = make(hours=10)
    log = make_log("old", {"at": at(4.5), "challenger": "nan", "canary": canary("card", 4000)})
    one, _ = batch(PROJECT, tmp_path / "batch", events, log)
    rows, share = said(one), parts_of(pa.array([event["card"] for event in events]), "salt")
    for event, part in zip(events, share.tolist(), strict=True):
        hour = hour_of(event)
        inside = hour >= 4.5 and part < 4000
        role, bundle = ("champion", "old") if not inside else ("canary", "nan") if hour < 6 else ("fallback", "old")
        assert rows[event["id"]] == (int(hour >= 4.5), role, bundle)
    other, _ = stream(PROJECT, tmp_path / "stream", shuffled(events, 4), log, 4)
    same(one, other)


def test_a_new_release_begins_with_a_closed_circuit_and_what_scores_alike_goes_on(tmp_path):
    events = make(hours=13)
    log = make_log(
        "old",
        {"at": at(4.5), "champion": "nan"},
        {"at": at(7.5), "shadows": ("new",)},  # scores as the one before: it stays open
        {"at": at(9.25), "champion": "constant", "shadows": ()},
    )
    one, _ = batch(PROJECT, tmp_path / "batch", events, log)
    rows = said(one)
    for event in events:
        hour = hour_of(event)
        seq = sum(hour >= each for each in (4.5, 7.5, 9.25))
        # Behind `constant` is `nan`, which it replaced: whoever released it meant to go on from there.
        falls = {1: hour >= 6, 2: True, 3: hour >= 11}.get(seq, False)
        own, before = {0: ("old", ""), 3: ("constant", "nan")}.get(seq, ("nan", "old"))
        assert rows[event["id"]] == (seq, "fallback" if falls else "champion", before if falls else own)
    other, _ = stream(PROJECT, tmp_path / "stream", shuffled(events, 5), log, 5)
    same(one, other)


def test_a_fallback_that_is_named_and_thresholds_of_the_one_before(tmp_path):
    events = make(hours=8)
    for change, bundle, block in (
        ({"fallback": "new", "thresholds": {"block": 0.9}}, "new", 0.9),
        ({"thresholds": None}, "old", 0.5),
    ):
        first = {"at": at(1), "thresholds": {"block": 0.5}}
        log = make_log("old", first, {"at": at(4), "champion": "nan", **change})
        output, _ = batch(PROJECT, tmp_path / bundle, events, log)
        fell = [row for row in output.scores.to_pylist() if row["role"] == "fallback"]
        assert len(fell) == sum(hour_of(event) >= 5 for event in events)
        assert {row["bundle_id"] for row in fell} == {bundle}
        for row in fell:
            assert (row["decision"] == "block") == (row["score"] >= np.float32(block))


def test_a_safe_action_where_nothing_was_before_or_if_declared(tmp_path):
    events, log = make(hours=5), make_log("nan")
    for breaker, action in (
        ("breaker: {safe_action: review}\n", "review"),
        ("breaker: {to: safe_action, safe_action: block}\n", "block"),
        ("breaker: {kinds: [score_range]}\n", None),
    ):
        project = shop(breaker)
        output, counted = batch(project, tmp_path / str(action), events, log)
        for row, event in zip(sorted(output.scores.to_pylist(), key=lambda row: row["id"]), events, strict=True):
            falls = hour_of(event) >= 1 and action is not None
            assert row["role"] == "champion"
            # A score that is no number is in the band of the highest.
            assert (row["decision"], row["shadow_decision"]) == ((action, "block") if falls else ("block", None))
        wanted = {"safe_action": 4 * PER_HOUR} if action else {}
        assert metrics.by_label(counted, metrics.FALLEN_BACK) == wanted


def test_without_a_breaker_rows_and_verdicts_are_as_they_were(tmp_path):
    events, log = make(hours=6), log_with("new")
    bare, _ = batch(shop(""), tmp_path / "bare", events, log)
    output, _ = batch(PROJECT, tmp_path / "breaker", events, log)
    assert output.scores.schema.names == [*bare.scores.schema.names, "shadow_decision"]
    assert output.scores.drop_columns(["verdict_id", "shadow_decision"]).equals(bare.scores.drop_columns("verdict_id"))
    assert 'circuit"' not in "".join(path.read_text() for path in (tmp_path / "bare").rglob("verdicts.jsonl"))


def test_a_stream_over_a_log_that_grows_is_batch_over_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)
    monkeypatch.setitem(LOOKS, "looks", 0)
    events, log = flaky()
    one, _ = batch(PROJECT, tmp_path / "batch", events, log)
    other, _ = stream(PROJECT, tmp_path / "stream", shuffled(events, 6), functools.partial(grown, log), 6, grows=True)
    same(one, other)


def test_what_was_noted_goes_on_where_a_run_begins(tmp_path):
    """As of a stream that was killed while the circuit was open: it has no windows from which that follows."""
    events, log = make(hours=12), log_with("nan")
    noted = (Circuit("open", at(4.5), 0, at(6)),)
    whole, _ = batch(PROJECT, tmp_path / "whole", events, log)
    later = [event for event in events if hour_of(event) >= 8]
    for way, seed in ((batch, ()), (stream, (7,))):
        rest, _ = way(PROJECT, tmp_path / way.__name__, later, log, *seed, noted=noted)
        assert said(rest) == {event["id"]: said(whole)[event["id"]] for event in later}
        fresh, _ = way(PROJECT, tmp_path / f"fresh {way.__name__}", later, log, *seed)
        assert said(fresh) != said(rest)  # so the note is what tells
    # What was noted of later times is found again, and not looked at.
    again, _ = batch(PROJECT, tmp_path / "again", events, log, noted=noted)
    same(whole, again)
