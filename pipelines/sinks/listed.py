"""What a sink holds: the files that runs list in `_SUCCESS.json`, and which of them a run replaces.

A sink's kinds of files each have a folder, and in it one for each partition of event time. What lies there is a run's
own if the former `_SUCCESS.json` lists it with the SHA-256 it has, or the manifest of a run that was cut off as it
published. All else is foreign: it is never removed, and a run refuses a sink where it is in the way.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.partitions import EVER, NO_TIME, Partitions, Span, stamp_of, time_of
from models.routes import FALLBACK, LABEL_METRICS, SHADOWS, is_name
from pipelines.sinks.folder import Folder, SinkError

SUCCESS = "_SUCCESS.json"
MANIFEST = "manifest.json"
SCORES = "scores"
DEAD_LETTERS = "dead_letters"
QUARANTINE = "quarantine"
QUALITY = "quality"
AGGREGATES = "aggregates"
KINDS = (SCORES, DEAD_LETTERS, QUARANTINE, QUALITY, AGGREGATES, LABEL_METRICS, FALLBACK, SHADOWS)
BASELINE = "baseline.json"
RELEASED = "released-"
# Of dead letters without a time, with the time of the first state that knows all of the file they are of.
_UNTIL = re.compile(rf"/{NO_TIME}/until-(\d{{4}}-\d\d-\d\dT\d{{6}}Z)-[^/]*$")
UNKNOWN = ""  # a digest that nothing tells
SPEC, INPUTS = "spec", "inputs"  # facts: digests of how a run is done, and of what it reads
# Facts that all runs into one sink have in common; TABLE_FORMAT is of sinks whose score rows are one.
PROJECT, PARTITION, TABLE_FORMAT = "project", "partition", "table_format"
COMMON = (PROJECT, PARTITION, TABLE_FORMAT)
SPANS = "spans"  # the event time of which the sink has all
FEATURE_SET = "feature_set"  # a fact, and of each file with features which they are


@dataclasses.dataclass(frozen=True)
class Written:
    """A file of a run, how many of its rows had which outcome, and the set of the features that are in it."""

    kind: str
    name: str
    rows: int
    sha256: str
    outcomes: dict[str, int]
    feature_set: str | None = None

    @property
    def place(self) -> str:
        """Its name under the sink."""
        return f"{self.kind}/{self.name}"


def untimed(part: str, until_us: int | None) -> str:
    """The name of a file of dead letters without a time; `until_us`, that of a state, if there is one."""
    return f"{NO_TIME}/{part if until_us is None else f'until-{stamp_of(until_us)}-{part}'}"


def place_of(file: Mapping[str, Any]) -> str:
    """Where a file that is listed lies under the sink; ValueError if that is nowhere that a run writes to."""
    kind, name = file["kind"], file["name"]
    known = isinstance(kind, str) and is_name(kind) and isinstance(name, str)
    if not known or {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"no file of a run: {kind}/{name}")
    return f"{kind}/{name}"


@dataclasses.dataclass(frozen=True)
class Scope:
    """The files of a sink that a run replaces: those of the partitions in a span, and those that are of none.

    A run that starts from a state `adds` dead letters without a time to those of earlier runs.
    """

    partitions: Partitions = Partitions()  # noqa: RUF009, it is frozen
    span: Span = EVER
    adds: bool = False

    def __contains__(self, place: str) -> bool:
        """Whether a place under the sink is of it; ValueError if it is of partitions of another kind."""
        if self.adds and (until := _UNTIL.search(place)):
            return self.span.start_us is None or time_of(until[1]) > self.span.start_us
        start_us = self.partitions.start_of(place)
        return self.span.is_all or start_us is None or start_us in self.span


EVERYTHING = Scope()


@dataclasses.dataclass(frozen=True)
class Former:
    """What runs left in a sink: their files with the digests that each may have, and their `spec` and `inputs`.

    `entries` are those of the lists of files, `common` the facts that all runs into a sink must have in common.
    """

    files: Mapping[str, frozenset[str]]
    runs: tuple[tuple[Any, Any], ...]
    entries: tuple[Mapping[str, Any], ...] = ()
    common: tuple[Mapping[str, Any], ...] = ()
    spans: tuple[Span, ...] = ()

    def kept(self, folder: Folder, scope: Scope) -> list[dict[str, Any]]:
        """The entries of files that are not of a scope; SinkError if it isn't known which files these are.

        That is so where a run of other days was cut off as it published them.
        """
        kept: dict[str, dict[str, Any]] = {}
        for entry in self.entries:
            place = place_of(entry)
            if place in scope:
                continue
            there = folder.is_file(place) or (self.is_table and entry["kind"] == SCORES)
            if kept.setdefault(place, dict(entry)) != entry or not there:
                raise SinkError(
                    f"{folder.join(place)}: the run that writes it was cut off as it published: do that run again first"
                )
        return list(kept.values())

    def check_common(self, folder: Folder, facts: Mapping[str, Any]) -> None:
        """SinkError if files that are to stay are of another project, or of other partitions."""
        same = {name: facts.get(name) for name in COMMON}
        for common in self.common:
            if common != same:
                what = "of another project" if common[PROJECT] != same[PROJECT] else "that are partitioned otherwise"
                raise SinkError(
                    f"{folder.path}: holds files {what}: name another sink, or have all of it replaced by a run "
                    "without a span of time and with --replace"
                )

    def check_table(self, folder: Folder, facts: Mapping[str, Any]) -> None:
        """SinkError if the score rows that are there are a table, and those of a run would not be, or otherwise."""
        if any(common[TABLE_FORMAT] != facts.get(TABLE_FORMAT) for common in self.common):
            raise SinkError(f"{folder.path}: holds files of another --sink-format: name another sink")

    @property
    def is_table(self) -> bool:
        """Whether score rows are a table, whose files are its own business."""
        return any(common[TABLE_FORMAT] for common in self.common)

    @property
    def kinds(self) -> set[str]:
        """The folders that they stand in."""
        return {place.split("/")[0] for place in self.files}

    def check_same(self, folder: Folder, facts: Mapping[str, Any]) -> None:
        """SinkError if one of the runs is not, or may not be, of the same spec over the same inputs."""
        same = (facts.get(SPEC), facts.get(INPUTS))
        for run in self.runs:
            if run == same and None not in run:
                continue
            how = ""
            if None not in (*run, *same):
                differ = [
                    what for what, one, other in zip(("options", "inputs"), run, same, strict=True) if one != other
                ]
                how = f", with other {' and '.join(differ)}"
            raise SinkError(
                f"{folder.path}: holds the output of another run{how}: name another sink, or have that output "
                "replaced with --replace"
            )


def read_former(folder: Folder) -> Former:
    """What `_SUCCESS.json` lists, or if a run was cut off as it published, its manifest."""
    text = folder.read(SUCCESS)
    if text is not None:
        return former_of(f"{folder.join(SUCCESS)}: is not what a run writes", [text])
    if folder.is_local and os.path.lexists(folder.join(SUCCESS)):
        raise SinkError(f"{folder.join(SUCCESS)}: is not what a run writes: move it away, or name another sink")
    texts = [folder.read(f"{staging}/{MANIFEST}") for staging in folder.stagings()]
    return former_of(f"{folder.path}: a {MANIFEST} in it is not what a run writes", [t for t in texts if t is not None])


def former_of(fault: str, texts: Sequence[bytes]) -> Former:
    """What lists say; SinkError with the words `fault` if one is none."""
    files: dict[str, set[str]] = {}
    runs, listed, common = [], [], []
    spans: list[Span] = []
    for text in texts:
        try:
            said = json.loads(text)
            entries = [(place_of(file), str(file["sha256"])) for file in said["files"]]
            spans += [Span.of_facts(each) for each in said.get(SPANS, [])]
        except (ValueError, KeyError, TypeError):
            raise SinkError(f"{fault}: move it away, or name another sink") from None
        runs.append((said.get(SPEC), said.get(INPUTS)))
        listed += said["files"]
        common += [{name: said.get(name) for name in COMMON}] if entries else []
        for place, digest in entries:
            files.setdefault(place, set()).add(digest)
            if place.startswith(f"{QUARANTINE}/"):  # where it is if a release was cut off
                files.setdefault(released(place), set()).add(digest)
        if SPEC not in said and any(place.startswith(f"{QUALITY}/") for place, _ in entries):
            files.setdefault(f"{QUALITY}/{BASELINE}", set()).add(UNKNOWN)  # earlier versions listed it nowhere
    digests_of = {place: frozenset(digests) for place, digests in files.items()}
    return Former(digests_of, tuple(runs), tuple(listed), tuple(common), tuple(spans))


def released(place: str) -> str:
    """Where a quarantined file goes as it is released."""
    folder, _, name = place.removeprefix(f"{QUARANTINE}/").rpartition("/")
    return "/".join(part for part in (SCORES, folder, RELEASED + name) if part)
