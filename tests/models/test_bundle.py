"""A bundle comes back as it was saved, or not at all."""

import dataclasses
import json
import pickle

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import models.predictors.bundle
from models.predictors.bundle import FILE_BYTES, Bundle, BundleError, library_versions
from tests.kit.bundles import BUNDLE, rewrite

pytestmark = pytest.mark.both_sets


@pytest.fixture
def saved(tmp_path):
    BUNDLE.save(tmp_path / "bundle")
    return tmp_path / "bundle"


def assert_same(loaded: Bundle, bundle: Bundle = BUNDLE) -> None:
    for field in dataclasses.fields(Bundle):
        found, expected = getattr(loaded, field.name), getattr(bundle, field.name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected)
            assert found.shape == expected.shape
            assert not found.flags.writeable
            numbers = ~np.isnan(expected)
            assert found[numbers].tobytes() == expected[numbers].tobytes()  # -0.0 too
        else:
            assert found == expected
    assert loaded.bundle_id == bundle.bundle_id


def test_comes_back_as_saved(saved):
    assert_same(Bundle.load(saved))
    assert_same(Bundle.load(saved, expected_id=BUNDLE.bundle_id))
    assert sorted(path.name for path in saved.iterdir()) == sorted([*FILE_BYTES, "manifest.json"])
    assert (saved / "project.yaml").read_bytes() == BUNDLE.project
    assert json.loads((saved / "manifest.json").read_bytes())["bundle_id"] == BUNDLE.bundle_id
    assert saved.stat().st_mode & 0o700 == 0o700


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    Bundle.load(saved).save(tmp_path / "again")
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


finite = st.floats(width=32, allow_infinity=False)


@given(
    hnp.arrays(np.float32, (3, 2), elements=finite),
    hnp.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)),
)
def test_every_float_comes_back(tmp_path_factory, features, scores):
    bundle = dataclasses.replace(BUNDLE, golden_features=features, golden_scores=scores)
    folder = tmp_path_factory.mktemp("floats") / "bundle"
    bundle.save(folder)
    assert_same(Bundle.load(folder), bundle)


def test_the_id_is_of_what_decides_a_score():
    def changed(**fields):
        return dataclasses.replace(BUNDLE, **fields).bundle_id

    assert len(BUNDLE.digest) == 64
    assert BUNDLE.bundle_id == BUNDLE.digest[:16] == changed()
    assert changed(metadata={}) == changed(project=b"") == BUNDLE.bundle_id
    ids = {changed(schema=b""), changed(feature_definitions=b""), changed(model=b""), BUNDLE.bundle_id}
    assert len(ids) == 4
    moved = changed(schema=BUNDLE.schema + b"{", feature_definitions=BUNDLE.feature_definitions[1:])
    assert moved != BUNDLE.bundle_id


def test_is_frozen_pickles_and_keeps_no_callers_array():
    features = np.zeros((1, 2), dtype=np.float32)
    bundle = dataclasses.replace(BUNDLE, golden_features=features, golden_scores=np.zeros(1, np.float32))
    features[0, 0] = 7
    assert bundle.golden_features[0, 0] == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        bundle.model = b""
    assert pickle.loads(pickle.dumps(bundle)).bundle_id == bundle.bundle_id


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        (
            {"golden_scores": np.zeros(3, np.float32)},
            r"golden.json: \[2, 2\] features for \[3\] scores and 2",
        ),
        ({"golden_scores": np.zeros(2)}, "golden.json: features and scores are float32 and float64"),
        ({"golden_features": np.full((2, 2), np.inf, np.float32)}, "golden.json: infinite"),
        ({"golden_scores": np.full(2, np.nan, np.float32)}, "golden.json: .* not finite"),
        ({"feature_names": ("A", "A")}, "golden.json: a feature name comes twice"),
        ({"metadata": {"a": {1, 2}}}, "metadata.json: .*set is not JSON serializable"),
        ({"metadata": {"a": float("nan")}}, "metadata.json: Out of range"),
    ],
)
def test_cannot_be_made_of_what_does_not_fit(fields, fault):
    with pytest.raises(BundleError, match=fault):
        dataclasses.replace(BUNDLE, **fields)


@pytest.mark.parametrize("name", FILE_BYTES)
def test_damage_is_named(saved, name):
    path = saved / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name}: is .*sha256"):
        Bundle.load(saved)
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{name}: is .*'bytes': {len(content) - 1}.* says .*{len(content)}"):
        Bundle.load(saved)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name}: no such file"):
        Bundle.load(saved)
    path.mkdir()
    with pytest.raises(BundleError, match=f"{name}: no such file"):
        Bundle.load(saved)


@pytest.mark.parametrize("name", [*FILE_BYTES, "manifest.json"])
def test_what_is_too_large_is_not_read(saved, name):
    with (saved / name).open("r+b") as file:
        file.truncate(300 << 20)  # sparse
    with pytest.raises(BundleError, match=f"{name}: 314572800 bytes, at most"):
        Bundle.load(saved)


@pytest.mark.parametrize(
    ("manifest", "fault"),
    [
        (b"", "Expecting value"),
        (b"[" * 60_000, "recursion"),
        (b"[1]", "not of format 1"),
        (b'{"format": 2}', "not of format 1"),
        (b'{"format": NaN}', "NaN is not JSON"),
        (b'{"format": 1, "files": {"../../etc/passwd": {}}}', "does not list exactly schema.pbtxt, project"),
        (b"\xff\xfe\x00", "codec can't decode"),
    ],
)
def test_a_manifest_that_is_none_is_named(saved, manifest, fault):
    (saved / "manifest.json").write_bytes(manifest)
    with pytest.raises(BundleError, match=rf"manifest\.json: .*{fault}"):
        Bundle.load(saved)


@pytest.mark.parametrize(
    "golden",
    [
        b"[]",
        b"{}",
        b"null",
        b'{"feature_names": ["A", "B"], "features": [[1]], "scores": [0.5]}',
        b'{"feature_names": ["A", "B"], "features": [[1, "x"]], "scores": [0.5]}',
        b'{"feature_names": ["A", "B"], "features": [[1, 1e999]], "scores": [0.5]}',
        b'{"feature_names": ["A", "B"], "features": [[1, 2]], "scores": [null]}',
        b'{"feature_names": ["A", "B"], "features": [[1, 2]], "scores": [1' + b"0" * 400 + b"]}",
        b'{"feature_names": ["A", "B"], "features": [], "scores": []}',
        b'{"feature_names": 3, "features": [[1, 2]], "scores": [0.5]}',
    ],
)
def test_golden_rows_that_are_none_are_named(saved, golden):
    rewrite(saved, "golden.json", golden)
    with pytest.raises(BundleError, match=r"golden\.json: "):
        Bundle.load(saved)


def test_a_bundle_put_together_from_two_has_another_id(saved):
    rewrite(saved, "schema.pbtxt", b"feature {}")
    with pytest.raises(BundleError, match=r"manifest\.json: the bundle id of these files is"):
        Bundle.load(saved)


def test_another_bundle_than_expected_is_refused(saved):
    with pytest.raises(BundleError, match=f"holds bundle {BUNDLE.bundle_id}, 0123 is expected"):
        Bundle.load(saved, expected_id="0123")
    rewrite(saved, "metadata.json", b"[]")
    with pytest.raises(BundleError, match=r"metadata\.json: not an object"):
        Bundle.load(saved)
    with pytest.raises(BundleError, match=r"manifest\.json: no such file in .*nowhere"):
        Bundle.load(saved / "nowhere")


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "bundle"

    def refuse(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(models.predictors.bundle.os, "fsync", refuse)
        with pytest.raises(OSError, match="disk full"):
            BUNDLE.save(folder)
    assert list(folder.parent.iterdir()) == []
    with monkeypatch.context() as patched:
        patched.setitem(FILE_BYTES, "model.ubj", 100)
        with pytest.raises(BundleError, match=r"model\.ubj: 5120 bytes, at most 100 are allowed"):
            BUNDLE.save(folder)
    BUNDLE.save(folder)
    with pytest.raises(BundleError, match="exists already"):
        BUNDLE.save(folder)
    assert_same(Bundle.load(folder))


def test_library_versions():
    assert library_versions(["numpy"]) == {"numpy": np.__version__}
    assert library_versions()["xgboost"].startswith("3.")
