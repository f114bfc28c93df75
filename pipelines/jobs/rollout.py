"""Decide on a challenger: read what it and the champion said, compare, judge by the declared rules, and release."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Sequence

import pyarrow.compute as pc

from models.codecs.times import micros_of
from models.project.declarations import Project
from models.rollout.changes import Told, with_champion, with_shadows
from models.rollout.comparison import compare
from models.rollout.duel import find_duel
from models.rollout.records import Release, ReleaseError, ReleaseLog
from models.rollout.rules import Decided, Verdict, judge
from models.rollout.sides import make_sides, needed_columns, required_columns
from models.routes import SHADOWS
from pipelines.jobs.releasing import Desk, release
from pipelines.results import RunError, paths_of
from pipelines.score_rows import JSON_LINES, read_score_rows
from pipelines.sinks.listed import SCORES

_ENDINGS = (".parquet", *JSON_LINES)


def files_of_run(run: str) -> tuple[list[str], list[str]]:
    """The files of score rows in a run's folder, and those of the rows of shadows; RunError if there are none."""
    scores, shadows = (paths_of(run, kind, _ENDINGS) for kind in (SCORES, SHADOWS))
    if not scores:
        raise RunError(f"{run}: has no score rows: not the folder of a run")
    return scores, shadows


def files_of(patterns: Sequence[str]) -> list[str]:
    """The files that paths and globs of this machine name, in order; what is elsewhere as it stands."""
    found = [glob.glob(each, recursive=True) if "://" not in each else [each] for each in patterns]
    return sorted({path for paths in found for path in paths})


def decide(
    project: Project,
    log: ReleaseLog,
    scores: Sequence[str],
    shadows: Sequence[str],
    labels: Sequence[str] = (),
    challenger: str | None = None,
) -> Decided:
    """Compare what files of score rows say of the champion, and of its canary or shadow, and judge it.

    `labels` are files of label records, where labels come as such; `challenger` is a bundle's id.

    Raises:
        RunError: if rows can't be read.
        ComparisonError: if there is nothing to compare.
    """
    names, required = needed_columns(project), required_columns(project)
    rows = read_score_rows(scores, names, required, project)
    if not len(rows):
        raise RunError(f"{', '.join(scores[:3])}: no score rows")
    if labels:
        from pipelines.jobs.known_labels import with_labels  # it imports Beam

        rows = with_labels(rows, labels, project)
    newest_us = micros_of(pc.max(rows[project.event.time]).as_py())
    duel = find_duel(log, challenger, newest_us)
    beside = read_score_rows(shadows if duel.way == "shadow" else (), names, required, project)
    comparison = compare(make_sides(rows, beside, duel, project), duel, project)
    return judge(project.name, comparison, project.rollout.rules)


def apply(decided: Decided, desk: Desk, told: Told) -> ReleaseLog | None:
    """Add what was decided to the release log; None of what is held, and if it is in effect already.

    A challenger that is promoted is champion; one that is rolled back is neither canary nor shadow any more.

    Raises:
        ReleaseError: if champion or challenger are others by now, and as `pipelines.jobs.releasing.release`.
    """
    if decided.verdict is Verdict.HOLD:
        return None
    return release(desk, lambda log, effective_us: _changed(decided, log, effective_us), told)


def _changed(decided: Decided, log: ReleaseLog, effective_us: int) -> Release:
    state, compared = log.in_effect(effective_us), decided.comparison
    assert state is not None  # record 0 is
    in_it = state.shadows if compared.way == "shadow" else (state.challenger,)
    if state.champion != compared.champion or compared.challenger not in in_it:
        raise ReleaseError(
            f"release {state.seq} has not champion {compared.champion} and {compared.way} {compared.challenger} any "
            "more, which were compared: nothing is released"
        )
    if decided.verdict is Verdict.PROMOTE:
        return with_champion(state, compared.challenger)
    if compared.way == "canary":
        return dataclasses.replace(state, challenger=None, canary=None)
    return with_shadows(state, tuple(each for each in state.shadows if each != compared.challenger))
