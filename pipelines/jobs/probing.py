"""Read a model from elsewhere in a process that may end of it: from standard input, by the library that is named.

    python -m pipelines.jobs.probing LIBRARY

XGBoost and LightGBM may end the process on bytes that are none of their models, and follow the places in their trees
without looking. What is checked goes to standard output, for models.predictors.foreign. Only the library that is named
is imported.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

import numpy as np

from pipelines.lean import EXTRAS, absent

if TYPE_CHECKING:
    from models.predictors.booster import Predictor


def _check_xgboost(content: bytes) -> bytes:
    with absent(EXTRAS):
        import xgboost

    from models.predictors.tree_checks import check_trees

    frame = json.loads(xgboost.Booster({"nthread": 1}, model_file=bytearray(content)).save_raw("json"))
    check_trees(frame)
    checked = xgboost.Booster({"nthread": 1}, model_file=bytearray(json.dumps(frame).encode()))
    _try(checked)
    return bytes(checked.save_raw("ubj"))


def _check_lightgbm(content: bytes) -> bytes:
    from models.predictors.lightgbm_model import LightGBMModel, check_text

    with absent(EXTRAS):
        text = LightGBMModel(content).text()
    check_text(text)
    _try(LightGBMModel(text.encode()))
    return text.encode()


def _check_onnx(content: bytes) -> bytes:
    from models.predictors.onnx_model import OnnxModel, check_onnx

    check_onnx(content)
    _try(OnnxModel(content))
    return content


def _check_skops(content: bytes) -> bytes:
    from models.predictors.skops_model import SkopsModel

    _try(SkopsModel(content))
    return content


def _try(model: Predictor) -> None:
    with contextlib.suppress(ValueError):  # xgboost's, too; of which the parent tells more
        model.inplace_predict(np.full((2, model.num_features()), np.nan, np.float32), validate_features=False)


CHECKS = {"xgboost": _check_xgboost, "lightgbm": _check_lightgbm, "onnxruntime": _check_onnx, "skops": _check_skops}

if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # onnxruntime prints
        checked = CHECKS[sys.argv[1]](sys.stdin.buffer.read())
    sys.stdout.buffer.write(checked)
