"""Requests to records: the events of a body of JSON, each by the contract that the graph holds it to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import Keys, column
from models.codecs import is_deep
from models.counts import DEDUPLICATE
from models.dead_letters import split_good
from models.decode import decode_once
from models.derive import is_wanted
from models.errors import HeadraceError
from models.faults import RowFaults
from models.features.duplicates import DUPLICATE
from models.features.windows import Bools
from models.raw import raw_records
from models.record import RecordType
from models.validate import carry, validate_batch

_SOURCE = "request"
_SLICE_US = 1000  # of no meaning here: nothing waits
_ANY = json.JSONDecoder(parse_int=float)  # whole numbers of any length: only where they end is looked at
FILTER = "Filter"  # the step that leaves out what `where` does not want
_TAKEN_IN = ("Decode", FILTER, "Validate", DEDUPLICATE)  # steps that refuse an event for itself
_SPACE = " \t\r\n"
TWICE = "twice in one request"
FILTERED = "left out by the project's `where`"


class RequestError(HeadraceError, ValueError):
    """A request whose body holds no events."""


class Refusal(NamedTuple):
    """Why an event was refused: the step of the graph that refuses it, and its reasons as that step gives them.

    The reasons are a JSON list of {field, rule, value}.
    """

    step: str
    reasons: str


class Intake(NamedTuple):
    """Events of requests: the valid ones as a batch, the place of each among all, int64[n], and by place refusals."""

    payloads: Sequence[bytes]
    batch: pa.RecordBatch
    places: Keys
    refused: dict[int, Refusal]


def split_events(body: bytes, most: int) -> tuple[list[bytes], bool]:
    """The texts of the events of a body, byte for byte, and whether it is a list of them; one event is an object.

    Raises:
        RequestError: if a list is not JSON, is empty, or holds more than `most` events.
    """
    start = body.lstrip(_SPACE.encode())[:1]
    if start != b"[":
        return [body], False
    if is_deep(body):
        raise RequestError("the list is nested too deeply")
    try:
        text = body.decode()
        return [part.encode() for part in _elements(text, text.index("[") + 1, most)], True
    except UnicodeDecodeError as error:
        raise RequestError(f"the list is not UTF-8: byte {error.start}") from None
    except (json.JSONDecodeError, IndexError) as error:
        raise RequestError(f"the list is not JSON: {error}") from None


def _elements(text: str, place: int, most: int) -> list[str]:
    """The elements of the list that begins before `place`."""
    found: list[str] = []
    place = _skip(text, place)
    if text[place] == "]":
        raise RequestError("the list holds no event")
    while True:
        _, end = _ANY.raw_decode(text, place)
        found.append(text[place:end])
        if len(found) > most:
            raise RequestError(f"the list holds more than {most:,} events: send several")
        place = _skip(text, end)
        if text[place] == "]":
            break
        if text[place] != ",":
            raise json.JSONDecodeError("a comma is missing", text, place)
        place = _skip(text, place + 1)
    if _skip(text, place + 1) != len(text):
        raise json.JSONDecodeError("something stands behind it", text, place + 1)
    return found


def _skip(text: str, place: int) -> int:
    """The next place that is no white space."""
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place


def is_valid(refusal: Refusal | None) -> bool:
    """Whether an event is one that others' windows see: if it was refused, then for its features alone."""
    return refusal is None or refusal.step not in _TAKEN_IN


def take_in(
    payloads: Sequence[bytes], records: RecordType, unique: bool = True, requests: Keys | None = None
) -> Intake:
    """Decode and validate, as the graph does.

    If they are to be `unique`, of two events with one id the first in event time and order stays. So it is for each of
    several requests, if events are of several: `requests` int64[n] tells of which each is.
    """
    decoded, faults = decode_once(raw_records(payloads, _SOURCE, _SLICE_US), records)
    places = np.arange(len(payloads))
    refused = _refusals("Decode", faults, places)
    batch, places = split_good(decoded, faults.bad), places[~faults.bad]
    wanted = is_wanted(batch, records)
    if wanted is not None and not wanted.all():
        left_out = RowFaults(batch.num_rows)
        left_out.add(np.flatnonzero(~wanted), "record", FILTERED)
        refused |= _refusals(FILTER, left_out, places)
        batch, places = split_good(batch, ~wanted), places[wanted]
    if batch.num_rows:
        faults = validate_batch(batch, records)
        refused |= _refusals("Validate", faults, places)
        batch, places = split_good(batch, faults.bad), places[~faults.bad]
    if unique and batch.num_rows > 1:
        faults = _repeated(batch, records, None if requests is None else requests[places])
        refused |= _refusals(DEDUPLICATE, faults, places)
        batch, places = split_good(batch, faults.bad), places[~faults.bad]
    return Intake(payloads, carry(batch, records), places, refused)


def _repeated(batch: pa.RecordBatch, records: RecordType, requests: Keys | None) -> RowFaults:
    faults, ids = RowFaults(batch.num_rows), column(batch, records.id)
    if pc.count_distinct(ids).as_py() < batch.num_rows:
        order = pc.array_sort_indices(column(batch, records.time)).to_numpy()  # stable
        again = np.ones(batch.num_rows, bool)
        codes = np.asarray(ids.dictionary_encode().indices).astype(np.int64)
        codes += 0 if requests is None else requests * batch.num_rows
        _, first = np.unique(codes[order], return_index=True)
        again[order[first]] = False
        faults.add(np.flatnonzero(again), records.id, TWICE, ids)
    return faults


def refuse_repeated(intake: Intake, repeated: Bools, records: RecordType) -> Intake:
    """The intake without the events, bool[n], that are duplicates of others."""
    if not repeated.any():
        return intake
    faults = RowFaults(intake.batch.num_rows)
    faults.add(np.flatnonzero(repeated), records.id, DUPLICATE, column(intake.batch, records.id))
    refused = intake.refused | _refusals(DEDUPLICATE, faults, intake.places)
    return Intake(intake.payloads, split_good(intake.batch, repeated), intake.places[~repeated], refused)


def _refusals(step: str, faults: RowFaults, places: Keys) -> dict[int, Refusal]:
    if not faults.bad.any():
        return {}
    rows = places[faults.rows].tolist()
    return {place: Refusal(step, reasons) for place, reasons in zip(rows, faults.reasons(), strict=True)}
