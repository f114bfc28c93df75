"""The whole graph with a `quality` section: records, verdict ids, quarantine and stop, over files."""

import json
import random

import pyarrow as pa
import pytest

from models.quality.gate import QualityStop
from models.quality.parts import make_baseline
from models.quality.records import Verdict, WindowStatistics
from models.quality.window_statistics import WindowJudge, read_baseline
from pipelines.graph import GraphConfig, build
from pipelines.jobs.parity import arrival_order
from pipelines.jobs.quarantine import QuarantineError, settle_run
from pipelines.runners import DIRECT, FN_API, make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources.files import SLICE_US
from tests.kit.given import Given
from tests.kit.support import (
    quality_lines,
    read_files,
    read_output,
    read_stream,
    run_graph,
    tiny_scorer,
    transaction,
    write_rows,
)
from tests.kit.watched import project_with, rows
from transforms.gate import WatchScores
from transforms.score import Score

pytestmark = [pytest.mark.core_set, pytest.mark.slow]

DAY_US = 86_400_000_000


def run(folder, events, gate, runner=DIRECT, slice_us=SLICE_US, files=1, seed=0, baseline=None):
    project = project_with(gate)
    events = random.Random(seed).sample(events, len(events))
    folder.mkdir()
    sources = [write_rows(folder / f"{n}.jsonl", events[n::files]) for n in range(files)]
    judge = WindowJudge(project, baseline and read_baseline(baseline, project))
    config = GraphConfig(
        project,
        read_files(project, sources, slice_us=slice_us),
        Score(project, tiny_scorer(project.model.inputs), "bundle"),
        WriteFiles(str(folder / "out"), project.event.id, project.event.time),
        watch=WatchScores(judge, slice_us),
    )
    pipeline = make_pipeline(runner, [])
    build(pipeline, config)
    pipeline.run().wait_until_finish()
    return read_output(folder / "out")


def records(folder, kind):
    made = {"verdicts": Verdict, "statistics": WindowStatistics}[kind]
    return [made.from_json(line) for line in quality_lines(folder / "out", kind).splitlines()]


def test_a_run_leaves_records_of_its_windows(tmp_path):
    out = run(tmp_path / "a", rows(bad=(6, 7)), "warn")
    verdicts, statistics = records(tmp_path / "a", "verdicts"), records(tmp_path / "a", "statistics")
    assert len(verdicts) == len(statistics) >= 5
    assert [v.window_end_us for v in verdicts] == sorted(v.window_end_us for v in verdicts)
    assert sum(s.rows for s in statistics) == out.scores.num_rows == 240
    assert any(("TX_AMOUNT", "drift") in {(f.feature, f.kind) for f in v.findings} for v in verdicts)
    ids = {v.window_end_us: v.verdict_id for v in verdicts}
    for time, verdict_id in zip(
        out.scores["TX_DATETIME"].cast(pa.int64()).to_pylist(), out.scores["verdict_id"].to_pylist(), strict=True
    ):
        assert verdict_id == ids.get(time // (2 * DAY_US) * 2 * DAY_US, "")


@pytest.mark.parametrize(
    ("runner", "slice_us", "files", "seed"),
    [(DIRECT, SLICE_US, 3, 1), (DIRECT, 2 * DAY_US, 2, 2), (FN_API, SLICE_US, 2, 3), (FN_API, 2 * DAY_US, 1, 4)],
)
@pytest.mark.parametrize("gate", ["warn", "quarantine"])
def test_the_bytes_are_the_same(tmp_path, gate, runner, slice_us, files, seed):
    events = rows(bad=(6, 7))
    one = run(tmp_path / "one", events, gate)
    assert run(tmp_path / "two", events, gate, runner, slice_us, files, seed).digest == one.digest


def test_rows_of_bad_windows_are_held_and_counted(tmp_path):
    out = run(tmp_path / "a", rows(bad=(6, 7)), "quarantine")
    bad = {v.verdict_id for v in records(tmp_path / "a", "verdicts") if v.status == "alarm"}
    held = sum(v.rows for v in records(tmp_path / "a", "verdicts") if v.status == "alarm")
    assert bad
    assert out.outcomes == {"quarantined": held, "read": 240, "scored": 240 - held}
    assert not bad & set(out.scores["verdict_id"].to_pylist())


def test_a_run_that_stops_publishes_nothing(tmp_path):
    with pytest.raises(QualityStop, match="Nothing was published"):
        run(tmp_path / "a", rows(bad=(6, 7)), "stop")
    assert not (tmp_path / "a" / "out" / "_SUCCESS.json").exists()
    assert not (tmp_path / "a" / "out" / "scores").exists()


def test_scores_of_a_run_are_a_baseline_for_the_next(tmp_path):
    project = project_with("warn")
    baseline = make_baseline(run(tmp_path / "a", rows(), "warn").scores.to_batches(), project)
    run(tmp_path / "b", rows(bad=range(10)), "warn", baseline=baseline)
    assert {("TX_AMOUNT", "skew")} <= {
        (f.feature, f.kind) for v in records(tmp_path / "b", "verdicts") for f in v.findings
    }


def test_quarantined_rows_are_released_or_dropped(tmp_path):
    events = rows(bad=(6, 7))
    plain = run(tmp_path / "plain", events, "warn").scores
    for name, release in (("released", True), ("dropped", False)):
        held = run(tmp_path / name, events, "quarantine").outcomes["quarantined"]
        assert 0 < held < 240
        folder = tmp_path / name / "out"
        assert settle_run(str(folder), release) == held
        assert not list(folder.glob("quarantine/*/*"))
        out = read_output(folder)
        assert out.scores.num_rows == (240 if release else 240 - held)
        assert out.outcomes.get("quarantined") is None
        assert out.outcomes["scored" if release else "dropped"] == (240 if release else held)
        said = json.loads((folder / "_SUCCESS.json").read_text())
        assert {f["name"] for f in said["files"] if f["kind"] == "scores"} == {
            f"{p.parent.name}/{p.name}" for p in folder.glob("scores/*/*")
        }
        if release:
            assert sorted(out.scores["TRANSACTION_ID"].to_pylist()) == sorted(plain["TRANSACTION_ID"].to_pylist())
        with pytest.raises(QuarantineError, match="nothing is in quarantine"):
            settle_run(str(folder), release)


def test_a_run_without_quality_leaves_nothing_of_a_former_one_with_it(tmp_path):
    run(tmp_path / "a", rows(bad=(6, 7)), "quarantine")
    run_graph(tmp_path / "a" / "out", [write_rows(tmp_path / "one.jsonl", [transaction(1)])], replace=True)
    assert not list((tmp_path / "a" / "out").glob("quality/*"))
    assert not list((tmp_path / "a" / "out").glob("quarantine/*"))


def test_a_stream_in_disorder_gives_the_verdicts_of_batch(tmp_path):
    """With a shift in the middle and duplicates: the same records of windows, bit for bit, and verdict ids on rows."""
    project = project_with("warn")
    events = rows(bad=(6, 7))
    batch = run(tmp_path / "batch", events, "warn")
    payloads = [json.dumps(row).encode() for row in events]
    order = arrival_order(payloads, project, 5 * 3_600_000_000, 1, 0.1)
    window_us = project.quality.window
    broker = Given([payloads[n] for n in order], 0)
    source = read_stream(project, broker, 5 * 3_600_000_000, idle_us=300_000, until_idle=True, cut_us=window_us)
    config = GraphConfig(
        project,
        source,
        Score(project, tiny_scorer(project.model.inputs), "bundle"),
        WriteFiles(str(tmp_path / "stream" / "out"), project.event.id, project.event.time),
        watch=WatchScores(WindowJudge(project, None), window_us, "fallback"),
    )
    pipeline = make_pipeline(DIRECT, [])
    build(pipeline, config)
    pipeline.run().wait_until_finish()
    for kind in ("verdicts", "statistics"):
        ours = quality_lines(tmp_path / "batch" / "out", kind)
        assert ours == quality_lines(tmp_path / "stream" / "out", kind)
        assert ours
    streamed = read_output(tmp_path / "stream" / "out").scores
    assert streamed["verdict_id"].to_pylist() == batch.scores["verdict_id"].to_pylist()
    assert len(set(batch.scores["verdict_id"].to_pylist())) > 3
