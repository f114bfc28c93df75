"""What an endpoint computes of events as they come has the bits that the graph gives them over files."""

import datetime
import itertools
import json
import random

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from models.rollout.assign import Releases
from models.serving.answers import Answering, Scoring
from models.store.large import LargeTiles
from pipelines.store import open_store
from tests.kit.declared import declared
from tests.kit.releases import five_releases
from tests.kit.serving import (
    APART,
    EVERYONE,
    SCHEMA,
    TEXT,
    PastsInMemory,
    as_lines,
    assert_same_bits,
    in_order,
    make_events,
)
from tests.kit.support import DATA, card_fraud, needs_data, run_graph, tiny_scorer

pytestmark = pytest.mark.slow

SUMMED = """
name: summed
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card, shop: shop}
fixed_point: {amount: 2}
features:
  row: {}
  rolling:
    - entity: card
      windows: {D: 1d, M: 30d}
      features:
        "number_{window}": count
        "mean_{window}": mean(amount)
        "spread_{window}": std(amount)
        "least_{window}": min(amount)
        "most_{window}": max(amount)
        "first_{window}": first(amount)
        "second_{window}": last(amount, 2)
        "shops_{window}": distinct(shop)
        "pause_{window}": since_last
    - {entity: shop, missing: skip, delay: 2d, windows: {W: 14d}, features: {total: sum(amount)}}
model: {inputs: [number_D, mean_M, spread_D, least_M, most_D, total]}
"""


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """A project, its events, and what the graph makes of them."""
    folder = tmp_path_factory.mktemp("shops")
    project, events = declared(TEXT, SCHEMA), make_events()
    path = folder / "events.jsonl"
    path.write_bytes(b"\n".join(as_lines(events)) + b"\n")
    return project, events, run_graph(folder / "run", [str(path)], project)


@pytest.fixture(scope="module")
def summed(tmp_path_factory):
    """As `shops`, of windows that are looked up by their edges, with many events of two cards at one time."""
    folder = tmp_path_factory.mktemp("summed")
    project = declared(SUMMED, SCHEMA)
    events = [{**event, "card": "anna" if event["id"] % 3 else "ben"} for event in make_events(400, seed=2)]
    path = folder / "events.jsonl"
    path.write_bytes(b"\n".join(as_lines(events)) + b"\n")
    return project, events, run_graph(folder / "run", [str(path)], project)


def ask(project, scoring, requests, absorb=True, pasts=None, together=1, **options):
    """The answers to lists of records, one list after another, or so many that wait together."""
    answering, pasts = Answering(project), pasts or PastsInMemory()
    lines = [as_lines(request) for request in requests]
    for at in range(0, len(lines), together):
        for _, intake in answering.take_in(lines[at : at + together]):
            answers = answering.answer(intake, scoring, pasts, absorb, **options)
            yield from map(json.loads, answering.render(answers, [b'"complete":true'] * 1000, True))


def fixed(project) -> Scoring:
    return Scoring(tiny_scorer(project.model.inputs), "bundle")


def split(answers):
    answers = list(answers)
    return [a for a in answers if "refused" not in a], [a for a in answers if "refused" in a]


def columns(project):
    return [*project.feature_names, "score", "decision", "bundle_id"]


class Stored:
    """A store's past, which is put into tiles after so many events."""

    def __init__(self, folder, project, every):
        self.store = open_store(str(folder / "store.db"), project.feature_set, create=True)
        self._every, self._entered = every, 0

    def read(self, places):
        found = self.store.look(places)
        return found.tiles, found.more

    def append(self, kind, rows, keys):
        self.store.enter(kind, rows, keys)
        self._entered += 1
        if self._entered % self._every == 0:
            self.store.settle()


@pytest.mark.parametrize(("size", "every"), [(1, 1), (1, 150), (40, 3)])
def test_large_tiles_are_looked_up_by_their_edges_to_the_same_bits(summed, monkeypatch, tmp_path, size, every):
    """Of a store that has some rows in large tiles, some in its log, and by and by in others."""
    project, events, batch = summed
    for module in ("models.store.large", "pipelines.store.log", "pipelines.store.sqlite"):
        monkeypatch.setattr(f"{module}.LARGE_BYTES", 400)
    for name, number in (("_BLOCK", 4), ("_MANY", 8)):
        monkeypatch.setattr(f"models.features.few.{name}", number)
    kept = []
    keep = LargeTiles.keep
    monkeypatch.setattr(LargeTiles, "keep", lambda *tile: kept.append(tile) or keep(*tile))
    ordered, pasts = in_order(events), Stored(tmp_path, project, every)
    requests = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    scored, _ = split(ask(project, fixed(project), requests, pasts=pasts))
    assert_same_bits(scored, batch.scores, [*project.feature_names, "score"])
    assert len(kept) > 10
    again, _ = split(ask(project, fixed(project), [ordered[-30:]], pasts=pasts))
    assert again == scored[-30:]


@pytest.mark.parametrize("seed", range(4))
def test_events_one_by_one_or_in_lists_get_the_bits_of_batch(shops, seed):
    project, events, batch = shops
    ordered, random_ = in_order(events), random.Random(seed)
    cuts = (
        [0, *sorted(random_.sample(range(1, len(ordered)), 20 * seed)), len(ordered)]
        if seed
        else range(len(ordered) + 1)
    )
    requests = [ordered[a:b] for a, b in itertools.pairwise(cuts)]
    if seed:
        for request in requests:
            random_.shuffle(request)
    scored, refused = split(ask(project, fixed(project), requests))
    assert len(scored) == batch.outcomes["scored"] > 400
    assert_same_bits(scored, batch.scores, columns(project))
    told = sorted(json.dumps(a["refused"]["reasons"]) for a in refused)
    assert told == sorted(json.dumps(json.loads(text)) for text in batch.dead_letters["reasons"].to_pylist())
    assert (
        {a["refused"]["step"] for a in refused}
        == set(batch.dead_letters["step"].to_pylist())
        == {"Validate", "CheckFeatures"}
    )
    assert {a["decision"] for a in refused} == {"review"}


@pytest.mark.parametrize("absorb", [True, False])
def test_requests_that_wait_together_get_the_answers_of_one_after_another(absorb):
    """Whatever they have in common: keys, times, ids, events that are refused."""
    assert EVERYONE in TEXT
    project, random_ = declared(APART, SCHEMA), random.Random(absorb)
    events = [{**e, "card": f"c{e['id'] % 30}", "shop": e["shop"] and e["id"] % 40} for e in make_events(500, seed=3)]
    past, asked = events[:200], events[200:]
    asked += [{**event, "amount": 7.0} for event in random_.sample(asked, 40)]  # of ids that others have
    random_.shuffle(asked)
    cuts = sorted({0, len(asked), *random_.sample(range(len(asked)), 200)})
    requests = [asked[a:b] for a, b in itertools.pairwise(cuts)]
    found = {}
    for together in (1, 7):
        pasts = PastsInMemory()
        list(ask(project, fixed(project), [past], pasts=pasts))
        found[together] = list(ask(project, fixed(project), requests, absorb, pasts, together)), pasts.tiles
    assert found[1] == found[7]
    assert len(found[1][0]) == len(asked)
    lines = [as_lines(request) for request in requests]
    parts = [n for at in range(0, len(lines), 7) for n, _ in Answering(project).take_in(lines[at : at + 7])]
    assert sum(parts) == len(requests)
    assert {1, 2, 3} < set(parts)  # several at once, but not where they have something in common


@pytest.mark.parametrize("size", [1, 7])
def test_events_with_an_id_of_another_entitys_event_are_refused_as_in_batch(shops, tmp_path, size):
    """Some of them within the time of a duplicate that was refused itself."""
    project, events, _ = shops
    chosen = random.Random(3)
    again = [
        {**event, "card": chosen.choice("xyz"), "at": event["at"] + chosen.randrange(1800, 9 * 86_400, 1800)}
        for event in chosen.choices(events, k=300)
    ]
    ordered = in_order([*events, *again])
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(as_lines(ordered)) + b"\n")
    batch = run_graph(tmp_path / "run", [str(tmp_path / "events.jsonl")], project)
    requests = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    scored, refused = split(ask(project, fixed(project), requests))
    rows = {(row["id"], row["at"]): row for row in batch.scores.to_pylist()}
    assert len(rows) < len(ordered) - 100
    assert len(scored) == len(rows)
    assert all(rows[a["event"]["id"], time_of(a)]["score"] == np.float32(a["score"]) for a in scored)
    told = [a["refused"]["step"] for a in refused]
    assert sorted(told) == sorted(batch.dead_letters["step"].to_pylist())
    # Each of them once more: the answers are the same.
    assert split(ask(project, fixed(project), [[e] for e in ordered for _ in range(2)]))[0][::2] == list(
        split(ask(project, fixed(project), [[e] for e in ordered]))[0]
    )


def time_of(answer):
    return datetime.datetime.fromisoformat(answer["event"]["at"])


def test_an_event_that_is_sent_again_has_the_same_answer(shops):
    project, events, _ = shops
    ordered = in_order(events)[:200]
    once = list(ask(project, fixed(project), [[event] for event in ordered]))
    answers = list(ask(project, fixed(project), [[event] for event in ordered for _ in range(2)]))
    assert answers[::2] == answers[1::2] == once


def test_an_event_that_comes_after_later_ones_sees_what_was_before_it(shops):
    project, events, batch = shops
    ordered = in_order(events)
    late = next(e for e in ordered[300:] if e["amount"] == 12.5)
    answers = ask(project, fixed(project), [[e for e in ordered if e is not late], [late]])
    assert_same_bits(
        [list(answers)[-1]],
        batch.scores.filter([i == late["id"] for i in batch.scores["id"].to_pylist()]),
        columns(project),
    )


@pytest.mark.parametrize("control", ["nothing absorbed", "one event late"])
def test_a_past_that_lacks_events_gives_other_features(shops, control):
    project, events, batch = shops
    ordered = in_order(events)
    if control == "nothing absorbed":
        answers = ask(project, fixed(project), [[event] for event in ordered], absorb=False)
    else:
        pasts, answers, before, scoring = PastsInMemory(), [], None, fixed(project)
        for event in ordered:
            answers += ask(project, scoring, [[event]], absorb=False, pasts=pasts)
            if before:
                list(ask(project, scoring, [[before]], pasts=pasts))
            before = event
    scored, _ = split(answers)
    with pytest.raises(AssertionError):
        assert_same_bits(scored, batch.scores, columns(project))


def test_releases_say_which_model_answers(shops, tmp_path):
    project, events, _ = shops
    lines = as_lines(in_order(events))
    released = five_releases(project, lines, "card")
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    batch = run_graph(tmp_path / "run", [str(path)], project, released=released)
    scoring = Scoring(releases=Releases(released.read().records), bundles=released.bundles)
    scored, _ = split(ask(project, scoring, [[event] for event in in_order(events)]))
    assert_same_bits(scored, batch.scores, [*columns(project), "role", "release"])
    assert len({a["bundle_id"] for a in scored}) == 3


@needs_data
def test_card_transactions_get_the_bits_of_batch(tmp_path):
    project = card_fraud()
    rows = pq.read_table(DATA / "transactions.parquet").slice(0, 300_000)
    some = pc.is_in(rows["CUSTOMER_ID"], value_set=rows["CUSTOMER_ID"].slice(0, 6).combine_chunks())
    events = [{**row, "TX_DATETIME": str(row["TX_DATETIME"])} for row in rows.filter(some).to_pylist()]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(as_lines(events)))
    batch = run_graph(tmp_path / "run", [str(tmp_path / "events.jsonl")], project)
    ordered = sorted(events, key=lambda event: (event["TX_DATETIME"], event["TRANSACTION_ID"]))
    scored, refused = split(ask(project, fixed(project), [[event] for event in ordered]))
    assert not refused
    assert len(scored) > 500
    assert_same_bits(scored, batch.scores, columns(project), "TRANSACTION_ID")
