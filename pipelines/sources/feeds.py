"""Feeds: records of one type, and where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import apache_beam as beam

from models.project.declarations import Project
from models.record import EVENTS, RecordType
from pipelines.brokers import Broker
from pipelines.sources.listing import Files
from pipelines.sources.values import JsonValues, Values


@dataclasses.dataclass(frozen=True)
class Topic:
    """A broker's topic or subscription, and what its messages' values are."""

    broker: Broker
    values: Values = JsonValues()  # noqa: RUF009, it is frozen


Source = TypeVar("Source", Files, Topic)


@dataclasses.dataclass(frozen=True)
class Feed(Generic[Source]):
    """Records of one type with their source; a stream's watermark follows those of the feeds that drive it.

    Only those that drive it can be late, and go out at their arrival.
    """

    record_type: RecordType
    source: Source
    drives_watermark: bool = False

    @property
    def name(self) -> str:
        """Of its records."""
        return self.record_type.name


@dataclasses.dataclass(eq=False)
class ReadBeside(beam.PTransform):
    """The feeds of a stream, and others of files that are read to their end beside it, from the beginning."""

    stream: beam.PTransform
    files: beam.PTransform

    def expand(self, pbegin: Any) -> dict[str, beam.PCollection]:
        """{name of a feed: its batches}."""
        return {**(pbegin | "Stream" >> self.stream), **(pbegin | "Files" >> self.files)}


def feeds_of(project: Project, sources: Mapping[str, Source]) -> tuple[Feed[Source], ...]:
    """A feed for each source, by the name of its records; ValueError where the project declares no such records."""
    types = {records.name: records for records in project.record_types}
    for name in sources:
        if name not in types:
            raise ValueError(f"{name} come as records of their own, but the project declares none")
    return tuple(Feed(types[name], sources[name], name == EVENTS) for name in types if name in sources)
