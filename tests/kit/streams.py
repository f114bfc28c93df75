"""A stream from messages at hand, through the whole graph."""

import apache_beam as beam
import pyarrow as pa

from models.features.row import horizon_us
from pipelines.config import GraphConfig, make_pipeline
from pipelines.graph import build
from tests.kit.given import Given
from tests.kit.support import card_fraud, read_stream, tiny_scorer
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
        for kind in ("scores", "dead_letters"):
            pcolls[kind] | kind >> beam.Map(_keep, kind)


def stream(payloads, allowance_us, at_arrival, seed=0, project=None, **options):
    project = project or card_fraud()
    _found.update(scores=[], dead_letters=[])
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
    score = Score(project, tiny_scorer(project.model.inputs), "bundle", keep_marks=at_arrival)
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, GraphConfig(project, source, score, Collect(), lateness_us=DAY, at_arrival=at_arrival))
    METRICS.clear()
    METRICS.update(read(pipeline.run().metrics()))
    return [pa.Table.from_batches(_found[k]) if _found[k] else None for k in ("scores", "dead_letters")]
