"""A bundle in Beam's RunInference, for pipelines that only want scores."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from models.predictors.booster import ModelMismatch, Scorer
from models.predictors.bundle import Bundle

Rows = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A proven model, and whose it is."""

    scorer: Scorer
    bundle_id: str


class BundleHandler(ModelHandler[Rows, PredictionResult, Loaded]):
    """Features float32[k], or a block of rows float32[n, k], in the bundle's order, NaN where missing → scores.

    The inference of a row is a float32, that of a block float32[n]; the model id is the bundle's. All elements that
    Beam hands over at once are scored in one call, and a row's bits do not depend on the others'.

    With RunInference's `model_metadata_pcoll`, a model id is the folder of a saved bundle, which takes the place of the
    one before: its files are checked by size, digest and golden scores where it is loaded.

    Raises:
        BundleError: if a folder does not hold a bundle as it was saved.
        ModelError: if a model is damaged, does not give its golden scores, or has other features than the first.
        ValueError: of elements that are not float32, or do not have k columns.
    """

    def __init__(self, bundle: Bundle, nthread: int = 1, **batching: int) -> None:
        """`batching` as Beam has it: min_batch_size, max_batch_size, max_batch_duration_secs, ..."""
        super().__init__(**batching)
        self._bundle = bundle
        self._nthread = nthread
        self._folder: str | None = None

    def update_model_path(self, model_path: str | None = None) -> None:
        """The folder of the bundle that is loaded next."""
        self._folder = model_path or self._folder

    def load_model(self) -> Loaded:
        """The model of the newest bundle."""
        bundle = self._bundle if self._folder is None else Bundle.load(pathlib.Path(self._folder))
        if bundle.feature_names != self._bundle.feature_names:
            raise ModelMismatch(f"{self._folder}: its features are not those of bundle {self._bundle.bundle_id}")
        return Loaded(Scorer.from_bundle(bundle, self._nthread), bundle.bundle_id)

    def run_inference(
        self, batch: Sequence[Rows], model: Loaded, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """One call of the model for all elements."""
        blocks = [np.atleast_2d(rows) for rows in batch]
        scores = np.split(model.scorer.score(np.concatenate(blocks)), np.cumsum([len(block) for block in blocks])[:-1])
        for rows, own in zip(batch, scores, strict=True):
            yield PredictionResult(rows, own if np.ndim(rows) == 2 else own[0], model.bundle_id)

    def get_num_bytes(self, batch: Sequence[Rows]) -> int:
        """Bytes of the features."""
        return sum(rows.nbytes for rows in batch)

    def get_metrics_namespace(self) -> str:
        """Where Beam counts."""
        return "headrace_inference"
