"""An endpoint that is the only way in keeps its store as small as a stream does."""

import asyncio
import contextlib
import itertools
import json

import pytest

from models.store.kinds import kinds_of
from pipelines.serve.models import OneModel
from pipelines.serve.service import Service
from pipelines.store import open_store
from tests.kit.declared import declared
from tests.kit.serving import SCHEMA, START, as_lines

HOUR = 3600
SECOND = 1_000_000
TEXT = """
name: short
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card}
features: {row: {}, rolling: [{entity: card, windows: {H: 8h}, features: {"count_{window}": count}}]}
"""


def serve(folder, lines, absorb=True):
    """The number of events that each event's window holds, and the starts of the tiles that are there in the end."""
    project = declared(TEXT, SCHEMA)
    store = open_store(str(folder / "store.db"), project.feature_set, create=True)
    with contextlib.closing(
        Service(project, OneModel(project), store, absorb, 10.0, lateness_us=HOUR * SECOND)
    ) as served:
        counts = []
        for at in range(0, len(lines), 5):
            reply = asyncio.run(served.score(lines[at : at + 5], True))
            counts += [json.loads(answer)["features"]["count_H"] for answer in reply.answers]
        asyncio.run(served.do(store.settle))
        kind = next(iter(kinds_of(project).values()))
        return counts, [place.start_us // SECOND - START for place, _ in store.scan(kind.name)]


@pytest.fixture
def small_log(monkeypatch):
    monkeypatch.setattr("pipelines.store.log.MAX_ENTRIES", 8)


@pytest.fixture
def lines():
    """An event in ten minutes, for two days."""
    return as_lines([{"id": n, "at": START + 600 * n, "card": "anna"} for n in range(300)])


def test_what_has_passed_all_windows_leaves_a_store_that_absorbs(tmp_path, small_log, lines):
    counts, starts = serve(tmp_path, lines)
    assert counts == [min(n + 1, 48) for n in range(300)]
    end = 600 * 300
    assert end - 24 * HOUR < min(starts) <= end - 9 * HOUR  # eight hours, one that may be late, and what is not yet due


def test_events_far_ahead_drop_nothing(tmp_path, small_log, lines):
    ahead = as_lines([{"id": -1 - n, "at": START + 10**8 + n, "card": "ben"} for n in range(40)])
    mixed = itertools.chain.from_iterable(zip(lines[100:140], ahead, strict=True))
    counts, _ = serve(tmp_path, [*lines[:100], *mixed, *lines[140:]])
    of_anna = [*counts[:100], *counts[100:180:2], *counts[180:]]
    assert of_anna == [min(n + 1, 48) for n in range(300)]


def test_an_event_of_a_time_whose_past_was_dropped_is_not_said_to_be_complete(tmp_path, small_log, lines):
    serve(tmp_path, lines)
    project = declared(TEXT, SCHEMA)
    store = open_store(str(tmp_path / "store.db"), project.feature_set)
    with contextlib.closing(
        Service(project, OneModel(project), store, True, 10.0, lateness_us=HOUR * SECOND)
    ) as served:
        asked = as_lines([{"id": n, "at": START + 600 * n, "card": "anna"} for n in range(20, 300)])
        answers = [json.loads(answer) for answer in asyncio.run(served.score(asked)).answers]
    right = [answer["features"]["count_H"] == min(n + 1, 48) for n, answer in enumerate(answers, 20)]
    complete = [answer["complete"] for answer in answers]
    assert not all(right)
    assert complete == sorted(complete)
    assert sum(complete) >= 7  # an hour's
    assert all(is_right for is_right, is_complete in zip(right, complete, strict=True) if is_complete)
