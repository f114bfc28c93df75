"""The report's label metrics: what is known of each window now, what was said first, and by bundle and slice."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.batches import as_batch
from models.quality.label_metrics import last_revisions, sort_records
from pipelines.config import RunSpec
from pipelines.jobs.score import score_files
from pipelines.report import report
from pipelines.report.labels import read_label_metrics
from pipelines.results import RunError, read_kind
from tests.kit.bundles import AnyBundle
from tests.kit.labelled import DAY, PROJECT, START, make_events, make_labels
from tests.kit.support import tiny_scorer, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over six days, of which the labels of the last are not known yet."""
    folder = tmp_path_factory.mktemp("run")
    events = make_events()
    labels = [label for label in make_labels(events) if label["seen"] < START + 5 * DAY]
    sources = (write_rows(folder / "events.jsonl", events),)
    spec = RunSpec(PROJECT, sources, str(folder / "out"), labels=(write_rows(folder / "labels.jsonl", labels),))
    score_files(spec, AnyBundle(), tiny_scorer(PROJECT.model.inputs))
    return folder / "out"


def test_windows_are_those_of_the_last_revision_beside_the_first_with_a_label(run):
    records = sort_records(as_batch(read_kind(str(run), "label_metrics")))
    last = [row for row in last_revisions(records).to_pylist() if not row["slice"]]
    found = read_label_metrics(str(run))
    assert len(found.windows) == len(last) == 3
    for now, row in zip(reversed(found.windows), last, strict=True):
        assert (now.rows, now.labelled, now.coverage) == (row["rows"], row["labelled"], row["coverage"])
        assert now.figures["roc_auc"] == row["roc_auc"]
        assert now.end_us == int(row["window_end"].timestamp()) * 1_000_000
    for first, now in zip(found.first, found.windows, strict=True):
        assert (first.end_us, first.bundle) == (now.end_us, now.bundle)
        assert first.revision <= now.revision
        assert first.labelled <= now.labelled
    assert found.corrected == sum(row["revision"] > 0 for row in last) > 0
    assert any(first.figures != now.figures for first, now in zip(found.first, found.windows, strict=True))
    assert {each.slice for each in found.slices} >= {"decision", "score", "shop", "large"}
    assert len({each.end_us for each in found.slices}) == 1


def test_the_page_says_coverage_delay_and_corrections(run, tmp_path):
    text = report(PROJECT, str(run), tmp_path / "page.html").read_text()
    said = " ".join(re.sub(r"<svg.*?</svg>|<[^>]*>", " ", text, flags=re.DOTALL).split())
    found = read_label_metrics(str(run))
    assert "Label metrics" in said
    assert f"Late labels corrected {found.corrected} windows" in said
    for window in found.windows:
        assert f"{window.rows:,} {window.labelled:,} {window.coverage:.1%}" in said
    assert "first " in said[said.index("Label metrics") :]
    assert "shop = a" in said


def test_bundles_have_courses_of_their_own(run, tmp_path):
    table = read_kind(str(run), "label_metrics")
    other = table.set_column(table.schema.get_field_index("bundle_id"), "bundle_id", pa.array(["two"] * len(table)))
    place = tmp_path / "run" / "label_metrics"
    place.mkdir(parents=True)
    for name, part in (("a", table), ("b", other)):
        pq.write_table(part, place / f"{name}.parquet")
    found, (first, *_) = read_label_metrics(str(tmp_path / "run")), read_label_metrics(str(run)).windows
    assert [each.bundle for each in found.windows] == sorted({first.bundle, "two"}) * 3
    assert {(course.name, course.bundle) for course in found.courses} >= {
        ("coverage", first.bundle),
        ("roc_auc", "two"),
    }
    assert all((course.ends[1:] > course.ends[:-1]).all() for course in found.courses)


def test_a_run_without_label_metrics_says_nothing_of_them(tmp_path):
    (tmp_path / "out").mkdir()
    assert read_label_metrics(str(tmp_path / "out")) is None


def test_records_of_two_projects_are_an_error(run, tmp_path):
    table = read_kind(str(run), "label_metrics")
    place = tmp_path / "run" / "label_metrics"
    place.mkdir(parents=True)
    pq.write_table(table, place / "a.parquet")
    pq.write_table(table.drop_columns(["roc_auc"]), place / "b.parquet")
    with pytest.raises(RunError, match="label metrics are not those of one project"):
        read_label_metrics(str(tmp_path / "run"))
