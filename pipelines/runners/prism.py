"""Prism: where its program is."""

from __future__ import annotations

import os
import pathlib

from pipelines.runners.profile import Args, Job, RunnerError, find_built, split_options

VARIABLE = "HEADRACE_PRISM"
# Prism splits a slow bundle so that two bundles of one key may run at once, and counts timers as elements: a stateful
# step loses rows, has them twice or waits forever (beam#35771, docs/prism.md). This turns its splits off.
WITHOUT_SPLITS = "--experiments=prism_disable_sdf_split"
# Prism finalizes a source's bundle when it holds the outputs itself, in memory; the steps after it come later.
NO_JOURNAL = (
    "on Prism a --journal would take events for scored that are lost when it is killed, as they are on their way: "
    "leave it out, or --runner"
)


def find_prism() -> pathlib.Path | None:
    """The program that the environment names, or `make prism` has made; None if there is none."""
    named = os.environ.get(VARIABLE)
    return pathlib.Path(named) if named else find_built("prism", "prism")


def check(args: Args) -> None:
    """RunnerError if there is no Prism: Beam would download one."""
    found = find_prism()
    if not _is_named(args) and (found is None or not found.is_file()):
        raise RunnerError(
            f"there is no Prism in {found or 'build/prism'}: `make prism` makes it, or name one by --prism_location"
        )


def complete(args: Args, job: Job) -> list[str]:
    """The options with the place of the program, and without splits."""
    place = [] if _is_named(args) else [f"--prism_location={find_prism()}"]
    return [*place, WITHOUT_SPLITS, *args]


def _is_named(args: Args) -> bool:
    return bool({"prism_location", "job_endpoint"} & dict(split_options(args)).keys())
