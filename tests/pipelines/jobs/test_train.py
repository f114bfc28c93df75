"""`headrace train` and what follows from it: splits, dead letters, the baseline, and figures against labels."""

import dataclasses
import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.predictors import registry
from models.predictors.booster import Scorer
from models.predictors.training import TrainingError
from models.project.project import load_project
from models.quality.window_statistics import read_baseline
from models.record import TIMESTAMP
from pipelines import results
from pipelines.cli.display import outcome_table, version_lines
from pipelines.config import RunSpec
from pipelines.jobs import train as training
from pipelines.jobs.fitting import load_bundle
from pipelines.jobs.parity import check_parity
from pipelines.jobs.score import score
from pipelines.report import report
from pipelines.sinks.folder import SinkError
from tests.kit.support import write_rows

pytestmark = pytest.mark.slow

DAY = 86_400
START = 1_600_041_600  # a midnight
ROWS = 3_000
DAYS = 10
SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "t" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "k" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "distance" type: FLOAT float_domain { min: 0 } }
feature { name: "hours" type: INT }
feature { name: "y" type: INT int_domain { min: 0 max: 1 } }
"""
YAML = """
name: trips
schema: schema.pbtxt
event: {id: id, time: t}
entities: {car: k}
label: {field: y, delay: 1d}
features:
  row: {speed: distance / hours}
  rolling:
    - {entity: car, windows: {D: 1d}, features: {"N_{window}": count, "FAR_{window}": max(distance)}}
model:
  inputs: [speed, distance, N_D, FAR_D]
  params: {n_estimators: 5, max_depth: 2}
training: {train: 3d, delay: 2d, test: 3d, group: car, slices: [hours]}
metrics: {top_cars: "precision_at_k(car, 2)"}
output: [y, hours]
decisions: [{action: stop, at_least: 0.5}, {action: go, at_least: 0.0}]
quality: {window: 1d, min_rows: 30, sample: 100}
"""
RECORDS = YAML.replace("delay: 1d}", "delay: 1d, events: {time: seen}}").replace(
    "output: [y, hours]", "output: [hours]"
)


def make_rows():
    rng = np.random.default_rng(0)
    rows = []
    for number, second in enumerate(np.sort(rng.integers(0, DAYS * DAY, ROWS)).tolist()):
        distance, hours = float(rng.integers(0, 100)), int(rng.integers(1, 5))
        row = {"id": number, "t": START + second, "k": f"car {rng.integers(60)}", "distance": distance, "hours": hours}
        rows.append({**row, "y": int(distance / hours + rng.normal(0, 5) > 70)})
    rows[100] |= {"distance": 5.0, "hours": 0}  # infinite
    rows[1500] |= {"distance": 0.0, "hours": 0}  # no number at all
    rows[2900] |= {"distance": 1e300, "hours": 1}  # more than a model's 32 bits hold
    rows[2950] |= {"distance": None}  # missing, as an operand is
    return rows


@pytest.fixture
def folder(tmp_path):
    return write_project(tmp_path, YAML)


def write_project(folder, text):
    (folder / "project.yaml").write_text(text)
    (folder / "schema.pbtxt").write_text(SCHEMA)
    return folder


def train(folder, rows, **options):
    source = write_rows(folder / "events.jsonl", rows)
    examples = options.pop("examples", "")
    return training.train(RunSpec(load_project(folder), (source,), examples, threads=1), folder, **options)


def run(project, bundle, source, sink, **options):
    return score(RunSpec(project, (str(source),), str(sink), threads=1, **options), bundle)


def us(day):
    return (START + day * DAY) * 1_000_000


def test_splits_and_the_baseline_between_them(folder):
    trained = train(folder, make_rows())
    spans = [(split.name, split.from_us, split.to_us) for split in trained.splits]
    assert spans == [("train", us(2), us(5)), ("baseline", us(5), us(7)), ("test", us(7), us(10))]
    rows = make_rows()
    for split, start, end in zip(trained.splits, (2, 5, 7), (5, 7, 10), strict=True):
        inside = [row for row in rows if START + start * DAY <= row["t"] < START + end * DAY]
        assert split.events == len(inside)
        if split.name != "test":
            assert (split.rows, split.positives) == (len(inside), sum(row["y"] for row in inside))
        else:
            assert 0 < split.rows < split.events  # known positives' groups have left
    assert trained.test_from_us == us(7)
    baseline = read_baseline(trained.bundle.baseline, load_project(folder))
    assert us(5) <= baseline.window_start_us < baseline.window_end_us <= us(7)
    facts = trained.bundle.metadata
    assert facts["train_to"] == facts["baseline_from"] == "2020-09-19T00:00:00Z"
    assert facts["train_positives"] == trained.splits[0].positives


def test_without_a_delay_there_is_no_baseline(folder):
    write_project(folder, YAML.replace("delay: 2d", "delay: 0d"))
    trained = train(folder, make_rows())
    assert trained.bundle.baseline is None
    assert trained.splits[1].rows == 0


def test_a_run_says_which_of_its_events_the_bundle_knows(folder):
    project, trained = load_project(folder), train(folder, make_rows())

    def seen(name, from_us):
        start = None if from_us is None else training.to_iso(from_us)
        run(project, trained.bundle, folder / "events.jsonl", folder / name, score_from=start)
        return list(results.find_seen(str(folder / name), project, trained.bundle))

    assert seen("test", trained.test_from_us) == []
    learned, compared = seen("all", None)
    assert learned.startswith(f"{trained.splits[0].events:,} of the scored events are of the time, 2020-09-16T00:00:00")
    assert "that the baseline was made of: skew and PSI compare them with themselves" in compared
    text = report(project, str(folder / "all")).read_text()
    assert "events of that time, too" in text
    assert "events of that time, too" not in report(project, str(folder / "test")).read_text()
    assert "Performance against labels" in text
    assert "hours = 4" in text
    assert "features" in text.lower()


def test_dead_letters_are_kept_and_too_many_fail(folder):
    rows = make_rows()
    for row in rows[::5]:
        row["distance"] = -1.0
    kept = folder / "kept"
    with pytest.raises(TrainingError) as error:
        train(folder, rows, dead_letters=kept)
    assert str(error.value) == (
        "600 of 3,000 records are dead letters (20.0%), more than training.max_dead_letters (10.0%): "
        f"Validate: distance: below 0 (600); they are kept in {kept}/dead_letters. Give other files, or declare a larger share"
    )
    assert results.read_kind(str(kept), "dead_letters").num_rows == 600
    write_project(folder, YAML.replace("train: 3d", "max_dead_letters: 0.2, train: 3d"))
    trained = train(folder, rows, dead_letters=kept)
    assert trained.dead_letters == f"{kept}/dead_letters"
    assert trained.examples.outcomes["dead-lettered"] == 600
    assert trained.bundle.metadata["events"]["dead-lettered"] == 600
    assert train(folder, make_rows(), dead_letters=kept).dead_letters is None
    assert results.read_kind(str(kept), "dead_letters").num_rows == 0
    foreign = kept / "dead_letters" / "mine.parquet"
    foreign.write_bytes(b"mine")
    with pytest.raises(SinkError, match="mine.parquet: was not written by a run that is known"):
        train(folder, rows, dead_letters=kept)
    assert foreign.read_bytes() == b"mine"
    with pytest.raises(TrainingError, match=r"3,000 of 3,000 records are dead letters \(100.0%\)"):
        train(folder, [{"wrong": 1}] * ROWS)
    examples = str(folder / "examples")
    assert train(folder, rows, examples=examples).dead_letters == f"{examples}/dead_letters"


def test_impossible_numbers_are_missing_in_training_batch_and_stream(folder):
    project, rows = load_project(folder), make_rows()
    trained = train(folder, rows)
    expected = {"not finite: FAR_D": trained.examples.outcomes["not finite: FAR_D"]}
    expected |= {"not finite: distance": 1, "not finite: speed": 3}
    assert expected["not finite: FAR_D"] > 0
    scorer = Scorer.from_bundle(trained.bundle)
    found = check_parity(project, trained.bundle, scorer, [str(folder / "events.jsonl")], "10m", 0, 0.02)
    assert found.equal
    for outcomes in (trained.examples.outcomes, found.batch.outcomes, found.stream.outcomes):
        assert {name: n for name, n in outcomes.items() if name.startswith("not finite")} == expected
    shown = outcome_table(found.batch.outcomes, 1.0)
    assert "missing, as not finite: speed" in list(shown.columns[0].cells)
    run(project, trained.bundle, folder / "events.jsonl", folder / "run")
    speed = results.read_kind(str(folder / "run"), "scores", ["id", "speed"]).sort_by("id").column("speed").to_numpy()
    assert np.isnan(speed[[100, 1500, 2950]]).all()
    assert not np.isinf(speed).any()
    said = results.read_success(str(folder / "run"))
    assert said["events"]["not finite: speed"] == 3
    assert said["engine"] == {"name": "InProcessRunner", "options": []}
    assert said["options"]["sink"] == str(folder / "run")
    assert said["versions"].keys() == {"headrace", "apache-beam", "numpy", "pyarrow", "xgboost"}


def test_labels_that_are_records_are_measured_in_run_and_report(folder):
    rows = make_rows()
    column = train(folder, rows)
    plain = load_project(folder)
    run(plain, column.bundle, folder / "events.jsonl", folder / "column")
    expected = results.evaluate_scores(str(folder / "column"), plain)
    labels = [{"id": row["id"], "y": row["y"], "seen": row["t"] + 3600} for row in rows]
    later = [{"id": row["id"], "y": 1 - row["y"], "seen": row["t"] + 7200} for row in rows[:500]]
    broken = [{"id": 1, "y": 7, "seen": 0}, {"id": 2, "y": 1}, b"no json"]
    path = write_rows(folder / "labels.jsonl", [*later, *broken, *labels[::-1]])
    project = load_project(write_project(folder, RECORDS))
    write_rows(folder / "bare.jsonl", [{**row, "y": None} for row in rows])

    write_project(folder, RECORDS.replace("train: 3d", "max_dead_letters: 0.2, train: 3d"))
    bare = str(folder / "bare.jsonl")
    trained = training.train(RunSpec(load_project(folder), (bare,), "", labels=(path,), threads=1), folder)
    assert trained.bundle.model == column.bundle.model
    run(project, trained.bundle, bare, folder / "out", labels=(path,))
    assert results.evaluate_scores(str(folder / "out"), project) is None
    assert results.evaluate_scores(str(folder / "out"), project, [path]) == expected
    without = report(project, str(folder / "out")).read_text()
    assert "labels come as records of their own: name them to headrace report by --labels" in without
    text = report(project, str(folder / "out"), labels=[path]).read_text()
    assert f"{expected.overall.roc_auc:.3f}" in text
    assert "What decisions caught" in text


def test_the_version_that_fits_a_changed_project_is_named(folder):
    uri = f"sqlite:///{folder}/registry.db"
    first = train(folder, make_rows())
    assert training.register(first, load_project(folder), uri, promote=False) == (1, True, 1)
    write_project(folder, YAML.replace("distance / hours", "distance / (hours + 1)"))
    project = load_project(folder)
    with pytest.raises(results.RunError, match="changed since it was trained: train again, or take the changes back"):
        load_bundle(project, folder, "champion", uri)
    second = train(folder, make_rows())
    assert training.register(second, project, uri, promote=False) == (2, True, 1)
    assert training.register(second, project, uri, promote=False) == (2, False, 1)
    with pytest.raises(results.RunError) as error:
        load_bundle(project, folder, "champion", uri)
    assert str(error.value).endswith(f"version 2 does: headrace promote {folder} 2, or run with --model 2")
    registry.set_alias("trips", "champion", 2, uri)
    assert load_bundle(project, folder, "champion", uri).bundle_id == second.bundle.bundle_id

    one, two = registry.list_versions("trips", uri)
    assert one.metrics["metrics.test.roc_auc"] == first.evaluation.overall.roc_auc
    lines = version_lines(two)
    assert lines[0] == f"version 2  {second.bundle.bundle_id}  challenger, champion"
    assert f"AUC {second.evaluation.overall.roc_auc:.3f}" in lines[1]
    top = second.evaluation.overall.declared["top_cars"]
    assert top is not None
    assert lines[1].endswith(f", top_cars {top:.3f}")
    assert second.bundle.metadata["metrics"]["test"]["top_cars"] == top
    train_split = second.splits[0]
    assert lines[2] == (
        f"  trained on {train_split.rows:,} events, {train_split.positives:,} positive, "
        "from 2020-09-16 to before 2020-09-19"
    )
    bare = dataclasses.replace(one, metrics={}, facts={}, created=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
    assert len(version_lines(bare)) == 2


def write_weights(folder, rows, weights, seed=0):
    """Score rows of a run, in some order and in two files, of which only the weights matter."""
    chosen = np.random.default_rng(seed).permutation(len(rows))
    table = pa.table(
        {
            "id": pa.array([rows[n]["id"] for n in chosen]),
            "t": pa.array([rows[n]["t"] * 1_000_000 for n in chosen]).cast(TIMESTAMP),
            "weight": pa.array([weights[n] for n in chosen], pa.float64()),
        }
    )
    for name, part in (("a", table.slice(0, 1000)), ("b", table.slice(1000))):
        (folder / "scores").mkdir(parents=True, exist_ok=True)
        pq.write_table(part, folder / "scores" / f"{name}.parquet")
    return str(folder)


def test_a_training_weighs_events_as_the_rows_of_a_run_say(tmp_path):
    folder, rows = write_project(tmp_path, YAML + "rollout: {blocks: [stop]}\n"), make_rows()
    bare = train(folder, rows, scores=None)
    blocked = [n % 3 == 0 for n in range(ROWS)]
    weights = [0.0 if stopped else 20.0 if n % 7 == 0 else 1.0 for n, stopped in enumerate(blocked)]
    weighed = train(folder, rows, scores=write_weights(tmp_path / "run", rows, weights))
    assert weighed.bundle.bundle_id != bare.bundle.bundle_id
    in_train = [n for n, row in enumerate(rows) if us(2) <= row["t"] * 1_000_000 < us(5)]
    assert bare.splits[0].rows == len(in_train)
    assert weighed.splits[0].rows == sum(not blocked[n] for n in in_train)
    # The test is weighed, too, by the two figures that can be.
    assert set(weighed.evaluation.overall.figures()) == {"roc_auc", "average_precision"}
    assert weighed.evaluation.overall.rows < bare.evaluation.overall.rows
    again = train(folder, rows, scores=write_weights(tmp_path / "again", rows, weights, seed=1))
    assert again.bundle.bundle_id == weighed.bundle.bundle_id
    # What only leaves rows out has other trees than what also weighs them.
    without = [0.0 if stopped else 1.0 for stopped in blocked]
    assert train(folder, rows, scores=write_weights(tmp_path / "without", rows, without)).bundle.model not in (
        bare.bundle.model,
        weighed.bundle.model,
    )
    # Of no row a weight is known: as without.
    unknown = train(folder, rows, scores=write_weights(tmp_path / "unknown", rows, [None] * ROWS))
    assert unknown.bundle.bundle_id == bare.bundle.bundle_id
