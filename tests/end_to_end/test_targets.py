"""Every kind of target from its declaration to its report, with inputs that are but names."""

import dataclasses
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from models.metrics import UNKNOWN_VALUES, by_label
from models.predictors import registry
from models.predictors.booster import ModelMismatch, Scorer
from models.predictors.bundle import Bundle, BundleError
from models.predictors.encoders import EncoderError, Encoders
from models.predictors.training import TrainingError
from models.quality.window_statistics import read_baseline
from pipelines import results
from pipelines.cli.display import outcome_table, version_lines
from pipelines.cli.outcome import print_scores, print_training
from pipelines.config import RunSpec
from pipelines.jobs import train as training
from pipelines.jobs.fitting import load_bundle
from pipelines.jobs.parity import check_parity
from pipelines.jobs.score import score
from pipelines.report import report
from pipelines.terminal import console
from tests.kit.streams import METRICS, stream
from tests.kit.support import write_rows
from tests.kit.targets import CATEGORIES, KINDS, declarations, make_rows, parsed, train, write_project

pytestmark = pytest.mark.slow

HOUR = 3_600_000_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By kind the folder of a project and what was trained there, each once."""
    known = {}

    def get(kind):
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            known[kind] = folder, train(folder, declarations(kind))
        return known[kind]

    return get


@pytest.fixture(scope="module")
def batch(trained):
    """By kind the score rows of a run over all events, and what it said of them, each once."""
    known = {}

    def get(kind):
        if kind not in known:
            folder, made = trained(kind)
            table = run(folder, made.bundle, "batch", parsed(kind)).sort_by("id")
            known[kind] = table, results.read_success(str(folder / "batch"))["events"]
        return known[kind]

    return get


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A registry, as making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/registry.db"


def run(folder, bundle, sink, project, **options):
    score(RunSpec(project, (str(folder / "events.jsonl"),), str(folder / sink), threads=1, **options), bundle)
    return results.read_kind(str(folder / sink), "scores")


@pytest.mark.parametrize("kind", ["multiclass", "anomaly"])
def test_parity_says_that_a_stream_gives_the_bits_of_batch(trained, kind):
    """As the command does, through a broker, of all that is written; rows of each kind are compared below."""
    folder, made = trained(kind)
    made.bundle.save(folder / "bundle")
    bundle = Bundle.load(folder / "bundle", expected_id=made.bundle.bundle_id)
    events = [str(folder / "events.jsonl")]
    found = check_parity(parsed(kind), bundle, Scorer.from_bundle(bundle), events, "1h", 0, 0.1)
    assert found.equal, found
    assert found.scored == 2000
    wanted = {"unknown: country", "unknown: shop"}
    for outcomes in (found.batch.outcomes, found.stream.outcomes):
        assert {name: n for name, n in outcomes.items() if name.startswith("unknown")} == {
            name: found.batch.outcomes[name] for name in wanted
        }
    assert "scored, with an unknown value of country" in list(outcome_table(found.batch.outcomes, 1).columns[0].cells)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_the_bits_of_batch(trained, batch, kind):
    """Out of order and some twice, with values that the model does not know."""
    _, made = trained(kind)
    project, rows = parsed(kind), [json.dumps(row).encode() for row in make_rows()]
    times = np.array([row["t"] for row in make_rows()])
    arrival = np.argsort(times + np.random.default_rng(0).integers(0, 3600, len(times)), kind="stable")
    payloads = [rows[place] for place in [*arrival, *arrival[-40:]]]
    scores, dead = stream(payloads, 2 * HOUR, False, project=project, scorer=Scorer.from_bundle(made.bundle))
    assert dead.num_rows == 40
    wanted, said = batch(kind)
    names = [name for name in wanted.schema.names if name not in ("verdict_id", "bundle_id")]
    assert scores.sort_by("id").select(names).cast(wanted.select(names).schema).equals(wanted.select(names))
    assert by_label(METRICS, UNKNOWN_VALUES) == {name: said[f"unknown: {name}"] for name in ("country", "shop")}


def check_label_metrics(folder, project, rows):
    """Those of a window are the figures of its rows."""
    table = results.read_evaluated(str(folder), project)
    said = [row for row in results.read_label_metrics(str(folder)).to_pylist() if not row["slice"]]
    assert sum(row["labelled"] for row in said) == rows
    for row in said:
        inside = [row["window_start"] <= time < row["window_end"] for time in table[project.event.time].to_pylist()]
        figures = results.evaluate_tables([table.filter(pa.array(inside))], project).overall.figures()
        assert figures == {name: row[name] for name in figures}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_the_figures_of_the_test(trained, kind, tmp_path):
    """The graph's codes and scores are those of training: the same events give the same figures."""
    folder, made = trained(kind)
    project = parsed(kind)
    table = run(folder, made.bundle, "tested", project, score_from=training.to_iso(made.test_from_us))
    assert table.num_rows == made.splits[-1].events
    found = results.evaluate_scores(str(folder / "tested"), project)
    if kind == "anomaly":  # nothing is known
        assert found is None
        assert set(made.evaluation.overall.figures()) == {"mean_score", "score_50th", "score_99th"}
    else:
        assert found.as_dict() == made.evaluation.as_dict()
        check_label_metrics(folder / "tested", project, found.overall.rows)
    assert made.bundle.metadata["metrics"]["test"]["rows"] == made.splits[-1].rows
    baseline = read_baseline(made.bundle.baseline, project)
    assert set(project.said_columns) <= baseline.distributions.keys()
    assert baseline.distributions["DEVIATION"].kind == "number"
    assert baseline.distributions["country"].kind == baseline.distributions["code"].kind == "text"
    if kind in ("multiclass", "count", "median"):  # of which a sibling has the same page
        return
    page = report(project, str(folder / "tested"), tmp_path / "report.html").read_text()
    assert "Performance against labels" in page
    assert "Values that the model does not know" in page
    assert ("ROC AUC" in page) == (kind in ("binary", "known anomaly"))
    assert ("Calibration" in page) == (kind in ("binary", "grades"))
    assert ("True and predicted classes" in page) == (kind == "grades")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_does_not_depend_on_the_order_of_its_events_or_threads(trained, kind, tmp_path):
    _, made = trained(kind)
    rows = make_rows()
    random.Random(1).shuffle(rows)
    again = train(tmp_path, declarations(kind), [*rows, *rows[:100]], threads=2, shards=3)
    assert again.bundle.model == made.bundle.model
    assert again.bundle.encoders == made.bundle.encoders
    assert again.bundle.baseline == made.bundle.baseline
    assert again.bundle.bundle_id == made.bundle.bundle_id
    assert again.evaluation.as_dict() == made.evaluation.as_dict()


@pytest.mark.parametrize("kind", ["multiclass", "quantile", "regression"])
def test_corrected_scores_are_those_of_batch(trained, batch, kind):
    """Scored at arrival, out of order and some twice, the rows that hold in the end are those of batch."""
    _, made = trained(kind)
    project = parsed(kind)
    rows = [json.dumps(row).encode() for row in make_rows()[:600]]
    arrival = np.argsort(np.arange(600) + np.random.default_rng(0).integers(0, 40, 600), kind="stable")
    payloads = [rows[place] for place in [*arrival, *arrival[::20]]]
    scores, _ = stream(payloads, 24 * HOUR, True, project=project, scorer=Scorer.from_bundle(made.bundle))
    corrected = scores.filter(scores["correction"])
    assert 0 < corrected.num_rows < 600
    last = {row["id"]: place for place, row in enumerate(scores.to_pylist())}
    wanted = batch(kind)[0].slice(0, 600)
    names = [name for name in wanted.schema.names if name not in ("verdict_id", "bundle_id")]
    found = scores.take(list(last.values())).sort_by("id").select(names)
    assert found.cast(wanted.select(names).schema).equals(wanted.select(names))


def test_each_engine_gives_the_same_bytes(trained, engine):
    folder, made = trained("multiclass")
    table = run(folder, made.bundle, f"by-{engine}", parsed("multiclass"), runner=engine)
    assert table.equals(run(folder, made.bundle, f"besides-{engine}", parsed("multiclass"), shards=3))
    said = [results.read_success(str(folder / f"{name}-{engine}"))["events"] for name in ("by", "besides")]
    assert said[0] == said[1]
    assert said[0]["unknown: country"] > 0


def test_score_rows_say_what_the_model_says(trained):
    folder, made = trained("multiclass")
    table = run(folder, made.bundle, "rows", parsed("multiclass"), reason_codes=3)
    every = np.column_stack([table[f"score_{name}"].to_numpy() for name in ("low", "middle", "high")])
    assert np.abs(every.sum(axis=1) - 1).max() < 1e-6
    assert (table["score"].to_numpy() == every.max(axis=1)).all()
    predicted = np.array(["low", "middle", "high"])[every.argmax(axis=1)]
    assert table["predicted"].to_pylist() == predicted.tolist()
    wanted = np.where(every[:, 2] >= np.float32(0.3), "alarm", np.where(every[:, 1] >= 0.5, "look", "go"))
    assert table["decision"].to_pylist() == wanted.tolist()
    assert set(wanted) == {"alarm", "look", "go"}
    reasons = [json.loads(text) for text in table["reason_codes"].to_pylist()]
    assert {len(row) for row in reasons} == {3}
    assert {name for row in reasons for name, _ in row} > {"amount", "country", "shop of high"}

    folder, made = trained("quantile")
    table = run(folder, made.bundle, "rows", parsed("quantile"))
    assert table["score"].equals(table["score_0.5"])
    high, score = table["score_0.9"].to_numpy(), table["score"].to_numpy()
    wanted = np.where(high >= 45, "stop", np.where(score >= -1000, "usual", "none"))
    assert table["decision"].to_pylist() == wanted.tolist()
    folder, made = trained("grades")
    assert set(run(folder, made.bundle, "rows", parsed("grades"))["predicted"].to_pylist()) <= {3, 4, 5}


def test_new_values_are_counted_in_metrics_and_drift(trained):
    _, made = trained("count")
    rows = make_rows()
    payloads = [json.dumps(row).encode() for row in rows]
    stream(payloads, HOUR, False, project=parsed("count"), scorer=Scorer.from_bundle(made.bundle))
    new = sum(row["country"] in ("new", "newer") for row in rows)
    assert by_label(METRICS, UNKNOWN_VALUES)["country"] == new
    folder, made = trained("regression")
    run(folder, made.bundle, "drift", parsed("regression"))
    said = results.read_success(str(folder / "drift"))["events"]
    assert said["unknown: country"] == new > 0
    alarms = {
        (finding.feature, finding.kind)
        for verdict in results.read_verdicts(str(folder / "drift"))
        for finding in verdict.findings
        if verdict.window_end_us > made.test_from_us
    }
    assert {("country", "skew"), ("country", "drift")} <= alarms


def test_training_and_runs_show_what_fits_the_kind(trained, uri):
    for kind, wanted in {
        "multiclass": ["log loss", "macro F1", "Confusion", "predicted middle"],
        "regression": ["MAE", "RMSE", "R²"],
        "quantile": ["pinball", "coverage"],
        "binary": ["AUC", "AP", "positives"],
        "anomaly": ["mean score", "median score"],
        "known anomaly": ["AUC", "AP"],
    }.items():
        folder, made = trained(kind)
        project = parsed(kind)
        registered = training.register(made, project, uri, promote=False)
        with console.capture() as shown:
            print_training(made, project, registered, uri, folder)
        text = shown.get()
        assert all(word in text for word in wanted), text
        assert ("positives" in text) == (kind in ("binary", "known anomaly"))
        run(folder, made.bundle, f"shown-{kind}", project)
        with console.capture() as shown:
            print_scores(str(folder / f"shown-{kind}"), project, made.bundle)
        if kind == "anomaly":
            continue
        assert all(word in shown.get() for word in wanted if word != "positives"), shown.get()
        version = registry.list_versions("shops", uri)[-1]
        lines = "\n".join(version_lines(version))
        assert (wanted[0] if kind != "quantile" else "pinball 0.9 ") in lines
        assert (f"target {project.target.kind}" in lines) == (kind != "binary")
        assert load_bundle(project, folder, str(version.version), uri).bundle_id == made.bundle.bundle_id


def test_labels_that_are_records_give_the_model_and_the_figures_of_a_column(trained, tmp_path):
    _, made = trained("multiclass")
    text = declarations("multiclass").replace("delay: 1d}", "delay: 1d, events: {time: seen}}", 1)
    text = text.replace("output: [class, code]", "output: [code]")
    rows = make_rows()
    labels = [{"id": row["id"], "class": row["class"], "seen": row["t"] + 60} for row in rows if row["class"]]
    labels += [
        {**label, "class": "low", "seen": label["seen"] + 9} for label in labels[::7]
    ]  # later: they do not count
    labels += [{**labels[0], "class": "other"}, {**labels[1], "class": None}]
    random.Random(0).shuffle(labels)
    path = write_rows(tmp_path / "labels.json", labels)
    for row in rows:
        row["class"] = None
    found = train(tmp_path, text, rows, labels=(path,))
    assert found.bundle.model == made.bundle.model
    project = parsed("multiclass", text)
    run(tmp_path, found.bundle, "out", project, labels=(path,), score_from=training.to_iso(found.test_from_us))
    assert results.evaluate_scores(str(tmp_path / "out"), project, [path]) == made.evaluation


def test_early_stopping_keeps_the_best_trees_whatever_the_threads(tmp_path):
    text = declarations("multiclass").replace("n_estimators: 8", "n_estimators: 200, learning_rate: 0.5")
    text = text.replace("  categories:", "  early_stopping: {rounds: 5, on_last: 1d}\n  categories:")
    one, two = (train(tmp_path, text, threads=threads) for threads in (1, 2))
    assert one.bundle.model == two.bundle.model
    trees = one.bundle.metadata["trees"]
    assert 1 <= trees < 195
    # The same trees, of the same rows, without looking at the others.
    fewer = text.replace("n_estimators: 200", f"n_estimators: {trees}").replace("train: 4d", "train: 3d")
    fewer = fewer.replace("  early_stopping: {rounds: 5, on_last: 1d}\n", "").replace(
        "delay: 1d, test", "delay: 2d, test"
    )
    rest = train(tmp_path, fewer)
    assert rest.bundle.encoders == one.bundle.encoders
    np.testing.assert_array_equal(rest.bundle.golden_scores, one.bundle.golden_scores)
    with pytest.raises(TrainingError, match=r"no labelled event is in the time of model.early_stopping.on_last"):
        train(tmp_path, text.replace("on_last: 1d", "on_last: 1us"))


def test_a_class_that_never_comes_is_refused(tmp_path):
    rows = make_rows()
    for row in rows:
        row["class"] = "low" if row["class"] == "middle" else row["class"]
    with pytest.raises(TrainingError, match="no event to train on is of class middle: give more, or take it out"):
        train(tmp_path, declarations("multiclass"), rows)


def test_too_many_values_are_refused(tmp_path):
    rows = make_rows()
    for number, row in enumerate(rows):
        row["code"] = number
    with pytest.raises(EncoderError, match=r"code has [0-9]+ values .* more than the 200 of one_hot"):
        train(tmp_path, declarations("regression"), rows)
    found = train(
        tmp_path,
        declarations("regression", CATEGORIES.replace("code: one_hot", "code: {encoding: one_hot, most: 3}")),
        rows,
    )
    kept = Encoders.from_bytes(found.bundle.encoders).by_name["code"]
    first = next(number for number, row in enumerate(rows) if row["t"] * 1_000_000 >= found.splits[0].from_us)
    known = [n for n, row in enumerate(rows) if row["cost"] is not None and n >= first][:3]
    assert kept.values.to_pylist() == known  # all come once: the first by value
    assert kept.learned_unknown


def test_a_closed_domain_refuses_and_an_open_one_scores(tmp_path, monkeypatch):
    from tests.kit import targets

    domain = 'feature { name: "country" type: BYTES string_domain { value: "DE" value: "FR" value: "it<" value: "[at]" } %s }'
    rows, plain = make_rows(), 'feature { name: "country" type: BYTES }'
    new = sum(row["country"] in ("new", "newer") for row in rows)
    for more, dead in (("", new), ("distribution_constraints { min_domain_mass: 0.9 }", 0)):
        schema = targets.SCHEMA.replace(plain, domain % more)
        assert schema != targets.SCHEMA
        with monkeypatch.context() as patched:
            patched.setattr(targets, "SCHEMA", schema)
            text = declarations("count").replace("test: 2d,", "test: 2d, max_dead_letters: 0.5,")
            found = train(tmp_path / str(dead), text, rows)
        assert found.examples.outcomes.get("dead-lettered", 0) == dead
        assert found.examples.outcomes["scored"] == len(rows) - dead


def test_what_is_not_the_bundles_is_refused(trained, tmp_path):
    _, made = trained("multiclass")
    bundle = made.bundle
    other = dataclasses.replace(bundle, encoders=bundle.encoders.replace(b'"DE"', b'"DX"'))
    assert other.bundle_id != bundle.bundle_id
    assert dataclasses.replace(bundle, encoders=None).bundle_id != bundle.bundle_id
    bundle.save(tmp_path / "bundle")
    (tmp_path / "bundle" / "encoders.json").write_bytes(other.encoders)
    with pytest.raises(BundleError, match=r"encoders\.json: is "):
        Bundle.load(tmp_path / "bundle")
    scores = bundle.golden_scores.copy()
    scores[3, 1] = np.nextafter(scores[3, 1], np.float32(1))
    with pytest.raises(ModelMismatch, match="1 of 33 golden scores differ; row 3 scores"):
        Scorer.from_bundle(dataclasses.replace(bundle, golden_scores=scores))
    with pytest.raises(ModelMismatch, match=r"model gives scores of shape \(33, 3\), \(33,\) is expected"):
        Scorer.from_bundle(dataclasses.replace(bundle, golden_scores=scores[:, 0]))


def test_another_target_or_coding_needs_another_model(trained, tmp_path, uri):
    _, made = trained("multiclass")
    known = parsed("multiclass").feature_definitions()
    for old, new in (
        ("code: one_hot", "code: splits"),
        ("most: 20", "most: 21"),
        ("of: high", "of: low"),
    ):
        text = declarations("multiclass")
        assert old in text
        assert parsed("multiclass", text.replace(old, new)).feature_definitions() != known
    assert parsed("grades").feature_definitions() != known
    version = training.register(made, parsed("multiclass"), uri, promote=False).version
    changed = declarations("multiclass").replace("most: 20", "most: 21")
    project = write_project(tmp_path / "changed", changed)
    with pytest.raises(results.RunError, match="changed since it was trained"):
        load_bundle(project, tmp_path / "changed", str(version), uri)


def test_scores_do_not_depend_on_what_else_is_scored(trained, batch):
    """Alone, cut and in another order, an event's score has the same bits."""
    folder, made = trained("multiclass")
    table, _ = batch("multiclass")
    rows = make_rows()
    random.Random(3).shuffle(rows)
    for place in range(3):
        write_rows(folder / f"part-{place}.json", rows[place::3])
    spec = RunSpec(parsed("multiclass"), (str(folder / "part-*.json"),), str(folder / "parts"), threads=1, shards=4)
    score(spec, made.bundle)
    again = results.read_kind(str(folder / "parts"), "scores").sort_by("id")
    assert again.select(table.schema.names).equals(table)
    assert pc.all(pc.is_valid(again["score"])).as_py()
    assert pa.types.is_float32(again.schema.field("score_high").type)


def test_what_deviates_from_its_shops_past_is_an_anomaly(trained):
    """Without a label, by the row feature that reads a rolling one."""
    rows = make_rows()
    odd = range(1500, 2000, 50)
    for place in odd:
        rows[place]["amount"] = 900.0
    folder, made = trained("anomaly")
    write_rows(folder / "odd.json", rows)
    spec = RunSpec(parsed("anomaly"), (str(folder / "odd.json"),), str(folder / "odd"), threads=1)
    score(spec, made.bundle)
    table = results.read_kind(str(folder / "odd"), "scores").sort_by("id")
    scores, deviation = (table[name].to_numpy() for name in ("score", "DEVIATION"))
    mean = table["MEAN_D"].to_numpy()
    assert (deviation == table["amount"].to_numpy() / mean).all()
    ranks = np.argsort(np.argsort(-scores))
    assert np.median(ranks[list(odd)]) < 40
    assert ((scores > 0) & (scores < 1)).all()
