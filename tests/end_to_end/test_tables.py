"""Tables joined as of an event's time: alike over files and messages, and blind to what comes later."""

import collections
import contextlib
import dataclasses
import fractions
import json
import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from models import metrics
from models.record import Outcome
from models.store.tiles import decode_tiles, encode_tiles, kinds_in
from pipelines.cli.main import app
from pipelines.config import RunSpec
from pipelines.graph import GraphConfig, build
from pipelines.jobs.parity import check_parity, compare_tables
from pipelines.jobs.serve_parity import check_served
from pipelines.jobs.store import check_store, fill_store
from pipelines.jobs.topics import acknowledge
from pipelines.prechecks import UsageError
from pipelines.results import read_aggregates
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.store import WriteStore
from pipelines.sources.acknowledge import AfterJournal
from pipelines.sources.feeds import Topic, feeds_of
from pipelines.sources.files import ReadFiles
from pipelines.sources.listing import Files
from pipelines.sources.stream import ReadStream
from pipelines.store import open_store
from pipelines.store.compare import Fault
from tests.kit.bundles import AnyBundle
from tests.kit.declared import assert_fault, declared
from tests.kit.given import Given
from tests.kit.stores import digest, events_of, features_from, same_features
from tests.kit.support import read_output, tiny_scorer, write_rows
from transforms.metrics import read
from transforms.score import Score

pytestmark = pytest.mark.slow

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "shop" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "card" type: INT }
feature { name: "amount" type: FLOAT }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
entities: {shop: shop, card: card}
fixed_point: {limit: 2}
tables:
  shops:
    entity: shop
    key: name
    time: known
    until: closed
    fields: {town: text, size: int}
  limits:
    entity: card
    time: changed
    time_format: "%Y-%m-%d"
    deleted: gone
    fields: {limit: float}
features:
  row: {over: amount > limit, large: size > 2, in_rome: town == 'Rome'}
  rolling:
    - {entity: shop, windows: {D: 1d}, features: {towns: distinct(town), sizes: max(size), romans: count where in_rome}}
    - {entity: card, missing: skip, windows: {D: 1d}, features: {mine: count, usual: mean(limit), above: sum(size)}}
aggregates:
  by_shop: {period: day, by: [shop], columns: {limits: sum(limit)}}
model: {inputs: [amount, over, size, towns]}
output: [town, limit, size]
"""
START = 1_543_622_400  # 1 December 2018
DAY = 86_400


def project_of(text=TEXT):
    return declared(text, SCHEMA)


PROJECT = project_of()


def make(seed=0, number=300):
    chosen = random.Random(seed)
    events = [
        {
            "id": n,
            "at": START + chosen.randrange(6 * DAY),
            "shop": chosen.choice(["x", "y", "z"]),
            "card": chosen.choice([None, 1, 2, 3]),
            "amount": chosen.choice([None, round(chosen.uniform(0, 90), 2)]),
        }
        for n in range(number)
    ]
    shops = [
        {
            "name": chosen.choice(["x", "y", "nowhere"]),
            "known": START + chosen.randrange(-3 * DAY, 6 * DAY),
            "closed": chosen.choice([None, None, START + chosen.randrange(6 * DAY)]),
            "town": chosen.choice([None, "Rome", "Oslo"]),
            "size": chosen.randrange(5),
        }
        for n in range(40)
    ]
    limits = [
        {
            "card": chosen.randrange(1, 3),
            "changed": f"2018-12-0{chosen.randrange(1, 7)}",
            "limit": round(chosen.uniform(0, 90), 2),
            "gone": chosen.choice([None, False, True]),
        }
        for n in range(24)
    ]
    return events, list({(s["name"], s["known"]): s for s in shops}.values()), list(
        {(limit["card"], limit["changed"]): limit for limit in limits}.values()
    )  # fmt: skip


def expected(events, shops, limits):
    """Id → town, size and limit, by definition."""
    found = {}
    for event in events:
        known = [s for s in shops if s["name"] == event["shop"] and s["known"] <= event["at"]]
        shop = max(known, key=lambda s: s["known"], default=None)
        if shop is None or (shop["closed"] is not None and shop["closed"] <= event["at"]):
            shop = {"town": None, "size": None}
        days = [v for v in limits if v["card"] == event["card"] and day(v["changed"]) <= event["at"]]
        limit = max(days, key=lambda v: v["changed"], default={"limit": None, "gone": None})
        limit = {"limit": None} if limit["gone"] else limit
        found[event["id"]] = (shop["town"], shop["size"], limit["limit"])
    return found


def day(text):
    return START + (int(text[-2:]) - 1) * DAY


def joined(scores):
    return {row["id"]: (row["town"], row["size"], row["limit"]) for row in scores.to_pylist()}


def run(folder, source, project=PROJECT, shards=2, store=None):
    config = GraphConfig(
        project,
        source,
        Score(project, tiny_scorer(project.model.inputs), "bundle"),
        WriteFiles(str(folder), project.event.id, project.event.time),
        shards,
        lateness_us=DAY * 1_000_000,
        store=store,
    )
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, config)
    result = pipeline.run()
    result.wait_until_finish()
    return read_output(folder), metrics.by_label(read(result.metrics()), metrics.LOOKUP_MISSES)


def files(folder, events, shops, limits, slice_us=None):
    random.Random(1).shuffle(shops)
    pq.write_table(pa.Table.from_pylist(limits), folder / "limits.parquet")
    pyarrow.csv.write_csv(pa.Table.from_pylist(shops[::2]), folder / "shops.csv")
    sources = {
        "events": Files((write_rows(folder / "events.jsonl", events),)),
        "shops": Files((str(folder / "shops.csv"), write_rows(folder / "shops.jsonl", shops[1::2]))),
        "limits": Files((str(folder / "limits.parquet"),)),
    }
    return ReadFiles(feeds_of(PROJECT, sources), **({"slice_us": slice_us} if slice_us else {}))


def stream(events, shops, limits, seed=0):
    """As messages, each table's changes before the events of their time."""
    payloads = [[json.dumps(row).encode() for row in rows] for rows in (events, shops, limits)]
    topics = {n: Topic(Given(p, seed)) for n, p in zip(("events", "shops", "limits"), payloads, strict=True)}
    return ReadStream(feeds_of(PROJECT, topics), 3600_000_000, 300_000, True)


@pytest.mark.parametrize(("seed", "slice_us"), [(0, None), (1, 6 * 3600_000_000), (2, None)])
def test_files_of_any_format_give_what_was_known(tmp_path, seed, slice_us):
    events, shops, limits = make(seed)
    wanted = expected(events, shops, limits)
    output, missed = run(tmp_path / "out", files(tmp_path, events, shops, limits, slice_us))
    assert joined(output.scores) == wanted
    rows = len(shops) + len(limits)
    assert output.outcomes == {"read": len(events) + rows, "scored": len(events), "reference": rows}
    assert missed["limits"] == sum(limit is None for _, _, limit in wanted.values())
    assert missed["shops"] == sum(size is None for _, size, _ in wanted.values())
    by_id = {event["id"]: event for event in events}
    for row in output.scores.to_pylist():
        amount = by_id[row["id"]]["amount"]
        if row["limit"] is None or amount is None:
            assert row["over"] == 0
        else:
            assert row["over"] == int(amount > row["limit"])


def test_a_stream_joins_what_batch_does(tmp_path):
    events, shops, limits = make()
    wanted = expected(events, shops, limits)
    # All rows of the past come before the first event; changes up to an event's time come before it.
    events.sort(key=lambda event: event["at"])
    (tmp_path / "files").mkdir()
    batch, _ = run(tmp_path / "batch", files(tmp_path / "files", list(events), list(shops), list(limits)))
    output, missed = run(tmp_path / "out", stream(events, shops, limits))
    assert joined(output.scores) == wanted
    ours, theirs = batch.scores.sort_by("id"), output.scores.sort_by("id")
    compared = compare_tables("all", ours, theirs, ours.schema.names)
    assert (compared.rows, compared.different) == (len(events), 0), compared
    assert sum(missed.values()) == sum((v[1] is None) + (v[2] is None) for v in wanted.values())


@pytest.mark.parametrize("way", ["files", "stream"])
def test_sums_of_a_tables_fields_are_exact(tmp_path, way):
    events, shops, limits = make(4)
    wanted = expected(events, shops, limits)
    events = sorted(events, key=lambda event: (event["at"], event["id"]))
    source = stream(events, shops, limits) if way == "stream" else files(tmp_path, list(events), shops, limits)
    output, _ = run(tmp_path / "out", source)
    found = {row["id"]: (row["usual"], row["above"]) for row in output.scores.to_pylist()}
    some = 0
    for place, event in enumerate(events):
        if event["card"] is None:
            continue
        window = [e for e in events[: place + 1] if e["card"] == event["card"] and e["at"] > event["at"] - DAY]
        known = [round(limit * 100) for *_, limit in (wanted[e["id"]] for e in window) if limit is not None]
        mean = float(fractions.Fraction(sum(known), 100 * len(known))) if known else math.nan
        total = sum(wanted[e["id"]][1] or 0 for e in window)
        assert str(found[event["id"]]) == str((mean, float(total)))
        some += len(known) > 1
    assert some > 50
    days = collections.defaultdict(int)
    for event in events:
        days[event["shop"], event["at"] // DAY] += round((wanted[event["id"]][2] or 0) * 100)
    told = read_aggregates(str(tmp_path / "out"))["by_shop"].to_pylist()
    assert {(r["shop"], int(r["period_start"].timestamp()) // DAY): r["limits"] for r in told} == {
        key: total / 100 for key, total in days.items()
    }


def test_a_row_of_a_table_that_sums_cannot_hold_is_a_dead_letter(tmp_path):
    events, shops, limits = make()
    huge = {"card": 1, "changed": "2018-12-01", "limit": 1e17, "gone": None}
    output, _ = run(tmp_path / "out", files(tmp_path, events, shops, [*limits, huge]))
    assert output.reasons == [("limit", "beyond 175921860444.16 of exact sums")]


@pytest.mark.parametrize("way", ["files", "stream"])
def test_a_change_of_tomorrow_does_not_show(tmp_path, way):
    """Poison: every event is before the changes, all of which are there before it."""
    events, shops, limits = make()
    moment = START + 3 * DAY
    poisoned = [{**s, "town": "poison", "size": 99} for s in shops if s["known"] >= moment]
    poisoned += [{"name": n, "known": moment, "closed": None, "town": "poison", "size": 99} for n in "xyz"]
    past = [s for s in shops if s["known"] < moment]
    clean = expected(events, past, limits)
    rows = [*poisoned, *past]
    if way == "files":
        output, _ = run(tmp_path / "out", files(tmp_path, events, rows, limits))
    else:
        output, _ = run(tmp_path / "out", stream(sorted(events, key=lambda e: e["at"]), rows, limits))
    found = joined(output.scores)
    before = [event["id"] for event in events if event["at"] < moment]
    assert len(before) > 100
    assert {n: found[n] for n in before} == {n: clean[n] for n in before}
    later = {found[event["id"]][0] for event in events if event["at"] >= moment}
    assert "poison" in later


def test_a_change_that_comes_late_changes_what_comes_after_it(tmp_path):
    """And an event that is late itself, within what is allowed, finds what was known at its time."""

    def event(n, hour):
        return json.dumps({"id": n, "at": START + hour * 3600, "shop": "x", "amount": 1.0}).encode()

    def row(hour, town):
        return json.dumps({"name": "x", "known": START + hour * 3600, "town": town, "size": 1}).encode()

    events = [event(1, 1), event(2, 30), *[event(n, 40) for n in range(3, 60)], event(60, 45), event(61, 20)]
    shops = [row(0, "first"), *[row(35, "second")] * 40, row(25, "late")]
    topics = {"events": Topic(Slow(events, 3)), "shops": Topic(Slow(shops, 2)), "limits": Topic(Given([], 0))}
    source = ReadStream(feeds_of(PROJECT, topics), 60_000_000, 1_500_000, True)
    output, _ = run(tmp_path / "out", source)
    found = {n: town for n, (town, _, _) in joined(output.scores).items()}
    assert (found[1], found[2]) == ("first", "first")  # `late` had not come
    assert found[60] == "second"
    assert found[61] == "first"  # it is of a time before `late`, and `second` is after it


class Slow(Given):
    """Hands out one message a call, so that feeds come side by side."""

    def __init__(self, payloads, most):
        super().__init__(payloads, 0, most)


def write_tables(folder, shops, limits):
    """The options that name the files of two tables."""
    return (
        f"shops={write_rows(folder / 'shops.jsonl', shops)}",
        f"limits={write_rows(folder / 'limits.jsonl', limits)}",
    )


@pytest.mark.serial
def test_parity_with_tables_of_files(tmp_path):
    events, shops, limits = make(3, 500)
    tables = write_tables(tmp_path, shops, limits)
    source = write_rows(tmp_path / "events.jsonl", events)
    scorer = tiny_scorer(PROJECT.model.inputs)
    found = check_parity(PROJECT, AnyBundle(), scorer, [source], "1h", 0, 0.1, tables)
    assert found.equal, found
    assert found.stream.outcomes[Outcome.REFERENCE] == len(shops) + len(limits)


def test_any_order_parts_and_mode_leave_one_store(tmp_path, monkeypatch):
    monkeypatch.setattr("models.store.kinds.TIDY_US", DAY * 1_000_000)
    events, shops, limits = make(5)

    def stored(path):
        return WriteStore(str(path), PROJECT, DAY * 1_000_000)

    run(tmp_path / "first", files(tmp_path, events, list(shops), limits), store=stored(tmp_path / "whole.db"))
    expected_digest = digest(str(tmp_path / "whole.db"), PROJECT)
    with contextlib.closing(open_store(str(tmp_path / "whole.db"), PROJECT.feature_set)) as store:
        tiles = [tile for _, tile in store.scan("rows of shops")]
    rows, _ = decode_tiles(kinds_in(tiles[0]), tiles)
    assert 3 <= len(rows) < len(shops)  # what was replaced has left
    for seed, slice_us in ((1, 6 * 3600_000_000), (2, None)):
        chosen, folder = random.Random(seed), tmp_path / f"{seed}"
        folder.mkdir()
        rows = [chosen.sample(each, len(each)) + chosen.sample(each, 9) for each in (events, shops, limits)]
        run(folder / "out", files(folder, *rows, slice_us), shards=3, store=stored(folder / "store.db"))
        assert digest(str(folder / "store.db"), PROJECT) == expected_digest
        messages = stream(sorted(rows[0], key=lambda event: event["at"]), *rows[1:], seed=seed)
        run(folder / "stream", messages, store=stored(folder / "stream.db"))
        assert digest(str(folder / "stream.db"), PROJECT) == expected_digest
    newest = max(shops, key=lambda row: row["known"])
    run(
        tmp_path / "less",
        files(tmp_path, events, [*shops, {**newest, "size": 7}], limits),
        store=stored(tmp_path / "less.db"),
    )
    assert digest(str(tmp_path / "less.db"), PROJECT) != expected_digest


def test_events_get_from_a_store_the_rows_and_bits_that_the_graph_gave_them(tmp_path):
    events, shops, limits = make(5)
    whole = str(tmp_path / "whole.db")
    store = WriteStore(whole, PROJECT, 9 * DAY * 1_000_000)
    output, _ = run(tmp_path / "first", files(tmp_path, events, shops, limits), store=store)
    ordered, scores = sorted(events, key=lambda event: event["id"]), output.scores.sort_by("id")
    assert same_features(PROJECT, features_from(whole, PROJECT, events_of(PROJECT, ordered)), scores)
    for place in range(0, len(ordered), 20):
        one = features_from(whole, PROJECT, events_of(PROJECT, [ordered[place]]))
        assert same_features(PROJECT, one, scores.slice(place, 1))
        assert [one[name][0].as_py() for name in PROJECT.output] == [
            scores[name][place].as_py() for name in PROJECT.output
        ]
    later = [{**event, "at": event["at"] + DAY} for event in ordered]
    assert not same_features(PROJECT, features_from(whole, PROJECT, events_of(PROJECT, later)), scores)


def test_what_is_wrong_with_a_tables_rows_in_a_store_is_named_and_mended(tmp_path):
    events, shops, limits = make(6)
    paths = {
        n: write_rows(tmp_path / f"{n}.jsonl", rows)
        for n, rows in zip(("shops", "limits"), (shops, limits), strict=True)
    }
    source, path = write_rows(tmp_path / "events.jsonl", events), str(tmp_path / "store.db")
    tables = tuple(f"{name}={place}" for name, place in paths.items())
    spec = RunSpec(PROJECT, (source,), "", tables=tables, store=path)
    fill_store(spec)
    whole = digest(path, PROJECT)
    assert check_store(spec, mend=False).faults == {}
    with contextlib.closing(open_store(path, PROJECT.feature_set)) as store:
        tiles = dict(store.scan("rows of shops"))
        less, more = (place for place in sorted(tiles) if place.key in ("x", "y"))
        (gone,) = (place for place in tiles if place.key == "nowhere")
        kinds = kinds_in(tiles[less])
        rows, _ = decode_tiles(kinds, [tiles[less]])
        fewer = encode_tiles(rows.slice(1, len(rows)), np.zeros(1, np.int64))[0]
        rows, _ = decode_tiles(kinds, [tiles[more]])
        moved = encode_tiles(dataclasses.replace(rows, time=rows.time + 1), np.zeros(1, np.int64))[0]
        changes = {gone: None, less: fewer, more: moved}
        assert store.replace({place: (tiles[place], tile) for place, tile in changes.items()}) == []
    for mend in (False, True):
        assert check_store(spec, mend).faults == {Fault.MISSING: [gone], Fault.STALE: [less], Fault.WRONG: [more]}
    assert digest(path, PROJECT) == whole


def test_parity_of_an_endpoint_with_tables(tmp_path):
    events, shops, limits = make(7, 120)
    tables = write_tables(tmp_path, shops, limits)
    source = write_rows(tmp_path / "events.jsonl", events)
    found = check_served(PROJECT, AnyBundle(), tiny_scorer(PROJECT.model.inputs), [source], tables)
    assert found.equal, found
    assert found.complete == len(events)
    with pytest.raises(UsageError, match="declares the table limits"):
        check_served(PROJECT, AnyBundle(), tiny_scorer(PROJECT.model.inputs), [source], tables[:1])


def test_rows_that_are_none_are_dead_letters(tmp_path):
    events, _, limits = make()
    shops = [
        {"name": "x", "known": START, "size": "many"},
        {"known": START},
        {"name": "y"},
        {"name": "z", "known": START},
    ]
    shops = [{"closed": None, "town": None, "size": None, **row} for row in shops]
    sources = {
        "events": Files((write_rows(tmp_path / "events.jsonl", events),)),
        "shops": Files((write_rows(tmp_path / "shops.jsonl", shops),)),
        "limits": Files((write_rows(tmp_path / "limits.jsonl", limits),)),
    }
    output, _ = run(tmp_path / "out", ReadFiles(feeds_of(PROJECT, sources)))
    assert sorted(output.reasons) == [("known", "missing"), ("name", "missing"), ("size", "not a 64-bit integer")]
    assert output.outcomes["reference"] == 1 + len(limits)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("entity: shop\n    key", "entity: nope\n    key", "tables.shops.entity: 'nope' is not an entity; there are shop, card"),
        ("time: known", "time: town", "tables.shops.time: town stands twice"),
        ("until: closed", "until: known", "tables.shops.until: known stands twice"),
        ("deleted: gone", "deleted: limit", "tables.limits.deleted: limit stands twice"),
        ("key: name", "key: __name", "tables.shops.key: '__name' can't be a field"),
        ("{town: text", "{amount: text", "tables.shops.fields.amount: amount is the name of an event's field already"),
        ("{limit: float", "{town: float", "tables.limits.fields.town: town is a field of the table shops, too"),
        ("{limit: float", "{limit: bool", "tables.limits.fields.limit: Input should be 'int', 'float' or 'text'"),
        ("{town: text", "{score: text", "tables.shops.fields.score: score is reserved"),
        ("  limits:\n", "  labels:\n", "tables.labels: labels is what headrace calls other records"),
        ('"%Y-%m-%d"', '"%H"', "tables.limits.time_format: '%H' does not say year, month and day"),
        ("count where in_rome", "sum(large)", "sums large, which reads size, a field of a table, that is joined after"),
        ("limits: sum(limit)", "limits: sum(large)", "sums large, which reads size, a field of a table"),
        ("fixed_point: {limit: 2}", "fixed_point: {amount: 2}", "declare the decimal places of limit under fixed_point"),
        ("features:\n  row:", "derive: {big: size + 1}\nfeatures:\n  row:", "derive.big: 'size' is neither a field"),
        ("features:\n  row:", "where: size > 1\nfeatures:\n  row:", "where: size is a field of a table, which is not known yet"),
        ("event: {id: id,", "event: {id: town,", "event.id: town is a field of a table"),
    ],
)  # fmt: skip
def test_faults_are_named_with_their_line(old, new, fault):
    assert_fault(TEXT, SCHEMA, old, new, fault)


@pytest.mark.parametrize(
    ("tables", "fault"),
    [
        (("shops=a.csv",), "the project declares the table limits: say with --table limits=URI"),
        (
            ("shops=a.csv", "limits=b.csv", "nope=c.csv"),
            "of a table that the project declares (shops, limits), not nope",
        ),
        (("shops=a.csv", "limits"), "--table is NAME=URI"),
        (("shops=a.csv", "limits=pubsub://p/s"), "--table limits: a topic is for a stream"),
        (("shops=a.csv", "limits=b.csv"), "a.csv: no such file"),
    ],
)
def test_options_are_checked(tmp_path, tables, fault):
    source = write_rows(tmp_path / "events.jsonl", [])
    with pytest.raises(UsageError) as error:
        RunSpec(PROJECT, (source,), str(tmp_path / "out"), tables=tables).check()
    assert fault in str(error.value)


def test_tables_are_part_of_what_defines_a_feature():
    assert b'"tables"' in PROJECT.feature_definitions()
    assert [(r.name, r.number) for r in PROJECT.record_types] == [("events", 0), ("shops", 2), ("limits", 3)]


def test_the_command_reads_tables_and_needs_no_model(tmp_path):
    events, shops, limits = make(6)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "project.yaml").write_text(TEXT.replace("model: {inputs: [amount, over, size, towns]}\n", ""))
    (folder / "schema.pbtxt").write_text(SCHEMA)
    args = ["run", folder, "--source", write_rows(tmp_path / "events.jsonl", events), "--sink", tmp_path / "out"]
    refused = CliRunner().invoke(app, list(map(str, args)))
    assert refused.exit_code == 1
    assert "say with --table shops=URI where its rows come from" in " ".join(refused.output.split())
    args += ["--table", f"shops={write_rows(tmp_path / 'shops.jsonl', shops)}"]
    args += ["--table", f"limits={write_rows(tmp_path / 'limits.jsonl', limits)}"]
    done = CliRunner().invoke(app, list(map(str, args)))
    assert done.exit_code == 0, done.output
    assert joined(read_output(tmp_path / "out").scores) == expected(events, shops, limits)


def test_a_table_from_a_topic_is_read_again_from_the_whole_journal(tmp_path):
    """However old its rows are: a stream that starts anew goes on with what it knew."""
    first = [{"id": n, "at": START + n * DAY, "shop": "x"} for n in range(40)]
    later = [{"id": n, "at": START + n * DAY, "shop": "x"} for n in range(40, 45)]
    shops = [{"name": "x", "known": START - DAY, "town": "Rome", "size": 1}]
    spec = RunSpec(PROJECT, ("pubsub://p/events",), "pubsub://p/out", journal=str(tmp_path / "journal"))
    topics = ("shops=pubsub://p/shops", "limits=limits.csv")
    horizons = {}
    for name, tables in (("files", ("shops=shops.csv", "limits=limits.csv")), ("topic", topics)):
        kept = acknowledge(dataclasses.replace(spec, tables=tables))
        assert isinstance(kept, AfterJournal)
        horizons[name] = kept.horizon_us
    assert horizons["files"] < 30 * DAY * 1_000_000 < horizons["topic"]
    found = {}
    for number, (events, rows) in enumerate([(first, shops), (later, [])]):
        payloads = [[json.dumps(row).encode() for row in part] for part in (events, rows)]
        given = [Given(part, number, uri=f"given://{number}-{n}") for n, part in enumerate(payloads)]
        sources = {"events": Topic(given[0]), "shops": Topic(given[1]), "limits": Topic(Given([], 0))}
        feeds = feeds_of(PROJECT, {n: Topic(Numbered(t.broker, number)) for n, t in sources.items()})
        source = ReadStream(feeds, 60_000_000, 300_000, True, AfterJournal(spec.journal, horizons["topic"]))
        output, _ = run(tmp_path / f"out{number}", source)
        found |= joined(output.scores)
    assert {town for town, _, _ in found.values()} == {"Rome"}
    assert len(found) == 45


class Numbered:
    """A broker whose messages have the run's number in their names."""

    def __init__(self, given, number):
        self._given, self._number, self.uri = given, number, given.uri

    def subscribe(self, known=()):
        subscription = self._given.subscribe(known)
        receive = subscription.receive

        def renamed(most, seconds):
            messages = receive(most, seconds)
            if messages is not None:
                messages = dataclasses.replace(messages, ids=[f"{self._number} {name}" for name in messages.ids])
            return messages

        subscription.receive = renamed
        return subscription
