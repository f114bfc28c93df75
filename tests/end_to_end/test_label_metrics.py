"""Label metrics over files and over a stream: records of each window, corrected as labels of it become known."""

import json
import random

import apache_beam as beam
import pyarrow as pa
import pytest

from models.batches import as_batch
from models.metrics import TOO_LATE, by_label
from models.quality.expectations import estimates_in
from models.quality.label_metrics import AS_OF, REVISION, last_revisions, sort_records
from pipelines.cli.display import label_line
from pipelines.graph import GraphConfig, build
from pipelines.results import read_kind, read_label_metrics
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.topics import sink_topics
from tests.kit.declared import declared
from tests.kit.estimated import ESTIMATED, calibrated
from tests.kit.given import Given
from tests.kit.labelled import DAY, PROJECT, SCHEMA, SECOND, START, TEXT, make_events, make_labels
from tests.kit.support import read_files, read_stream, tiny_scorer, write_rows
from transforms.metrics import read
from transforms.score import Score

pytestmark = pytest.mark.slow

HOUR = 3600
EVENTS = make_events()
LABELS = make_labels(EVENTS)
CALIBRATION = calibrated()
OWN = declared(TEXT.replace(", events: {time: seen}", "").replace("[shop]\n", "[shop, fraud]\n"), SCHEMA)

_collected: list = []


def _collect(batch):
    _collected.append(batch)


class Collect(beam.PTransform):
    def expand(self, pcolls):
        return pcolls["label_metrics"] | beam.Map(_collect)


def run(project, source, sink, bundle="one", **options):
    score = Score(project, tiny_scorer(project.model.inputs, calibration=CALIBRATION), bundle)
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, GraphConfig(project, source, score, sink, 2, **options))
    result = pipeline.run()
    result.wait_until_finish()
    return read(result.metrics())


def batched(folder, events=EVENTS, labels=LABELS, project=PROJECT, **options):
    """All records of a run over files."""
    folder.mkdir(exist_ok=True)
    names = [write_rows(folder / "events.jsonl", events)]
    known = [write_rows(folder / "labels.jsonl", labels)] if labels else []
    run(project, read_files(project, names, known, **options), WriteFiles(str(folder / "out"), "id", "at"))
    return read_kind(str(folder / "out"), "label_metrics")


def streamed(events, labels, allowance=HOUR, lateness=2 * DAY, seed=0, project=PROJECT):
    """All records of a stream, and its metrics."""
    _collected.clear()
    texts = [[json.dumps(row).encode() for row in rows] for rows in (events, labels)]
    known = Given(texts[1], seed + 1, most=12)
    how = {"idle_us": 300_000, "until_idle": True, "cut_us": DAY * SECOND, "labels": known}
    source = read_stream(project, Given(texts[0], seed, most=12), allowance * SECOND, **how)
    metrics = run(project, source, Collect(), lateness_us=lateness * SECOND, boundary_us=DAY * SECOND)
    return pa.Table.from_batches(_collected), metrics


def final(records):
    """What a reader keeps who takes the highest revision of each window."""
    return last_revisions(sort_records(as_batch(records))).to_pylist()


def without_time(rows):
    return [{name: value for name, value in row.items() if name not in (AS_OF, REVISION)} for row in rows]


def known_with(events):
    """Labels with their events."""
    by_id = {event["id"]: event for event in events}
    return [(label, by_id[label["id"]]) for label in LABELS]


def by_time(rows, name):
    return sorted(rows, key=lambda row: (row[name], row["id"]))


def test_records_of_files_are_corrected_as_labels_become_known(tmp_path):
    records = batched(tmp_path)
    overall = [row for row in records.to_pylist() if row["slice"] == ""]
    by_window: dict = {}
    for row in overall:
        by_window.setdefault(row["window_end"], []).append(row)
    assert len(by_window) == 3
    for end, rows in by_window.items():
        assert [row["revision"] for row in rows] == list(range(len(rows)))
        assert rows[0]["as_of"] == end
        assert len(rows) > 2
        labelled = [row["labelled"] for row in rows]
        assert labelled == sorted(labelled)
        inside = [e for e in EVENTS if end.timestamp() - 2 * DAY <= e["at"] < end.timestamp()]
        assert {row["rows"] for row in rows} == {len(inside)}
        for row in rows:
            known = [n for n in LABELS if n["seen"] < row["as_of"].timestamp() and n["id"] in {e["id"] for e in inside}]
            assert (row["labelled"], row["positives"]) == (len(known), sum(n["fraud"] for n in known))
    last = read_label_metrics(str(tmp_path / "out")).to_pylist()
    assert last == final(records)
    most = max(label["seen"] - event["at"] for label, event in known_with(EVENTS)) / DAY
    said = f"labels: known of {len(LABELS)} of 600 rows in 3 windows, up to {most:.1f} days after their events"
    assert label_line(last) == said
    assert label_line([]) == "labels: known of 0 of 0 rows in 0 windows"


@pytest.mark.parametrize("project", [PROJECT, ESTIMATED])
def test_slices_and_order_of_files_change_no_bit(tmp_path, project):
    one = batched(tmp_path / "one", project=project)
    shuffled = [random.Random(1).sample(rows, len(rows)) for rows in (EVENTS, LABELS)]
    assert batched(tmp_path / "two", *shuffled, project=project, slice_us=3 * DAY * SECOND) == one


@pytest.mark.parametrize("project", [PROJECT, ESTIMATED])
@pytest.mark.parametrize("seed", range(2))
def test_a_stream_leaves_the_records_of_files(tmp_path, seed, project):
    found, _ = streamed(by_time(EVENTS, "at"), by_time(LABELS, "seen"), seed=seed, project=project)
    records = batched(tmp_path, project=project)
    assert ("estimated_roc_auc" in records.schema.names) == (project is ESTIMATED)
    assert sort_records(as_batch(found)).to_pylist() == sort_records(as_batch(records)).to_pylist()


def test_late_labels_and_events_of_a_stream_correct_windows_that_are_out(tmp_path):
    """A label that comes before its event belongs to none: those of late events come after them."""
    chosen, soon = random.Random(2), {n["id"] for n, e in known_with(EVENTS) if n["seen"] < e["at"] + 2 * DAY}
    late = {e["id"]: chosen.randrange(DAY) if e["id"] not in soon and chosen.random() < 0.4 else 0 for e in EVENTS}
    assert sum(map(bool, late.values())) > 20
    events = sorted(EVENTS, key=lambda row: row["at"] + late[row["id"]])
    labels = sorted(LABELS, key=lambda row: row["seen"] + (chosen.randrange(2 * DAY) if chosen.random() < 0.3 else 0))
    found, metrics = streamed(events, labels, lateness=4 * DAY)
    assert without_time(final(found)) == without_time(final(batched(tmp_path)))
    assert by_label(metrics, TOO_LATE) == {}


def test_labels_of_the_events_themselves_are_known_with_them(tmp_path):
    of_event = {label["id"]: label["fraud"] for label in LABELS}
    events = [{**event, "fraud": of_event.get(event["id"])} for event in EVENTS]
    own = final(batched(tmp_path / "own", events, (), OWN))
    assert {row["revision"] for row in own} == {0}
    joined = final(batched(tmp_path / "joined"))
    same = [{n: v for n, v in row.items() if not n.startswith("delay")} for row in without_time(own)]
    assert same == [{n: v for n, v in row.items() if not n.startswith("delay")} for row in without_time(joined)]


def test_a_run_without_labels_shows_that_none_is_known(tmp_path):
    records = batched(tmp_path, labels=()).to_pylist()
    assert records
    assert {(row["labelled"], row["coverage"], row["roc_auc"]) for row in records} == {(0, 0.0, None)}


def test_estimates_are_there_before_any_label_and_labels_change_none(tmp_path):
    def by_window(records):
        names = ("window_end", "slice", "value")
        found: dict = {}
        for row in records.to_pylist():
            found.setdefault(tuple(row[name] for name in names), set()).add(tuple(sorted(estimates_in(row).items())))
        return found

    bare = by_window(batched(tmp_path / "bare", labels=(), project=ESTIMATED))
    assert bare == by_window(batched(tmp_path / "known", project=ESTIMATED))
    assert {len(estimates) for estimates in bare.values()} == {1}
    assert all(any(estimates) for (_, name, _), estimates in bare.items() if not name)


def test_records_have_a_folder_a_day_and_a_topic(tmp_path):
    batched(tmp_path)
    days = sorted(path.name for path in (tmp_path / "out" / "label_metrics").iterdir())
    assert days[0] == "event_day=2018-12-02"
    assert sink_topics(PROJECT, "kafka://h:1/s")["label_metrics"] == "kafka://h:1/s-label-metrics"
    assert START % (2 * DAY) == 0
