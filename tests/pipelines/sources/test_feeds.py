"""A feed is a record type and a source: adding one changes no reader, journal or replay."""

import dataclasses
import json
import pickle

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from models.batches import column, take_rows, without
from models.decode import decode_once
from models.project.contract import Contract
from models.record import FAULTS, FORMAT, IS_HISTORY, MARKS, PAYLOAD, RECORDS, RecordType
from pipelines.runners import make_pipeline
from pipelines.sources.acknowledge import AfterJournal
from pipelines.sources.feeds import Feed, Topic, feeds_of
from pipelines.sources.files import ReadFiles, read_all
from pipelines.sources.journal import read_segment_file, segments
from pipelines.sources.listing import Files
from pipelines.sources.records import decode_raw, times_of
from pipelines.sources.stream import ReadStream
from tests.kit.given import Given
from tests.kit.support import card_fraud, transaction, write_rows

ALLOWANCE = 10 * 86_400_000_000
EVENTS = card_fraud().event_type
REVIEWS = RecordType(
    name="reviews",
    number=7,
    contract=Contract({n: f for n, f in EVENTS.contract.fields.items() if n in ("TRANSACTION_ID", "TX_DATETIME")}, b""),
    id="TRANSACTION_ID",
    time="TX_DATETIME",
    carried=("TRANSACTION_ID",),
    earliest_us=EVENTS.earliest_us,
    latest_us=EVENTS.latest_us,
    max_bytes=1000,
)
_found: dict[str, list] = {}


def _keep(batch, name):
    _found[name].append(batch)


def run(source):
    """The records that come out, by feed: (id, whether it is history)."""
    _found.clear()
    pipeline = make_pipeline("DirectRunner", [])
    for name, batches in (pipeline | source).items():
        _found[name] = []
        batches | name >> beam.Map(_keep, name)
    pipeline.run().wait_until_finish()
    types = {"events": EVENTS, "reviews": REVIEWS}
    return {
        name: sorted(
            (row["TRANSACTION_ID"], row[MARKS] & IS_HISTORY)
            for b in batches
            for row in decode_once(b, types[name])[0].to_pylist()
        )
        for name, batches in _found.items()
    }


def texts(numbers):
    return [json.dumps(transaction(int(n))).encode() for n in numbers]


def stream(journal, events, reviews, seed=0):
    feeds = (
        Feed(EVENTS, Topic(Given(events, seed)), True),
        Feed(REVIEWS, Topic(Given(reviews, seed + 1, 5, "given://reviews"))),
    )
    return run(ReadStream(feeds, ALLOWANCE, 200_000, True, AfterJournal(str(journal))))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_third_feed_of_a_stream_comes_out_is_journaled_and_replayed(tmp_path, seed):
    rng = np.random.default_rng(seed)
    first, then = rng.permutation(40), rng.permutation(np.arange(10, 30))
    assert stream(tmp_path, texts(first), texts(then), seed) == {
        "events": [(n, 0) for n in range(40)],
        "reviews": [(n, 0) for n in range(10, 30)],
    }
    # Started again, both are history; and what was received already is not received anew.
    assert stream(tmp_path, texts(first), [], seed) == {
        "events": [(n, 1) for n in range(40)],
        "reviews": [(n, 1) for n in range(10, 30)],
    }
    files = Files((f"{tmp_path}/*.journal",))
    read = run(ReadFiles((Feed(EVENTS, files, True), Feed(REVIEWS, files))))
    assert {name: [n for n, _ in rows] for name, rows in read.items()} == {
        "events": list(range(40)),
        "reviews": list(range(10, 30)),
    }


def test_records_of_a_feed_that_is_not_there_stay_in_the_journal(tmp_path):
    stream(tmp_path, texts(range(5)), texts(range(3)))
    only = ReadStream((Feed(EVENTS, Topic(Given([], 0)), True),), ALLOWANCE, 200_000, True, AfterJournal(str(tmp_path)))
    assert run(only) == {"events": [(n, 1) for n in range(5)]}
    assert stream(tmp_path, [], [])["reviews"] == [(n, 1) for n in range(3)]


def test_a_third_feed_of_files(tmp_path):
    rows = [transaction(n) for n in range(9)]
    feeds = (
        Feed(EVENTS, Files((write_rows(tmp_path / "events.jsonl", rows),)), True),
        Feed(REVIEWS, Files((write_rows(tmp_path / "reviews.jsonl", rows[3:5]),))),
    )
    assert run(ReadFiles(feeds)) == {"events": [(n, 0) for n in range(9)], "reviews": [(3, 0), (4, 0)]}
    (batch,) = read_all(feeds[1])
    assert batch.schema.metadata[RECORDS] == b"7"


def test_a_journal_holds_records_of_each_type_apart(tmp_path):
    stream(tmp_path, texts(range(5)), texts(range(3)))
    batches = [batch for path in segments(tmp_path) for batch in read_segment_file(path)]
    kinds = {batch.schema.metadata.get(RECORDS): batch.schema.metadata[FORMAT] for batch in batches}
    assert kinds == {None: b"json", b"7": b"json"}
    reviews = [b for b in batches if b.schema.metadata.get(RECORDS)]
    assert {value for b in reviews for value in column(b, "__partition").to_pylist()} == {-7}  # as it lies on disk


def test_feeds_are_those_that_the_project_declares():
    (feed,) = feeds_of(card_fraud(), {"events": Files(("a",))})
    assert (feed.record_type, feed.drives_watermark) == (EVENTS, True)
    with pytest.raises(ValueError, match="labels come as records of their own, but the project declares none"):
        feeds_of(card_fraud(), {"events": Files(("a",)), "labels": Files(("b",))})


BROKEN = [
    b"no json",
    b"",
    b"[1]",
    b"{}",
    json.dumps(transaction(1, TX_DATETIME="nonsense")).encode(),
    json.dumps(transaction(1, TX_DATETIME="1900-01-01 00:00:00")).encode(),
    json.dumps(transaction(2, TX_AMOUNT="much")).encode(),
    json.dumps(transaction(3, TX_AMOUNT=None, more=[1, {"a": 2}])).encode(),
    json.dumps(transaction(4, TX_FRAUD=7)).encode(),
    json.dumps(transaction(5, note="x" * 70_000)).encode(),
    b'{"TX_DATETIME": "2018-04-01 00:00:00", "TX_AMOUNT": NaN}',
]


def raw(payloads):
    rows = len(payloads)
    source = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["given"]))
    arrays = [pa.array(payloads, pa.binary()), pa.array(np.arange(rows)), source]
    names = [PAYLOAD, "__position", "__source"]
    return pa.RecordBatch.from_arrays(arrays, names=names).replace_schema_metadata({FORMAT: b"json"})


@pytest.mark.parametrize("refuses", [False, True])
def test_a_record_that_is_decoded_when_it_comes_is_what_it_is_when_decoded_later(refuses):
    """Its row, its faults and its time, whatever is broken in it and beside it."""
    records = dataclasses.replace(EVENTS, refuses_unknown=refuses)
    payloads = [*BROKEN, *texts(range(20))]
    rng = np.random.default_rng(3)
    for size in (1, 2, len(payloads)):
        for _ in range(20):
            batch = raw([payloads[n] for n in rng.permutation(len(payloads))[:size]])
            early = decode_raw(batch, records)
            assert FAULTS in early.schema.names
            order = rng.permutation(size)
            rows, faults = decode_once(take_rows(early, order), records)
            expected = decode_raw(take_rows(batch, order), records)
            reasons = column(expected, FAULTS)
            assert times_of(early, records)[order].tolist() == times_of(expected, records).tolist()
            assert repr(rows.to_pylist()) == repr(without(expected, FAULTS).to_pylist())  # there may be NaN
            assert rows.schema.names == expected.schema.names[:-1]
            assert faults.bad.tolist() == reasons.is_valid().to_pylist()
            assert faults.reasons() == reasons.drop_null().to_pylist()


def test_files_are_listed_once(tmp_path):
    """So what is read is what the digest of a run's inputs is of, on other machines, too."""
    files = Files((f"{tmp_path}/*.jsonl", f"{tmp_path}/a*"))
    write_rows(tmp_path / "a.jsonl", [transaction(1)])
    assert files.paths == (f"{tmp_path}/a.jsonl",)
    write_rows(tmp_path / "b.jsonl", [transaction(2)])
    assert run(ReadFiles((Feed(EVENTS, files, True),))) == {"events": [(1, 0)]}
    assert pickle.loads(pickle.dumps(files)).paths == files.paths
    assert Files(files.patterns).paths == (f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl")
