"""Calibrations for tests, the small project of tests.kit.labelled with estimates, and other kinds of targets."""

import numpy as np

from models.quality.calibration import Calibration, calibrate_scores
from tests.kit.declared import declared
from tests.kit.labelled import SCHEMA, TEXT

ESTIMATED_TEXT = TEXT.replace("{window: 2d}", "{window: 2d, estimate: true}")
ESTIMATED = declared(ESTIMATED_TEXT, SCHEMA)
_NUMBERS = ESTIMATED_TEXT[: ESTIMATED_TEXT.index("decisions:")].replace(
    'metrics: {top2: "precision_at_k(card, 2)"}', ""
)
_METRICS = "label_metrics: {window: 2d, estimate: true}\n"
OF_KIND = {
    "binary": ESTIMATED,
    "multiclass": declared(
        _NUMBERS + "target: multiclass\n" + _METRICS,
        SCHEMA.replace(
            '"fraud" type: INT int_domain { min: 0 max: 1 }', '"fraud" type: INT int_domain { min: 0 max: 2 }'
        ),
    ),
    "regression": declared(
        _NUMBERS + "target: regression\n" + _METRICS,
        SCHEMA.replace('"fraud" type: INT int_domain { min: 0 max: 1 }', '"fraud" type: FLOAT'),
    ),
}


def draw(kind: str, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and outputs float32 of a model that says too much or too little, as the share of positives is its square.

    Of numbers the error grows to both sides.
    """
    chosen = np.random.default_rng(seed)
    if kind == "binary":
        scores = chosen.beta(1, 4, rows)
        return (chosen.random(rows) < scores**2).astype(np.int64), scores.astype(np.float32)
    if kind == "multiclass":
        said = chosen.gamma([1.0, 0.8, 0.6], 1, (rows, 3))
        said /= said.sum(axis=1, keepdims=True)
        true = said**2 + 0.02
        true /= true.sum(axis=1, keepdims=True)
        label = (chosen.random((rows, 1)) > true.cumsum(axis=1)).sum(axis=1)
        return np.minimum(label, 2), said.astype(np.float32)
    scores = chosen.normal(0, 2, rows)
    return scores + chosen.normal(0, 0.1 + np.abs(scores)), scores.astype(np.float32)


def calibrated(kind: str = "binary", rows: int = 5000, seed: int = 7) -> Calibration:
    """The calibration of such a model."""
    found = calibrate_scores(*draw(kind, rows, seed), OF_KIND[kind])
    assert found is not None
    return found
