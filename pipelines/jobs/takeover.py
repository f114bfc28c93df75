"""`headrace takeover`: one run hands its events over to another one of other features, by a record of their log."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from models.decode import decode_early
from models.features.row import reach_us
from models.project.declarations import Project
from models.project.project import parse_project
from models.record import EVENTS
from models.rollout.changes import Told
from models.rollout.records import Release, ReleaseError, ReleaseLog, time_text
from models.rollout.warmth import Known, find_cold, find_lost
from pipelines.config import state_of
from pipelines.jobs.feature_sets import Features, bundle_of
from pipelines.jobs.releasing import Change, Desk, check_thresholds, effective_time, release
from pipelines.jobs.resume import read_state
from pipelines.sources.feeds import feeds_of
from pipelines.sources.files import check_files, read_all
from pipelines.sources.journal import read_segment_file
from pipelines.sources.journal_check import examine
from pipelines.sources.listing import Files
from pipelines.sources.records import NO_TIME_US, Int64, decode_raw, times_of, type_number

FIRST_EVENTS = 100  # of a journal, by which it is told when its stream began


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the run that takes over reads: its journal, if it is a stream, and the files or state that it began with."""

    journal: str | None = None
    history: tuple[str, ...] = ()


def take_over(
    desk: Desk, change: Change, told: Told, evidence: Evidence, from_us: int | None = None, cold: bool = False
) -> tuple[ReleaseLog, list[str]]:
    """Add a record by which the run of the desk's project scores from an event time on; with `cold`, what it lacks.

    Raises:
        ReleaseError: if the champion has its features already, the run is not warm and may not be `cold`, events would
            be scored by no run, a project decides what can't be scored, or as `pipelines.jobs.releasing.release`.
        JournalError, SourceError, StateError: if the evidence can't be read.
    """
    desk.check()
    log = desk.read()
    if not log.records:
        raise ReleaseError(
            f"{desk.project.name} has no release log that two runs could follow: `headrace release` begins one"
        )
    now_us = desk.now_us()
    effective_us = effective_time(log, now_us, from_us)
    before = log.in_effect(effective_us)
    assert before is not None  # record 0 is
    _check_other(desk, before)
    known = read_known(evidence, desk.project)
    if lost := find_lost(known, effective_us):
        raise ReleaseError(f"{desk.folder}: {lost}")
    is_wall = log.clock == "wall"
    lacking = list(find_cold(known, reach_us(desk.project), effective_us, now_us if is_wall else None))
    if lacking and not cold:
        raise ReleaseError(
            f"{desk.folder} is not warm at {time_text(effective_us)}: {'; '.join(lacking)}; --cold hands over "
            "nonetheless"
        )

    def checked(log: ReleaseLog, effective_us: int) -> Release:
        state = change(log, effective_us)
        check_thresholds(desk.project, state)  # which stay, and were meant for other decisions
        return state

    longer = release(desk, checked, told, from_us, Features.OTHER)
    assert longer is not None  # its champion is another one
    return longer, lacking


def read_known(evidence: Evidence, project: Project) -> Known:
    """The event times of what a run has read."""
    history = _history(evidence.history, project)
    if evidence.journal is None:
        return Known(history)
    journal = examine(evidence.journal, need_marks=True).require_whole()
    marks = journal.marks
    if not journal.segments or not len(marks.ends_us):
        raise ReleaseError(f"{evidence.journal}: no stream has released events into it yet")
    # The middle of the first events: one alone may have been late.
    first = _first_times(journal.segments[0].path, project)
    began_us = int(np.median(first)) if len(first) else int(marks.ends_us[0])
    return Known(history, (began_us, int(marks.ends_us[-1])), marks.stopped)


def _history(history: tuple[str, ...], project: Project) -> tuple[int, int] | None:
    if state := state_of(history):
        _, found = read_state(project, *state)
        first = [each.first_us for each in found.inputs.values() if each.first_us is not None]
        return min([*first, found.until_us - 1]), found.until_us - 1
    if not history:
        return None
    files = Files(history)
    check_files(files)
    (feed,) = feeds_of(project, {EVENTS: files})
    spans = [_known_times(decode_early(batch, project.event_type), project) for batch in read_all(feed)]
    times = [(int(each.min()), int(each.max())) for each in spans if len(each)]
    if not times:
        raise ReleaseError(f"{history[0]}: no event with a time")
    return min(first for first, _ in times), max(last for _, last in times)


def _first_times(path: str, project: Project) -> Int64:
    found: list[Int64] = []
    for batch in read_segment_file(path):
        if type_number(batch) == project.event_type.number:
            found.append(_known_times(decode_raw(batch, project.event_type), project))
        if sum(map(len, found)) >= FIRST_EVENTS:
            break
    return np.asarray(np.concatenate([*found, np.empty(0, np.int64)])[:FIRST_EVENTS])


def _known_times(decoded: pa.RecordBatch, project: Project) -> Int64:
    times = times_of(decoded, project.event_type)
    return np.asarray(times[times != NO_TIME_US])


def _check_other(desk: Desk, before: Release) -> None:
    champion, bundle = before.champion, bundle_of(desk, before.champion)
    if bundle and bundle.feature_definitions == desk.project.feature_definitions():
        raise ReleaseError(
            f"{desk.folder} has the features of the champion {champion}: `headrace release` changes a run's model"
        )
    theirs = parse_project(bundle.project, lambda _: bundle.schema)[0] if bundle else None
    if desk.project.fallback or (theirs and theirs.fallback):
        raise ReleaseError(f"{desk.folder}: a fallback is declared, and both runs would decide so of what they refuse")
