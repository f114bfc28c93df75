"""`headrace replay-dead-letters`: send refused events through the graph again, repaired or as they were."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import HeadraceError
from pipelines.brokers import is_broker, open_broker
from pipelines.sources.listing import SourceError, match_files

IDLE_SECONDS = 5.0  # a subscription that is silent for so long has no more dead letters
PUBLISHED_AT_ONCE = 1000
JSON_FORMATS = ("json", "row")  # of payloads that are JSON objects

DeadLetter = Mapping[str, Any]
Send = Callable[[Sequence[bytes]], None]


class ReplayError(HeadraceError, ValueError):
    """Dead letters that can't be read or sent."""


@dataclasses.dataclass(frozen=True)
class Repair:
    """Which dead letters are sent, and what of their events is changed: fields and their new values."""

    step: str | None = None
    field: str | None = None
    rule: str | None = None
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def wants(self, letter: DeadLetter) -> bool:
        """Whether some reason of a dead letter is of the step, field and rule asked for."""
        if self.step not in (None, letter["step"]):
            return False
        reasons = json.loads(letter["reasons"])
        return any(self.field in (None, r["field"]) and self.rule in (None, r["rule"]) for r in reasons)

    def apply(self, letter: DeadLetter) -> bytes | None:
        """The event's record as JSON, with the new values; None if it is no JSON object and can't be changed."""
        payload = letter["payload"]
        raw = payload if isinstance(payload, bytes) else str(payload).encode()
        if letter["format"] not in JSON_FORMATS:
            return None
        if not self.values:
            return raw
        try:
            record = json.loads(raw)
        except ValueError:
            return None
        return json.dumps({**record, **self.values}).encode() if isinstance(record, dict) else None


def replay(sources: Sequence[str], to: str, repair: Repair) -> collections.Counter[str]:
    """Send dead letters of files or a subscription to a topic or a new file of JSON lines.

    Returns how many were `sent`, `left` (not asked for), and `not sent` (no JSON). Those of a subscription are
    acknowledged when they were sent or are not JSON; what was not asked for comes again.
    """
    counts: collections.Counter[str] = collections.Counter()
    with _open_target(to) as send:
        for source in sources:
            for letters, acknowledge in _read(source):
                wanted = [letter for letter in letters if repair.wants(letter)]
                payloads = [repair.apply(letter) for letter in wanted]
                good = [payload for payload in payloads if payload is not None]
                send(good)
                counts.update(sent=len(good), left=len(letters) - len(wanted))
                counts["not sent"] += len(payloads) - len(good)
                if len(wanted) == len(letters):
                    acknowledge()
    return counts


@contextlib.contextmanager
def _open_target(to: str) -> Iterator[Send]:
    if is_broker(to):
        publisher = open_broker(to).publisher()
        try:
            yield publisher.publish
        finally:
            publisher.close()
        return
    if pathlib.Path(to).exists():
        raise ReplayError(f"{to}: is there already; name a new file")
    with pathlib.Path(to).open("xb") as file:
        yield lambda payloads: file.writelines(payload + b"\n" for payload in payloads)


def _read(source: str) -> Iterator[tuple[list[DeadLetter], Callable[[], None]]]:
    """Dead letters in parts, each with what says that they were dealt with."""
    if is_broker(source):
        yield from _read_subscription(source)
        return
    for path in match_files(source):
        letters = _read_file(path)
        for start in range(0, len(letters), PUBLISHED_AT_ONCE):
            yield letters[start : start + PUBLISHED_AT_ONCE], lambda: None


def _read_subscription(source: str) -> Iterator[tuple[list[DeadLetter], Callable[[], None]]]:
    subscription = open_broker(source).subscribe()
    try:
        while (messages := subscription.receive(PUBLISHED_AT_ONCE, IDLE_SECONDS)) is not None:
            receipt = messages.receipt
            letters = [_checked(payload, source) for payload in messages.payloads]
            yield letters, lambda receipt=receipt: subscription.acknowledge(receipt)  # type: ignore[misc]
    finally:
        subscription.close()


def _read_file(path: str) -> list[DeadLetter]:
    if path.endswith(".parquet"):
        try:
            rows = pq.ParquetFile(path).read().to_pylist()
        except pa.ArrowInvalid as error:
            raise SourceError(f"{path}: can't be read: {' '.join(str(error).split())}") from None
        for row in rows:
            _check(row, path)
        return list(rows)
    with pathlib.Path(path).open("rb") as file:
        return [_checked(line, path) for line in file]


def _checked(line: bytes, where: str) -> DeadLetter:
    try:
        letter = json.loads(line)
    except ValueError:
        raise SourceError(f"{where}: holds what is no dead letter: {line[:80]!r}") from None
    _check(letter, where)
    return dict(letter)


def _check(letter: Any, where: str) -> None:
    is_one = isinstance(letter, dict) and {"payload", "format", "reasons", "step"} <= letter.keys()
    if not is_one or not _are_reasons(letter["reasons"]):
        raise SourceError(f"{where}: holds what is no dead letter: {str(letter)[:80]}")


def _are_reasons(text: Any) -> bool:
    try:
        reasons = json.loads(text)
    except (TypeError, ValueError):
        return False
    return isinstance(reasons, list) and all(isinstance(r, dict) and {"field", "rule"} <= r.keys() for r in reasons)
