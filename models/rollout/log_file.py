"""A release log as a file of JSON lines: the first says whose log it is, each other is a record's canonical form.

So the SHA-256 of a line, without its end, is the `prev` of the next one.
"""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from models.rollout.records import (
    MAX_RECORD_BYTES,
    MAX_RECORDS,
    ReleaseError,
    ReleaseLog,
    canonical,
    parse,
    read_record,
)

FORMAT = "headrace releases 1"
MAX_LOG_BYTES = 256 << 20
_DIGEST = "digest"  # of all of the file but itself


def to_lines(log: ReleaseLog, project: str) -> bytes:
    """The file of a project's log."""
    lines = b"".join(canonical(release) + b"\n" for release in log.records)
    header: dict[str, Any] = {"format": FORMAT, "project": project, "clock": log.clock, "lead_us": log.lead_us}
    header["records"] = len(log.records)
    return rfc8785.dumps({**header, _DIGEST: _digest_of(header, lines)}) + b"\n" + lines


def from_lines(content: bytes, project: str) -> ReleaseLog:
    """The log of a project's file; ReleaseError if a byte of it is not as it was written, or it is another project's.

    That records follow from each other, `ReleaseLog.check` says.
    """
    if len(content) > MAX_LOG_BYTES:
        raise ReleaseError(f"is larger than {MAX_LOG_BYTES} bytes")
    first, end, lines = content.partition(b"\n")
    if len(first) > MAX_RECORD_BYTES or not end:
        raise ReleaseError("is no release log: export one with `headrace releases PROJECT --export FILE`")
    header = parse(first)
    if header.get("format") != FORMAT:
        raise ReleaseError(f"is no release log of this version, whose first line has the format {FORMAT!r}")
    if header.get("project") != project:
        raise ReleaseError(f"is of the project {header.get('project')!r:.80}, not {project}")
    stated = header.pop(_DIGEST, None)
    if stated != _digest_of(header, lines):
        raise ReleaseError("is not as it was written: the digest of its first line is of other bytes")
    records = lines.split(b"\n")
    if records.pop() != b"" or header.get("records") != len(records) or len(records) > MAX_RECORDS:
        raise ReleaseError("does not have as many records as its first line says")
    found = tuple(read_record(seq, record) for seq, record in enumerate(records))
    log = ReleaseLog(header.get("clock"), header.get("lead_us"), found)  # type: ignore[arg-type]
    if to_lines(log, project) != content:
        raise ReleaseError("is not in the canonical form of RFC 8785")
    return log


def _digest_of(header: dict[str, Any], lines: bytes) -> str:
    try:
        return hashlib.sha256(rfc8785.dumps(header) + b"\n" + lines).hexdigest()
    except rfc8785.CanonicalizationError:
        raise ReleaseError("the first line is not in the canonical form of RFC 8785") from None
