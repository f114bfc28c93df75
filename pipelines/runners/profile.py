"""What an engine is told by: a profile, and the options of Beam's as they are written on a command line."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.errors import HeadraceError
from pipelines.runners.failures import clear_failures

ROOT = pathlib.Path(__file__).resolve().parents[2]  # where build/ and deploy/ are, beside the code

# The image of the workers holds all that a job needs, so nothing is staged.
SELF_CONTAINED = (
    "--sdk_location=container",
    "--no_save_main_session",
    "--experiments=disable_logging_submission_environment",
)
# Beam's own cache of state weighs every value it holds; transforms/slices.py keeps what it needs itself.
NO_CACHE = "--max_cache_memory_usage_mb=0"


class RunnerError(HeadraceError, ValueError):
    """An engine that is not known, or can't do what is asked of it."""


class Reading(enum.Enum):
    """Who reads a stream's messages, and when they are acknowledged."""

    JOURNALED = enum.auto()  # our reader, when they are in the journal; without one, with the bundle they are scored in
    CHECKPOINTED = enum.auto()  # our reader, at the second checkpoint after they were scored
    NATIVE = enum.auto()  # the engine's own reader


@dataclasses.dataclass(frozen=True)
class Job:
    """What of a run an engine's options depend on."""

    streams: bool = False
    shards: int = 1


Args = Sequence[str]


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_worker(args: Args, streams: bool) -> int:
    """One, as nothing is known of how many there are."""
    return 1


def one_each(workers: int) -> int:
    """As many shards as workers."""
    return workers


def as_given(args: Args, job: Job) -> list[str]:
    """The options, unchanged."""
    return list(args)


def check_nothing(args: Args) -> None:
    """Take all options."""


def make_by_name(name: str, args: Args) -> Any:
    """A pipeline for the runner that Beam knows by a name."""
    import apache_beam as beam

    from pipelines.runners.views import CachedOptions

    return beam.Pipeline(options=CachedOptions([*args, f"--runner={name}"]))


@dataclasses.dataclass(frozen=True)
class Profile:
    """An engine: its name, and what is its own in running a graph.

    Fields:
        aliases: other names of it.
        reads: all options of Beam's that it reads; None if they are not known.
        takes_known_only: whether it takes only options that some option class of Beam's in Python has.
        check: RunnerError for what else it lacks.
        complete: the options with those that it needs itself; one that was given stays.
        make: a pipeline from its name and the options.
        reading: how streams are read.
        workers: how many threads of this process, by the options and for a stream or not, work side by side.
        shards: into how many parts the work of so many is split unless it is said.
        refuses: options of headrace's by their names, and why they can't be.
        apart: whether its workers, by the options, run in a folder of their own.
        in_order: whether it reads files no further than it is let, so that they are read in the order of event time.
        resumes: whether a run over files that starts from a state is right on it.
        ends_here: whether a run that failed is over when this process gives up; elsewhere a job may still be writing.
        ours: whether it is headrace's engine: `runner.stop()` ends a run, and `runner.metrics` are known while it runs.
        failures: turns what a run of it raises into errors of headrace's.
        dry_run: the options of a job that is only made and checked; None if it has no such.
        makes_only: whether a pipeline, by its options, is to be made and not run; then `make_job` does it.
    """

    name: str
    aliases: tuple[str, ...] = ()
    reads: frozenset[str] | None = None
    takes_known_only: bool = False
    check: Callable[[Args], None] = check_nothing
    complete: Callable[[Args, Job], list[str]] = as_given
    make: Callable[[str, Args], Any] = make_by_name
    reading: Reading = Reading.JOURNALED
    workers: Callable[[Args, bool], int] = one_worker
    shards: Callable[[int], int] = one_each
    refuses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    apart: Callable[[Args], bool] = lambda args: False
    in_order: bool = False
    resumes: bool = True
    ends_here: bool = False
    ours: bool = False
    failures: Callable[[], contextlib.AbstractContextManager[None]] = clear_failures
    dry_run: Callable[[Args], list[str]] | None = None
    makes_only: Callable[[Any], bool] = lambda pipeline: False
    make_job: Callable[[Any], None] | None = None


def split_options(args: Args) -> list[tuple[str, str | None]]:
    """Pairs of an option's name, without its dashes, and its value; None where it has none."""
    found: list[tuple[str, str | None]] = []
    for arg in args:
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            found.append((name, value if equals else None))
        elif found and found[-1][1] is None:
            found[-1] = (found[-1][0], arg)
        else:
            found.append(("", arg))
    return found


def find_built(*names: str) -> pathlib.Path | None:
    """What a build has left under build/ beside the code, or in the working directory; None if it is not there."""
    places = (root.joinpath("build", *names) for root in (ROOT, pathlib.Path.cwd()))
    return next((place for place in places if place.is_file()), None)
