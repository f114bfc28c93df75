"""A baseline goes with its bundle, and changes nothing else of it."""

import dataclasses
import json

import numpy as np
import pytest

from models.predictors import registry
from models.predictors.bundle import Bundle, BundleError
from models.predictors.training import fit, golden, model_bytes
from models.quality.window_statistics import MAX_BASELINE_BYTES
from tests.kit.bundles import BUNDLE, rewrite

pytestmark = pytest.mark.slow

WITH = dataclasses.replace(BUNDLE, baseline=b'{"format":1}\n')


def test_a_baseline_comes_back(tmp_path):
    WITH.save(tmp_path / "one")
    loaded = Bundle.load(tmp_path / "one", expected_id=BUNDLE.bundle_id)
    assert loaded.baseline == WITH.baseline
    assert WITH.bundle_id == BUNDLE.bundle_id
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_bytes())
    assert manifest["files"]["baseline.json"]["bytes"] == len(WITH.baseline)
    loaded.save(tmp_path / "two")
    assert (tmp_path / "two" / "baseline.json").read_bytes() == WITH.baseline


def test_a_bundle_without_one_has_none(tmp_path):
    BUNDLE.save(tmp_path / "one")
    assert not (tmp_path / "one" / "baseline.json").exists()
    assert Bundle.load(tmp_path / "one").baseline is None


def test_a_baseline_that_is_damaged_missing_or_too_large_is_refused(tmp_path):
    WITH.save(tmp_path / "one")
    (tmp_path / "one" / "baseline.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"baseline\.json"):
        Bundle.load(tmp_path / "one")
    (tmp_path / "one" / "baseline.json").unlink()
    with pytest.raises(BundleError, match=r"baseline\.json: no such file"):
        Bundle.load(tmp_path / "one")
    large = dataclasses.replace(BUNDLE, baseline=bytes(MAX_BASELINE_BYTES + 1))
    with pytest.raises(BundleError, match=r"baseline\.json: 4194305 bytes, at most 4194304"):
        large.save(tmp_path / "large")
    WITH.save(tmp_path / "two")
    rewrite(tmp_path / "two", "baseline.json", bytes(MAX_BASELINE_BYTES + 1))
    with pytest.raises(BundleError, match="at most"):
        Bundle.load(tmp_path / "two")


def test_a_registered_bundle_gets_a_baseline(tmp_path):
    features = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    model = model_bytes(fit(features, features[:, 0] > 0, {"n_estimators": 2}, feature_names=BUNDLE.feature_names))
    rows, scores = golden(model, features)
    bundle = dataclasses.replace(BUNDLE, model=model, golden_features=rows, golden_scores=scores)
    uri = f"sqlite:///{tmp_path}/registry.db"
    assert registry.register(bundle, "name", uri) == 1
    assert registry.load("name", 1, uri).baseline is None
    for content in (b"one\n", b"another\n"):
        assert registry.set_baseline("name", "champion", content, uri) == 1
        loaded = registry.load("name", 1, uri)
        assert (loaded.baseline, loaded.bundle_id, loaded.model) == (content, bundle.bundle_id, model)
    with pytest.raises(registry.RegistryError):
        registry.set_baseline("name", 2, b"", uri)
