"""A folder of states: what a run over files knew at the ends of days, for the next run to start from.

Each state has a folder of its own, named by its time, as in `until=2018-06-09T000000Z`: a file for each step that
holds, of Arrow IPC streams one after another, and `state.json`, which lists them with their SHA-256 and says which
files of events had been read, and of which features the state is. It is written whole or not at all. Nothing that
headrace did not write is removed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.errors import HeadraceError
from models.partitions import STATE_NAME, stamp_of, time_of
from models.state import Resume, part_of
from pipelines.sinks.folder import Folder, claim, open_file, staging_of
from transforms.batches import RecordBatchCoder

FACTS = "state.json"
MAX_FACTS_BYTES = 256 << 20
VERSION = 1
_CODER = RecordBatchCoder()
# The time of a state; a step, the name of its file and the SHA-256.
StateFile = tuple[int, tuple[str, str, str]]


class StateError(HeadraceError, ValueError):
    """A state that can't be started from, or kept."""


class LateInputError(HeadraceError, ValueError):
    """Files that were not read before hold events from before the state that a run started from."""

    def __init__(self, source: str, first_us: int) -> None:
        self.source, self.first_us = source, first_us
        day = str(np.datetime64(first_us, "us"))[:10]
        super().__init__(
            f"{source}: holds events of {day}, earlier than the state that this run started from: run again with "
            f"--score-from {day} and the same end"
        )

    def __reduce__(self) -> Any:
        return LateInputError, (self.source, self.first_us)


@dataclasses.dataclass(frozen=True)
class Input:
    """A file of events or labels that was read: size and checksum, and the span of its event times, if it has any.

    `until_us` is the time of the first state that knew all of it.
    """

    checksum: str
    until_us: int
    first_us: int | None = None
    last_us: int | None = None

    @property
    def size(self) -> str:
        """The size that the checksum tells; of a store, all of it."""
        return self.checksum.split(" ")[0]


@dataclasses.dataclass(frozen=True)
class State:
    """What `state.json` says of the state of a time, in microseconds since 1970 UTC."""

    until_us: int
    facts: Mapping[str, Any]
    inputs: Mapping[str, Input]
    files: Mapping[str, tuple[str, str]]  # step: name of the file, SHA-256


@dataclasses.dataclass(frozen=True)
class StateFolder:
    """The states in a folder, on this machine or in an object store."""

    path: str

    @property
    def folder(self) -> Folder:
        """Its files."""
        return Folder(self.path)

    def times_us(self) -> list[int]:
        """The times of the states that are whole, ascending; StateError if the folder can't be read."""
        if self.folder.is_local and os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise StateError(f"{self.path}: is a file; --state is a folder")
        names = [name.split("/") for name in self.folder.names("")]
        found = [STATE_NAME.fullmatch(name[0]) for name in names if len(name) == 2 and name[1] == FACTS]
        return sorted(time_of(match[1]) for match in found if match)

    def read(self, until_us: int) -> State:
        """The state of a time; StateError if what is there is none."""
        place = f"{name_of(until_us)}/{FACTS}"
        content = self.folder.read(place, MAX_FACTS_BYTES)
        try:
            said = json.loads(content or b"")
            if said["version"] != VERSION:
                raise StateError(f"{self.folder.join(place)}: is of another version of headrace: start a new folder")
            inputs = {path: Input(**each) for path, each in said["inputs"].items()}
            files = {step: (str(each["name"]), str(each["sha256"])) for step, each in said["steps"].items()}
            if any("/" in name for name, _ in files.values()):
                raise ValueError("a file of another folder")
            return State(until_us, said["facts"], inputs, files)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"{self.folder.join(place)}: is not what a run writes: name another --state") from None

    def restored(self, state: State) -> dict[str, beam.PTransform]:
        """The parts of each step."""
        where = self.folder.join(name_of(state.until_us))
        return {step: ReadParts(f"{where}/{name}", digest) for step, (name, digest) in state.files.items()}

    @contextlib.contextmanager
    def held(self, run_id: str) -> Iterator[None]:
        """Hold the folder for a run, and remove what runs staged that were cut off."""
        with claim(self.folder, run_id, take_over=True):
            if self.folder.is_local:
                for staging in self.folder.stagings():
                    self.folder.remove_staging(staging)
            yield

    def publish(self, run_id: str, states: Sequence[State]) -> None:
        """Put the staged files of states in their places, and `state.json` last; again, it changes nothing."""
        staging = staging_of(run_id)
        for state in states:
            name = name_of(state.until_us)
            text = json.dumps(_said(state), indent=1, sort_keys=True).encode()
            if self.folder.read(f"{name}/{FACTS}", MAX_FACTS_BYTES) == text:
                continue
            self.folder.remove([f"{name}/{FACTS}"])
            self.folder.move([(f"{staging}/{name}/{file}", f"{name}/{file}") for file, _ in state.files.values()])
            self.folder.write(f"{name}/{FACTS}", text, staging)
        self.folder.remove_staging(staging)

    def forget(self, until_us: int, but: frozenset[int]) -> None:
        """Remove the states before a time, `but` for those of some times; files that no state lists stay."""
        for each in self.times_us():
            if each < until_us and each not in but:
                name = name_of(each)
                files = [file for file, _ in self.read(each).files.values()]
                self.folder.remove([f"{name}/{FACTS}", *(f"{name}/{file}" for file in files)])
                if self.folder.is_local:
                    with contextlib.suppress(OSError):
                        os.rmdir(self.folder.join(name))


def name_of(until_us: int) -> str:
    """The folder of the state of a time."""
    return f"until={stamp_of(until_us)}"


def _said(state: State) -> dict[str, Any]:
    return {
        "version": VERSION,
        "facts": dict(state.facts),
        "inputs": {path: dataclasses.asdict(each) for path, each in state.inputs.items()},
        "steps": {step: {"name": name, "sha256": digest} for step, (name, digest) in state.files.items()},
    }


@dataclasses.dataclass(eq=False)
class WriteParts(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[StateFile]]):
    """Parts of states → (time of the state, (step, file, SHA-256)) of each file that was staged."""

    path: str
    run_id: str

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        """One for each state and step."""
        keyed = parts | "By step" >> beam.Map(_place).with_output_types(tuple[tuple[int, str], pa.RecordBatch])
        gathered = keyed | "Gather state" >> beam.GroupByKey()
        return gathered | "Write state" >> beam.Map(self._write).with_output_types(StateFile)

    def _write(self, element: tuple[tuple[int, str], Iterable[pa.RecordBatch]]) -> StateFile:
        (at_us, step), parts = element
        name = f"{re.sub('[^a-z0-9]+', '-', step.lower())}-{hashlib.sha256(step.encode()).hexdigest()[:8]}.arrows"
        digest = hashlib.sha256()
        with Folder(self.path).create(f"{staging_of(self.run_id)}/{name_of(at_us)}/{name}") as file:
            for _, batch in sorted(((_number(part), part) for part in parts), key=lambda each: each[0]):
                encoded = _CODER.encode(batch)
                digest.update(encoded)
                file.write(encoded)
        return at_us, (step, name, digest.hexdigest())


def _place(batch: pa.RecordBatch) -> tuple[tuple[int, str], pa.RecordBatch]:
    part = part_of(batch)
    assert part is not None
    return (part.at_us, part.name), batch


def _number(batch: pa.RecordBatch) -> tuple[int, int]:
    part = part_of(batch)
    assert part is not None
    return part.shard, part.number


@dataclasses.dataclass(eq=False)
class ReadParts(beam.PTransform[Any, beam.PCollection[pa.RecordBatch]]):
    """The parts in a file whose SHA-256 is known; StateError if it is another."""

    file: str
    sha256: str

    def expand(self, pbegin: Any) -> beam.PCollection:
        """A batch a part."""
        start = pbegin | "Start" >> beam.Impulse()
        return start | "Read parts" >> beam.FlatMap(self._read).with_output_types(pa.RecordBatch)

    def _read(self, _: bytes) -> Iterator[pa.RecordBatch]:
        with open_file(self.file) as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise StateError(f"{self.file}: was changed since a run wrote it: start from an earlier state")
        source = pa.BufferReader(content)
        while source.tell() < len(content):
            with pa.ipc.open_stream(source) as reader:
                yield from reader


@dataclasses.dataclass(frozen=True)
class KeepStates:
    """What a run does with states: those of the times `at_us` are kept, those before `forget_us` go, but for `gaps`.

    `before` are the inputs of the state that the run started from, by their paths, `checksums` those of what it reads.
    """

    states: StateFolder
    at_us: tuple[int, ...]
    resume: Resume
    facts: Mapping[str, Any]
    before: Mapping[str, Input]
    checksums: Mapping[str, str]
    forget_us: int
    gaps: frozenset[int]  # where days begin that are yet to be scored

    @property
    def began(self) -> dict[str, Any]:
        """What `_SUCCESS.json` says of the state that the run started from."""
        from_us = self.resume.from_us
        return {} if from_us is None else {"started_from": name_of(from_us)}

    def check(self, spans: Mapping[str, tuple[int, int]]) -> None:
        """LateInputError if a file that was not read before has events from before the state."""
        from_us = self.resume.from_us
        late = [(first, source) for source, (first, _) in spans.items() if source not in self.resume.known]
        if from_us is not None and late and min(late)[0] < from_us:
            first_us, source = min(late)
            raise LateInputError(source, first_us)

    def until_us(self, source: str, spans: Mapping[str, tuple[int, int]]) -> int:
        """The time of the first state that knows all of a file, as far as there is one, or knew it before."""
        if source in self.resume.told:
            return self.before[absolute(source)].until_us
        last_us = spans[source][1] if source in spans else self.at_us[-1]
        return next((us for us in self.at_us if us > last_us), self.at_us[-1])

    def publish(self, run_id: str, files: Iterable[StateFile], spans: Mapping[str, tuple[int, int]]) -> None:
        """Publish the states whose files were staged, and forget those that no late file needs any more."""
        inputs = dict(self.before)
        for source, checksum in self.checksums.items():
            path = absolute(source)
            inputs[path] = Input(checksum, self.until_us(source, spans), *spans.get(source, (None, None)))
        of_time: dict[int, dict[str, tuple[str, str]]] = collections.defaultdict(dict)
        for time_us, (step, name, digest) in files:
            of_time[time_us][step] = name, digest
        kept = [State(us, self.facts, inputs, dict(sorted(of_time[us].items()))) for us in self.at_us]
        self.states.publish(run_id, kept)
        self.states.forget(self.forget_us, self.gaps)


def absolute(source: str) -> str:
    """The path of a file that names it wherever the command is called from."""
    return source if "://" in source else os.path.abspath(source)
