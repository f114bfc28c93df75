"""`headrace parity --serve`: events one by one to an endpoint that absorbs them, and every bit compared with batch."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_batch, column, key_column
from models.codecs import MAX_BLOCK_ROWS
from models.counts import DEDUPLICATE
from models.features.duplicates import content_of
from models.features.row import rolling_kernels
from models.predictors.bundle import Bundle
from models.project.declarations import Project
from models.record import BUNDLE_ID, DECISION, EVENT_TIME, RELEASE, ROLE, UNEXPECTED, Outcome
from models.serving.requests import FILTER, take_in
from pipelines.config import RunSpec
from pipelines.jobs.parity import Comparison, Proof, compare_counts, compare_tables
from pipelines.jobs.released import Released
from pipelines.jobs.score import score_files
from pipelines.jobs.store import fill_store
from pipelines.results import read_kind
from pipelines.serve.app import make_app
from pipelines.serve.http import Tokens
from pipelines.serve.models import Models, OneModel, ReleasedModels
from pipelines.serve.server import running
from pipelines.serve.service import Service
from pipelines.sinks.listed import DEAD_LETTERS, SCORES
from pipelines.sources.payloads import read_payloads
from pipelines.store import open_store

_SERVED = "served"
_DEADLINE_SECONDS = 60.0
_FLOATS = {"float": pa.float32(), "double": pa.float64()}


@dataclasses.dataclass(frozen=True)
class Served(Proof):
    """What came of comparing batch with an endpoint; `complete` is how many answers said that they are."""

    complete: int


def check_served(
    project: Project,
    bundle: Bundle | None,
    scorer: Any,
    uris: Sequence[str],
    tables: tuple[str, ...] = (),
    released: Released | None = None,
) -> Served:
    """Score the events of the files at `uris` in batch and by requests, each when the one before it was absorbed.

    They are sent in the order of (event time, event id), those that are invalid last. An event that stands there
    several times, byte for byte, is sent once: an endpoint answers again. All rows of `tables` are in the store before:
    which of them an event takes, its time decides.
    """
    payloads = read_payloads(uris, project.event_type)
    with tempfile.TemporaryDirectory(prefix="headrace-parity-") as scratch:
        events = pathlib.Path(scratch) / "events.jsonl"
        events.write_bytes(b"".join(payload + b"\n" for payload in payloads))
        spec = RunSpec(project, (str(events),), f"{scratch}/batch", tables=tables)
        spec.check_tables()
        batch = score_files(spec, bundle, scorer, released)
        rows, dead = (read_kind(batch.directory, kind) for kind in (SCORES, DEAD_LETTERS))
        letters = dead.to_pylist() if dead.num_rows else []
        letters, sent = _once(letters, payloads)
        sent = _in_order(sent, project)
        models: Models
        if released is not None:
            models = ReleasedModels(released)
        else:
            models = OneModel(project, scorer, bundle.bundle_id if bundle else "")
        uri = f"{scratch}/store.db"
        if project.tables:
            (nothing := pathlib.Path(scratch) / "nothing.jsonl").touch()
            fill_store(dataclasses.replace(spec, sources=(str(nothing),), sink="", store=uri))
        store = open_store(uri, project.feature_set, create=True)
        app = make_app(Service(project, models, store, True, _DEADLINE_SECONDS), Tokens({}))
        with running(app) as url:
            answers = _ask(url, sent)
        refused = [
            (payload, answer["refused"]) for payload, answer in zip(sent, answers, strict=True) if "refused" in answer
        ]
        left_out = sum(each["step"] == FILTER for _, each in refused)
        others = ((p, each) for p, each in refused if each["step"] != FILTER)
        told = collections.Counter((p, each["step"], json.dumps(each["reasons"])) for p, each in others)
        reasons = ((each, json.dumps(json.loads(each["reasons"]))) for each in letters)
        expected = collections.Counter((each["payload"], each["step"], text) for each, text in reasons)
        scored = [answer for answer in answers if "refused" not in answer]
        compared = [*_compare(project, rows, scored, released), compare_counts("dead letters", expected, told)]
        if project.where is not None:
            both = (collections.Counter({FILTER: n}) for n in (batch.outcomes[Outcome.FILTERED], left_out))
            compared.append(compare_counts("left out", *both))
        controls = _last_values(project, rows)
        complete = sum(answer["complete"] for answer in scored)
        return Served(batch, tuple(compared), controls, complete)


def _once(letters: list[dict[str, Any]], payloads: list[bytes]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Dead letters and payloads without those of which batch says that the same bytes stand there before."""
    repeated = {each["payload"]: each for each in letters if each["step"] == DEDUPLICATE}
    others = [each for each in letters if each["step"] != DEDUPLICATE]
    copies = collections.Counter(each["payload"] for each in letters if each["step"] == DEDUPLICATE)
    left = collections.Counter(payloads) - copies
    refused = [each for payload, each in repeated.items() if payload not in left]
    return [*others, *refused], [*left.elements(), *(each["payload"] for each in refused)]


def _in_order(payloads: list[bytes], project: Project) -> list[bytes]:
    """Valid events in the order in which batch takes them, and then the others."""
    parts, valid = [], np.zeros(len(payloads), bool)
    for start in range(0, len(payloads), MAX_BLOCK_ROWS):
        taken = take_in(payloads[start : start + MAX_BLOCK_ROWS], project.event_type, unique=False)
        places = taken.places + start
        valid[places] = True
        columns = [column(taken.batch, name) for name in (EVENT_TIME, project.event.id)]
        parts.append(
            pa.table([*columns, content_of(taken.batch), pa.array(places)], names=["time", "id", "content", "place"])
        )
    order_by = [(name, "ascending") for name in ("time", "id", "content")]
    order = pa.concat_tables(parts).sort_by(order_by)["place"].to_pylist()
    return [payloads[place] for place in (*order, *np.flatnonzero(~valid).tolist())]


def _ask(url: str, payloads: Sequence[bytes]) -> list[dict[str, Any]]:
    """The answer to each event, one after another."""
    with httpx.Client(base_url=url, timeout=2 * _DEADLINE_SECONDS) as client:
        found = []
        for payload in payloads:
            reply = client.post("/v1/score", params={"features": "true"}, content=payload)
            if reply.status_code not in (200, 422):
                reply.raise_for_status()
            found.append(reply.json())
        return found


def _compare(
    project: Project, rows: pa.Table, answers: Sequence[Mapping[str, Any]], released: Released | None
) -> list[Comparison]:
    """Columns of score rows, by event id, with what answers say; no number is the same as none, as JSON has it."""
    event_id = project.event.id
    ids = pa.array([answer["event"][event_id] for answer in answers], rows.schema.field(event_id).type)
    ours, found = rows.sort_by(event_id), []
    order = pc.array_sort_indices(ids).to_pylist()
    for what, names in (
        ("ids and fields", [event_id]),
        ("features", list(project.feature_names)),
        ("releases", [BUNDLE_ID, ROLE, RELEASE] if released else []),
        ("scores", list(project.said_columns) if project.has_model else []),
        ("decisions", [*([DECISION] if project.decisions else []), *([UNEXPECTED] if project.marks_rows else [])]),
    ):
        there = {name: ours[name] for name in names}
        if not there:
            continue
        one = pa.table({name: _as_json_has(values) for name, values in there.items()})
        other = pa.table({name: _column(name, one.schema.field(name).type, answers, order) for name in there})
        found.append(compare_tables(what, one, other, list(there), _SERVED))
    return found


def _as_json_has(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type):
        return values.cast(pa.string())
    if pa.types.is_floating(values.type):
        return pc.if_else(pc.is_nan(values), None, values)
    return values


def _column(name: str, kind: pa.DataType, answers: Sequence[Mapping[str, Any]], order: Sequence[int]) -> pa.Array:
    places = (answers[place] for place in order)
    said = [each["event"].get(name, each["features"].get(name, each.get(name))) for each in places]
    return pa.array(said, kind)


def _last_values(project: Project, rows: pa.Table) -> tuple[Comparison, ...]:
    """A control: rows with the rolling features of the event before of each entity, as stores of last values serve."""
    ordered = as_batch(
        rows.sort_by([(project.event.time, "ascending"), (project.event.id, "ascending")]).combine_chunks()
    )
    late: dict[str, pa.Array] = {}
    for entity, kernel in rolling_kernels(project).items():
        names = project.key_fields[entity]
        if not set(names) <= set(ordered.schema.names):
            continue
        codes = np.asarray(key_column(ordered, names).dictionary_encode().indices.fill_null(-1))
        order = np.argsort(codes, kind="stable")
        same = np.flatnonzero(codes[order[1:]] == codes[order[:-1]])
        before = np.full(len(codes), -1)
        before[order[same + 1]] = order[same]
        places = pa.array(before, mask=before < 0)
        late |= {feature.name: column(ordered, feature.name).take(places) for feature in kernel.features}
    if not late:
        return ()
    ours = pa.table({name: column(ordered, name) for name in late})
    return (compare_tables("control: values of the event before", ours, pa.table(late), list(late), _SERVED),)
