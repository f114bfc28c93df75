"""Forty entities: as many steps that wait for one another, and the watch, the gate and the feedback still see all rows."""

import datetime
import json
import os
import pathlib
import random
import shutil

import pyarrow.parquet as pq
import pytest

from deploy.flink import cluster
from models import metrics
from models.project.project import parse_project
from models.quality.records import Verdict, WindowStatistics
from models.quality.window_statistics import WindowJudge
from pipelines.graph import GraphConfig, build
from pipelines.runners import DIRECT, Job, make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources.acknowledge import STEP_US
from pipelines.sources.files import SLICE_US
from tests.kit.given import Given
from tests.kit.support import (
    CARD_FRAUD,
    ROOT,
    quality_lines,
    read_files,
    read_output,
    read_stream,
    tiny_scorer,
    transaction,
    write_rows,
)
from transforms.gate import WatchScores
from transforms.metrics import read
from transforms.score import Score
from transforms.slices import MAX_PHASE, PHASE_US, TooManySteps

pytestmark = pytest.mark.slow

PRISM = pathlib.Path(os.environ.get("HEADRACE_PRISM", ROOT / "build" / "prism" / "prism"))
HOUR_US = 3_600_000_000
ENTITIES = 40
ROWS = 240


def many(entities):
    """A project with a rolling feature over each of so many entities; the last reads labels."""
    names = [f"e{n}" for n in range(entities)]
    rolling = [f'    - {{entity: {e}, windows: {{D: 1d}}, features: {{"{e}_{{window}}": count}}}}' for e in names]
    rolling.append(
        f'    - {{entity: {names[-1]}, delay: 1d, windows: {{D: 3d}}, features: {{"risk_{{window}}": rate(TX_FRAUD)}}}}'
    )
    text = f"""
name: many
schema: schema.pbtxt
event: {{id: TRANSACTION_ID, time: TX_DATETIME}}
entities: {{{", ".join(f"{e}: {e}" for e in names)}}}
label: {{field: TX_FRAUD, delay: 1d, events: {{time: SEEN}}}}
fixed_point: {{TX_AMOUNT: 2}}
features:
  rolling:
{os.linesep.join(rolling)}
model: {{inputs: [TX_AMOUNT, e0_D, risk_D]}}
decisions: [{{action: block, at_least: 0.5}}, {{action: approve, at_least: 0.0}}]
output: [TX_AMOUNT]
quality: {{window: 2d, min_rows: 30, gate: quarantine}}
"""
    schema = (CARD_FRAUD / "schema.pbtxt").read_text()
    schema += "".join(f'feature {{ name: "{e}" type: INT presence {{ min_fraction: 1.0 }} }}\n' for e in names)
    project, faults = parse_project(text.encode(), lambda name: schema.encode())
    assert not faults, faults
    return project


PROJECT = many(ENTITIES)
BAD_DAYS = (6, 7)


def make_events():
    chosen = random.Random(0)
    made = []
    for n in range(ROWS):
        amount = round(chosen.lognormvariate(3, 1), 2) * (1000 if n // 24 in BAD_DAYS else 1)
        entities = {f"e{e}": chosen.randrange(5) for e in range(ENTITIES)}
        made.append({**transaction(n, TX_AMOUNT=amount), **entities, "TX_FRAUD": None})
    return made


def make_labels():
    start = datetime.datetime(2018, 4, 1)
    return [
        {"TRANSACTION_ID": n, "TX_FRAUD": int(n % 5 == 0), "SEEN": str(start + datetime.timedelta(hours=n + n % 30))}
        for n in range(ROWS)
    ]


def run(folder, source, boundary_us, runner=DIRECT, args=(), job=None):
    """What a run of the whole graph left, and the labels that its feedback counted."""
    config = GraphConfig(
        PROJECT,
        source,
        Score(PROJECT, tiny_scorer(PROJECT.model.inputs), "bundle"),
        WriteFiles(str(folder), PROJECT.event.id, PROJECT.event.time),
        shards=2,
        watch=WatchScores(WindowJudge(PROJECT, None), boundary_us, "fallback"),
    )
    pipeline = make_pipeline(runner, args, job)
    build(pipeline, config)
    result = pipeline.run()
    result.wait_until_finish()
    told = metrics.by_label(read(result.metrics()), metrics.FEEDBACK)
    return read_output(folder), sum(told.values())


def files_source(folder):
    events = random.Random(1).sample(make_events(), ROWS)
    labels = [write_rows(folder / "labels.jsonl", make_labels())]
    return read_files(PROJECT, [write_rows(folder / "events.jsonl", events)], labels)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    return folder / "out", *run(folder / "out", files_source(folder), SLICE_US)


def records(folder, kind):
    made = {"verdicts": Verdict, "statistics": WindowStatistics}[kind]
    return [made.from_json(line) for line in quality_lines(folder, kind).splitlines()]


def check_all_was_seen(folder, out, told):
    statistics, verdicts = records(folder, "statistics"), records(folder, "verdicts")
    assert [(s.rows, s.late) for s in statistics] == [(n, 0) for n in (48,) * 5]
    bad = {v.verdict_id for v in verdicts if v.status == "alarm"}
    held = pq.read_table(folder / "quarantine")
    assert bad == set(held["verdict_id"].to_pylist())
    assert {n // 24 for n in held["TRANSACTION_ID"].to_pylist()} >= set(BAD_DAYS)
    assert not bad & set(out.scores["verdict_id"].to_pylist())
    ids = {v.window_end_us: v.verdict_id for v in verdicts}
    times = [*out.scores["TX_DATETIME"].to_pylist(), *held["TX_DATETIME"].to_pylist()]
    own = [ids[(int(t.timestamp() * 1e6) // (48 * HOUR_US) + 1) * 48 * HOUR_US] for t in times]
    assert own == [*out.scores["verdict_id"].to_pylist(), *held["verdict_id"].to_pylist()]
    assert out.outcomes == {"labelled": ROWS, "quarantined": held.num_rows, "read": 2 * ROWS, "scored": len(out.scores)}
    assert told == ROWS


def same(one, other):
    for kind in ("verdicts", "statistics"):
        assert records(one, kind) == records(other, kind)
    for kind in ("scores", "quarantine"):
        names = [n for n in pq.read_table(one / kind).column_names if n != "late"]
        assert pq.read_table(one / kind, columns=names).equals(pq.read_table(other / kind, columns=names))


def test_a_batch_sees_all(batch):
    check_all_was_seen(*batch)


def test_a_stream_sees_all_and_says_the_same(batch, tmp_path):
    def texts(rows):
        return [json.dumps(row).encode() for row in rows]

    events = [row for _, row in sorted(enumerate(make_events()), key=lambda item: item[0] + item[0] * 7 % 5)]
    source = read_stream(
        PROJECT,
        Given(texts(events), 0, most=100),
        5 * HOUR_US,
        idle_us=300_000,
        until_idle=True,
        cut_us=PROJECT.quality.window,
        labels=Given(texts(make_labels()), 1, most=1000),
    )
    check_all_was_seen(tmp_path / "out", *run(tmp_path / "out", source, PROJECT.quality.window))
    same(batch[0], tmp_path / "out")


@pytest.mark.serial
@pytest.mark.skipif(
    not os.environ.get("HEADRACE_UNPROVEN") or not PRISM.exists(),
    reason="on a busy machine Prism may let held rows pass (docs/prism.md): HEADRACE_UNPROVEN=1 tries it",
)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_prism_sees_all_and_says_the_same(batch, tmp_path):
    args = (f"--prism_location={PRISM}",)
    check_all_was_seen(tmp_path / "out", *run(tmp_path / "out", files_source(tmp_path), SLICE_US, "PrismRunner", args))
    same(batch[0], tmp_path / "out")


@pytest.mark.serial
@pytest.mark.skipif(
    shutil.which("java") is None or not cluster.JOB_SERVER.exists(),
    reason=f"no java, or no {cluster.JOB_SERVER}: run deploy/flink/build.sh",
)
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_flink_sees_all_and_says_the_same(batch, tmp_path):
    with cluster.running(tmp_path / "flink", task_managers=1, slots=2) as flink:
        args = (f"--flink_master={flink.address}",)
        out, told = run(tmp_path / "out", files_source(tmp_path), SLICE_US, "FlinkRunner", args, Job(shards=2))
    check_all_was_seen(tmp_path / "out", out, told)
    same(batch[0], tmp_path / "out")


def test_all_phases_fit_between_a_slices_end_and_where_a_streams_watermark_rests():
    assert MAX_PHASE * PHASE_US < STEP_US // 2


def test_more_steps_than_a_slice_has_time_for_are_refused():
    project = many(MAX_PHASE)
    sink = WriteFiles("nowhere", project.event.id, project.event.time)
    config = GraphConfig(project, read_files(project, ["nothing"]), Score(project, tiny_scorer(["a"]), "bundle"), sink)
    with pytest.raises(TooManySteps, match="50 steps would wait for one another, and a slice has time for 49"):
        build(make_pipeline(DIRECT, []), config)
