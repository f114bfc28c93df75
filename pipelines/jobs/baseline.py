"""`headrace baseline`: what windows are compared with, made anew from files."""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from typing import NamedTuple

from models.codecs.times import micros_of
from models.partitions import Span
from models.predictors.booster import Scorer
from models.predictors.bundle import Bundle
from models.quality.calibration import calibrate_scores, is_estimated
from models.quality.parts import make_baseline
from pipelines.config import RunSpec
from pipelines.graph import GraphConfig
from pipelines.jobs.files import open_files
from pipelines.jobs.score import in_any_order, run_graph
from pipelines.results import RunError, evaluated_columns, read_evaluated, read_kind
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.listed import SCORES
from transforms.score import Score


class Made(NamedTuple):
    """A baseline and a calibration, None where none is declared or labels are too few, and of how many rows."""

    baseline: bytes | None
    calibration: bytes | None
    rows: int
    labelled: int


def compute_baseline(spec: RunSpec, bundle: Bundle) -> Made:
    """The baseline of score rows in the spec's span, and the calibration of those whose label is known.

    Scores of the events that a model was trained on are too good: they are left out if the spec says no time.
    """
    project, span = spec.project, spec.span
    if span.start_us is None and (known := bundle.metadata.get("train_to") or bundle.metadata.get("test_from")):
        span = dataclasses.replace(span, start_us=micros_of(datetime.datetime.fromisoformat(known)))
    if project.quality is None and not is_estimated(project):
        raise RunError(f"{project.name} declares neither quality nor label_metrics.estimate")
    return in_any_order(lambda sort: _compute(spec, span, bundle, sort))


def _compute(spec: RunSpec, span: Span, bundle: Bundle, sort: bool) -> Made:
    project = spec.project
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        source = open_files(spec, sort=sort)
        score = Score(project, Scorer.from_bundle(bundle, nthread=spec.threads_of_call), bundle.bundle_id)
        sink = WriteFiles(scratch, project.event.id, project.event.time, source_format=source.format)
        run_graph(GraphConfig(project, source, score, sink, span=span), spec.runner, (), "scoring the baseline")
        table = read_kind(scratch, SCORES)
        if not table.num_rows:
            raise RunError("no event is left for a baseline: of those given, none is later than the model's training")
        baseline = make_baseline(table.to_batches(), project) if project.quality else None
        evaluated = read_evaluated(scratch, project, spec.labels) if is_estimated(project) else None
        if evaluated is None:
            return Made(baseline, None, table.num_rows, 0)
        calibration = calibrate_scores(*evaluated_columns(evaluated, project), project)
        content = calibration.to_json() if calibration else None
        return Made(baseline, content, table.num_rows, evaluated.num_rows)
