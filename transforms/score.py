"""Score: features to a score by the bundle's model, and the score to an action by the bands."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa

from models.batches import column, is_provisional
from models.metrics import ROWS, SCORES
from models.predictors.booster import Scorer
from models.project.declarations import Project
from models.quality.calibration import Calibration, is_estimated
from models.quality.expectations import Calibrations, no_calibration
from models.record import (
    MARKS,
    PUBLISHED,
)
from models.rollout.apply import Bundles, score_released, score_shadows
from models.rollout.instead import needs_instead, score_instead
from models.score import decided, live_rows, score_batch, stream_columns, with_columns
from transforms.metrics import count


@dataclasses.dataclass(eq=False)
class Score(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[pa.RecordBatch]]):
    """Batches with features → score rows, without a scorer rows of features; events that are history are left out.

    `reason_codes` is how many of the features that moved a score most are named with it; 0 for none.
    With `keep_marks`, rows keep their marks, for transforms.correct. With `bundles`, each event is scored by the bundle
    that AssignReleases gave it, and `scorer` and `bundle_id` are not looked at.
    """

    project: Project
    scorer: Scorer | None
    bundle_id: str
    reason_codes: int = 0
    keep_marks: bool = False
    bundles: Bundles | None = None

    @property
    def calibrations(self) -> Calibrations:
        """What scores of each bundle mean, where that was learned and the project declares estimates."""
        if not is_estimated(self.project):
            return no_calibration
        if self.bundles is not None:
            return functools.partial(_calibration_of, self.bundles)
        found = {self.bundle_id: self.scorer.calibration} if self.scorer else {}
        return functools.partial(dict.get, found)

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Batches of score rows, see `score_batch`."""
        return pcoll | "Score" >> beam.FlatMap(self._score).with_output_types(pa.RecordBatch)

    def _score(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        current = live_rows(batch)
        if current.num_rows:
            count(ROWS, current.num_rows, step="scored")
            if self.bundles is None:
                rows = score_batch(current, self.project, self.scorer, self.bundle_id, self.reason_codes)
            else:
                rows = score_released(current, self.project, self.bundles, self.reason_codes)
                if needs_instead(self.project):
                    instead = score_instead(current, rows, self.project, self.bundles, self.reason_codes)
                    rows = with_columns(rows, instead)
            if PUBLISHED in current.schema.names:
                rows = with_columns(rows, stream_columns(current))
            if self.keep_marks:
                rows = with_columns(rows, {MARKS: column(current, MARKS)})
            if not is_provisional(current):
                for (decision, bundle), number in decided(rows):
                    count(SCORES, number, decision=decision, bundle=bundle)
            yield rows


def _calibration_of(bundles: Bundles, bundle_id: str) -> Calibration | None:
    scorer = bundles(bundle_id)
    return scorer.calibration if scorer else None


@dataclasses.dataclass(eq=False)
class ScoreShadows(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[pa.RecordBatch]]):
    """Events with their releases → the score rows of the releases' shadows, a batch a bundle.

    Rows have no times by the clock; what is provisional is left out.
    """

    project: Project
    bundles: Bundles

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Batches of score rows, see `score_shadows`."""
        return pcoll | "Score" >> beam.FlatMap(self._score).with_output_types(pa.RecordBatch)

    def _score(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        current = live_rows(batch)
        if current.num_rows and not is_provisional(current):
            for rows in score_shadows(current, self.project, self.bundles):
                count(ROWS, rows.num_rows, step="shadowed")
                yield rows
