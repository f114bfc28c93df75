"""A sink's folder: what is another's stays, two runs do not meet in it, and a run that was cut off is done again."""

import collections
import hashlib
import io
import json
import re
import subprocess
import sys
import uuid

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import rich.console

from models.sample import SampleError, write_sample
from pipelines.cli.display import outcome_table
from pipelines.jobs.quarantine import QuarantineError, settle_run
from pipelines.report import report
from pipelines.results import RunError
from pipelines.sinks.accounting import CountMismatch, check_counts, count_reasons
from pipelines.sinks.folder import LOCK, Folder, SinkError, claim
from pipelines.sinks.listed import Written
from pipelines.sinks.publish import check_sink, look_at, publish, sweep
from tests.kit.support import ROOT, card_fraud, run_graph, transaction, write_rows

pytestmark = pytest.mark.slow

SPEC = {"spec": "s", "inputs": "i"}
OTHER = {"spec": "s", "inputs": "j"}


def stage(directory, run_id, files):
    """Stage files of a run: {"scores/a": b"content"}; what a sink would hand to publish."""
    written = []
    for place, content in files.items():
        path = directory / f".staging-{run_id}" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        kind, name = place.split("/")
        written.append(Written(kind, name, 1, hashlib.sha256(content).hexdigest(), {}))
    return written


def run(directory, files, facts=SPEC, replace=False, run_id=None):
    """A run that stages files and publishes them."""
    run_id = run_id or uuid.uuid4().hex
    written = stage(directory, run_id, files)
    entries = [{"kind": w.kind, "name": w.name, "sha256": w.sha256} for w in written]
    publish(Folder(str(directory)), run_id, written, facts, json.dumps({**facts, "files": entries}), replace)


def tree(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def check_listed(directory):
    """`_SUCCESS.json` lists every file of a run, with its digest, and no other."""
    said = json.loads((directory / "_SUCCESS.json").read_text())
    listed = {f"{f['kind']}/{f['name']}": f["sha256"] for f in said["files"]}
    there = {name: hashlib.sha256(content).hexdigest() for name, content in tree(directory).items()}
    del there["_SUCCESS.json"]
    assert there == listed
    return said


FIRST = {"scores/a": b"1", "scores/b": b"2", "dead_letters/c": b"3", "quarantine/d": b"4"}
SECOND = {"scores/a": b"5", "quality/e": b"6"}


def test_rows_of_decisions_are_copied_to_their_folders(tmp_path):
    rows = [transaction(n, TX_AMOUNT=10.25 + 7 * (n % 13)) for n in range(1500)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    routed = {"people": ("block", "review"), "nobody": ("none",)}
    output = run_graph(tmp_path / "out", [source], routed=routed, shards=2, slice_us=86_400_000_000)
    scores = output.scores.sort_by("TRANSACTION_ID")
    wanted = scores.filter(pc.is_in(scores["decision"], pa.array(["block", "review"])))
    assert 0 < len(wanted) < len(scores) == 1500
    found = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "out" / "people").iterdir()))
    assert found.sort_by("TRANSACTION_ID").equals(wanted)
    assert not (tmp_path / "out" / "nobody").exists()
    assert output.outcomes["routed to people"] == output.outcomes["due in people"] == len(wanted)
    check_listed(tmp_path / "out")
    again = run_graph(tmp_path / "other", [write_rows(tmp_path / "other.jsonl", rows[::-1])], routed=routed)
    assert again.digest == output.digest
    plain = run_graph(tmp_path / "plain", [source])
    assert plain.scores.equals(output.scores)
    assert not {name for name in plain.outcomes if "people" in name}


def test_a_row_that_is_due_in_a_folder_and_not_there_is_told():
    with pytest.raises(CountMismatch, match="3 rows are due in people, but 2 are there"):
        check_counts(collections.Counter({"due in people": 3, "routed to people": 2}))


def test_a_folder_of_decisions_is_a_runs_own_as_the_others_are(tmp_path):
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / "mine").write_text("mine")
    run(tmp_path, FIRST)  # its decisions have no folder, and this one is none of its business
    with pytest.raises(SinkError, match="people/mine: was not written by a run"):
        look_at(str(tmp_path), True, ["people"])
    with pytest.raises(SinkError, match="people/mine: was not written by a run"):
        run(tmp_path, {**FIRST, "people/a": b"1"}, replace=True)
    (tmp_path / "people" / "mine").unlink()
    run(tmp_path, {**FIRST, "people/a": b"1"}, OTHER, replace=True)
    check_listed(tmp_path)
    run(tmp_path, FIRST, SPEC, replace=True)
    assert not list((tmp_path / "people").iterdir())
    check_listed(tmp_path)


def test_the_same_run_replaces_its_files_and_another_is_refused(tmp_path):
    run(tmp_path, FIRST)
    run(tmp_path, {**FIRST, "scores/a": b"7"})
    before = tree(tmp_path)
    with pytest.raises(SinkError, match="holds the output of another run, with other inputs: .*--replace"):
        run(tmp_path, SECOND, OTHER)
    assert {name: content for name, content in tree(tmp_path).items() if ".staging" not in name} == before
    run(tmp_path, SECOND, OTHER, replace=True)
    assert tree(tmp_path).keys() == {"_SUCCESS.json", *SECOND}
    check_listed(tmp_path)


@pytest.mark.parametrize("facts", [{}, {"spec": "s"}])
def test_a_run_that_does_not_tell_what_it_was_is_another(tmp_path, facts):
    run(tmp_path, FIRST, facts)
    for again in (facts, SPEC):
        with pytest.raises(SinkError, match="holds the output of another run: .*--replace"):
            run(tmp_path, SECOND, again)
    with pytest.raises(SinkError, match="--replace"):
        look_at(str(tmp_path), False)
    look_at(str(tmp_path), True)
    run(tmp_path, SECOND, replace=True)


def test_an_earlier_versions_baseline_is_known_though_it_was_not_listed(tmp_path):
    run(tmp_path, {"quality/verdicts.jsonl": b""}, {})
    (tmp_path / "quality" / "baseline.json").write_bytes(b"earlier")
    run(tmp_path, {"scores/a": b""}, replace=True)
    assert tree(tmp_path).keys() == {"_SUCCESS.json", "scores/a"}


@pytest.mark.parametrize(
    "place", ["scores/notes.txt", "scores/.hidden", "dead_letters/sub/x", "quality/mine", "scores"]
)
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("former", [False, True])
def test_foreign_files_in_the_way_are_named_and_stay(tmp_path, place, replace, former):
    if former and place != "scores":
        run(tmp_path, FIRST)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("precious")
    before = tree(tmp_path)
    with pytest.raises(SinkError, match=place.split("/x")[0]):
        look_at(str(tmp_path), replace)
    with pytest.raises(SinkError, match=place.split("/x")[0]):
        run(tmp_path, SECOND, replace=replace)
    assert {name: content for name, content in tree(tmp_path).items() if ".staging" not in name} == before


def test_a_file_that_was_changed_since_is_not_replaced(tmp_path):
    run(tmp_path, FIRST)
    (tmp_path / "scores" / "a").write_text("my own now")
    for replace in (False, True):
        with pytest.raises(SinkError, match="scores/a: was changed since"):
            run(tmp_path, SECOND, replace=replace)
    assert (tmp_path / "scores" / "a").read_text() == "my own now"


def test_what_is_not_in_the_way_stays(tmp_path):
    keep = ["notes.txt", "report.html", ".staging-old/x", "other/scores/a", f".staging-{'x' * 32}/y"]
    for name in keep:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("kept")
    run(tmp_path, FIRST)
    run(tmp_path, SECOND, OTHER, replace=True)
    assert tree(tmp_path).keys() == {"_SUCCESS.json", *SECOND, *keep}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"files": [{}]}', b'{"files": [{"kind": "scores", "name": "../../x", "sha256": ""}]}',
     b'{"files": [{"kind": "..", "name": "x", "sha256": ""}]}', b'{"files": 7}', b"\xff"],
)  # fmt: skip
def test_a_success_file_that_no_run_wrote_is_foreign(tmp_path, content):
    (tmp_path / "x").write_text("outside")
    sink = tmp_path / "a" / "b"
    sink.mkdir(parents=True)
    (sink / "_SUCCESS.json").write_bytes(content)
    with pytest.raises(SinkError, match=r"_SUCCESS\.json: is not what a run writes"):
        run(sink, FIRST, replace=True)
    assert (sink / "_SUCCESS.json").read_bytes() == content
    assert (tmp_path / "x").read_text() == "outside"


STEPS = ("write", "move", "remove", "remove_staging")


@pytest.mark.parametrize("before", [None, FIRST])
def test_a_run_that_is_cut_off_anywhere_ends_right_when_it_is_done_again(tmp_path, monkeypatch, before):
    """Publishing stops at each step in turn, before and after it; then the same run, or the next, goes on."""

    class Cut(BaseException):
        pass

    cuts = 0
    for number in range(40):
        for who in ("the same", "the next", "another"):
            sink = tmp_path / f"{number}-{who}"
            sink.mkdir()
            if before:
                run(sink, before, OTHER)
            left = [number]

            def cut(step, left=left):
                original = getattr(Folder, step)

                def act(self, *args):
                    if left[0] == 0:
                        raise Cut
                    left[0] -= 1
                    result = original(self, *args)
                    if left[0] == 0:
                        raise Cut
                    left[0] -= 1
                    return result

                return act

            run_id = uuid.uuid4().hex
            with monkeypatch.context() as patch:
                for step in STEPS:
                    patch.setattr(Folder, step, cut(step))
                try:
                    run(sink, SECOND, SPEC, True, run_id)
                except Cut:
                    cuts += 1
            partly = not (sink / "_SUCCESS.json").exists()
            if not partly:
                check_sink(Folder(str(sink)), None, True)
            if who == "the same":
                folder = Folder(str(sink))
                written = [
                    Written(*place.split("/"), 1, hashlib.sha256(c).hexdigest(), {}) for place, c in SECOND.items()
                ]
                entries = [{"kind": w.kind, "name": w.name, "sha256": w.sha256} for w in written]
                publish(folder, run_id, written, SPEC, json.dumps({**SPEC, "files": entries}), True)
            elif who == "the next":
                with claim(Folder(str(sink)), "next"):
                    sweep(Folder(str(sink)), "next")
                run(sink, SECOND, SPEC, bool(before))
            else:
                third = {"spec": "s", "inputs": "third"}
                if partly and tree(sink).keys() & FIRST.keys() | tree(sink).keys() & SECOND.keys():
                    with pytest.raises(SinkError, match="--replace"):
                        run(sink, SECOND, third)
                run(sink, SECOND, third, True)
            assert tree(sink).keys() == {"_SUCCESS.json", *SECOND}
            check_listed(sink)
    assert cuts > 30


def test_two_runs_at_the_same_time_are_refused_and_a_killed_one_blocks_nobody(tmp_path):
    code = (
        "import sys, time; from pipelines.sinks.folder import *\n"
        f"with claim(Folder({str(tmp_path)!r}), 'first'): print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    for attempt in (lambda: run(tmp_path, FIRST), lambda: look_at(str(tmp_path), True)):
        with pytest.raises(SinkError, match=rf"another run writes to this sink now \(process {process.pid} on "):
            attempt()
    process.kill()
    process.wait()
    process.stdout.close()
    assert (tmp_path / LOCK).exists()
    run(tmp_path, FIRST)
    assert not (tmp_path / LOCK).exists()


def test_a_running_jobs_staging_stays_and_a_dead_ones_goes(tmp_path):
    folder = Folder(str(tmp_path))
    running, dead = uuid.uuid4().hex, uuid.uuid4().hex
    stage(tmp_path, running, FIRST)
    stage(tmp_path, dead, FIRST)
    with claim(folder, running):
        sweep(folder, running)
        assert folder.stagings() == [f".staging-{running}"]
        with pytest.raises(SinkError, match="another run writes"), claim(folder, "another"):
            pass
        with claim(folder, running):  # the step that publishes, in the same run
            pass
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_what_the_file_system_refuses_is_one_line_with_the_path(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for sink in ("file", "file/below"):
        with pytest.raises(SinkError, match=f"{sink}.*(is a file|Not a directory)"):
            look_at(str(tmp_path / sink), False)
        with pytest.raises(SinkError, match=r"is a file|Not a directory"), claim(Folder(str(tmp_path / sink)), "x"):
            pass
    with pytest.raises(SinkError, match=r"^/proc/none: cannot be written: ") as found, claim(Folder("/proc/none"), "x"):
        pass
    assert "\n" not in str(found.value)


def test_a_full_disk_publishes_nothing_and_leaves_nothing(tmp_path):
    """Files larger than a limit stand in for a disk that is full."""
    source = write_rows(tmp_path / "e.jsonl", [transaction(n) for n in range(20_000)])
    code = (
        "import pathlib, resource, signal; from tests.kit.support import *; from pipelines.jobs import score as run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))\n"
        "project = card_fraud(); score = Score(project, tiny_scorer(project.model.inputs), 'b')\n"
        f"source = read_files(project, [{source!r}])\n"
        f"sink = WriteFiles({str(tmp_path / 'out')!r}, project.event.id, project.event.time)\n"
        "run.run_graph(GraphConfig(project, source, score, sink), DIRECT, (), '')"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode
    line = next(line for line in done.stderr.splitlines() if "SinkError: " in line)
    assert f"{tmp_path}/out/.staging-" in line
    assert "cannot be written: File too large" in line
    assert list((tmp_path / "out").iterdir()) == []


def test_quarantine_leaves_what_it_did_not_write_and_can_be_cut_off(tmp_path, monkeypatch):
    def held(name):
        sink = tmp_path / name
        entries = {"scores/a": b"1", "quarantine/b": b"22", "quarantine/c": b"333"}
        run(sink, entries)
        said = json.loads((sink / "_SUCCESS.json").read_text())
        files = [{**f, "rows": 1, "outcomes": {}} for f in said["files"]]
        said = {**said, "events": {"read": 3, "scored": 1, "quarantined": 2}, "files": files}
        (sink / "_SUCCESS.json").write_text(json.dumps(said))
        return sink

    for name, release, rows in (("released", True, {"scored": 3}), ("dropped", False, {"scored": 1, "dropped": 2})):
        sink = held(name)
        for write in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(Folder, "move" if release and not write else "write", _fail)
                with pytest.raises(KeyboardInterrupt):
                    settle_run(str(sink), release)
        check_sink(Folder(str(sink)), SPEC, False)  # where it was cut off, the run may be done again, too
        if not release:
            with pytest.raises(QuarantineError, match="was dropped already: go on with --drop"):
                settle_run(str(sink), True)
        assert settle_run(str(sink), release) == 2
        assert check_listed(sink)["events"] == {"read": 3, **rows}
        run(sink, SECOND, SPEC)
        check_listed(sink)
    sink = held("foreign")
    (sink / "quarantine" / "mine").write_text("precious")
    (sink / "scores" / "released-b").write_text("precious")
    with pytest.raises(QuarantineError, match="scores/released-b: is not what the run wrote"):
        settle_run(str(sink), True)
    (sink / "scores" / "released-b").unlink()
    settle_run(str(sink), False)
    assert (sink / "quarantine" / "mine").read_text() == "precious"
    with pytest.raises(QuarantineError, match="not the folder of a finished run"):
        settle_run(str(tmp_path / "nowhere"), True)
    assert not (tmp_path / "nowhere").exists()


def _fail(*args):
    raise KeyboardInterrupt


def test_a_graph_refuses_foreign_files_that_came_while_it_ran(tmp_path):
    source = write_rows(tmp_path / "e.jsonl", [transaction(n) for n in range(5)])
    (tmp_path / "out" / "scores").mkdir(parents=True)
    (tmp_path / "out" / "scores" / "mine.parquet").write_text("precious")
    with pytest.raises(SinkError, match=r"scores/mine\.parquet: was not written by a run"):
        run_graph(tmp_path / "out", [source])
    assert (tmp_path / "out" / "scores" / "mine.parquet").read_text() == "precious"


def test_a_sample_replaces_no_other_file(tmp_path):
    paths = write_sample(tmp_path, 200, days=2)
    before = tree(tmp_path)
    assert write_sample(tmp_path, 200, days=2) == paths
    with pytest.raises(SampleError, match="transactions-2018-04-01.parquet: is there already"):
        write_sample(tmp_path, 300, days=3)
    paths[1].write_text("mine")
    with pytest.raises(SampleError, match="transactions-2018-04-02.parquet: is there already"):
        write_sample(tmp_path, 200, days=2)
    assert tree(tmp_path) == {**before, paths[1].name: b"mine"}


def test_a_report_replaces_reports_alone(tmp_path):
    run_graph(tmp_path / "out", [write_rows(tmp_path / "e.jsonl", [transaction(n) for n in range(5)])])
    page = report(card_fraud(), str(tmp_path / "out"))
    assert report(card_fraud(), str(tmp_path / "out")) == page
    page.write_text("<html>mine</html>")
    with pytest.raises(RunError, match=r"report\.html: is there already and is no report"):
        report(card_fraud(), str(tmp_path / "out"))
    assert page.read_text() == "<html>mine</html>"


def test_dead_letters_are_counted_by_each_of_their_reasons_whatever_these_hold():
    odd = {
        "field": 'a", "value": "b\\',
        "rule": '"field": "x", "rule": "y"\n',
        "value": '"field": "v", "rule": "w", "value": "',
    }
    low, double = ({"field": "f", "rule": rule, "value": ""} for rule in ("below 0", "duplicate event id"))
    reasons = [[odd], [double], [odd, low], [low, low]]
    texts = [json.dumps(reason, ensure_ascii=False) for reason in reasons]
    dead = pa.RecordBatch.from_pydict({"step": ["Decode", "Deduplicate", "Decode", "Validate"], "reasons": texts})
    assert count_reasons(dead) == {
        "dead-lettered": 3,
        f"dead-lettered: Decode: {odd['field']}: {odd['rule']}": 2,
        "dead-lettered: Decode: f: below 0": 1,
        "dead-lettered: Validate: f: below 0": 1,
        "duplicate": 1,
    }


def test_a_column_that_no_record_has_is_named_though_another_fault_stands_before_it(tmp_path):
    rows = [transaction(n) for n in range(20)]
    for number, row in enumerate(rows):
        del row["TX_AMOUNT"]
        row["CUSTOMER_ID"] = -1 if number < 5 else row["CUSTOMER_ID"]
    outcomes = run_graph(tmp_path / "out", [write_rows(tmp_path / "e.jsonl", rows)]).outcomes
    assert outcomes == {
        "read": 20,
        "dead-lettered": 20,
        "dead-lettered: Validate: CUSTOMER_ID: below 0": 5,
        "dead-lettered: Validate: TX_AMOUNT: missing": 20,
    }
    shown = io.StringIO()
    rich.console.Console(file=shown, width=100).print(outcome_table(outcomes, 1.0))
    assert re.search(r"Validate: TX_AMOUNT: missing +│ all 20 ", shown.getvalue())
    assert re.search(r"Validate: CUSTOMER_ID: below 0 +│ +5 ", shown.getvalue())


def test_files_are_the_same_written_in_one_part_or_in_many(tmp_path, monkeypatch):
    rows = [transaction(n) for n in range(30)] + [b"{broken"] * 30
    source = write_rows(tmp_path / "e.jsonl", rows)
    whole = run_graph(tmp_path / "whole", [source])
    monkeypatch.setattr("pipelines.sinks.encode.ROWS_AT_ONCE", 7)
    parts = run_graph(tmp_path / "parts", [source])
    assert parts.scores.equals(whole.scores)
    assert parts.dead_letters.equals(whole.dead_letters)
    assert parts.outcomes == whole.outcomes
    files = sorted((tmp_path / "parts" / "scores").rglob("*.parquet"))
    assert [pq.read_metadata(file).num_row_groups for file in files] == [4, 1]  # of 24 hours and of 6
    check_listed(tmp_path / "parts")
