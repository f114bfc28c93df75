"""When a field is known: at the event, a while after it, or at a time that another field holds."""

from __future__ import annotations

import re

from models.project.sections import Declaration, parse_duration

AT_EVENT = "at_event"
_AFTER = re.compile(r"after\s+(.+)")


class KnownAt(Declaration):
    """Known at the time that a field of the event holds."""

    at: str


def after_us(text: str) -> int:
    """How long after its event a field is known, of `at_event` or `after 7d`; ValueError for anything else."""
    if text == AT_EVENT:
        return 0
    match = _AFTER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no such time: write at_event, after 7d or another duration, or {{at: FIELD}}")
    return parse_duration(match[1])
