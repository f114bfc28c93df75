"""Models that were trained elsewhere: proven before they are bundles, and refused with the first row that tells."""

import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skops.io
import xgboost
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from typer.testing import CliRunner

from models.batches import as_batch
from models.predictors import registry
from models.predictors.booster import ModelCorrupt, ModelMismatch, Scorer
from models.predictors.bundle import Bundle
from models.predictors.encoders import EncoderError
from models.predictors.foreign import prove_independence
from models.score import model_inputs
from pipelines.cli.main import app
from pipelines.config import RunSpec
from pipelines.jobs.importing import ImportedModelError, import_model
from pipelines.jobs.parity import check_parity
from pipelines.jobs.score import score
from pipelines.results import RunError, read_kind
from tests.kit.foreign import NUMBERS, plain, write_model
from tests.kit.support import write_rows
from tests.kit.targets import declarations, make_rows, train, write_project

pytestmark = pytest.mark.slow


def make_model(objective="binary:logistic", names=NUMBERS, types=None, rounds=20, **params):
    """A booster, and rows of its features with its scores for them."""
    random = np.random.default_rng(0)
    rows = random.gamma(2, 10, (400, len(names))).astype(np.float32)
    label = {"multi:softprob": np.digitize(rows[:, 0], [10, 25])}
    label |= dict.fromkeys(["binary:logistic", "binary:logitraw"], rows[:, 0] > 20)
    rows[::9, 1] = np.nan
    if types:
        rows[:, types.index("c")] = random.integers(0, 5, 400)
    data = xgboost.DMatrix(
        rows,
        label.get(objective, rows[:, 0]),
        feature_names=list(names),
        feature_types=types,
        enable_categorical=bool(types),
    )
    if objective == "multi:softprob":
        params["num_class"] = 3
    booster = xgboost.train({"objective": objective, "max_depth": 3, "nthread": 1, **params}, data, rounds)
    return booster, rows[:60], booster.inplace_predict(rows, validate_features=False)[:60]


def write(folder, booster, rows, scores, columns=("score",), ending="ubj", golden="golden.parquet"):
    return write_model(folder, bytes(booster.save_raw(ending)), ending, rows, scores, columns, golden)


def test_an_xgboost_model_is_imported_and_scores_as_where_it_was_trained(tmp_path):
    project = write_project(tmp_path / "project", plain("binary"))
    booster, rows, scores = make_model()
    model, rows_of = write(tmp_path, booster, rows, scores)
    uri = f"sqlite:///{tmp_path}/registry.db"
    arguments = ["models", "import", str(tmp_path / "project"), str(model), "--golden", str(rows_of), "--registry", uri]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "version 1, bundle" in done.output
    assert "proven on 60 golden rows" in done.output
    bundle = registry.load("shops", "champion", uri)
    assert Scorer.from_bundle(bundle).score(rows).tobytes() == scores.tobytes()
    listed = CliRunner().invoke(app, ["models", str(tmp_path / "project"), "--registry", uri])
    assert bundle.bundle_id in listed.output
    events = write_rows(tmp_path / "events.jsonl", make_rows(200))
    assert check_parity(project, bundle, Scorer.from_bundle(bundle), [events], "1h", 0, 0.1).equal
    ran = ["run", str(tmp_path / "project"), "--source", events, "--sink", str(tmp_path / "out"), "--registry", uri]
    done = CliRunner().invoke(app, ran)
    assert done.exit_code == 0, done.output
    assert read_kind(str(tmp_path / "out"), "scores").num_rows == 200


@pytest.mark.parametrize(("ending", "golden"), [("json", "golden.csv"), ("ubj", "golden.jsonl")])
def test_models_and_golden_rows_are_read_in_several_formats(tmp_path, ending, golden):
    project = write_project(tmp_path / "project", plain("binary"))
    booster, rows, scores = make_model()
    files = write(tmp_path, booster, rows, scores, ending=ending, golden=golden)
    bundle = import_model(project, tmp_path / "project", *files, None)
    assert bundle.golden_scores.tobytes() == scores.tobytes()
    assert Scorer.from_bundle(bundle).score(rows).tobytes() == scores.tobytes()


@pytest.mark.parametrize(
    ("kind", "objective", "columns", "params"),
    [
        ("multiclass", "multi:softprob", ["score_low", "score_middle", "score_high"], {}),
        ("quantile", "reg:quantileerror", ["score_0.1", "score_0.5", "score_0.9"], {"quantile_alpha": [0.1, 0.5, 0.9]}),
        ("regression", "reg:squarederror", ["score"], {"booster": "dart", "rate_drop": 0.1}),
        ("count", "count:poisson", ["score"], {}),
    ],
)
def test_other_targets_can_be_imported(tmp_path, kind, objective, columns, params):
    project = write_project(tmp_path / "project", plain(kind))
    booster, rows, scores = make_model(objective, **params)
    model, golden = write(tmp_path, booster, rows, scores, columns)
    bundle = import_model(project, tmp_path / "project", model, golden, None)
    assert bundle.golden_scores.tobytes() == scores.tobytes()
    bundle.save(tmp_path / "bundle")
    assert Bundle.load(tmp_path / "bundle").bundle_id == bundle.bundle_id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["amount", "N_D", "code", "MEAN_D"]}, "it has them in another order, which model.inputs must have"),
        (
            {"names": ["amount", "N_D", "MEAN_D", "other"]},
            "its features are amount, N_D, MEAN_D, other, and not amount, N_D",
        ),
        ({"types": ["q", "q", "q", "c"]}, "its feature code: the model splits it by category, unlike"),
        (
            {"objective": "binary:logitraw"},
            "must be binary:logistic or reg:logistic, not 'binary:logitraw': its scores are log-odds",
        ),
        ({"objective": "reg:squarederror"}, "for a binary target, must be binary:logistic"),
        ({"booster": "gblinear"}, "it is gblinear, and not trees"),
    ],
)
def test_a_model_that_is_not_the_projects_is_refused(tmp_path, change, message):
    project = write_project(tmp_path / "project", plain("binary"))
    booster, rows, scores = make_linear() if "booster" in change else make_model(**change)
    model, golden = write(tmp_path, booster, rows, scores)
    with pytest.raises(ModelMismatch, match=message):
        import_model(project, tmp_path / "project", model, golden, None)


def make_linear():
    random = np.random.default_rng(0)
    rows = random.gamma(2, 10, (400, 4)).astype(np.float32)
    data = xgboost.DMatrix(rows, rows[:, 0] > 20, feature_names=NUMBERS)
    booster = xgboost.train({"objective": "binary:logistic", "booster": "gblinear", "nthread": 1}, data, 3)
    return booster, rows[:60], booster.predict(data)[:60]


def test_a_score_that_is_not_the_expected_one_is_named(tmp_path):
    project = write_project(tmp_path / "project", plain("binary"))
    booster, rows, scores = make_model()
    scores[[17, 40]] = np.nextafter(scores[[17, 40]], np.float32(1))
    model, golden = write(tmp_path, booster, rows, scores)
    with pytest.raises(ModelMismatch, match="2 of 60 golden scores differ; row 17 scores"):
        import_model(project, tmp_path / "project", model, golden, None)


def test_a_model_without_names_or_with_other_outputs_is_refused(tmp_path):
    project = write_project(tmp_path / "project", plain("multiclass"))
    booster, rows, scores = make_model("multi:softprob")
    model, golden = write(tmp_path, booster, rows, scores, ["score_low", "score_middle", "score_high"])
    booster.feature_names = None
    booster.save_model(model)
    with pytest.raises(ModelMismatch, match="it has no feature names: set them before it is saved, to amount, N_D"):
        import_model(project, tmp_path / "project", model, golden, None)
    other = write_project(tmp_path / "other", plain("quantile"))
    with pytest.raises(ImportedModelError, match="golden rows have no column score_0.1"):
        import_model(other, tmp_path / "other", model, golden, None)
    one = write_project(
        tmp_path / "one", plain("quantile").replace("[0.1, 0.5, 0.9]", "[0.2, 0.5]").replace("of: 0.9", "of: 0.5")
    )
    booster, rows, scores = make_model("reg:quantileerror", quantile_alpha=[0.1, 0.5])
    model, golden = write(tmp_path, booster, rows, scores, ["score_0.2", "score_0.5"])
    with pytest.raises(ModelMismatch, match=r"its quantiles are \[0.1, 0.5\], and not \[0.2, 0.5\]"):
        import_model(one, tmp_path / "one", model, golden, None)


def test_files_that_are_no_models_are_refused_without_harm(tmp_path, monkeypatch):
    project = write_project(tmp_path / "project", plain("binary"))
    booster, rows, scores = make_model(rounds=2)
    model, golden = write(tmp_path, booster, rows, scores)
    content = model.read_bytes()
    for bad in (b"", b"{}", content[: len(content) // 2]):
        model.write_bytes(bad)
        with pytest.raises(ModelCorrupt, match="xgboost cannot read it"):
            import_model(project, tmp_path / "project", model, golden, None)
    huge = json.loads(booster.save_raw("json"))
    huge["learner"]["learner_model_param"]["num_feature"] = "4000000000"
    text = tmp_path / "model.json"
    text.write_text(json.dumps(huge))
    with pytest.raises(ModelCorrupt, match="it says that it has 4000000000 features"):
        import_model(project, tmp_path / "project", text, golden, None)
    huge["learner"]["learner_model_param"]["num_feature"] = "5"
    text.write_text(json.dumps(huge))
    with pytest.raises(ModelMismatch, match="it has 4 feature names, and 5 features"):
        import_model(project, tmp_path / "project", text, golden, None)
    wild = json.loads(booster.save_raw("json"))
    tree = wild["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["left_children"][0], tree["right_children"][0] = 99_999_999, 100_000_000
    text.write_text(json.dumps(wild))
    with pytest.raises(ModelCorrupt, match=r"tree 0: a child is no node|it ends the process \(-11\)"):
        import_model(project, tmp_path / "project", text, golden, None)
    pickled = tmp_path / "model.pkl"
    pickled.write_bytes(b"\x80\x04.")
    with pytest.raises(ImportedModelError, match=r"is none of \*.ubj, \*.json"):
        import_model(project, tmp_path / "project", pickled, golden, None)
    model.write_bytes(content)
    with monkeypatch.context() as patched:
        patched.setitem(import_model.__globals__["FILE_BYTES"], "model.ubj", 100)
        with pytest.raises(ImportedModelError, match=r"model.ubj: is larger than 100 bytes"):
            import_model(project, tmp_path / "project", model, golden, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(0, 9), "has 9 golden rows, at least 10 are needed"),
        (lambda table: table.drop(["score"]), "golden rows have no column score"),
        (lambda table: table.drop(["code", "N_D"]), "golden rows have no column N_D, code"),
        (
            lambda table: table.set_column(4, "score", pa.nulls(60, pa.float32())),
            "a golden score is missing or not finite",
        ),
        (lambda table: table.set_column(0, "amount", pa.array(["x"] * 60)), "can't be read"),
    ],
)
def test_golden_rows_that_prove_nothing_are_refused(tmp_path, change, message):
    project = write_project(tmp_path / "project", plain("binary"))
    model, golden = write(tmp_path, *make_model())
    pq.write_table(change(pq.read_table(golden)), golden)
    with pytest.raises(ImportedModelError, match=message):
        import_model(project, tmp_path / "project", model, golden, None)


def test_a_model_with_categories_needs_its_encoders(tmp_path):
    """Our own model comes back by its files, and golden rows prove the codes, too."""
    made = train(tmp_path / "project", declarations("binary")).bundle
    project = write_project(tmp_path / "project", declarations("binary"))
    (tmp_path / "model.ubj").write_bytes(made.model)
    (tmp_path / "encoders.json").write_bytes(made.encoders)
    rows = {
        "country": ["DE", "new", None, "[at]"] * 5,
        "shop": ["shop 1", "no shop", "shop 2", "shop 3"] * 5,
        "code": [3, 7, 8, 1000] * 5,
    }
    numbers = {name: [float(n) for n in range(20)] for name in ("amount", "N_D", "MEAN_D", "DEVIATION")}
    table = pa.table({**numbers, **rows})
    scorer = Scorer.from_bundle(made)
    scores = scorer.score(model_inputs(as_batch(table), project.model.inputs, scorer.encoders))
    pq.write_table(table.append_column("score", pa.array(scores)), tmp_path / "golden.parquet")
    files = (tmp_path / "model.ubj", tmp_path / "golden.parquet")
    bundle = import_model(project, tmp_path / "project", *files, tmp_path / "encoders.json")
    assert bundle.bundle_id == made.bundle_id
    with pytest.raises(
        ImportedModelError, match="country, code, shop are inputs that are but names: say with --encoders"
    ):
        import_model(project, tmp_path / "project", *files, None)
    other = write_project(tmp_path / "other", declarations("binary").replace("code: one_hot", "code: splits"))
    with pytest.raises(ImportedModelError, match=r"has encoders .*, and the project declares"):
        import_model(other, tmp_path / "other", *files, tmp_path / "encoders.json")
    (tmp_path / "encoders.json").write_bytes(made.encoders.replace(b'"DE"', b'"DX"'))
    with pytest.raises(ModelMismatch, match="golden scores differ; row 0 scores"):
        import_model(project, tmp_path / "project", *files, tmp_path / "encoders.json")
    (tmp_path / "encoders.json").write_bytes(b"[]")
    with pytest.raises(EncoderError):
        import_model(project, tmp_path / "project", *files, tmp_path / "encoders.json")


def test_a_linear_model_is_the_control_that_the_proof_sees():
    """scikit-learn's sums depend on how many rows there are; trees' don't."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(600, 20)).astype(np.float32)
    linear = LogisticRegression().fit(rows, rows[:, 0] > 0)
    with pytest.raises(ModelMismatch, match=r"row \d+ scores 0.\d+ among all 600 and 0.\d+ alone"):
        prove_independence(lambda some: linear.predict_proba(some)[:, 1].astype(np.float32), rows)
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, rows[:, 0]), 5)
    prove_independence(booster.inplace_predict, rows)
    with pytest.raises(ModelMismatch, match="in another order"):  # as one that looks at the row before
        prove_independence(lambda some: np.sort(some[:, 0]), rows[np.argsort(rows[:, 0])])


def make_estimator(kind, names=NUMBERS, steps=None, golden=60):
    """An estimator of scikit-learn's, fitted on a DataFrame, with golden rows and what it says of them.

    That of `grades` is an MLP, as not every processor rounds a linear model of several classes by its rows.
    """
    random = np.random.default_rng(1)
    rows = pd.DataFrame(random.gamma(2, 10, (600, len(names))).astype(np.float32), columns=list(names))
    amount = rows["amount"].to_numpy()
    label = {"binary": (amount > 20).astype(int), "grades": 3 + np.digitize(amount, [10, 25])}.get(kind, amount * 3)
    last = {"regression": Ridge(), "grades": MLPClassifier((20,), max_iter=5, random_state=0)}
    model = make_pipeline(*(steps or [SimpleImputer(), StandardScaler()]), last.get(kind, LogisticRegression()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, label)
    said = model.predict(rows) if kind == "regression" else model.predict_proba(rows)
    said = said[:, 1] if kind == "binary" else said
    return model, rows.to_numpy()[:golden], said[:golden].astype(np.float32)


def write_estimator(folder, model, rows, said, columns=("score",)):
    return write_model(folder, skops.io.dumps(model), "skops", rows, said, columns)


@pytest.mark.parametrize(
    ("kind", "columns"),
    [("binary", ["score"]), ("grades", ["score_3", "score_4", "score_5"]), ("regression", ["score"])],
)
def test_a_linear_model_is_refused_with_the_row_that_tells_or_scored_row_by_row(tmp_path, kind, columns):
    project = write_project(tmp_path / "project", plain(kind))
    model, rows, said = make_estimator(kind, golden=600)
    files = write_estimator(tmp_path, model, rows, said, columns)
    with pytest.raises(
        ModelMismatch, match=r"row \d+ scores .* alone, as \d+ rows differ.* With model: \{alone: true\}"
    ):
        import_model(project, tmp_path / "project", *files, None)
    project = write_project(tmp_path / "alone", plain(kind, alone=True))
    rows, said = rows[:60], said[:60]
    bundle = import_model(project, tmp_path / "alone", *write_estimator(tmp_path, model, rows, said, columns), None)
    bundle.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle", expected_id=bundle.bundle_id)
    assert (loaded.model_format, loaded.alone) == ("skops", True)
    assert (tmp_path / "bundle" / "model.skops").exists()
    scorer = Scorer.from_bundle(loaded)
    alone = np.concatenate([scorer.score(row[np.newaxis]) for row in rows])
    assert scorer.score(rows).tobytes() == alone.tobytes()
    if kind != "binary":
        return
    events = write_rows(tmp_path / "events.jsonl", make_rows(200))
    found = check_parity(project, loaded, scorer, [events], "1h", 0, 0.1)
    assert found.equal, found
    with pytest.raises(RunError, match="--reason-codes are of trees"):
        score(RunSpec(project, (events,), str(tmp_path / "out"), reason_codes=1), loaded)


def test_an_estimator_that_is_not_the_projects_is_refused(tmp_path):
    project = write_project(tmp_path / "project", plain("binary", alone=True))

    def imported(*made, columns=("score",), **options):
        return import_model(project, tmp_path / "project", *write_estimator(tmp_path, *made, columns), None)

    with pytest.raises(ModelMismatch, match="it has no score where inputs are missing: begin it with an imputer"):
        imported(*make_estimator("binary", steps=[StandardScaler()]))
    with pytest.raises(ModelMismatch, match=r"its classes are None, and a binary target has \[0, 1\]"):
        imported(*make_estimator("regression"))
    with pytest.raises(ModelMismatch, match="its features are amount, N_D, code, MEAN_D, and not .* another order"):
        imported(*make_estimator("binary", names=["amount", "N_D", "code", "MEAN_D"]))
    model, rows, said = make_estimator("binary")
    with pytest.raises(ModelMismatch, match="golden scores differ; row 0 scores"):
        imported(model, rows, 1 - said)
    tree = DecisionTreeClassifier(max_depth=3).fit(rows, rows[:, 0] > 20)
    with pytest.raises(ModelCorrupt, match=r"it holds sklearn.tree._tree.Tree, which may do anything"):
        imported(tree, rows, said)
    path, golden = write_estimator(tmp_path, model, rows, said)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(ModelCorrupt, match="skops cannot read it"):
        import_model(project, tmp_path / "project", path, golden, None)
