"""Versions and aliases of bundles in an MLflow registry in SQLite."""

import dataclasses
import pickle
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from models.booster import ModelMismatch, Scorer
from models.bundle import Bundle, BundleError
from models.registry import RegistryError, list_versions, load, register, set_alias
from models.training import fit, golden, model_bytes

NAMES = ("AMOUNT", "NIGHT")


def make_bundle(seed: int) -> Bundle:
    random = np.random.default_rng(seed)
    features = random.normal(size=(300, 2)).astype(np.float32)
    label = features[:, 0] + random.normal(size=300) > 1
    model = model_bytes(fit(features, label, {"n_estimators": 3, "max_depth": 2}, feature_names=NAMES))
    slices = {"COUNTRY": {"PT & ES": {"rows": 3, "roc_auc": None}}}
    metadata = {
        "metrics": {"overall": {"roc_auc": 0.5 + seed / 100, "rows": 300}, "slices": slices},
        "training": {"start": "2018-05-20T00:00:00Z", "params": {"max_depth": 2}},
    }
    return Bundle(b"schema", b"name: test", b"{}", model, NAMES, *golden(model, features), metadata)


@pytest.fixture(scope="module")
def bundles():
    return [make_bundle(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'made' / 'registry.db'}"


@pytest.fixture
def name(request, uri):
    """A name of its own for each test: making a registry takes seconds, making a name does not."""
    return request.node.name


def aliases(name, uri):
    return {known.version: known.aliases for known in list_versions(name, uri)}


def test_the_first_is_champion_and_later_ones_challenge(name, uri, bundles):
    assert [register(bundle, name, uri) for bundle in bundles[:2]] == [1, 2]
    assert aliases(name, uri) == {1: ("champion",), 2: ("challenger",)}
    assert register(bundles[2], name, uri, promote=True, aliases=["canary"]) == 3
    assert aliases(name, uri) == {1: (), 2: ("challenger",), 3: ("canary", "champion")}
    found = list_versions(name, uri)
    assert [known.bundle_id for known in found] == [bundle.bundle_id for bundle in bundles]
    assert datetime.now(UTC) - timedelta(minutes=5) < found[0].created <= datetime.now(UTC)


def test_a_loaded_bundle_is_the_registered_one(name, uri, bundles):
    register(bundles[0], name, uri)
    register(bundles[1], name, uri)
    rows = bundles[0].golden_features
    for wanted, bundle in (
        (1, bundles[0]),
        ("1", bundles[0]),
        ("champion", bundles[0]),
        ("challenger", bundles[1]),
    ):
        loaded = load(name, wanted, uri)
        assert loaded.bundle_id == bundle.bundle_id
        assert loaded.metadata == bundle.metadata
        assert loaded.model == bundle.model
        score = Scorer.from_bundle(loaded).score(rows)
        assert score.tobytes() == Scorer.from_bundle(bundle, nthread=2).score(rows).tobytes()


def test_the_same_bundle_keeps_its_version_and_aliases(name, uri, bundles):
    first = register(bundles[0], name, uri)
    register(bundles[1], name, uri)
    retold = dataclasses.replace(bundles[0], metadata={"trained": "again"})
    assert register(retold, name, uri) == first
    assert aliases(name, uri) == {1: ("champion",), 2: ("challenger",)}
    assert register(bundles[1], name, uri, promote=True) == 2
    assert aliases(name, uri) == {1: (), 2: ("challenger", "champion")}


def test_promoting_and_rolling_back_are_one_move(name, uri, bundles):
    for bundle in bundles[:2]:
        register(bundle, name, uri)
    assert set_alias(name, "champion", "challenger", uri) == 2
    assert load(name, "champion", uri).bundle_id == bundles[1].bundle_id
    assert set_alias(name, "champion", 1, uri) == 1
    assert load(name, "champion", uri).bundle_id == bundles[0].bundle_id


def test_metrics_parameters_and_id_are_on_the_run(name, uri, bundles):
    from mlflow import MlflowClient

    register(bundles[1], name, uri)
    run = MlflowClient(uri).get_run(list_versions(name, uri)[0].run_id)
    assert run.data.metrics == {
        "metrics.overall.roc_auc": 0.51,
        "metrics.overall.rows": 300,
        "metrics.slices.COUNTRY.PT _ ES.rows": 3,
    }
    assert run.data.params == {"training.start": "2018-05-20T00:00:00Z", "training.params.max_depth": "2"}
    assert run.data.tags["bundle_id"] == run.info.run_name == bundles[1].bundle_id
    assert run.info.status == "FINISHED"


def test_what_is_not_there_is_answered_with_what_is(name, uri, bundles, tmp_path):
    register(bundles[0], name, uri)
    register(bundles[1], name, uri)
    there = "there are: 1 champion, 2 challenger"
    with pytest.raises(RegistryError, match=f"{name} has no version or alias '3'; {there}"):
        load(name, 3, uri)
    with pytest.raises(RegistryError, match=f"{name} has no version or alias 'canary'; {there}"):
        set_alias(name, "champion", "canary", uri)
    for call in (lambda: load("nobody", 1, uri), lambda: list_versions("nobody", uri)):
        with pytest.raises(RegistryError, match=f"no bundle is registered as 'nobody'; there are: .*{name}"):
            call()
    with pytest.raises(RegistryError, match=r"no registry at .*empty\.db"):
        list_versions(name, f"sqlite:///{tmp_path}/empty.db")
    assert list(tmp_path.iterdir()) == []


def test_malformed_names_are_refused(uri, bundles):
    with pytest.raises(RegistryError, match="name \"x' OR"):
        register(bundles[0], "x' OR '1'='1", uri)
    with pytest.raises(RegistryError, match="name 'a/b'"):
        load("a/b", 1, uri)
    for alias in ("12", "v3", "latest", "LATEST"):
        with pytest.raises(RegistryError, match=f"alias '{alias}': reads as a version"):
            set_alias("any", alias, 1, uri)
    with pytest.raises(RegistryError, match="alias ''"):
        register(bundles[0], "any", uri, aliases=[""])


def test_a_bundle_that_cannot_prove_itself_is_not_registered(name, uri, bundles):
    wrong = dataclasses.replace(bundles[0], golden_scores=bundles[0].golden_scores[::-1])
    with pytest.raises(ModelMismatch):
        register(wrong, name, uri)
    with pytest.raises(RegistryError, match="no bundle is registered"):
        list_versions(name, uri)


def test_a_failed_registration_leaves_no_version(name, uri, bundles, monkeypatch):
    from mlflow import MlflowClient

    def refuse(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(Bundle, "save", refuse)
        with pytest.raises(OSError, match="disk full"):
            register(bundles[0], name, uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name).experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FAILED"]
    assert register(bundles[0], name, uri) == 1
    assert aliases(name, uri) == {1: ("champion",)}


def test_stored_files_that_are_damaged_or_gone_are_named(name, uri, bundles, tmp_path):
    register(bundles[0], name, uri)
    database = uri.removeprefix("sqlite:///")
    run_id = list_versions(name, uri)[0].run_id
    (folder,) = Path(database).parent.glob(f"artifacts/{run_id}/**/bundle")
    model = folder / "model.ubj"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"model\.ubj: is"):
        load(name, "champion", uri)
    shutil.rmtree(folder)
    with pytest.raises(RegistryError, match=f"{name} version 1: its files cannot be read"):
        load(name, "champion", uri)


SILENT = """
import pathlib, pickle, socket, sys
import models.booster, models.bundle, models.evaluation, models.registry, models.training
assert not [m for m in sys.modules if m.split(".")[0] in ("mlflow", "apache_beam")]

tried = []
def refuse(*address):
    tried.append(address)
    raise OSError("no network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
bundle = pickle.loads(pathlib.Path("bundle.pickle").read_bytes())
for _ in range(2):
    assert models.registry.register(bundle, "quiet", "sqlite:///registry.db") == 1
assert models.registry.load("quiet", "champion", "sqlite:///registry.db").bundle_id == bundle.bundle_id
assert not tried, tried
"""


def test_says_nothing_connects_nowhere_and_leaves_only_its_own(bundles, tmp_path):
    (tmp_path / "bundle.pickle").write_bytes(pickle.dumps(bundles[0]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SILENT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "bundle.pickle", "registry.db"]
