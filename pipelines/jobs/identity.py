"""What tells a run from another: how it is done, and what it reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import google_crc32c
from apache_beam.io.filesystems import FileSystems

from models.project.declarations import Project
from pipelines.sinks.publish import INPUTS, SPEC
from pipelines.sources.files import ReadFiles
from pipelines.sources.listing import Files


def identify(project: Project, source: ReadFiles, options: Mapping[str, Any]) -> dict[str, str]:
    """Digests of a run's `spec`, the project and the options that change what is written, and of its `inputs`.

    The inputs are the paths of all files that are read, their sizes and their checksums: of what they hold on this
    machine, or what an object store says. What changes no result, such as shards or the runner, is no part of it.
    """
    spec = [project.model_dump(mode="json"), project.contract.text.decode(), source.format, dict(options)]
    files = {feed.record_type.number: _files_of(feed.source) for feed in source.feeds}
    # The labels' place is there without labels, too: so it was from the first version on.
    inputs = [files.get(number, []) for number in range(max(2, *(number + 1 for number in files)))]
    return {SPEC: _digest(spec), INPUTS: _digest(inputs)}


def _files_of(files: Files) -> list[tuple[str, str]]:
    return [(path, _checksum(path)) for path in files.paths]


def _checksum(path: str) -> str:
    if "://" in path:
        return str(FileSystems.checksum(path))
    size, checksum = 0, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum = google_crc32c.extend(checksum, block)
            size += len(block)
    return f"{size} {checksum:08x}"


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
