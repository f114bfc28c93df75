"""The engines: one profile each. It imports no Beam, so that a wrong name is told of at once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from pipelines.collector import work_as_usual
from pipelines.runners import flink, prism
from pipelines.runners.options import IN_PROCESS_READS, WORKERS, check_options
from pipelines.runners.profile import (
    NO_CACHE,
    SELF_CONTAINED,
    Args,
    Job,
    Profile,
    Reading,
    RunnerError,
    cores,
    split_options,
)

__all__ = [
    "DATAFLOW",
    "DIRECT",
    "FLINK",
    "FN_API",
    "IN_PROCESS",
    "PORTABLE",
    "PRISM",
    "RUNNERS",
    "Job",
    "Profile",
    "Reading",
    "RunnerError",
    "check_options",
    "make_pipeline",
    "profile_of",
]

IN_PROCESS = "InProcessRunner"
DIRECT = "DirectRunner"  # Beam's name of what runs in this process: an alias
FN_API = "FnApiRunner"
PRISM = "PrismRunner"
FLINK = "FlinkRunner"
PORTABLE = "PortableRunner"
DATAFLOW = "DataflowRunner"


def _make_in_process(name: str, args: Args) -> Any:
    import apache_beam as beam

    from pipelines.runners.inprocess.engine import InProcessRunner
    from pipelines.runners.views import CachedOptions

    return beam.Pipeline(runner=InProcessRunner(), options=CachedOptions(list(args)))


def _complete_in_process(args: Args, job: Job) -> list[str]:
    """The options with the number of workers; the last one of a name counts."""
    return [*args, f"--{WORKERS}={_workers_in_process(args, job.streams)}"]


def _workers_in_process(args: Args, streams: bool) -> int:
    """How many --direct_num_workers asks for, or else one a processor, and for a stream one, as its slices are small.

    RunnerError if it is no number.
    """
    text = dict(split_options(args)).get(WORKERS, "1" if streams else "0") or ""
    if not (text.isascii() and text.isdecimal()):
        raise RunnerError(f"--{WORKERS} is {text!r}: a number is needed, 0 for one worker a processor")
    return int(text) or cores()


def _check_in_process(args: Args) -> None:
    _workers_in_process(args, streams=False)


def _make_fn_api(name: str, args: Args) -> Any:
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from pipelines.runners.views import CachedOptions

    return beam.Pipeline(runner=FnApiRunner(), options=CachedOptions(list(args)))


def _dry_run_on_dataflow(args: Args) -> list[str]:
    from pipelines.runners.dataflow import dry_run_options

    return dry_run_options(args)


def _is_only_made_on_dataflow(pipeline: Any) -> bool:
    from pipelines.runners.dataflow import is_only_made

    return is_only_made(pipeline)


def _make_job_on_dataflow(pipeline: Any) -> None:
    from pipelines.runners.dataflow import make

    make(pipeline)


_NO_TRANSACTIONS = {
    "transactional": "--transactional is for the engine of this process, InProcessRunner: others do not tell when all "
    "that a slice gives is published"
}
_NO_STREAM_OPTIONS = "on Dataflow a stream comes from pubsub:// in JSON, without --{}"

RUNNERS = {
    profile.name: profile
    for profile in (
        Profile(
            IN_PROCESS,
            aliases=(DIRECT,),
            reads=IN_PROCESS_READS,
            make=_make_in_process,
            check=_check_in_process,
            complete=_complete_in_process,
            workers=_workers_in_process,
            shards=lambda workers: max(1, workers // 2),  # of which others take what comes: it need not be split
            in_order=True,
            ends_here=True,
            ours=True,
            failures=contextlib.nullcontext,  # it raises what a step raised
        ),
        Profile(
            FN_API,
            takes_known_only=True,
            complete=lambda args, job: [NO_CACHE, *args],
            make=_make_fn_api,
            ends_here=True,
            refuses=_NO_TRANSACTIONS,
        ),
        Profile(
            PRISM,
            resumes=False,
            check=prism.check,
            complete=prism.complete,
            refuses=_NO_TRANSACTIONS | {"journal": prism.NO_JOURNAL},
        ),
        Profile(
            FLINK,
            check=flink.check,
            complete=flink.complete,
            reading=Reading.CHECKPOINTED,
            refuses=_NO_TRANSACTIONS | {"journal": "on Flink, checkpoints take the place of --journal: leave it out"},
            apart=flink.runs_apart,
        ),
        Profile(PORTABLE, refuses=_NO_TRANSACTIONS),
        Profile(
            DATAFLOW,
            complete=lambda args, job: [*SELF_CONTAINED, *args],
            reading=Reading.NATIVE,
            refuses={name: _NO_STREAM_OPTIONS.format(name) for name in ("journal", "history", "labels", "values")}
            | _NO_TRANSACTIONS
            | {"at_arrival": _NO_STREAM_OPTIONS.format("order arrival")},
            dry_run=_dry_run_on_dataflow,
            makes_only=_is_only_made_on_dataflow,
            make_job=_make_job_on_dataflow,
        ),
    )
}
_NAMES = {name.lower(): profile for profile in RUNNERS.values() for name in (profile.name, *profile.aliases)}


def profile_of(text: str) -> Profile:
    """The engine of a name, compared as Beam does: without case, and with or without the ending `Runner`."""
    name = text.strip().lower()
    found = _NAMES.get(name) or _NAMES.get(name + "runner")
    if found is None:
        raise RunnerError(f"--runner {text} is not known; there are: {', '.join(RUNNERS)}")
    return found


def make_pipeline(runner: str, beam_args: Sequence[str] = (), job: Job | None = None) -> Any:
    """A pipeline for an engine, with the options that it needs and those given; RunnerError if they can't be."""
    profile = profile_of(runner)
    check_options(profile, beam_args)
    work_as_usual()  # all is imported by now
    return profile.make(profile.name, profile.complete(beam_args, job or Job()))
