"""LightGBM's models from elsewhere: proven, refused with what is wrong with them, and the same bits in batch and stream."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from models.batches import as_batch
from models.predictors import registry
from models.predictors.booster import ModelCorrupt, ModelError, ModelMismatch, Scorer, load_model
from models.predictors.bundle import Bundle
from models.predictors.encoders import Encoder, Encoders
from models.predictors.lightgbm_model import check_text
from models.score import model_inputs
from pipelines.cli.main import app
from pipelines.jobs.importing import import_model
from pipelines.jobs.parity import check_parity
from pipelines.results import read_kind
from tests.kit.foreign import NUMBERS, make_rows_of, plain, write_model
from tests.kit.support import write_rows
from tests.kit.targets import make_rows, write_project

lightgbm = pytest.importorskip("lightgbm", reason="lightgbm is not installed", exc_type=ImportError)
pytestmark = pytest.mark.slow


def make_model(objective="binary", names=NUMBERS, categories=(), **params):
    """A text of LightGBM's, and golden rows with its scores for them."""
    rows = make_rows_of()
    rows[:, 3] = np.random.default_rng(1).integers(0, 5, len(rows))
    amount = rows[:, 0] + 10 * (rows[:, 3] == 2)
    label = {"multiclass": np.digitize(amount, [10, 25]), "binary": amount > 20, "cross_entropy": amount > 20}
    data = lightgbm.Dataset(
        rows, label.get(objective, amount), feature_name=list(names), categorical_feature=[*categories]
    )
    told = {"objective": objective, "num_leaves": 7, "num_threads": 1, "verbosity": -1, "min_data_per_group": 5}
    if objective == "multiclass":
        told["num_class"] = 3
    booster = lightgbm.train(told | params, data, 8)
    return booster.model_to_string().encode(), rows[:60], booster.predict(rows)[:60].astype(np.float32)


def write(folder, content, rows, scores, *more):
    return write_model(folder, content, "txt", rows, scores, *more)


def test_a_model_is_imported_and_scores_the_same_in_batch_and_stream(tmp_path):
    project = write_project(tmp_path / "project", plain("binary"))
    content, rows, scores = make_model()
    model, golden = write(tmp_path, content, rows, scores)
    uri = f"sqlite:///{tmp_path}/registry.db"
    arguments = ["models", "import", str(tmp_path / "project"), str(model), "--golden", str(golden), "--registry", uri]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "proven on 60 golden rows" in done.output
    bundle = registry.load("shops", "champion", uri)
    assert bundle.model_format == "txt"
    assert bundle.metadata["versions"]["lightgbm"] == lightgbm.__version__
    assert Scorer.from_bundle(bundle).score(rows).tobytes() == scores.tobytes()
    events = write_rows(tmp_path / "events.jsonl", make_rows(300))
    ran = ["run", str(tmp_path / "project"), "--source", events, "--sink", str(tmp_path / "out"), "--registry", uri]
    done = CliRunner().invoke(app, ran)
    assert done.exit_code == 0, done.output
    assert len(set(read_kind(str(tmp_path / "out"), "scores")["score"].to_pylist())) > 5
    assert check_parity(project, bundle, Scorer.from_bundle(bundle), [events], "1h", 0, 0.1).equal


@pytest.mark.parametrize(
    ("kind", "objective", "columns", "params"),
    [
        ("binary", "cross_entropy", ["score"], {}),
        ("multiclass", "multiclass", ["score_low", "score_middle", "score_high"], {}),
        ("regression", "regression_l1", ["score"], {"boosting": "dart"}),
        ("regression", "regression", ["score"], {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}),
        ("count", "poisson", ["score"], {}),
        ("median", "quantile", ["score_0.5"], {"alpha": 0.5}),
    ],
)
def test_other_targets_can_be_imported(tmp_path, kind, objective, columns, params):
    project = write_project(tmp_path / "project", plain(kind))
    content, rows, scores = make_model(objective, **params)
    if kind == "median":
        columns = [project.score_columns[-1]]
    files = write(tmp_path, content, rows, scores, columns)
    bundle = import_model(project, tmp_path / "project", *files, None)
    assert bundle.golden_scores.tobytes() == scores.tobytes()
    bundle.save(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "model.txt").exists()
    assert Bundle.load(tmp_path / "bundle", expected_id=bundle.bundle_id).model_format == "txt"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("binary", {"names": NUMBERS[::-1]}, "it has them in another order, which model.inputs must have"),
        ("binary", {"names": [*NUMBERS[:3], "other"]}, "its features are amount, N_D, MEAN_D, other, and not amount"),
        ("binary", {"names": [f"Column_{n}" for n in range(4)]}, "it has no feature names: say them as feature_name"),
        ("binary", {"categories": ["code"]}, "its feature code: the model splits it by category, unlike"),
        ("binary", {"objective": "regression"}, "must be binary or cross_entropy, not 'regression'"),
        ("median", {"objective": "quantile", "alpha": 0.4}, r"its quantiles are \[0.4\], and not \[0.5\]"),
        ("regression", {"objective": "quantile"}, "its objective, for a regression target, must be regression or"),
    ],
)
def test_a_model_that_is_not_the_projects_is_refused(tmp_path, kind, change, message):
    project = write_project(tmp_path / "project", plain(kind))
    files = write(tmp_path, *make_model(**change), [(project.score_columns[1:] or ["score"])[-1]])
    with pytest.raises(ModelMismatch, match=message):
        import_model(project, tmp_path / "project", *files, None)


def test_golden_scores_that_differ_are_named(tmp_path):
    project = write_project(tmp_path / "project", plain("binary"))
    content, rows, scores = make_model()
    scores[17] = np.nextafter(scores[17], np.float32(1))
    with pytest.raises(ModelMismatch, match="1 of 60 golden scores differ; row 17 scores"):
        import_model(project, tmp_path / "project", *write(tmp_path, content, rows, scores), None)


def test_a_model_with_categories_is_proven_with_its_encoders(tmp_path):
    """LightGBM splits by codes, and has underscores where names of columns have blanks."""
    coded = "country, amount, code"
    text = plain("binary").replace("amount, N_D, MEAN_D, code]", f"{coded}]")
    text = text.replace("  params:", "  categories: {country: splits, code: one_hot}\n  params:")
    project = write_project(tmp_path / "project", text)
    values = {"country": pa.array(["AT", "DE", "FR"]), "code": pa.array([3, 7])}
    encoders = Encoders(
        {name: Encoder(name, project.categories[name].encoding, known, True) for name, known in values.items()}
    )
    (tmp_path / "encoders.json").write_bytes(encoders.to_bytes())
    table = pa.table(
        {
            "country": ["DE", "FR", "AT", "new", None] * 20,
            "amount": np.random.default_rng(0).gamma(2, 10, 100),
            "code": pa.array([3, 7, 8, None] * 25, pa.int64()),
        }
    )
    features = model_inputs(as_batch(table), project.model.inputs, encoders)
    names = encoders.feature_names(project.model.inputs)
    assert names == ("country", "amount", "code=3", "code=7", "code is unknown")
    label = (features[:, 0] == 1) | (features[:, 4] == 1)
    params = {"objective": "binary", "verbosity": -1, "num_threads": 1, "min_data_per_group": 2, "cat_smooth": 0}

    def imported(categories):
        named = [name.replace(" ", "_") for name in names]
        data = lightgbm.Dataset(features, label, feature_name=named, categorical_feature=categories)
        booster = lightgbm.train(params | {"min_data_in_leaf": 2}, data, 3)
        scores = booster.predict(features).astype(np.float32)
        pq.write_table(table.append_column("score", pa.array(scores)), tmp_path / "golden.parquet")
        (tmp_path / "model.txt").write_text(booster.model_to_string())
        files = (tmp_path / "model.txt", tmp_path / "golden.parquet", tmp_path / "encoders.json")
        return import_model(project, tmp_path / "project", *files), scores

    bundle, scores = imported(["country"])
    assert bundle.feature_names == names
    assert Scorer.from_bundle(bundle).score(features).tobytes() == scores.tobytes()
    with pytest.raises(ModelMismatch, match="its feature country: the model takes it as a number, unlike"):
        imported([])


def test_texts_that_are_no_models_are_refused_without_harm(tmp_path):
    project = write_project(tmp_path / "project", plain("binary"))
    content, rows, scores = make_model()
    files = write(tmp_path, content, rows, scores)
    for bad, message in {
        b"": "lightgbm cannot read it",
        b"\xff\xfe nonsense": "lightgbm cannot read it",
        content[: len(content) // 2]: "lightgbm cannot read it: it ends the process",
        content.replace(b"left_child=", b"left_child=77777777 ", 1): "lightgbm cannot read it",
    }.items():
        files[0].write_bytes(bad)
        with pytest.raises(ModelCorrupt, match=message):
            import_model(project, tmp_path / "project", *files, None)


@pytest.mark.parametrize(
    ("name", "value", "place", "message"),
    [
        ("left_child", "99", 0, "a child is no node"),
        ("left_child", "-99", 0, "a child is no node"),
        ("right_child", "0", 0, "a node has several parents"),
        ("split_feature", "4", 0, "a split is of no feature"),
        ("split_feature", "-1", 0, "a split is of no feature"),
        ("decision_type", "17", 0, "a split is of no kind"),
        ("num_leaves", "99", 0, "its leaves have not each a value"),
        ("leaf_value", "1 1", 0, "its leaves have not each a value"),
        ("threshold", "1 1", 0, "its lists are not of one length"),
        ("is_linear", "1", 0, "its leaves are linear models"),
        ("cat_boundaries", "99", -1, "a split has categories that are not there"),
        ("num_cat", "9", 0, "a split has categories that are not there"),
        ("max_feature_idx", "99999999", 0, "it says that it has 100000000 features"),
        ("num_tree_per_iteration", "3", 0, "are not each of one of its 3 outputs"),
    ],
)
def test_a_place_that_leads_out_of_a_tree_is_found(name, value, place, message):
    text = make_model(categories=["code"], min_data_per_group=2, cat_smooth=0)[0].decode()
    check_text(text)
    start = text.index(f"\n{name}=") + len(name) + 2  # in the head, or the first tree that has it
    end = text.index("\n", start)
    values = text[start:end].split()
    values[place] = value
    with pytest.raises(ValueError, match=message):
        check_text(text[:start] + " ".join(values) + text[end:])


def test_where_lightgbm_is_missing_the_error_names_it(tmp_path, monkeypatch):
    project = write_project(tmp_path / "project", plain("binary"))
    content, rows, scores = make_model()
    files = write(tmp_path, content, rows, scores)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ModelError, match="lightgbm scores it, and is not installed: pip install lightgbm"):
        load_model(content, "txt", NUMBERS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"model.txt: lightgbm reads it, and is not installed: pip install lightgbm"):
        import_model(project, tmp_path / "project", *files, None)


def test_scoring_imports_neither_library_unless_the_bundle_needs_it():
    code = "import json, sys, pipelines.jobs.score as _; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=True, text=True)
    assert {"xgboost"} == {"xgboost", "lightgbm", "onnxruntime"} & {*json.loads(done.stdout)}


def test_a_bundle_that_was_changed_is_refused_before_lightgbm_sees_it(tmp_path):
    project = write_project(tmp_path / "project", plain("binary"))
    files = write(tmp_path, *make_model())
    bundle = import_model(project, tmp_path / "project", *files, None)
    with pytest.raises(ModelCorrupt, match="model: sha256 is"):
        Scorer(
            bundle.model[:-200],
            sha256=bundle.model_sha256,
            feature_names=bundle.feature_names,
            golden_features=bundle.golden_features,
            golden_scores=bundle.golden_scores,
            model_format="txt",
        )
