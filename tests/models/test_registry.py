"""Versions and aliases of bundles in an MLflow registry in SQLite."""

import contextlib
import dataclasses
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from models.predictors.booster import ModelMismatch, Scorer
from models.predictors.bundle import Bundle, BundleError
from models.predictors.registry import MlflowReader, list_versions, load, register, set_alias, set_baseline
from models.predictors.registry_reader import open_reader
from models.predictors.registry_store import RegistryError, check_registry, open_client
from models.predictors.training import fit, golden, model_bytes

pytestmark = pytest.mark.slow

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


def test_what_is_read_directly_is_what_mlflow_reads(name, uri, bundles):
    """If MLflow has a new schema, this fails: look at its tables, and name its revision in the reader."""
    for bundle in bundles[:2]:
        register(bundle, name, uri)
    set_alias(name, "canary", 1, uri)
    with open_client(uri) as client:
        other = MlflowReader(client)
        with open_reader(uri) as direct:
            assert direct is not None
            assert direct.names() == other.names()
            versions = direct.versions(name)
            assert len(versions) == 2
            assert versions == other.versions(name)
            assert [direct.with_facts(v) for v in versions] == [other.with_facts(v) for v in versions]
            assert direct.with_facts(versions[0]).metrics
            assert direct.versions("nobody") == other.versions("nobody") == []


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
        with pytest.raises(RegistryError, match=r"^registry /.*/made/registry\.db: disk full$"):
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
import models.predictors.booster, models.predictors.bundle, models.predictors.evaluation, models.predictors.registry, models.predictors.training
assert not [m for m in sys.modules if m.split(".")[0] in ("mlflow", "apache_beam")]

tried = []
def refuse(*address):
    tried.append(address)
    raise OSError("no network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
bundle = pickle.loads(pathlib.Path("bundle.pickle").read_bytes())
for _ in range(2):
    assert models.predictors.registry.register(bundle, "quiet", "sqlite:///registry.db") == 1
assert models.predictors.registry.load("quiet", "champion", "sqlite:///registry.db").bundle_id == bundle.bundle_id
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
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "artifacts",
        "bundle.pickle",
        "registry.db",
        "registry.db.lock",
    ]


def test_a_registry_may_move(bundles, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new place"
    register(bundles[0], "moved", f"sqlite:///{old}/registry.db")
    shutil.copytree(old, new)
    uri = f"sqlite:///{new}/registry.db"
    (kept,) = old.glob("artifacts/*/artifacts/bundle/model.ubj")
    kept.write_bytes(b"the copy does not look here")
    assert load("moved", "champion", uri).bundle_id == bundles[0].bundle_id
    shutil.rmtree(old)
    assert load("moved", "champion", uri).bundle_id == bundles[0].bundle_id
    assert register(bundles[1], "moved", uri) == 2
    assert set_baseline("moved", 2, b"{}", uri) == 2
    assert load("moved", 2, uri).baseline == b"{}"
    assert not old.exists()
    (model,) = new.glob(f"artifacts/{list_versions('moved', uri)[0].run_id}/**/model.ubj")
    model.write_bytes(b"not what was registered")
    with pytest.raises(BundleError, match=r"model\.ubj: is"):
        load("moved", 1, uri)


FIRST = """
import sys
from models.predictors.registry_store import open_client
with open_client("sqlite:///made/registry.db", write=True, create=True) as client:
    client.create_registered_model(sys.argv[1])
"""


@pytest.mark.timeout(900)
def test_three_processes_may_make_a_registry_at_once(tmp_path):
    command = [sys.executable, "-W", "error", "-c", FIRST]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([*command, name], cwd=tmp_path, **streams) for name in "abc"]
    assert [(process.communicate()[0], process.returncode) for process in started] == [("", 0)] * 3
    with open_client(f"sqlite:///{tmp_path}/made/registry.db") as client:
        assert sorted(model.name for model in client.search_registered_models()) == ["a", "b", "c"]


@pytest.mark.parametrize("action", ["read", "write"])
def test_a_database_that_can_not_be_used_is_named_in_one_line(bundles, uri, tmp_path, monkeypatch, capfd, action):
    name = "damaged"
    monkeypatch.setattr("models.predictors.registry_store.BUSY_SECONDS", 0.1)
    register(bundles[0], name, uri)
    good = Path(uri.removeprefix("sqlite:///")).read_bytes()

    def refused(case, said, content=None):
        place = tmp_path / f"{case}.db"  # MLflow keeps what it knows of a path
        if content is not None:
            place.write_bytes(content)
        act = (list_versions, name) if action == "read" else (register, bundles[1], name)
        with pytest.raises(RegistryError) as caught:
            act[0](*act[1:], f"sqlite:///{place}")
        assert re.fullmatch(rf"registry {place}: {said}", str(caught.value)), caught.value

    refused("text", "file is not a database", b"not a database at all, and longer than its header" * 3)
    (tmp_path / "folder.db").mkdir()
    refused("folder", "unable to open database file")
    refused("cut", "[^\n]+", good[: len(good) // 2])
    refused("zeros", "[^\n]+", good[:4096] + bytes(len(good) - 4096))
    other = tmp_path / "other.db"
    other.write_bytes(good)
    with contextlib.closing(sqlite3.connect(other)) as changed:
        changed.execute("UPDATE alembic_version SET version_num = 'of another MLflow'")
        changed.commit()
    refused("other", "[^\n]+")
    locked = tmp_path / "locked.db"
    locked.write_bytes(good)
    with contextlib.closing(sqlite3.connect(locked)) as held:
        held.execute("BEGIN EXCLUSIVE")
        refused("locked", "database is locked")
    assert capfd.readouterr() == ("", "")  # MLflow would log tracebacks


def test_a_lock_that_another_holds_is_told(bundles, uri, name, monkeypatch):
    import fcntl

    register(bundles[0], name, uri)
    monkeypatch.setattr("models.predictors.registry_store._LOCK_SECONDS", 0.1)
    place = uri.removeprefix("sqlite:///")
    with open(f"{place}.lock", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for call in (lambda: list_versions(name, uri), lambda: set_alias(name, "canary", 1, uri)):
            with pytest.raises(RegistryError, match=f"registry {place}: another process holds {place}.lock; try again"):
                call()


@pytest.mark.parametrize(
    "text", ["registry.db", "sqlite://", "sqlite:registry.db", "", "nope://user:hunter22@host", "/a/b"]
)
def test_what_is_no_uri_is_refused_without_its_secrets(text):
    with pytest.raises(RegistryError, match="is no URI of one: write sqlite:///PATH") as caught:
        check_registry(text, create=True)
    assert "hunter22" not in str(caught.value)


def test_a_place_where_no_registry_can_be_made_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RegistryError, match=r"file/x/registry\.db: can't be made: .*/file is no folder"):
        check_registry(f"sqlite:///{tmp_path}/file/x/registry.db", create=True)
    check_registry(f"sqlite:///{tmp_path}/new/x/registry.db", create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_server_that_is_not_there_is_told_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=r"^registry http://\*\*\*@127\.0\.0\.1:1: Connection refused$"):
        list_versions("any", "http://user:hunter22@127.0.0.1:1")
