"""A stream that is killed, stopped and started again: nothing lost, nothing scored otherwise, equal to batch."""

import errno
import json
import os
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.batches import column
from models.record import COLUMNS, FORMAT, PAYLOAD
from models.sample import write_sample
from pipelines.jobs.parity import arrival_order
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.sinks.store import WriteStore
from pipelines.sinks.topics import _fitting
from pipelines.sources import replay as replaying
from pipelines.sources.journal import JournalError, number_of, segments
from pipelines.sources.journal_check import examine
from pipelines.sources.journal_writer import JournalWriter
from pipelines.sources.payloads import read_payloads
from pipelines.sources.probe import Probe
from pipelines.sources.records import NO_TIME_US
from pipelines.sources.replay import Replay
from tests.kit.messages import records
from tests.kit.poison import die_of_poison
from tests.kit.pubsub_bench import Bench, as_streamed
from tests.kit.releases import five_releases
from tests.kit.stores import digest
from tests.kit.stream_process import DAY
from tests.kit.support import card_fraud, run_graph, transaction

pytestmark = pytest.mark.serial

KILLS = 20
SECOND = 1_000_000

OUTAGE_SECONDS = float(os.environ.get("HEADRACE_OUTAGE_SECONDS", "4"))


@pytest.fixture
def bench(monkeypatch):
    with PubsubEmulator() as server:
        made = Bench(server, monkeypatch)
        yield made
        made.close()


@pytest.mark.parametrize("follow", [None, five_releases], ids=["one model", "five releases"])
def test_killed_twenty_times_it_gives_what_batch_gives(bench, tmp_path, follow):
    write_sample(tmp_path, 6000, seed=1, days=6, format="jsonl")
    payloads = read_payloads([f"{tmp_path}/*.jsonl"])
    released = follow and follow(card_fraud(), payloads, "customer")
    stored = {"store": str(tmp_path / "store.db")}
    followed = {"releases": released, **stored} if released else stored
    allowance_us = 3600 * SECOND
    order = arrival_order(payloads, card_fraud(), allowance_us, 7, 0.05)
    messages = [payloads[place] for place in order]
    for place in range(100, len(messages), 500):
        messages.insert(place, b'{"TRANSACTION_ID": "x"')
    journal = tmp_path / "journal"
    random = np.random.default_rng(3)
    last = bench.publish_and_kill(messages, KILLS, random, journal, allowance_us, idle_us=10 * SECOND, **followed)
    assert 0 < len(bench.scores) < len(payloads)  # it was killed at work
    process = bench.start(journal, allowance_us, idle_us=3 * SECOND, **followed)
    bench.publisher.publish(last)
    bench.wait(len(payloads))
    time.sleep(0.5)
    bench.collect()
    process.terminate()
    process.join(20)
    assert process.exitcode == 0
    assert not any(row["late"] for row in bench.scores.values())

    anew = str(tmp_path / "anew.db")
    store = WriteStore(anew, card_fraud(), DAY)
    batch = run_graph(tmp_path / "batch", [f"{journal}/*.journal"], released=released, store=store)
    assert digest(stored["store"], card_fraud()) == digest(anew, card_fraud())
    assert batch.scores.num_rows == len(payloads)
    assert bench.scores == as_streamed(batch.scores)
    files = run_graph(tmp_path / "files", [f"{tmp_path}/*.jsonl"], released=released)
    assert files.scores.equals(batch.scores)
    broken = [letter for letter in bench.dead if letter["step"] == "Decode"]
    assert {letter["position"] for letter in broken} == {
        letter["position"] for letter in batch.dead_letters.to_pylist() if letter["step"] == "Decode"
    }
    assert len({letter["position"] for letter in broken}) == len(range(100, len(messages), 500))


def test_stopped_in_good_order_it_goes_on_without_waiting_or_repeating(bench, tmp_path):
    events = [json.dumps(transaction(n)).encode() for n in range(40)]
    first = bench.start(tmp_path, 1, idle_us=SECOND)
    bench.publisher.publish(events[:20])
    bench.wait(20)
    first.terminate()
    first.join(20)
    assert first.exitcode == 0
    assert examine(str(tmp_path)).marks.stopped
    second = bench.start(tmp_path, 1, idle_us=SECOND)
    bench.publisher.publish([*events[20:], *events[:5]])
    bench.wait(40)
    second.terminate()
    second.join(20)
    bench.collect()
    assert {letter["event_id"] for letter in bench.dead} == {"0", "1", "2", "3", "4"}
    (tmp_path / "all.jsonl").write_bytes(b"\n".join(events))
    assert bench.scores == as_streamed(run_graph(tmp_path / "batch", [str(tmp_path / "all.jsonl")]).scores)


def times_of(batch):
    return np.array([json.loads(p)["t"] for p in column(batch, PAYLOAD).to_pylist()], np.int64)


def timed(batch):
    return batch, times_of(batch)


def events(*times):
    return [json.dumps({"t": time}).encode() for time in times]


def cut_off(writer):
    """As if the process had been killed."""
    writer.close(in_order=False)


def found(directory):
    return examine(str(directory), need_marks=True).require_whole()


class NothingCrashes:
    """In place of a child process, which takes a while to start."""

    def __init__(self, look):
        pass

    def find_crashing(self, batch):
        return []

    def close(self):
        pass


def told(directory, look=None, horizon_us=1 << 60):
    with pytest.MonkeyPatch.context() as patch:
        if look is None:
            patch.setattr(replaying, "Probe", NothingCrashes)
        replay = Replay(found(directory), timed, look or times_of, horizon_us)
    past = [(end, sorted(t for b in batches for t in times_of(b).tolist())) for end, batches in replay.past()]
    return replay, past


def test_a_journal_without_marks_is_all_to_do(tmp_path):
    writer = JournalWriter(tmp_path)
    writer.append([records(events(5, 3))])
    cut_off(writer)
    replay, past = told(tmp_path)
    assert (past, replay.end_us, replay.crashed) == ([], None, True)
    assert [times_of(batch).tolist() for batch, _ in replay.pending] == [[5, 3]]


def test_marks_without_late_records_are_joined_and_a_late_record_stands_by_itself(tmp_path):
    writer = JournalWriter(tmp_path)
    writer.append([records(events(1, 4, 9), ["a", "b", "c"])])
    writer.mark("emitted 3 2 9")  # 1
    writer.mark("emitted 3 5 9")  # 4
    writer.append([records(events(3, 6, 20), ["d", "e", "f"])])
    writer.mark("emitted 6 5 20")  # 3, late
    writer.mark("emitted 6 10 20")  # 6, 9
    with next(tmp_path.glob("*.marks")).open("a") as file:
        file.write("4 emitted 6 1")  # cut off
    replay, past = told(tmp_path)
    assert past == [(5, [1, 4]), (5, [3]), (10, [6, 9])]
    assert (replay.end_us, replay.message_ids) == (10, list("abcdef"))
    assert [times.tolist() for _, times in replay.pending] == [[20]]
    writer.close()
    assert not Replay(found(tmp_path), timed, times_of, 0).crashed


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.data())
def test_replay_releases_what_was_released_in_the_same_order(tmp_path_factory, data):
    """Against a stream that keeps records in a list; late records at any place, segments of any length."""
    directory = tmp_path_factory.mktemp("journal")
    segment_bytes = data.draw(st.sampled_from([1, 3000, 1 << 20]))
    rounds = data.draw(
        st.lists(st.tuples(st.lists(st.integers(0, 50), max_size=4), st.integers(0, 60)), min_size=1, max_size=8)
    )
    writer = JournalWriter(directory, segment_bytes)
    waiting, released, end, rows = [], [], NO_TIME_US, 0
    for new, reached in rounds:
        if new:
            writer.append([records(events(*new))])
        rows += len(new)
        waiting += new
        end = max(end, reached)
        due = [time for time in waiting if time <= end]
        waiting = [time for time in waiting if time > end]
        if due:
            released.append((end, sorted(due)))
            writer.mark(f"emitted {rows} {end} {max([0, *waiting])}")
    writer.close()
    replay, past = told(directory)
    assert [time for _, times in past for time in times] == [time for _, times in released for time in times]
    assert {end for end, _ in past} <= {end for end, _ in released}
    late_alone = [times for (_, times), (before, _) in zip(released[1:], released, strict=False) if times[0] <= before]
    assert all(times in [found for _, found in past] for times in late_alone)
    assert sorted(t for _, times in replay.pending for t in times.tolist()) == sorted(waiting)


def test_what_is_out_of_every_window_is_not_read(tmp_path, monkeypatch):
    writer = JournalWriter(tmp_path, segment_bytes=1)
    for n in range(10):
        writer.append([records(events(n * 10))])
        writer.mark(f"emitted {n + 1} {n * 10} {n * 10}")
    cut_off(writer)
    opened = []
    read = replaying.read_segment_file
    monkeypatch.setattr(replaying, "read_segment_file", lambda path, needed: opened.append(path) or read(path, needed))
    _, past = told(tmp_path, horizon_us=25)
    assert [number_of(path) for path in opened] == [7, 8, 9]
    assert [t for _, times in past for t in times] == [70, 80, 90]


def test_records_that_crash_the_decoder_are_found_and_set_aside_for_good(tmp_path):
    batch = records([b"good", b"poison", b"good", b"poison 2"])
    probe = Probe(die_of_poison)
    assert probe.find_crashing(batch) == [1, 3]
    assert probe.find_crashing(records([b"good"] * 3)) == []
    probe.close()
    writer = JournalWriter(tmp_path)
    writer.append([records([*events(1, 2), b'{"t": 3, "poison": 1}', *events(4)])])
    writer.mark("emitted 2 2 2")
    cut_off(writer)
    replay, past = told(tmp_path, die_of_poison)
    assert past == [(2, [1, 2])]
    assert [times.tolist() for _, times in replay.pending] == [[4]]
    (aside,) = replay.set_aside
    assert column(aside, PAYLOAD).to_pylist() == [b'{"t": 3, "poison": 1}']
    assert aside.schema.metadata == {FORMAT: b"unreadable", COLUMNS: b"crashes the decoder"}
    assert replay.found == [2]
    writer = JournalWriter(tmp_path)
    writer.mark("aside 2")
    writer.mark("emitted 4 4 4")
    writer.close()
    replay, past = told(tmp_path, lambda batch: pytest.fail("nothing is suspect after a good end"))
    assert [t for _, times in past for t in times] == [1, 2, 4]
    assert not replay.set_aside


def test_a_second_stream_is_kept_out(tmp_path):
    writer = JournalWriter(tmp_path)
    with pytest.raises(Exception, match="another stream writes to this journal"):
        JournalWriter(tmp_path)
    writer.close()
    JournalWriter(tmp_path).close()
    assert segments(tmp_path) == []


def test_a_window_is_kept_though_a_late_event_came_first_after_a_restart(tmp_path):
    """What a mark calls the newest is of one process; after a restart it may be older than what was before."""
    writer = JournalWriter(tmp_path)
    writer.append([records(events(100, 110))])
    writer.mark("emitted 2 120 110")
    cut_off(writer)
    writer = JournalWriter(tmp_path)
    writer.append([records(events(1))])
    writer.mark("emitted 3 120 1")
    cut_off(writer)
    _, past = told(tmp_path, horizon_us=50)
    assert sorted(t for _, times in past for t in times) == [1, 100, 110]


def test_a_crash_is_told_on_until_what_was_out_has_come_again(tmp_path):
    def crashed():
        return Replay(found(tmp_path), timed, times_of, 0).crashed

    JournalWriter(tmp_path).close(in_order=False)
    assert not crashed()  # nobody was here
    writer = JournalWriter(tmp_path)
    writer.mark("started")  # it receives from here on, and may be killed before it writes
    cut_off(writer)
    assert crashed()
    JournalWriter(tmp_path).close(in_order=False)  # stopped while it waited
    assert crashed()
    JournalWriter(tmp_path).close()
    assert not crashed()


def test_a_journal_that_lacks_records_is_refused(tmp_path):
    writer = JournalWriter(tmp_path, segment_bytes=1)
    for n in range(4):
        writer.append([records(events(n))])
        writer.mark(f"emitted {n + 1} {n} {n}")
    writer.close()
    (tmp_path / "notes.journal").write_text("not a segment")
    paths = segments(tmp_path)
    assert [path.stem for path in paths] == [f"{n:012d}" for n in range(4)]
    for path in (paths[0], paths[0].with_suffix(".marks")):  # old ones may go, with their marks
        path.unlink()
    assert told(tmp_path)[1]
    last = paths[3].read_bytes()
    paths[3].write_bytes(last[:100])
    with pytest.raises(JournalError, match="it is damaged, at byte 48: record 3 is lost"):
        told(tmp_path)
    paths[3].write_bytes(last)
    paths[2].unlink()
    with pytest.raises(JournalError, match="1.journal: it ends too early, or .* missing, at byte .*: record 2 is lost"):
        told(tmp_path)


def test_a_journal_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="file: is a file; a journal is a folder"):
        JournalWriter(tmp_path / "file")
    writer = JournalWriter(tmp_path)

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JournalError, match="cannot be written: No space left on device; .* comes again"):
        writer.append([records(events(1))])
    monkeypatch.undo()
    writer.close()


def test_a_dead_letter_that_no_broker_takes_goes_without_its_payload():
    batch = pa.RecordBatch.from_pydict({"step": ["a", "b"], "payload": [b"x", b"\xff" * 2000]})
    small, large = (json.loads(line) for line in _fitting(batch, 1000))
    assert small == json.loads(_fitting(batch, 1_000_000)[0])
    assert (large["step"], large.get("payload")) == ("b", None)


def test_history_keeps_its_format(tmp_path):
    writer = JournalWriter(tmp_path)
    mixed = [
        records([b"1"]),
        records([b"2"], kind=b"unreadable").replace_schema_metadata({FORMAT: b"avro", COLUMNS: b"{}"}),
    ]
    writer.append(mixed)
    writer.close()
    (path,) = segments(tmp_path)
    found = list(replaying.read_segment_file(path))
    assert [b.schema.metadata for b in found] == [
        {FORMAT: b"json", COLUMNS: b""},
        {FORMAT: b"avro", COLUMNS: b"{}"},
    ]
    assert pa.Table.from_batches([b.replace_schema_metadata(None) for b in found])[PAYLOAD].to_pylist() == [b"1", b"2"]


@pytest.mark.parametrize("what", ["the broker", "the sink"])
def test_an_outage_loses_nothing_and_needs_no_restart(bench, tmp_path, what):
    payloads = [json.dumps(transaction(n)).encode() for n in range(1000)]
    process = bench.start(tmp_path / "journal", SECOND, idle_us=SECOND)
    bench.publisher.publish(payloads[:300])
    bench.wait(300)
    if what == "the sink":
        bench.publisher.publish(payloads[300:])
        bench.server.fail_publishing(OUTAGE_SECONDS)
    else:
        bench.publisher.publish(payloads[300:600])
        bench.server.stop()
        time.sleep(OUTAGE_SECONDS)
        bench.server.start()
        bench.publisher.publish(payloads[600:])
    bench.wait(1000, 60 + OUTAGE_SECONDS)
    process.terminate()
    process.join(30)
    assert process.exitcode == 0
    (tmp_path / "all.jsonl").write_bytes(b"\n".join(payloads))
    assert bench.scores == as_streamed(run_graph(tmp_path / "batch", [str(tmp_path / "all.jsonl")]).scores)
