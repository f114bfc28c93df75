"""The graph: events in, scores and dead letters out. It is the same over files and over streams."""

from __future__ import annotations

import apache_beam as beam

from pipelines.options import GraphConfig
from transforms.correct import Correct
from transforms.count import CountEvents
from transforms.dead_letters import DropKnown
from transforms.decode import DEAD, Decode
from transforms.deduplicate import Deduplicate
from transforms.features import ComputeFeatures
from transforms.validate import Validate


def build(pipeline: beam.Pipeline, config: GraphConfig) -> beam.PCollection:
    """Read → Decode → Validate → Deduplicate → Features → Score (or collect examples) → Write."""
    raw = pipeline | "Read" >> config.source
    decoded = raw | "Decode" >> Decode(config.project)
    valid = decoded.rows | "Validate" >> Validate(config.project, config.score_from_us)
    unique = valid.rows | "Deduplicate" >> Deduplicate(config.project, config.shards, config.lateness_us)
    featured = unique.rows | "Features" >> ComputeFeatures(config.project, config.shards, config.lateness_us)
    rows = featured | "Score" >> config.score
    if config.at_arrival:
        rows = rows | "Correct" >> Correct(config.project, config.shards)
    refused = (decoded[DEAD], valid[DEAD], unique[DEAD]) | "Dead letters" >> beam.Flatten()
    dead = refused | "News" >> DropKnown()
    read = raw | "Count read" >> CountEvents("read")
    past = (featured, refused) | "Past" >> beam.Flatten()
    history = past | "Count history" >> CountEvents("history", history_only=True)
    counts = (read, history) | "Counts" >> beam.Flatten()
    return {"scores": rows, "dead_letters": dead, "counts": counts} | "Write" >> config.sink
