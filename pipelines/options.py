"""What a run is told, made into one frozen configuration: project, source, sink and what is done between."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from models.project import Project

DIRECT = "DirectRunner"
DEFAULT_SHARDS = 4


@dataclasses.dataclass(frozen=True)
class GraphConfig:
    """All that the graph is built from."""

    project: Project
    source: beam.PTransform
    score: beam.PTransform
    sink: beam.PTransform
    shards: int = DEFAULT_SHARDS
    score_from_us: int | None = None


def make_pipeline(runner: str, beam_args: Sequence[str]) -> beam.Pipeline:
    """A pipeline for `runner` with Beam's own options; DirectRunner is the in-process FnApiRunner.

    Beam's DirectRunner would choose between three engines by what it finds in the graph, one of which can't
    run unbounded splittable DoFns and one of which is a program to be downloaded.
    """
    if runner != DIRECT:
        return beam.Pipeline(options=PipelineOptions([*beam_args, f"--runner={runner}"]))
    # Beam's own cache of state weighs every value it holds; transforms.rolling keeps what it needs itself.
    options = PipelineOptions(["--max_cache_memory_usage_mb=0", *beam_args])
    return beam.Pipeline(runner=FnApiRunner(), options=options)
