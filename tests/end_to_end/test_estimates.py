"""Estimates from the command line: a calibration in the bundle, figures before labels, and where they are shown."""

import json
import re
import shutil

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from models.predictors import registry
from models.predictors.bundle import Bundle
from models.quality.calibration import Calibration
from models.quality.expectations import estimates_in
from models.sample import write_sample
from pipelines.cli.main import app
from pipelines.prechecks import registry_of
from pipelines.report.labels import read_label_metrics
from tests.kit.bundles import rewrite
from tests.kit.support import CARD_FRAUD, write_rows

pytestmark = pytest.mark.slow

DAY = 86_400
START = 1_600_041_600  # a midnight
DAYS = 12
SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "t" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "k" type: INT presence { min_fraction: 1.0 } }
feature { name: "x" type: FLOAT }
feature { name: "z" type: FLOAT }
feature { name: "y" type: INT int_domain { min: 0 max: 1 } }
"""
YAML = """
name: trips
schema: schema.pbtxt
event: {id: id, time: t}
entities: {car: k}
label: {field: y, delay: 1d}
model: {inputs: [x, z], params: {n_estimators: 20, max_depth: 2}}
training: {train: 3d, delay: 3d, test: 2d, start: 2020-09-14T00:00:00Z}
output: []
decisions: [{action: stop, at_least: 0.5}, {action: go, at_least: 0.0}]
label_metrics: {window: 1d, estimate: true}
"""
METRICS = "\nlabel_metrics: {window: 1d, estimate: true}\n"


def make_rows(rows=6000, seed=0, drift=False):
    """Events whose label follows two numbers; with `drift`, none from the ninth day on, though these are as they were."""
    chosen = np.random.default_rng(seed)
    seconds = np.sort(chosen.integers(0, DAYS * DAY, rows))
    x, z = chosen.normal(size=(2, rows))
    label = chosen.random(rows) < 1 / (1 + np.exp(2 - 2 * x - z))
    if drift:
        label = np.where(seconds >= 8 * DAY, chosen.random(rows) < 0.2, label)
    columns = zip(seconds.tolist(), x.tolist(), z.tolist(), label.tolist(), strict=True)
    return [
        {"id": n, "t": START + second, "k": n % 50, "x": a, "z": b, "y": int(c)}
        for n, (second, a, b, c) in enumerate(columns)
    ]


class Command:
    """Commands on a project, its events and its registry."""

    def __init__(self, folder, text=YAML, schema=SCHEMA):
        self.folder = folder
        if schema is not None:
            (folder / "schema.pbtxt").write_text(schema)
        self.declare(text)

    def declare(self, text):
        (self.folder / "project.yaml").write_text(text)

    def __call__(self, name, *arguments):
        done = CliRunner().invoke(app, [name, str(self.folder), *map(str, arguments)], env={"COLUMNS": "240"})
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    def bundle(self):
        return registry.load("trips", "champion", registry_of(self.folder, None))


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr("pipelines.cli.outcome.console", Console(width=240))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with a champion, and its events."""
    command = Command(tmp_path_factory.mktemp("trips"))
    source = write_rows(command.folder / "events.jsonl", make_rows())
    command("train", "--source", source)
    return command, source


def scored(command, source, sink, *more):
    return command("run", "--source", source, "--sink", command.folder / sink, "--score-from", "2020-09-22", *more)


def test_training_leaves_a_calibration_in_the_bundle(trained):
    command, _ = trained
    bundle = command.bundle()
    calibration = Calibration.from_json(bundle.calibration)
    days = [row for row in make_rows() if START + 3 * DAY <= row["t"] < START + 6 * DAY]
    assert (calibration.kind, calibration.rows) == ("binary", len(days))
    (steps,) = calibration.steps
    assert steps.rows @ steps.expected[:, 0] == pytest.approx(sum(row["y"] for row in days))
    assert bundle.metadata["baseline_rows"] == len(days)


def test_the_manifest_covers_it_and_the_id_does_not(trained, tmp_path):
    command, _ = trained
    bundle = command.bundle()
    bundle.save(tmp_path / "one")
    assert "calibration.json" in json.loads((tmp_path / "one" / "manifest.json").read_bytes())["files"]
    assert Bundle.load(tmp_path / "one").calibration == bundle.calibration
    rewrite(tmp_path / "one", "calibration.json", b"{}")
    assert Bundle.load(tmp_path / "one", expected_id=bundle.bundle_id).calibration == b"{}"
    (tmp_path / "one" / "calibration.json").write_bytes(bundle.calibration)
    with pytest.raises(Exception, match=r"calibration\.json: is"):
        Bundle.load(tmp_path / "one")


def test_a_run_without_any_label_says_what_to_expect(trained):
    command, source = trained
    said = scored(command, source, "bare")
    found = read_label_metrics(str(command.folder / "bare"))
    assert len(found.windows) == 4
    assert "labels: known of 0 of" in said
    assert "Expected before labels are known" in said
    assert "concept drift" in said
    for window in found.windows:
        figure, low, high = window.estimates["roc_auc"]
        assert 0.5 < low < figure < high < 1
        assert f"{figure:.3f} ({low:.3f} to {high:.3f})" in said
        assert window.realised("roc_auc") is None


def test_labels_that_come_stand_beside_and_drift_of_what_they_mean_is_marked(trained):
    """In the report: what labels say lies in the interval, or is marked where scores have come to mean nothing."""
    command, _ = trained
    command.declare(YAML.replace("output: []", "output: [y]"))
    try:
        for drift in (False, True):
            source = write_rows(command.folder / f"drift {drift}.jsonl", make_rows(drift=drift))
            scored(command, source, f"known {drift}")
            command("report", "--run", command.folder / f"known {drift}")
    finally:
        command.declare(YAML)
    bare = read_label_metrics(str(command.folder / "bare"))
    for drift in (False, True):
        found = read_label_metrics(str(command.folder / f"known {drift}"))
        text = (command.folder / f"known {drift}" / "report.html").read_text()
        assert [each.estimates for each in found.windows] == [each.estimates for each in bare.windows]
        outside = 0
        for window in found.windows:
            _, low, high = window.estimates["roc_auc"]
            outside += not low <= window.realised("roc_auc") <= high
        assert outside == (4 if drift else 0)
        assert len(re.findall('<small class="alarm">by labels', text)) >= outside
        assert ("alarm" in text[text.index("Expected before") : text.index("Label metrics")]) == drift


def test_an_older_bundle_goes_on_and_says_that_nothing_is_estimated(trained, tmp_path):
    command, source = trained
    older = Command(tmp_path, YAML.replace(", estimate: true", "").replace("output: []", "output: [y]"))
    older("train", "--source", source)
    assert older.bundle().calibration is None
    older.declare(YAML)
    said = scored(older, source, "out")
    assert "no estimates for bundle" in said
    assert "`headrace baseline` makes one" in said
    assert "Expected before" not in said
    older("report", "--run", tmp_path / "out")
    assert "Expected before" not in (tmp_path / "out" / "report.html").read_text()
    said = older("baseline", "--source", source, "--end", "2020-09-20")
    assert "no calibration: of" in said
    assert "0 have a label" in said
    older.declare(YAML.replace("output: []", "output: [y]"))
    said = older("baseline", "--source", source, "--end", "2020-09-20")
    assert "calibration of" in said
    assert Calibration.from_json(older.bundle().calibration).to_json() == command.bundle().calibration


def test_a_calibration_that_is_none_is_a_clear_error(trained, tmp_path):
    _, source = trained
    broken = Command(tmp_path)
    broken("train", "--source", source)
    (folder,) = {path.parent for path in tmp_path.rglob("calibration.json")}
    rewrite(folder, "calibration.json", b'{"format":1}')
    done = CliRunner().invoke(
        app, ["run", str(tmp_path), "--source", source, "--sink", str(tmp_path / "out"), "--score-from", "2020-09-22"]
    )
    assert done.exit_code == 1
    assert "calibration" in done.output
    assert "Traceback" not in done.output


def test_estimates_of_slices_are_in_the_records(trained):
    command, _ = trained
    (slices,) = [read_label_metrics(str(command.folder / "bare")).newest]
    assert {each.slice for each in slices} == {"decision", "score"}
    parts = {each.value: each.estimates["positives"][0] for each in slices if each.slice == "decision"}
    whole = read_label_metrics(str(command.folder / "bare")).windows[0].estimates["positives"][0]
    assert sum(parts.values()) == pytest.approx(whole)
    assert estimates_in({}) == {}


def test_what_labels_say_lies_in_the_interval_where_scores_mean_what_they_did(tmp_path):
    """Cards whose frauds follow the same patterns all along: AUC of at least 95% of the days."""
    write_sample(tmp_path / "data", 300_000, 1, 75)
    shutil.copytree(CARD_FRAUD, tmp_path / "cards")
    cards = Command(tmp_path / "cards", (CARD_FRAUD / "project.yaml").read_text() + METRICS, None)
    source = tmp_path / "data" / "*.parquet"
    cards("train", "--source", source, "--start", "2018-05-01")
    cards("run", "--source", source, "--sink", tmp_path / "out", "--score-from", "2018-05-15")
    windows = read_label_metrics(str(tmp_path / "out")).windows
    assert len(windows) == 31
    inside = 0
    for window in windows:
        _, low, high = window.estimates["roc_auc"]
        assert window.labelled == window.rows
        assert high - low < 0.4
        inside += low <= window.realised("roc_auc") <= high
    assert inside >= 0.95 * len(windows)
