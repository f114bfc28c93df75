"""Verdicts: no more false alarms than declared, real changes found at once, and every kind of finding."""

import numpy as np
import pyarrow as pa
import pytest

from models.quality.judge import Memory
from models.quality.parts import make_baseline, sum_up
from models.quality.records import Verdict, WindowStatistics
from models.quality.sampling import merge, settle
from models.quality.window_statistics import BaselineError, WindowJudge, add_parts, read_baseline
from tests.kit.quality_rows import HOUR, START, batch_of, draw, small_project

pytestmark = pytest.mark.both_sets

PROJECT = small_project()


def advance(judge, tables):
    """(statistics, verdict) of one window a table, in order."""
    found, memory = [], Memory()
    for table in tables:
        parts = list(sum_up(batch_of(table), judge.project))
        (end,) = {end for end, _ in parts}
        statistics, verdict, memory = judge.advance(add_parts([p for _, p in parts], 10_000), end, 0, memory)
        assert Memory.from_json(memory.to_json()) == memory
        assert WindowStatistics.from_json(statistics.to_json()) == statistics
        assert Verdict.from_json(verdict.to_json()) == verdict
        found.append((statistics, verdict))
    return found


def verdicts(judge, tables):
    return [verdict for _, verdict in advance(judge, tables)]


def windows(count, rows=1500, seed=0, changes=None):
    """Tables of `count` windows; `changes` by the number of the window."""
    return [
        draw(rows, seed * 1000 + n, START + n * HOUR, HOUR, n * rows, **(changes or {}).get(n, {}))
        for n in range(count)
    ]


def with_baseline(project=PROJECT, rows=20_000, seed=99):
    return WindowJudge(project, read_baseline(make_baseline(draw(rows, seed).to_batches(), project), project))


def found(verdict, kind=None):
    return {(f.feature, f.kind) for f in verdict.findings if kind in (None, f.kind)}


@pytest.mark.parametrize("rows", [500, 1500])
def test_no_more_false_alarms_than_declared_without_drift(rows):
    """400 seeds of 4 windows each, thresholds next to nothing: only chance is between us and an alarm."""
    strict = "drift: 0.000001, skew: 0.000001, psi: 0.000001, null_rate: 0.000001, decision_share: 0.000001"
    project = small_project(f"min_rows: 100, false_alarm_rate: 0.02, unseen: 0.000001, {strict}")
    judge = with_baseline(project)
    judged = [v for seed in range(10_000, 10_400) for v in verdicts(judge, windows(4, rows, seed))]
    assert all(verdict.judged and len(verdict.measures) > 15 for verdict in judged)
    assert sum(verdict.status != "ok" for verdict in judged) <= 0.02 * len(judged)


@pytest.mark.parametrize("column", ["amount", "n_D1", "n_D7", "mean_D1", "mean_D7", "score"])
@pytest.mark.parametrize("rows", [500, 5000])
def test_a_shift_of_a_standard_deviation_is_raised_in_the_first_full_window(column, rows):
    def shift(values):
        deviation = np.std(values)
        return (values + (deviation if values.dtype.kind == "f" else np.round(deviation))).astype(values.dtype)

    before = verdicts(with_baseline(), windows(5, rows, changes={3: {column: shift}, 4: {column: shift}}))
    assert [verdict.status for verdict in before] == ["ok", "ok", "ok", "alarm", "alarm"]
    kind = "psi" if column == "score" else "skew"
    assert {(column, "drift"), (column, kind)} <= found(before[3])
    assert (column, kind) in found(before[4])
    assert (column, "drift") not in found(before[4])  # the window before is shifted too
    others = {feature for feature, _ in found(before[3])} - {column, "block", "approve"}
    assert not others
    alone = verdicts(WindowJudge(PROJECT), windows(4, rows, changes={3: {column: shift}}))
    assert [verdict.status for verdict in alone] == ["ok", "ok", "ok", "alarm"]
    assert found(alone[3], "drift") == {(column, "drift")}


def test_small_windows_say_nothing_and_are_not_compared_with():
    tables = windows(4, 1000)
    tables[1] = draw(499, 7, START + HOUR, HOUR, country=lambda v: np.full(len(v), "XX", object))
    judged = verdicts(WindowJudge(PROJECT), tables)
    assert [v.judged for v in judged] == [True, False, True, True]
    assert [v.status for v in judged] == ["ok"] * 4
    assert (judged[1].findings, judged[1].measures) == ((), ())


def test_each_kind_of_finding():
    def emptied(values):
        return np.where(np.arange(len(values)) % 4 == 0, np.nan, values)

    changes = {
        0: {"mean_D1": emptied},
        1: {"score": lambda v: np.where(np.arange(len(v)) % 10 == 0, 0.9, v).astype(np.float32)},
        2: {"n_D7": lambda v: np.where(np.arange(len(v)) % 3 == 0, 1, v)},
        3: {"country": lambda v: np.full(len(v), "XX", object)},
        4: {"score": lambda v: np.where(np.arange(len(v)) == 3, np.nan, v).astype(np.float32)},
    }
    judged = verdicts(with_baseline(), windows(6, 5000, changes=changes))
    assert ("mean_D1", "null_rate") in found(judged[0])
    assert ("block", "decision_share") in found(judged[1])
    assert ("card", "unseen") in found(judged[2])
    assert {("country", "drift"), ("country", "skew")} <= found(judged[3])
    assert found(judged[4], "score_range") == {("score", "score_range")}
    by = {(m.feature, m.kind): m for m in judged[0].measures}
    assert by["mean_D1", "null_rate"].value == 0.25
    assert judged[0].counters["null.mean_D1"] == 1250
    for verdict in judged:
        raised = {(m.feature, m.kind) for m in verdict.measures if m.value > m.threshold}
        assert raised == {(f.feature, f.kind) for f in verdict.findings if f.kind not in ("schema", "score_range")}
        assert all(m.threshold >= m.declared for m in verdict.measures)


def test_thresholds_are_those_of_the_schemas_comparators():
    skew = "skew_comparator { jensen_shannon_divergence { threshold: 0.9 } }"
    drift = "drift_comparator { infinity_norm { threshold: 0.25 } jensen_shannon_divergence { threshold: 0.75 } }"
    judge = with_baseline(small_project("drift: 0.125, skew: 0.5", skew=skew, drift=drift))
    (_, second) = verdicts(judge, windows(2, 5000))
    declared = {(m.feature, m.kind, m.measure): m.declared for m in second.measures}
    assert declared["amount", "skew", "jensen_shannon"] == pytest.approx(0.9)
    assert declared["amount", "drift", "jensen_shannon"] == 0.125
    assert declared["country", "drift", "infinity_norm"] == 0.25
    assert declared["country", "drift", "jensen_shannon"] == 0.75
    assert declared["country", "skew", "infinity_norm"] == 0.5
    assert declared["score", "psi", "psi"] == 0.2
    assert ("score", "skew", "jensen_shannon") not in declared
    assert not any(feature == "fraud" for feature, _, _ in declared)  # the label


def test_the_circuit_opens_at_an_alarm_and_closes_after_good_windows():
    bad = {"country": lambda v: np.full(len(v), "XX", object)}
    tables = windows(8, 1000, changes={1: bad, 2: bad})
    tables[4] = draw(100, 5, START + 4 * HOUR, HOUR)
    one = verdicts(with_baseline(small_project("hold_off: 1")), tables)
    assert [v.status for v in one] == ["ok", "alarm", "alarm", "alarm", "ok", "ok", "ok", "ok"]  # 3: drift back
    assert [v.circuit_open for v in one] == [False, True, True, True, True, False, False, False]
    two = verdicts(with_baseline(small_project("hold_off: 2")), tables)
    assert [v.circuit_open for v in two] == [False, True, True, True, True, True, False, False]


def test_the_id_is_of_the_content():
    one, same = (verdicts(with_baseline(), windows(3))[2] for _ in range(2))
    assert one == same
    assert len(one.verdict_id) == 16
    fields = {**vars(one), "rows": one.rows + 1}
    del fields["verdict_id"]
    assert Verdict.make(**fields).verdict_id != one.verdict_id
    assert Verdict.make(**{**fields, "rows": one.rows}) == one


def test_texts_of_many_values_are_not_taken_for_drift():
    """Of 20,000 names each window holds others among its most frequent ones."""
    seeds = iter(range(100))

    def drawn(values):
        return np.array([f"n{n}" for n in np.random.default_rng(next(seeds)).integers(0, 20_000, len(values))], object)

    comparator = "drift_comparator { infinity_norm { threshold: 0.01 } jensen_shannon_divergence { threshold: 0.01 } }"
    judge = WindowJudge(small_project(drift=comparator))
    judged = verdicts(judge, windows(3, 3000, changes={n: {"country": drawn} for n in range(3)}))
    assert [v.status for v in judged] == ["ok"] * 3
    new = {n: {"country": drawn} for n in range(2)} | {2: {"country": lambda v: np.full(len(v), "one", object)}}
    assert found(verdicts(judge, windows(3, 3000, changes=new))[2]) == {("country", "drift")}


def test_a_baseline_comes_back_whatever_the_order_of_its_rows():
    table = draw(5000, 3)
    content = make_baseline(table.to_batches(), PROJECT)
    shuffled = table.take(np.random.default_rng(0).permutation(5000))
    assert make_baseline(shuffled.to_batches(max_chunksize=777), PROJECT) == content
    statistics = read_baseline(content, PROJECT)
    assert (statistics.rows, statistics.sampled) == (5000, 5000)
    assert set(statistics.distributions) == {*PROJECT.watched_columns, "score"}


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'{"format": 2}', b'{"format": 1, "statistics": "{}"}', b"\xff"]
)
def test_what_is_no_baseline_is_refused(content):
    with pytest.raises(BaselineError):
        read_baseline(content, PROJECT)


def test_a_baseline_of_nothing_or_of_other_columns_is_refused():
    with pytest.raises(BaselineError, match="no rows"):
        make_baseline([], PROJECT)
    content = make_baseline(draw(500, 0).to_batches(), PROJECT)
    other = PROJECT.model_copy(update={"output": [*PROJECT.output, "more"]})
    other._contract = PROJECT.contract
    with pytest.raises(BaselineError, match="no column more"):
        read_baseline(content, other)


def test_samples_of_parts_are_the_sample_of_the_whole():
    table = draw(3000, 0)
    (_, whole), *_ = sum_up(batch_of(table), small_project("sample: 700"))
    pieces = [part for b in table.to_batches(max_chunksize=111) for _, part in sum_up(b, small_project("sample: 700"))]
    merged = add_parts([add_parts(pieces[:9], 700), add_parts(pieces[9:][::-1], 700)], 700)
    assert merged.counters == whole.counters
    assert merged.sample.num_rows == 700
    assert sorted(merged.sample.to_pylist(), key=lambda r: r["__id"]) == sorted(
        whole.sample.to_pylist(), key=lambda r: r["__id"]
    )


def test_rows_of_one_hash_are_chosen_by_id_and_time():
    table = draw(400, 0)
    (_, part), *_ = sum_up(batch_of(table), PROJECT)
    hashes = part.sample.column(0).take(pa.array([0] * 400))
    same = pa.RecordBatch.from_arrays([hashes, *part.sample.columns[1:]], schema=part.sample.schema)
    halves = [same.slice(200), same.slice(0, 200)]
    for order in (halves, halves[::-1]):
        assert sorted(settle(merge(order, 50), 50).column(1).to_pylist()) == list(range(50))
