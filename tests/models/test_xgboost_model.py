"""What XGBoost says by its C API is what its package says, bit for bit."""

import numpy as np
import pytest
import xgboost

from models.predictors.xgboost_model import XGBoostModel

ROWS = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
ROWS[::7, 1] = np.nan
ROWS[::11, 2] = np.inf


@pytest.fixture(scope="module", params=["binary:logistic", "multi:softprob", "reg:squarederror", "reg:quantileerror"])
def booster(request):
    labels = np.random.default_rng(1).integers(0, 3 if "multi" in request.param else 2, len(ROWS))
    params = {"objective": request.param, "nthread": 1, "max_depth": 4}
    params |= {"num_class": 3} if "multi" in request.param else {}
    params |= {"quantile_alpha": [0.1, 0.9]} if "quantile" in request.param else {}
    return xgboost.train(params, xgboost.DMatrix(np.where(np.isinf(ROWS), 0, ROWS), labels), 20)


@pytest.mark.parametrize("rows", [1, 2, 300])
def test_bits_and_shapes_are_those_of_the_package(booster, rows):
    model = XGBoostModel(bytes(booster.save_raw("ubj")))
    found, expected = model.inplace_predict(ROWS[:rows]), booster.inplace_predict(ROWS[:rows])
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert (found.view(np.uint32) == expected.view(np.uint32)).all()
    kept = found.copy()
    model.inplace_predict(ROWS[::-1].copy())
    assert (found == kept).all()  # what is said next does not change it


def test_rows_of_another_width_are_refused(booster):
    with pytest.raises(ValueError, match="[Ff]eature"):
        XGBoostModel(bytes(booster.save_raw("ubj"))).inplace_predict(np.zeros((1, 4), np.float32))
