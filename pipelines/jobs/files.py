"""Files that a run reads and a folder that it writes, opened as its spec says."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

from models.partitions import Span
from models.predictors.bundle import Bundle, library_versions
from models.project.declarations import Project
from models.record import EVENTS, LABELS
from models.redact import redact
from models.rollout.records import ReleaseLog, digest
from models.schemas import schema_digest
from pipelines.config import RunSpec
from pipelines.jobs.identity import identify
from pipelines.jobs.resume import Start
from pipelines.runners.profile import split_options
from pipelines.sinks.closes import Closes
from pipelines.sinks.database import DatabaseTable
from pipelines.sinks.delta import Delta
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.listed import FEATURE_SET
from pipelines.sinks.tables import Table
from pipelines.sources import DAY_US, SLICE_US
from pipelines.sources.delta import check_partitions
from pipelines.sources.feeds import feeds_of
from pipelines.sources.files import ReadFiles, check_files
from pipelines.sources.in_order import order_of
from pipelines.sources.listing import Files
from pipelines.sources.parquet import start_early
from pipelines.spill import Spill
from pipelines.terminal import console


def open_files(spec: RunSpec, look: bool = True, sort: bool = False) -> ReadFiles:
    """The files of a run, and those of its labels and tables if there are, sorted if need be, or told by `sort`.

    With `look`, SourceError if one of them matches nothing or has no known format, JournalError if one is a journal
    that is not whole.
    """
    sources = {EVENTS: Files(spec.sources, spec.source_format)}
    if spec.labels:
        sources[LABELS] = Files(spec.labels)
    sources |= {name: Files(uris) for name, uris in spec.table_uris.items()}
    for files in sources.values() if look else ():
        check_files(files)
        if any(files.format_of(path) == "parquet" for path in files.paths):
            start_early()
    feeds = feeds_of(spec.project, sources)
    for feed in feeds if look else ():
        check_partitions(feed.source.patterns, feed.record_type.read.fields)
    if not spec.profile.in_order or not look:
        return ReadFiles(feeds, _state_slice_us(spec) if spec.state else SLICE_US)
    order = order_of(feeds[0])
    if sort or order.sort:
        console.print("events are in no order of time, or do not tell it: sorting them on disk first", soft_wrap=True)
    slice_us = _state_slice_us(spec) if spec.state else order.slice_us
    return ReadFiles(feeds, slice_us, in_order=True, spill=Spill() if sort or order.sort else None)


def _state_slice_us(spec: RunSpec) -> int:
    """Slices of which each that ends with a partition may be the last one."""
    return math.gcd(spec.project.quality.window if spec.project.quality else DAY_US, DAY_US)


def open_folder(
    spec: RunSpec,
    bundle: Bundle | None,
    source: Any,
    identified: bool,
    start: Start | None = None,
    log: ReleaseLog | None = None,
) -> WriteFiles:
    project = spec.project
    bundle_id = bundle.bundle_id if bundle and log is None else None
    releases = {"releases": {"records": len(log.records), "digest": digest(log.records[-1])}} if log else {}
    options = {
        "bundle": bundle_id,
        "format": spec.sink_format,
        "files": spec.files,
        "reason_codes": spec.reason_codes,
        "score_from": spec.span.start_us,
        **({} if spec.span.stop_us is None else {"score_to": spec.span.stop_us}),
        **releases,
    }
    known = identified and not spec.streams
    return WriteFiles(
        spec.sink,
        event_id=project.event.id,
        event_time=project.event.time,
        format="jsonl" if spec.sink_format == "jsonl" else "parquet",
        files=spec.files,
        facts={
            "project": project.name,
            "bundle_id": bundle_id,
            "schema_digest": schema_digest(project.contract.text),
            FEATURE_SET: project.feature_set,
            **releases,
            **describe(spec),
            **(identify(project, source, options) if known else {}),
            **(start.keep.began if start else {}),
        },
        source_format=spec.source_format,
        replace=spec.replace,
        partitions=project.partitions,
        span=spec.span,
        times=_times_of(project, start),
        keep=start.keep if start else None,
        closes=_closes(project, source),
        tables=_tables_of(spec),
        versioned=spec.sink_format == "delta",
        baseline=bundle.baseline if bundle and project.quality else None,
        routed=spec.folders,
    )


def _tables_of(spec: RunSpec) -> tuple[Table, ...]:
    """The tables that score rows are in, beside their files."""
    event = spec.project.event
    delta = (Delta(spec.project.name, spec.project.partitions),) if spec.sink_format == "delta" else ()
    return (*delta, *(DatabaseTable(uri, spec.project.name, event.id, event.time) for uri in spec.databases))


def _times_of(project: Project, start: Start | None) -> Span:
    """The times that an event can have, as far as a state is old enough for them."""
    oldest_us = (start and start.states.resume.oldest_us) or project.event_type.earliest_us
    return Span(max(oldest_us, project.event_type.earliest_us), project.event_type.latest_us)


def _closes(project: Project, source: Any) -> Closes | None:
    """When a partition's rows are all there; None where they come in no order."""
    if not isinstance(source, ReadFiles) or not source.in_order:
        return None
    return Closes(source.slice_us, (project.quality and project.quality.held_us) or 0)


def describe(spec: RunSpec) -> dict[str, Any]:
    """How a run is done, for those who read of it later; no result depends on it."""
    profile = spec.profile
    given = [f"--{name}" if value is None else f"--{name}={value}" for name, value in split_options(spec.beam_args)]
    return {
        "engine": {"name": profile.name, "options": [redact(each) for each in given]},
        "versions": {"headrace": version("headrace"), **library_versions()},
        "options": spec.options(),
    }
