"""Answers to requests: events to features, scores and decisions, with the bits that the graph gives them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from models.batches import Keys, column, same_text, times_us, with_column
from models.codecs import encode_json_lines
from models.dead_letters import split_good
from models.features.columns import with_keys
from models.features.expect import check_features
from models.features.row import before_windows
from models.predictors.booster import Scorer
from models.project.declarations import Project
from models.record import (
    BUNDLE_ID,
    DECISION,
    EVENT_TIME,
    REASONS,
    RELEASE,
    ROLE,
    UNEXPECTED,
)
from models.rollout.apply import Bundles, score_released
from models.rollout.assign import Releases
from models.score import score_batch
from models.serving.requests import Intake, Refusal, RequestError, refuse_repeated, take_in
from models.store.ids import content_column, find_repeated, places_of_ids, rows_of_ids
from models.store.kinds import IDS, Kind, Place, keys_of, rows_of
from models.store.past import PastFeatures
from models.store.tiles import Rows

# The steps of the graph whose refused events get the project's fallback decision.
_FALLS_BACK = ("Decode", "Validate", "CheckFeatures")


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What scores: a bundle, or those that releases say, or nothing, where a project has features alone."""

    scorer: Scorer | None = None
    bundle_id: str = ""
    releases: Releases | None = None
    bundles: Bundles | None = None

    def score(self, featured: pa.RecordBatch, project: Project, reason_codes: int) -> pa.RecordBatch:
        """Score rows, as models.score.score_batch or models.rollout.apply.score_released makes them."""
        if self.releases is None or self.bundles is None:
            return score_batch(featured, project, self.scorer, self.bundle_id, reason_codes)
        keys = {name: column(featured, field) for name, field in project.entities.items()}
        assigned = self.releases.assign(times_us(featured), keys)
        for name, values in assigned.columns().items():
            featured = with_column(featured, name, values)
        return score_released(featured, project, self.bundles, reason_codes)


class Pasts(Protocol):
    """Where the past of entities is kept, in tiles."""

    def read(self, places: Sequence[Place]) -> tuple[Mapping[Place, bytes], Mapping[Place, bytes]]:
        """The tiles that are there, and rows that may stand in none of these, as tiles, too."""

    def append(self, kind: Kind, rows: Rows, keys: pa.Array) -> None:
        """Add rows of one kind, by the key of each, a text; again, it changes nothing."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """Score rows of the events of a request, the place of each in it, int64[n], and by place refusals."""

    rows: pa.RecordBatch
    places: Keys
    refused: dict[int, Refusal]


class Answering:
    """A project's events to answers.

    Events of one request see each other, as those of the past, in the order of (event time, event id): an event's
    features are the same whether those before it came earlier or with it, and in whatever order they stand.
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self._records = project.event_type
        self._past = PastFeatures(project)
        self.kinds = tuple(self._past.kinds.values())
        self._kinds = [kind for kind in self.kinds if kind.is_of_events]

    def take_in(self, requests: Sequence[Sequence[bytes]]) -> Iterator[tuple[int, Intake]]:
        """The events of requests, JSON each, in parts of so many requests, which are to be answered part by part.

        In a part no two requests have an event id or an entity in common, and no event sees one of another request: so
        the answers are those that each request gets if it comes when the one before it was answered.
        """
        if len(requests) == 1:
            yield 1, take_in(requests[0], self._records)
            return
        sizes = [len(payloads) for payloads in requests]
        edges = np.cumsum([0, *sizes])
        taken = take_in(
            [each for some in requests for each in some],
            self._records,
            requests=np.repeat(range(len(sizes)), sizes),
        )
        rows = np.searchsorted(taken.places, edges)
        begin = 0
        for end in self._ends(taken.batch, rows.tolist()):
            first, last = int(edges[begin]), int(edges[end])
            low, high = int(rows[begin]), int(rows[end])
            refused = {place - first: found for place, found in taken.refused.items() if first <= place < last}
            batch, places = taken.batch.slice(low, high - low), taken.places[low:high] - first
            yield end - begin, Intake(taken.payloads[first:last], batch, places, refused)
            begin = end

    def _ends(self, batch: pa.RecordBatch, rows: Sequence[int]) -> Iterator[int]:
        """The number of requests after which each part ends; request n has the rows from `rows[n]` to `rows[n + 1]`."""
        columns = [column(batch, self.project.event.id).to_pylist()]
        for kind in self._kinds:  # a key of a joined table's field may be any
            known = set(kind.keys) <= set(batch.schema.names)
            columns.append(keys_of(kind, batch).to_pylist() if known else [""] * batch.num_rows)
        seen: set[tuple[int, Any]] = set()
        for number, (low, high) in enumerate(itertools.pairwise(rows)):
            own = {(n, value) for n, values in enumerate(columns) for value in values[low:high] if value is not None}
            if not seen.isdisjoint(own):
                yield number
                seen = own
            else:
                seen |= own
        yield len(rows) - 1

    def answer(
        self, intake: Intake, scoring: Scoring, pasts: Pasts, absorb: bool = False, reason_codes: int = 0
    ) -> Answers:
        """Score the events of a part. With `absorb` the valid ones are added to the past of their entities, too."""
        intake, ids = self._without_repeated(intake, pasts)
        events, places, refused = intake.batch, intake.places, dict(intake.refused)
        if not events.num_rows:
            if absorb and ids is not None:
                pasts.append(self._past.kinds[IDS], *ids)
            return Answers(events, places, refused)
        if self.project.tables:
            events = self._past.join(events, *pasts.read(self._past.places_of_tables(events)))
        featured = self._past.compute(events, *pasts.read(self._past.places(events)))
        if self.project.expect:
            featured, faults, _ = check_features(featured, self.project)
            rows = places[faults.rows].tolist()
            refused |= {p: Refusal("CheckFeatures", text) for p, text in zip(rows, faults.reasons(), strict=True)}
            featured, places = split_good(featured, faults.bad), places[~faults.bad]
        rows = scoring.score(featured, self.project, reason_codes) if featured.num_rows else featured
        if absorb and ids is not None:
            pasts.append(self._past.kinds[IDS], *ids)
            self._absorb(events, pasts)
        return Answers(rows, places, refused)

    def _without_repeated(self, intake: Intake, pasts: Pasts) -> tuple[Intake, tuple[Rows, pa.Array] | None]:
        """The events that are no duplicates of others in the past, and the ids of all, if there are, by their keys."""
        events, kind, names = intake.batch, self._past.kinds[IDS], self.project.identifying_fields
        if not events.num_rows:
            return intake, None
        tiles, more = pasts.read(places_of_ids(kind, events))
        content = content_column(events, names, np.zeros(events.num_rows, bool))
        repeated = find_repeated(kind, events, content, [*tiles.values(), *more.values()])
        content = content_column(events, names, repeated) if repeated.any() else content
        return refuse_repeated(intake, repeated, self._records), rows_of_ids(kind, events, content)

    def _absorb(self, events: pa.RecordBatch, pasts: Pasts) -> None:
        """Add what the windows of later events need of these."""
        if self.project.before_windows or self.project.windows_only:
            events = before_windows(events, self.project)
        for kind in self._kinds:
            known, _ = with_keys(events, kind.keys)
            pasts.append(kind, rows_of(kind, known), keys_of(kind, known))

    def features_at(self, entity: str, key: str, at_us: int, pasts: Pasts) -> bytes:
        """The rolling features of an entity as of a time, microseconds since 1970 UTC, as a JSON object.

        RequestError for an entity that the project has no windows of, or a key that is none.
        """
        one = self._key_of(entity, key)
        found = self._past.answer(
            entity, [one], np.array([at_us]), *pasts.read(self._past.places_of(entity, one, at_us))
        )
        row = pa.RecordBatch.from_arrays([pa.array(values) for values in found.values()], names=list(found))
        return encode_json_lines(row).rstrip()

    def _key_of(self, entity: str, key: str) -> str:
        """An entity's key as the tiles have it."""
        names = self.project.key_fields.get(entity, ())
        if len(names) != 1:
            known = ", ".join(name for name, fields in self.project.key_fields.items() if len(fields) == 1)
            raise RequestError(f"no windows are of the entity {entity!r} alone; there are: {known or 'none'}")
        if self.project.contract.fields[names[0]].kind != "int":
            return key
        if not re.fullmatch(r"-?[0-9]{1,19}", key) or not -(2**63) <= int(key) < 2**63:
            raise RequestError(f"{names[0]} is a whole number of 64 bits")
        return str(int(key))

    def without_past(self, payloads: Sequence[bytes], action: str) -> Answers:
        """The valid events with one decision, that for events whose past can't be read, and without a score."""
        intake = take_in(payloads, self._records)
        event = self.project.event
        columns = [column(intake.batch, event.id), column(intake.batch, EVENT_TIME)]
        decided = same_text(action, intake.batch.num_rows)
        rows = pa.RecordBatch.from_arrays([*columns, decided], names=[event.id, event.time, DECISION])
        return Answers(rows, intake.places, intake.refused)

    def render(self, answers: Answers, about: Sequence[bytes], with_features: bool) -> list[bytes]:
        """The answer to each event of the request as a JSON object; `about` has more members for each row.

        Numbers of 32 and of 64 bits are written with as few digits as read back to the same bits of that type.
        """
        found: dict[int, bytes] = {place: self._render_refusal(refusal) for place, refusal in answers.refused.items()}
        if answers.rows.num_rows and len(answers.places):
            found |= dict(
                zip(answers.places.tolist(), self._render_rows(answers.rows, about, with_features), strict=True)
            )
        return [found[place] for place in sorted(found)]

    def decision_of(self, refusal: Refusal) -> str | None:
        """The fallback decision that the project declares for a refused event, if it does."""
        fallback = self.project.fallback
        return fallback.action if fallback is not None and refusal.step in _FALLS_BACK else None

    def _render_refusal(self, refusal: Refusal) -> bytes:
        told = {"refused": {"step": refusal.step, "reasons": json.loads(refusal.reasons)}}
        decision = self.decision_of(refusal)
        return json.dumps(told if decision is None else {**told, DECISION: decision}, ensure_ascii=False).encode()

    def _render_rows(self, rows: pa.RecordBatch, about: Sequence[bytes], with_features: bool) -> list[bytes]:
        there = set(rows.schema.names)
        event = [self.project.event.id, self.project.event.time]
        features = self.project.feature_names if with_features or not self.project.has_model else ()
        said = [*self.project.said_columns, DECISION, UNEXPECTED, BUNDLE_ID, ROLE, RELEASE]
        objects = ["event"] * len(event) + ["features"] * len(features)
        shown = rows.select([*event, *features, *(name for name in said if name in there)])
        lines = encode_json_lines(shown, objects).splitlines()
        reasons = column(rows, REASONS).to_pylist() if REASONS in there else ()
        told = [b'"reasons":' + text.encode() for text in reasons] or [b""] * len(lines)
        return [b",".join(filter(None, (line[:-1], told[row], about[row]))) + b"}" for row, line in enumerate(lines)]
