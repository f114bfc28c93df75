"""What a run is told, made into one frozen configuration: project, source, sink and what is done between."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, TestOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from models.project.project import Project
from pipelines.runners import DATAFLOW, DIRECT, FLINK, FN_API, PRISM
from pipelines.runners.inprocess.engine import LocalRunner
from transforms.gate import WatchScores

__all__ = ["DATAFLOW", "DEFAULT_SHARDS", "DIRECT", "FLINK", "FN_API", "GraphConfig", "make_pipeline", "unknown_options"]

IN_PROCESS = (LocalRunner, FnApiRunner)
# Where Prism splits a slow bundle of a stateful step, rows are lost or the job never ends (docs/prism.md, beam#35771).
# This turns all of its splits off.
PRISM_WITHOUT_SPLITS = "--experiments=prism_disable_sdf_split"
DEFAULT_SHARDS = 1  # more are for engines with more than one worker


@dataclasses.dataclass(frozen=True)
class GraphConfig:
    """All that the graph is built from."""

    project: Project
    source: beam.PTransform
    score: beam.PTransform
    sink: beam.PTransform
    shards: int = DEFAULT_SHARDS
    score_from_us: int | None = None
    lateness_us: int = 0  # a late event still finds all of its windows if it is no more late than this
    at_arrival: bool = False
    watch: WatchScores | None = None  # where the project declares `quality`
    alert_sinks: tuple[str, ...] = ()


def make_pipeline(runner: str, beam_args: Sequence[str]) -> beam.Pipeline:
    """A pipeline for `runner` with Beam's own options; DirectRunner is headrace's in-process engine."""
    if runner == DIRECT:
        return beam.Pipeline(runner=LocalRunner(), options=PipelineOptions(list(beam_args)))
    if runner == FN_API:
        # Beam's own cache of state weighs every value it holds; transforms.slices keeps what it needs itself.
        options = PipelineOptions(["--max_cache_memory_usage_mb=0", *beam_args])
        return beam.Pipeline(runner=FnApiRunner(), options=options)
    if runner == PRISM:
        beam_args = [*beam_args, PRISM_WITHOUT_SPLITS]
    if runner == DATAFLOW:
        from pipelines.runners.dataflow import SELF_CONTAINED

        beam_args = [*beam_args, *SELF_CONTAINED]
    return beam.Pipeline(options=PipelineOptions([*beam_args, f"--runner={runner}"]))


def is_only_made(pipeline: beam.Pipeline) -> bool:
    """Whether the options ask for a dry run or a template: nothing is read or written then."""
    dry: bool = pipeline.options.view_as(TestOptions).dry_run
    return dry or bool(pipeline.options.view_as(GoogleCloudOptions).template_location)


def unknown_options(args: Sequence[str]) -> list[str]:
    """Those of `args` that no option class of Beam's defines."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for kind in PipelineOptions.__subclasses__():
        if hasattr(kind, "_add_argparse_args"):
            with contextlib.suppress(argparse.ArgumentError):
                kind._add_argparse_args(parser)
    return parser.parse_known_args(list(args))[1]
