"""A stream from messages at hand, through the whole graph."""

import dataclasses

import apache_beam as beam
import pyarrow as pa

from models.features.row import horizon_us
from models.predictors.encoders import NO_ENCODERS
from pipelines.graph import GraphConfig, build
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from tests.kit.given import Given
from tests.kit.support import card_fraud, read_output, read_stream, tiny_scorer
from transforms.metrics import read
from transforms.score import Score

SECOND = 1_000_000


DAY = 86_400 * SECOND


_found: dict[str, list] = {}


METRICS = {}  # of the last stream


def _keep(batch, kind):
    _found[kind].append(batch)


class Collect(beam.PTransform):
    def expand(self, pcolls):
        for kind in [kind for kind in _found if kind in pcolls]:
            pcolls[kind] | kind >> beam.Map(_keep, kind)


def stream(payloads, allowance_us, at_arrival, seed=0, project=None, scorer=None, store=None, **options):
    project = project or card_fraud()
    _found.update(scores=[], dead_letters=[], fallback=[])
    source = read_stream(
        project,
        Given(payloads, seed),
        allowance_us,
        idle_us=300_000,
        until_idle=True,
        horizon_us=horizon_us(project, DAY),
        at_arrival=at_arrival,
        **options,
    )
    scorer = scorer or (tiny_scorer(project.model.inputs) if project.has_model else None)
    score = Score(project, scorer, "bundle", keep_marks=at_arrival)
    pipeline = make_pipeline("DirectRunner", [])
    config = GraphConfig(project, source, score, Collect(), lateness_us=DAY, at_arrival=at_arrival, store=store)
    build(pipeline, dataclasses.replace(config, encoders=scorer.encoders if scorer else NO_ENCODERS))
    METRICS.clear()
    METRICS.update(read(pipeline.run().metrics()))
    return [pa.Table.from_batches(_found[k]) if _found[k] else None for k in ("scores", "dead_letters")]


def stream_to_folder(folder, broker, project, allowance_us, idle_us, **options):
    """Score all there is, with a journal, until nothing has come for so long; what it wrote."""
    source = read_stream(
        project,
        broker,
        allowance_us,
        idle_us=idle_us,
        until_idle=True,
        journal=str(folder / "journal"),
        horizon_us=horizon_us(project, DAY),
        **options,
    )
    pipeline = make_pipeline("DirectRunner", [])
    sink = WriteFiles(str(folder / "stream"), project.event.id, project.event.time)
    score = Score(project, tiny_scorer(project.model.inputs), "bundle")
    build(pipeline, GraphConfig(project, source, score, sink, lateness_us=DAY))
    pipeline.run().wait_until_finish()
    return read_output(folder / "stream")


def unscored():
    """The rows with the fallback decision of the last stream."""
    return pa.Table.from_batches(_found["fallback"]) if _found["fallback"] else None
