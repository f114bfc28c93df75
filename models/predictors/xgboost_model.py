"""Models of XGBoost's, asked by its C API: a row alone costs less than half of what `Booster.inplace_predict` takes.

That looks at each call which library its input is of, and writes its configuration once more. The function, its
configuration and the bits are the same: https://xgboost.readthedocs.io/en/stable/dev/group__Prediction.html.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math

import numpy as np
import numpy.typing as npt
import xgboost
from xgboost.libpath import find_lib_path

_CONFIG = json.dumps(
    {
        "type": 0,  # what `predict` gives: not the margin
        "training": False,
        "iteration_begin": 0,
        "iteration_end": 0,  # all trees
        "missing": math.nan,
        "strict_shape": False,
        "cache_id": 0,
    }
).encode()
_Sizes = ctypes.POINTER(ctypes.c_uint64)
_Floats = ctypes.POINTER(ctypes.c_float)


class XGBoostModel:
    """A booster with the part of its methods that scoring needs."""

    def __init__(self, content: bytes, nthread: int = 1) -> None:
        """Load trusted bytes; ValueError where XGBoost can't read them."""
        self.booster = xgboost.Booster({"nthread": nthread}, model_file=bytearray(content))
        self._features = int(self.booster.num_features())
        self.feature_names: list[str] | None = self.booster.feature_names

    def num_features(self) -> int:
        """How many features it has."""
        return self._features

    def inplace_predict(
        self, features: npt.NDArray[np.float32], validate_features: bool = False
    ) -> npt.NDArray[np.float32]:
        """What it says of each row, float32 [n], or [n, o] of several outputs; rows are float32 and C-contiguous.

        XGBoostError, a ValueError, if it can't.
        """
        library, (rows, width) = _library(), features.shape
        array = b'{"data":[%d,true],"strides":null,"typestr":"<f4","shape":[%d,%d],"version":3}'
        shape, sizes, found = _Sizes(), ctypes.c_uint64(), _Floats()
        failed = library.XGBoosterPredictFromDense(
            self.booster.handle,
            array % (features.ctypes.data, rows, width),
            _CONFIG,
            None,
            ctypes.byref(shape),
            ctypes.byref(sizes),
            ctypes.byref(found),
        )
        if failed:
            raise xgboost.core.XGBoostError(library.XGBGetLastError().decode())
        place = shape[: sizes.value]
        values = np.ctypeslib.as_array(found, place).copy()  # which the next call writes over
        return values


@functools.cache
def _library() -> ctypes.CDLL:
    """XGBoost's, which its package has loaded."""
    library = ctypes.CDLL(find_lib_path()[0])
    library.XGBGetLastError.restype = ctypes.c_char_p
    library.XGBoosterPredictFromDense.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.POINTER(_Sizes),
        ctypes.POINTER(ctypes.c_uint64),
        ctypes.POINTER(_Floats),
    ]
    return library
