"""Models of scikit-learn's in skops' format, which holds no code: those whose types have been looked at.

Trees of scikit-learn's are not among them: it follows the places of their nodes without looking, so that a file that is
made for it can read any memory. XGBoost does, too: its trees are checked by models.predictors.tree_checks.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_UNPACKED = 256 << 20
# What skops does not trust of itself, and is but data: types of arrays, and the state of an MLP's training.
TRUSTED = (
    "numpy.dtype",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)


class SkopsModel:
    """An estimator with the part of a Booster's methods that scoring needs."""

    def __init__(self, content: bytes) -> None:
        """Load a file; ValueError where it is none, is too large, or holds what is not trusted."""
        import skops.io  # its import takes a second
        from skops.io.exceptions import UntrustedTypesFoundException

        try:
            unpacked = sum(part.file_size for part in zipfile.ZipFile(io.BytesIO(content)).infolist())
            if unpacked > MAX_UNPACKED:
                raise ValueError(f"it unpacks to {unpacked} bytes, at most {MAX_UNPACKED} are allowed")
            untrusted = sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED))
            if untrusted:
                raise ValueError(f"it holds {', '.join(untrusted)}, which may do anything when it is loaded or scores")
            self._model: Any = skops.io.loads(content, trusted=list(TRUSTED))
        except (zipfile.BadZipFile, UntrustedTypesFoundException, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no file of skops': {type(error).__name__}: {error}") from error
        names = getattr(self._model, "feature_names_in_", None)
        if names is None and hasattr(self._model, "steps"):
            names = getattr(self._model.steps[0][1], "feature_names_in_", None)
        self.feature_names: list[str] | None = None if names is None else list(map(str, names))
        self.classes: list[Any] | None = None
        if hasattr(self._model, "predict_proba"):
            self.classes = np.asarray(self._model.classes_).tolist()

    def num_features(self) -> int:
        """How many features it has."""
        return len(self.feature_names or ())

    def inplace_predict(self, features: npt.NDArray[np.float32], validate_features: bool = False) -> npt.NDArray[Any]:
        """The probability of the second of two classes, [n], of each of several, [n, o], or a value, [n]."""
        import pandas as pd

        rows = pd.DataFrame(features, columns=self.feature_names)
        if self.classes is None:
            return np.asarray(self._model.predict(rows)).reshape(len(features), -1)[:, 0]
        every = np.asarray(self._model.predict_proba(rows))
        return every[:, 1] if len(self.classes) == 2 else every
