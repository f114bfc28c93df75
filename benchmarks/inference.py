"""headrace's ModelHandler beside Beam's own for XGBoost, in RunInference on FnApiRunner: equal scores, then rates.

    pip install --no-deps --target build/datatable datatable   # Beam's module imports it, whatever handler is used
    PYTHONPATH=build/datatable:. python benchmarks/inference.py

Elements are single rows, then blocks of rows. Rates are rows a second of processor time, of all that a pipeline does.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of XGBoost, for both
warnings.simplefilter("ignore")

import apache_beam as beam  # noqa: E402
import numpy as np  # noqa: E402
import xgboost  # noqa: E402
from apache_beam.ml.inference.base import ModelHandler, RunInference  # noqa: E402

from models.predictors.bundle import Bundle  # noqa: E402
from pipelines.inference import BundleHandler  # noqa: E402
from pipelines.runners import FN_API, make_pipeline  # noqa: E402

NAMES = tuple(f"feature_{n}" for n in range(15))
_found: list[Any] = []


def _collect(result: Any) -> None:
    _found.append((result.example, result.inference))


def train() -> Bundle:
    """A bundle of 100 trees of depth 6 on random numbers."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(5000, len(NAMES))).astype(np.float32)
    labels = (rows @ random.normal(size=len(NAMES)) + random.normal(size=len(rows)) > 0).astype(int)
    settings = {"objective": "binary:logistic", "max_depth": 6, "nthread": 1}
    booster = xgboost.train(settings, xgboost.DMatrix(rows, labels, feature_names=list(NAMES)), 100)
    return Bundle(
        schema=b"",
        project=b"name: benchmark\n",
        feature_definitions=b"{}",
        model=bytes(booster.save_raw("ubj")),
        feature_names=NAMES,
        golden_features=rows[:8],
        golden_scores=booster.inplace_predict(rows[:8]),
        metadata={},
    )


def run(handler: ModelHandler, elements: Sequence[Any], **options: Any) -> tuple[list[bytes], float]:
    """The bits of all scores, in the order of the elements' numbers, and processor seconds."""
    _found.clear()
    started = time.process_time()
    with make_pipeline(FN_API, []) as pipeline:
        pipeline | beam.Create(elements) | RunInference(handler, **options) | beam.Map(_collect)
    seconds = time.process_time() - started
    return sorted(np.atleast_1d(scores).astype(np.float32).tobytes() for _, scores in _found), seconds


def main() -> None:
    """Print scores' equality, and rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=5)
    flags = parser.parse_args()

    from apache_beam.ml.inference.xgboost_inference import XGBoostModelHandlerNumpy

    bundle = train()
    rows = np.random.default_rng(1).normal(size=(flags.rows, len(NAMES))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "model.ubj"
        model.write_bytes(bundle.model)
        for size in (1, 1000):
            # Beam's takes a matrix for each element, and has no names to compare with the model's. With a Booster it
            # answers with DMatrix, which no runner can encode; a regressor of a logistic model gives the same scores.
            blocks = np.split(rows, range(size, len(rows), size))
            rates: dict[str, list[float]] = {"headrace": [], "Beam": []}
            for _ in range(flags.pairs):
                ours, own = run(BundleHandler(bundle), [block[0] for block in blocks] if size == 1 else blocks)
                handler = XGBoostModelHandlerNumpy(model_class=xgboost.XGBRegressor, model_state=str(model))
                theirs, beams = run(handler, blocks, inference_args={"validate_features": False})
                if ours != theirs:
                    raise SystemExit("the scores differ")
                rates["headrace"].append(len(rows) / own)
                rates["Beam"].append(len(rows) / beams)
            ratios = sorted(a / b for a, b in zip(rates["headrace"], rates["Beam"], strict=True))
            figures = ", ".join(f"{name} {statistics.median(found):,.0f} rows/s" for name, found in rates.items())
            print(f"elements of {size} rows, equal scores: {figures}; ratio {statistics.median(ratios):.2f} "
                  f"({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
