"""Bundles for tests: one that only has the form, one whose model scores, and a change by someone who means it."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xgboost

from models.predictors.booster import predict
from models.predictors.bundle import Bundle

BUNDLE = Bundle(
    schema=b'feature { name: "AMOUNT" }\n',
    project=b"name: test  # \xc3\xa9\n",
    feature_definitions=b'{"row":{}}',
    model=bytes(range(256)) * 20,
    feature_names=("AMOUNT", "NIGHT"),
    golden_features=np.array([[1.1, np.nan], [-0.0, 1e-45]], dtype=np.float32),
    golden_scores=np.array([0.1, 0.99999994], dtype=np.float32),
    metadata={"metrics": {"overall": {"roc_auc": 0.86, "rows": 10}}, "training": {"start": "2018-05-20"}},
)


@dataclasses.dataclass
class AnyBundle:
    """What a run asks of a bundle whose model a test has at hand."""

    bundle_id: str = "bundle"
    baseline: bytes | None = None


def make_bundle(names: Sequence[str], seed: int = 0) -> Bundle:
    """A bundle of a small model of these features."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(300, len(names))).astype(np.float32)
    labels = rows @ np.arange(1, len(names) + 1) + random.normal(size=300) > 0
    matrix = xgboost.DMatrix(rows, labels, feature_names=list(names))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "seed": seed}, matrix, 10)
    golden = rows[:5]
    return Bundle(
        schema=b'feature { name: "a" }\n',
        project=b"name: test\n",
        feature_definitions=b'{"row":{}}',
        model=bytes(booster.save_raw("ubj")),
        feature_names=tuple(names),
        golden_features=golden,
        golden_scores=predict(booster, golden),
        metadata={},
    )


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and make the manifest agree, as someone who means it would."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
