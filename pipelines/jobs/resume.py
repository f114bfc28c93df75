"""How a run over files starts from a state that an earlier run has kept, and which states it keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from models.partitions import Span, joined
from models.project.declarations import Project
from models.project.sections import parse_duration
from models.schemas import schema_digest
from models.state import BEFORE_STATE, Resume
from pipelines.config import RunSpec
from pipelines.jobs.identity import checksum_of, size_of
from pipelines.results import read_spans
from pipelines.sinks.listed import PARTITION, PROJECT
from pipelines.sinks.state import Input, KeepStates, State, StateError, StateFolder, absolute, name_of
from pipelines.sources.listing import Files
from transforms.state import States

DEFINITIONS = "definitions"


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run with a state takes from there: its graph's states, its sink's, and its feeds' files by their names."""

    states: States
    keep: KeepStates
    files: Mapping[str, Files]


def find_start(spec: RunSpec, files: Mapping[str, Files]) -> Start:
    """Start from the latest state that is not after the span, if there is one.

    Files that the state knows are skipped, but for those that hold events of its time or later. StateError if the state
    is of other features, or a file that it knows is not as it was.
    """
    assert spec.state is not None
    folder, project, span = StateFolder(spec.state), spec.project, spec.span
    lateness_us = parse_duration(spec.lateness)
    facts = _facts_of(project)
    times = [us for us in folder.times_us() if span.start_us is not None and us <= span.start_us]
    state = folder.read(times[-1]) if times else None
    if state is not None:
        _check_same(folder, state, facts)
    known = _known(files, state)
    oldest_us = min((us for us in times if us >= times[-1] - lateness_us), default=None)
    told = frozenset(path for path, each in known.items() if state and each.until_us <= state.until_us)
    resume = Resume(state.until_us if state else None, frozenset(known), told, oldest_us)
    chosen = {name: dataclasses.replace(each, skipped=_skipped(each, known, resume)) for name, each in files.items()}
    at_us = _kept_at(project, span, resume, lateness_us)
    checksums = {path: checksum_of(path) for each in chosen.values() for path in each.paths}
    for path, before in known.items():
        if path in checksums and checksums[path] != before.checksum:
            raise _changed(path)
    spans = joined([*read_spans(spec.sink), span])
    gaps = frozenset(each.stop_us for each in spans[:-1] if each.stop_us is not None)
    keep = KeepStates(
        folder, at_us, resume, facts, state.inputs if state else {}, checksums, at_us[-1] - lateness_us, gaps
    )
    return Start(States(at_us, resume, folder.restored(state) if state else {}), keep, chosen)


def restore(spec: RunSpec) -> States:
    """What a stream starts from: the state that it is given as history. What is earlier is refused.

    StateError if it is not there, or of other features.
    """
    assert spec.history_state is not None
    folder, state = read_state(spec.project, *spec.history_state)
    resume = Resume(state.until_us, oldest_us=state.until_us, why_late=BEFORE_STATE)
    return States(resume=resume, restored=folder.restored(state))


def read_state(project: Project, path: str, until_us: int) -> tuple[StateFolder, State]:
    """A folder of states and the one of a time; StateError if it is not there, or of other features."""
    folder = StateFolder(absolute(path))
    if until_us not in folder.times_us():
        raise StateError(f"{path}/{name_of(until_us)}: no such state; there are {_named(folder)}")
    state = folder.read(until_us)
    _check_same(folder, state, _facts_of(project))
    return folder, state


def _named(folder: StateFolder) -> str:
    return ", ".join(map(name_of, folder.times_us()[-3:])) or "none"


def _facts_of(project: Project) -> dict[str, object]:
    return {
        PROJECT: project.name,
        PARTITION: project.partitions.facts(),
        DEFINITIONS: project.state_definitions,
        "schema_digest": schema_digest(project.contract.text),
    }


def _check_same(folder: StateFolder, state: State, facts: Mapping[str, object]) -> None:
    what = {
        PROJECT: "of another project",
        PARTITION: "of other partitions",
        DEFINITIONS: "of other features, quality, aggregates or label metrics",
        "schema_digest": "of another schema",
    }
    for name, said in what.items():
        if state.facts.get(name) != facts[name]:
            raise StateError(
                f"{folder.path}: its states are {said} than the project declares: name an empty folder as --state, and "
                "all files that fill the windows as --source"
            )


def _known(files: Mapping[str, Files], state: State | None) -> dict[str, Input]:
    """What the state knows of files that are there; StateError if one that is still needed is not, or has changed."""
    if state is None:
        return {}
    there = {absolute(path): path for each in files.values() for path in each.paths}
    known = {}
    for path, before in state.inputs.items():
        if path in there:
            known[there[path]] = before
            if size_of(path) != before.size:
                raise _changed(path)
        elif before.last_us is not None and before.last_us >= state.until_us:
            raise StateError(f"{path}: was read before, and holds events that are not in the state yet: name it, too")
    return known


def _changed(path: str) -> StateError:
    return StateError(
        f"{path}: has changed since it was read for the state that this run starts from: add new events as new files, "
        "or begin with an empty folder as --state"
    )


def _skipped(files: Files, known: Mapping[str, Input], resume: Resume) -> frozenset[str]:
    def is_over(last_us: int | None) -> bool:
        return last_us is None or resume.from_us is None or last_us < resume.from_us

    return frozenset(path for path in files.paths if path in resume.told and is_over(known[path].last_us))


def _kept_at(project: Project, span: Span, resume: Resume, lateness_us: int) -> tuple[int, ...]:
    """The starts of partitions, up to the span's end, that a late event may make a run start from."""
    assert span.stop_us is not None
    partitions = project.partitions
    first = partitions.start_us(span.stop_us - lateness_us)
    found, us = [], first if first >= span.stop_us - lateness_us else partitions.next_us(first)
    while us < span.stop_us:
        found += [us] if resume.from_us is None or us > resume.from_us else []
        us = partitions.next_us(us)
    return (*found, span.stop_us)


def from_earlier(spec: RunSpec, first_us: int) -> RunSpec:
    """The run that scores the same time, and what is before it from the partition of a late event on."""
    starts = spec.project.partitions.start_us(first_us)
    start, stop = Span(starts, spec.span.stop_us).facts()
    return dataclasses.replace(spec, score_from=start, score_to=stop, day=None, hour=None)
