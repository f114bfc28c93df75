"""What tells a run from another: how it is done, and what it reads."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import google_crc32c
from apache_beam.io.filesystems import FileSystems

from models.project.declarations import Project
from pipelines.sinks.listed import INPUTS, SPEC
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
    return [(path, checksum_of(path)) for path in files.paths]


def size_of(path: str) -> str:
    """What the checksum of a file begins with: on this machine its size."""
    return str(os.path.getsize(path)) if "://" not in path else checksum_of(path).split(" ")[0]


def checksum_of(path: str) -> str:
    """A file's size and the checksum of what it holds, or what an object store says."""
    if "://" in path:
        return str(FileSystems.checksum(path))
    known = os.stat(path)
    return _checksum(path, known.st_size, known.st_mtime_ns, known.st_ino)


@functools.lru_cache(maxsize=1 << 16)
def _checksum(path: str, *as_it_was: int) -> str:
    size, checksum = 0, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum = google_crc32c.extend(checksum, block)
            size += len(block)
    return f"{size} {checksum:08x}"


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
