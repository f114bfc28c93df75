"""`headrace tail`: the rows of a topic as they come."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Generator
from typing import Any

from models.record import DECISION, SCORE
from pipelines.brokers import Broker

AT_ONCE = 1000
WAIT_SECONDS = 0.5
FIRST = (DECISION, SCORE, "step", "reasons")  # what a line of a score, or of a dead letter, begins with

Row = dict[str, Any]


def follow(broker: Broker, from_start: bool = False) -> Generator[bytes, None, None]:
    """Payloads as they come, without an end; nobody else misses any of them."""
    with contextlib.closing(broker.tail(from_start)) as subscription:
        while True:
            messages = subscription.receive(AT_ONCE, WAIT_SECONDS)
            if messages is not None:
                yield from messages.payloads
                subscription.acknowledge(messages.receipt)


def read_row(payload: bytes) -> Row | None:
    """The JSON object that a payload is; None if it is none."""
    try:
        row = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def is_wanted(row: Row | None, decisions: Collection[str]) -> bool:
    """Whether a row is of one of the decisions, if any are named."""
    return not decisions or (row is not None and row.get(DECISION) in decisions)


def as_text(payload: bytes, row: Row | None) -> str:
    """A row as one line to be read: decision and score first, then the fields that have a value.

    What is no JSON object stands as it is, with what a terminal would obey escaped.
    """
    if row is None:
        return repr(payload.decode(errors="backslashreplace"))[1:-1]
    first = [_plain(row[name]) for name in FIRST if row.get(name) is not None]
    rest = [f"{_plain(name)}={_plain(value)}" for name, value in row.items() if name not in FIRST and value is not None]
    return "  ".join([*first, *rest])


def _plain(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    bare = text[1:-1] if isinstance(value, str) and text[1:-1] == value else text
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in bare)
