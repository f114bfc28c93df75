"""A sink in an object store: it has no locks and no rename, and keeps the promises of one on disk but those."""

import hashlib
import json

import pytest

from pipelines.graph import GraphConfig
from pipelines.jobs.score import run_graph as run_job
from pipelines.results import RunError, read_success
from pipelines.runners import DIRECT
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.folder import LOCK, Folder, SinkError, claim
from pipelines.sinks.listed import Written
from pipelines.sinks.publish import check_sink, publish
from tests.kit import store
from tests.kit.support import card_fraud, read_files, run_graph, tiny_scorer, transaction, write_rows
from transforms.score import Score

SINK = "memory://bucket/out"
SPEC = {"spec": "s", "inputs": "i"}
OTHER = {"spec": "s", "inputs": "j"}
ONE, TWO = "1" * 32, "2" * 32
FILES = {"scores/a": b"a", "scores/b": b"b", "dead_letters/d": b"d"}


@pytest.fixture(autouse=True)
def empty_store():
    store.clear()
    yield
    store.clear()


def stage(run_id, files):
    """Files of a run in its staging folder; what a sink would hand to publish."""
    written = []
    for place, content in files.items():
        store.OBJECTS[f"{SINK}/.staging-{run_id}/{place}"] = content
        written.append(Written(*place.split("/"), 1, hashlib.sha256(content).hexdigest(), {}))
    return written


def text_of(written, facts):
    files = [{"kind": file.kind, "name": file.name, "sha256": file.sha256} for file in written]
    return json.dumps({**facts, "files": files})


def put(run_id, files, facts=SPEC, replace=False):
    written = stage(run_id, files)
    publish(Folder(SINK), run_id, written, facts, text_of(written, facts), replace)
    return text_of(written, facts).encode()


def there():
    return {path.removeprefix(f"{SINK}/"): content for path, content in store.OBJECTS.items()}


def test_success_is_written_last_and_nothing_else_is_left():
    text = put(ONE, FILES)
    assert there() == {**FILES, "_SUCCESS.json": text}
    visible = [change for change in store.CHANGES if change.startswith("put ") and ".staging-" not in change]
    assert visible[-1] == f"put {SINK}/_SUCCESS.json"


def test_the_same_run_again_replaces_its_output_and_removes_what_it_no_longer_writes():
    put(ONE, FILES)
    fewer = {"scores/a": b"new"}
    text = put(TWO, fewer)
    assert there() == {**fewer, "_SUCCESS.json": text}


def test_another_runs_output_is_replaced_only_if_asked_for():
    put(ONE, FILES)
    before = there()
    with pytest.raises(SinkError, match="holds the output of another run, with other inputs"):
        check_sink(Folder(SINK), OTHER, replace=False)
    with pytest.raises(SinkError, match="holds the output of another run, with other inputs"):
        put(TWO, {"scores/c": b"c"}, OTHER)
    assert {name: content for name, content in there().items() if ".staging-" not in name} == before
    text = put(TWO, {"scores/c": b"c"}, OTHER, replace=True)
    assert there() == {"scores/c": b"c", "_SUCCESS.json": text}


@pytest.mark.parametrize("place", ["scores/mine", "quality/mine", "scores/deep/mine", "dead_letters/a"])
@pytest.mark.parametrize("published", [False, True])
def test_what_no_run_wrote_is_refused_and_stays(place, published):
    if published:
        put(ONE, FILES)
    store.OBJECTS[f"{SINK}/{place}"] = b"mine"
    before = there()
    with pytest.raises(SinkError, match=f"{place}: was not written by a run that is known"):
        put(TWO, FILES, replace=True)
    assert {name: content for name, content in there().items() if ".staging-" not in name} == before


def test_what_lies_beside_the_folders_of_a_sink_stays():
    mine = {"notes.txt": b"mine", "other/x": b"mine"}
    store.OBJECTS.update({f"{SINK}/{name}": content for name, content in mine.items()})
    store.OBJECTS[f"{SINK}-2/scores/a"] = b"a neighbour's"
    put(ONE, FILES)
    put(TWO, {"scores/a": b"new"})
    assert mine.items() <= there().items()
    assert store.OBJECTS[f"{SINK}-2/scores/a"] == b"a neighbour's"


def test_of_two_runs_at_once_the_later_publishes_and_the_earlier_gives_up():
    folder = Folder(SINK)
    first = stage(ONE, {"scores/a": b"first"})
    with claim(folder, ONE, take_over=True):
        with claim(folder, TWO, take_over=True):
            with pytest.raises(SinkError, match=f"another run \\({TWO}\\) took this sink over"):
                publish(folder, ONE, first, SPEC, text_of(first, SPEC), True)
            text = put(TWO, {"scores/a": b"second"})
        assert LOCK not in there()
        assert there()["scores/a"] == b"second"
    assert there()["_SUCCESS.json"] == text


@pytest.mark.parametrize("again", [ONE, TWO])
def test_publishing_may_be_cut_off_at_any_change_and_done_again(again):
    put("0" * 32, {"scores/a": b"old", "scores/old": b"old"})
    old = dict(store.OBJECTS)
    put(ONE, FILES)
    wanted, changes = there(), len(store.CHANGES)
    cut = 0
    for number in range(changes):
        store.clear()
        store.OBJECTS.update(old)
        store.FAIL_AT.append(number)
        try:
            put(ONE, FILES)
        except SinkError:
            cut += 1
        store.FAIL_AT.clear()
        store.OBJECTS.pop(f"{SINK}/{LOCK}", None)  # as the message says
        written = [
            Written(*place.split("/"), 1, hashlib.sha256(content).hexdigest(), {}) for place, content in FILES.items()
        ]
        if again == ONE:
            publish(Folder(SINK), ONE, written, SPEC, text_of(written, SPEC), False)
        else:
            put(TWO, FILES)
        found = {name: content for name, content in there().items() if ".staging-" not in name}
        assert found == wanted, number
    assert cut > 10


def test_a_run_over_a_store_writes_the_bytes_of_one_on_disk(tmp_path):
    source = write_rows(tmp_path / "e.jsonl", [*(transaction(n) for n in range(20)), b"{broken"])
    on_disk = run_graph(tmp_path / "out", [source])
    project = card_fraud()
    for _ in range(2):  # the second finds the first's output
        sink = WriteFiles(SINK, project.event.id, project.event.time, facts=SPEC)
        score = Score(project, tiny_scorer(project.model.inputs), "bundle", 0)
        result = run_job(GraphConfig(project, read_files(project, [source]), score, sink), DIRECT, (), "test")
        assert result.outcomes == on_disk.outcomes
        said = read_success(SINK)
        digest = hashlib.sha256("".join(f["name"] + f["sha256"] for f in said["files"]).encode()).hexdigest()
        assert digest == on_disk.digest
        assert {path.split("/")[0] for path in there()} == {"scores", "dead_letters", "_SUCCESS.json"}
    with pytest.raises(RunError, match="has no _SUCCESS.json"):
        read_success("memory://bucket/nowhere")
