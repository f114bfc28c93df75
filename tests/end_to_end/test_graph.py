"""The whole graph over files: nothing is lost, and no bit depends on order, batches, shards, slices or engine."""

import datetime
import json
import os
import random
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.sample import generate_transactions, write_sample
from pipelines.sinks.accounting import CountMismatch, check_counts
from tests.kit.bad import BAD
from tests.kit.support import ROOT, card_fraud, run_graph, transaction, write_rows

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set, pytest.mark.slow]

DAY_US = 86_400_000_000


def at(number):
    return str(datetime.datetime(2018, 4, 1) + datetime.timedelta(hours=number))


def test_bad_rows_become_dead_letters_and_take_no_neighbour_along(tmp_path):
    good = [transaction(n) for n in range(60)]
    rows = list(good)
    for place, (bad, _) in enumerate(BAD.values()):
        rows.insert(3 * place + 1, bad)
    clean = run_graph(tmp_path / "clean", [write_rows(tmp_path / "clean.jsonl", good)])
    output = run_graph(tmp_path / "dirty", [write_rows(tmp_path / "dirty.jsonl", rows)])
    assert output.scores.equals(clean.scores)
    assert output.outcomes["read"] == len(rows)
    assert output.outcomes["dead-lettered"] == len(BAD)
    letters = sorted(output.dead_letters.to_pylist(), key=lambda letter: letter["position"])
    reasons = [json.loads(letter["reasons"])[0] for letter in letters]
    assert [(each["field"], each["rule"]) for each in reasons] == [reason for _, reason in BAD.values()]
    for letter, (bad, _) in zip(letters, BAD.values(), strict=True):
        assert letter["payload"] == (bad if isinstance(bad, bytes) else json.dumps(bad).encode())
        assert letter["source"].endswith("dirty.jsonl")
        with open(letter["source"], "rb") as file:
            file.seek(letter["position"])
            assert file.readline().rstrip(b"\n") == letter["payload"]
    assert letters[5]["event_id"] == "73"
    assert letters[5]["event_time"].isoformat() == "2018-04-04T01:00:00+00:00"


def test_unknown_fields_are_kept_out_or_refused(tmp_path):
    rows = [transaction(0), transaction(1, EXTRA=1)]
    source = write_rows(tmp_path / "events.jsonl", rows)
    assert run_graph(tmp_path / "ignore", [source]).outcomes == {"read": 2, "scored": 2}
    project = card_fraud()
    contract = project.contract
    project = project.model_copy(update={"event": project.event.model_copy(update={"unknown_fields": "refuse"})})
    project._contract = contract
    output = run_graph(tmp_path / "refuse", [source], project)
    assert output.reasons == [("EXTRA", "unknown field")]
    assert output.outcomes["scored"] == 1


def test_of_events_with_one_id_the_first_in_event_time_wins(tmp_path):
    rows = [transaction(n) for n in range(10)]
    rows += [rows[4], rows[4], transaction(5, TX_AMOUNT=1.0, TX_DATETIME=at(4)), transaction(6, TX_DATETIME=at(7))]
    rows.append(transaction(3, TX_DATETIME=at(3 + 24 * 8)))  # so much later that it is another event
    expected = run_graph(tmp_path / "0", [write_rows(tmp_path / "0.jsonl", rows)])
    assert expected.outcomes["duplicate"] == 4
    assert expected.scores.num_rows == 11
    winner = expected.scores.to_pylist()[5]
    assert (winner["TRANSACTION_ID"], str(winner["TX_DATETIME"])[:19]) == (5, at(4))
    assert all(reason == ("TRANSACTION_ID", "duplicate event id") for reason in expected.reasons)
    for seed in range(4):
        random.Random(seed).shuffle(rows)
        output = run_graph(tmp_path / f"s{seed}", [write_rows(tmp_path / f"s{seed}.jsonl", rows)], shards=3)
        assert output.scores.equals(expected.scores)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A sample with duplicates, as one table."""
    table = generate_transactions(4000, seed=3, days=75)
    return pa.concat_tables([table, table.slice(100, 50)])


@pytest.fixture(scope="module")
def expected(sample, tmp_path_factory):
    directory = tmp_path_factory.mktemp("expected")
    pq.write_table(sample, directory / "all.parquet")
    return run_graph(directory / "out", [str(directory / "all.parquet")])


@pytest.mark.parametrize(
    ("runner", "shards", "slice_days", "files"),
    [
        ("DirectRunner", 1, 7, 1),
        ("DirectRunner", 3, 1, 5),
        ("DirectRunner", 8, 1000, 3),
        ("FnApiRunner", 1, 30, 1),
        ("FnApiRunner", 4, 10, 4),
    ],
)
def test_no_bit_depends_on_order_files_shards_slices_or_engine(
    sample, expected, tmp_path, runner, shards, slice_days, files
):
    rows = list(range(sample.num_rows))
    random.Random(shards).shuffle(rows)
    for number in range(files):
        pq.write_table(sample.take(rows[number::files]), tmp_path / f"{number}.parquet", row_group_size=300)
    output = run_graph(
        tmp_path / "out",
        [str(tmp_path / "*.parquet")],
        runner=runner,
        shards=shards,
        slice_us=slice_days * DAY_US,
    )
    assert output.scores.equals(expected.scores)
    assert output.outcomes == expected.outcomes == {"read": 4050, "scored": 4000, "duplicate": 50}


@pytest.mark.parametrize(("workers", "shards"), [(1, 1), (1, 4), (2, 2), (2, 5), (4, 1), (4, 4)])
def test_no_byte_depends_on_workers(sample, expected, tmp_path, workers, shards):
    """In files whose digests tell all, dead letters too."""
    pq.write_table(sample, tmp_path / "all.parquet", row_group_size=300)
    (tmp_path / "bad.jsonl").write_text('{"TRANSACTION_ID": 1}\n' * 20)
    args = [f"--direct_num_workers={workers}"]
    source = [str(tmp_path / "all.parquet"), str(tmp_path / "bad.jsonl")]
    found = run_graph(tmp_path / "out", source, beam_args=args, shards=shards)
    one = run_graph(tmp_path / "one", source, beam_args=["--direct_num_workers=1"])
    assert found.digest == one.digest
    assert found.outcomes == one.outcomes
    assert found.scores.equals(expected.scores)


@pytest.mark.parametrize("form", ["csv", "jsonl", "avro"])
def test_every_format_gives_the_same_scores(tmp_path, form):
    write_sample(tmp_path / "parquet", 2000, seed=5, days=5)
    write_sample(tmp_path / form, 2000, seed=5, days=5, format=form)
    expected = run_graph(tmp_path / "expected", [str(tmp_path / "parquet" / "*.parquet")])
    output = run_graph(tmp_path / "out", [str(tmp_path / form / f"*.{form}")])
    assert output.scores.equals(expected.scores)
    assert output.digest == expected.digest


def test_the_same_job_again_leaves_the_same_files(sample, tmp_path):
    pq.write_table(sample, tmp_path / "all.parquet")
    first = run_graph(tmp_path / "out", [str(tmp_path / "all.parquet")])
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    again = run_graph(tmp_path / "out", [str(tmp_path / "all.parquet")])
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    assert first.digest == again.digest
    fewer = run_graph(tmp_path / "out", [write_rows(tmp_path / "one.jsonl", [transaction(1)])], replace=True)
    assert fewer.scores.num_rows == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["_SUCCESS.json", "dead_letters", "scores"]


def test_events_before_score_from_fill_windows_only(sample, expected, tmp_path):
    pq.write_table(sample, tmp_path / "all.parquet")
    start = round(datetime.datetime(2018, 5, 20, tzinfo=datetime.UTC).timestamp() * 1e6)
    output = run_graph(tmp_path / "out", [str(tmp_path / "all.parquet")], score_from_us=start)
    later = expected.scores.filter(pa.compute.greater_equal(expected.scores["TX_DATETIME"].cast(pa.int64()), start))
    assert output.scores.equals(later)
    duplicates = output.outcomes.get("duplicate", 0)  # those of history are counted as history
    assert output.outcomes["history"] + output.outcomes["scored"] + duplicates == len(sample)


@pytest.mark.parametrize("poison", ["deleted", "other amounts and entities", "other labels"])
def test_no_feature_sees_the_future(sample, expected, tmp_path, poison):
    moment = datetime.datetime(2018, 5, 10)
    unique = sample.slice(0, 4000)
    after = pa.compute.greater_equal(unique["TX_DATETIME"], pa.scalar(moment, pa.timestamp("us")))
    changed = unique.filter(pa.compute.invert(after))
    visible = moment
    if poison != "deleted":
        future = unique.filter(after)
        names = ["TX_FRAUD"] if "labels" in poison else ["TX_AMOUNT", "CUSTOMER_ID", "TERMINAL_ID"]
        for name in names:
            values = future[name].to_numpy()
            other = 1 - values if name == "TX_FRAUD" else values[::-1].copy()
            future = future.set_column(future.schema.get_field_index(name), name, pa.array(other))
        changed = pa.concat_tables([changed, future])
        if "labels" in poison:  # a label is known seven days after its event, and not before
            visible = moment + datetime.timedelta(days=7)
    pq.write_table(changed, tmp_path / "changed.parquet")
    output = run_graph(tmp_path / "out", [str(tmp_path / "changed.parquet")])

    def before(table):
        times = table["TX_DATETIME"].cast(pa.timestamp("us"))
        rows = table.filter(pa.compute.less(times, pa.scalar(visible, pa.timestamp("us"))))
        return rows.drop(["TX_FRAUD"])

    assert before(output.scores).num_rows > 1000
    assert before(output.scores).equals(before(expected.scores))
    if poison == "other labels":
        assert not output.scores.equals(expected.scores)


def test_empty_input_is_an_empty_output(tmp_path):
    output = run_graph(tmp_path / "out", [write_rows(tmp_path / "none.jsonl", [])])
    assert output.outcomes == {}
    assert list((tmp_path / "out" / "scores").iterdir()) == []


def test_reason_codes_name_the_strongest_features(tmp_path):
    source = write_rows(tmp_path / "e.jsonl", [transaction(n) for n in range(5)])
    output = run_graph(tmp_path / "out", [source], reason_codes=2)
    reasons = [json.loads(text) for text in output.scores["reason_codes"].to_pylist()]
    names = card_fraud().model.inputs
    assert all(len(r) == 2 and r[0][0] in names and abs(r[0][1]) >= abs(r[1][1]) for r in reasons)


def test_a_lost_event_fails_the_job():
    import collections

    with pytest.raises(CountMismatch, match="10 events were read, but 9 came out: 7 scored, 2 dead-lettered"):
        check_counts(collections.Counter({"read": 10, "scored": 7, "dead-lettered": 2}))


def test_a_killed_job_leaves_nothing_that_looks_whole(tmp_path):
    write_sample(tmp_path / "events", 60_000, days=30)
    out = tmp_path / "out"
    code = (
        "import pathlib, sys; from tests.kit.support import run_graph;"
        f"run_graph(pathlib.Path({str(out)!r}), [{str(tmp_path / 'events' / '*.parquet')!r}])"
    )
    killed = 0
    for delay in (0.05, 0.15, 0.3, 0.5):
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not list(out.glob(".staging-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay / 10)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        if not (out / "_SUCCESS.json").exists():
            assert not (out / "scores").exists() or all(
                pq.read_metadata(f).num_rows for f in (out / "scores").rglob("*.parquet")
            )
    assert killed
    whole = run_graph(out, [str(tmp_path / "events" / "*.parquet")])
    assert whole.outcomes["scored"] == 60_000
    assert not list(out.glob(".staging-*"))
