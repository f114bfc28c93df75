"""`headrace takeover`: what it proves, what it refuses, and runs of both feature sets over files by the log."""

import json
import shutil

import pytest

from models.project.project import load_project
from pipelines.prechecks import registry_of
from pipelines.release_store import read_log
from tests.kit.released_shop import headrace, make_green, make_shop
from tests.kit.releases import register_bundles
from tests.kit.support import read_output, write_rows

pytestmark = pytest.mark.slow

START = 1_543_622_400
EVENTS = 4_000  # one a second
OTHERS = "other features than the champion"


def events(number=EVENTS):
    return [{"id": n, "at": START + n, "card": n * 7919 % 251, "amount": (n * 31 % 997) / 10} for n in range(number)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folders of blue and green with a registry of three bundles and one, and the ids of the first and the last."""
    folder = tmp_path_factory.mktemp("takeover")
    _, (old, *_) = make_shop(folder / "blue", "event", "5s")
    _, new = make_green(folder / "green", folder / "blue", "event", "5s")
    write_rows(folder / "events.jsonl", events())
    return folder, old, new


@pytest.fixture
def folders(made, tmp_path, monkeypatch):
    shutil.copytree(made[0], tmp_path / "shops")
    monkeypatch.setenv("HEADRACE_REGISTRY", registry_of(tmp_path / "shops" / "blue", None))
    return tmp_path / "shops"


def say(*args, at=None, code=0):
    """What a command says in one line; `at` are seconds after the first event, when the record is made."""
    given = [] if at is None else ["--at", time(at), "--reason", "try it"]
    done = headrace(*args, *given)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def time(seconds):
    hours, rest = divmod(seconds, 3600)
    return f"2018-12-01T{hours:02}:{rest // 60:02}:{rest % 60:02}"


def states(folders):
    log = read_log(f"sqlite:///{folders}/blue/.headrace/releases.db", load_project(folders / "blue"))
    return [(record.champion, record.shadows) for record in log.records]


def test_green_shadows_takes_over_and_is_rolled_back_and_each_event_is_scored_once(folders, made):
    blue, green, history = folders / "blue", folders / "green", ["--history", folders / "events.jsonl"]
    _, old, new = made
    assert OTHERS in say("release", green, 4, at=10, code=1)
    assert "no release log" in say("takeover", green, *history, at=10, code=1)
    assert "need a run of their own" in say("release", blue, 1, "--shadow", 4, at=10, code=1)
    say("release", green, "champion", "--shadow", 4, at=95)
    assert OTHERS in say("promote", green, 4, at=100, code=1)
    refused = say("takeover", green, at=100, code=1)
    assert "is not warm at 2018-12-01T00:01:45.000000Z: nothing tells what it has read" in refused
    assert "windows reach back to 2018-12-01T00:00:00" not in say("takeover", green, *history, at=1795, code=0)
    assert states(folders) == [(old, ()), (old, (new,)), (new, ())]
    assert "has the features of the champion" in say("takeover", green, *history, at=1900, code=1)
    assert OTHERS in say("release", blue, 1, at=1900, code=1)
    assert "champion 1" in say("rollback", green, at=2995)
    assert states(folders)[3:] == [(old, ())]
    assert "champion 4" in say("takeover", green, *history, "--from", time(3500), at=3000)
    assert "champion 1" in say("rollback", blue, at=3700)
    found = {}
    for folder, bundle in ((blue, old), (green, new)):
        sink = folders / f"{folder.name} out"
        said = say("run", folder, "--source", folders / "events.jsonl", "--sink", sink)
        rows = {row["id"]: row for row in read_output(sink).scores.to_pylist()}
        assert {row["bundle_id"] for row in rows.values()} == {bundle}
        assert not found.keys() & rows.keys()
        found |= {n: bundle for n in rows}
        counts = json.loads((sink / "_SUCCESS.json").read_text())["events"]
        assert (counts["scored"], counts["standby"]) == (len(rows), EVENTS - len(rows))
        assert f"standby {EVENTS - len(rows):,}" in said.replace("│ ", "").replace(" │", "")
    spans = [(1800, 3000), (3500, 3705)]
    assert found == {n: new if any(a <= n < b for a, b in spans) else old for n in range(EVENTS)}
    shadows = [path for path in (folders / "green out" / "shadows").rglob("*.parquet")]
    assert shadows
    assert not (folders / "blue out" / "shadows").exists()


def test_a_run_that_is_cold_takes_over_only_if_told(folders):
    green = folders / "green"
    say("release", green, "champion", "--shadow", 4, at=10)
    write_rows(folders / "few.jsonl", events()[1000:])
    few = ["--history", folders / "few.jsonl"]
    cold = (
        "its first event is of 2018-12-01T00:16:40.000000Z, and windows and duplicates reach back to 2018-12-01T00:03"
    )
    assert cold in say("takeover", green, *few, at=1995, code=1)
    assert len(states(folders)) == 2
    told = headrace("takeover", green, *few, "--cold", "--at", time(1995), "--reason", "now")
    assert told.exit_code == 0
    assert f"not warm: {cold}" in " ".join(told.output.split())
    assert len(states(folders)) == 3


def test_thresholds_that_do_not_go_with_its_decisions_are_refused(folders):
    say("release", folders / "blue", "champion", "--threshold", "block=0.9", at=10)
    wanted = "thresholds: 'block' is no decision of the project; there are: stop, approve"
    history = ["--history", folders / "events.jsonl"]
    assert wanted in say("takeover", folders / "green", *history, at=1895, code=1)
    say("release", folders / "blue", "champion", "--threshold", "none", at=1900)
    say("takeover", folders / "green", *history, at=1905)


def test_of_a_bundle_that_is_damaged_after_its_takeover_no_other_run_takes_the_events(folders, made):
    """They wait for its own run, which stops: by what the log's database tells of its features."""
    blue, green, history = folders / "blue", folders / "green", ["--history", folders / "events.jsonl"]
    say("release", blue, 2, at=95)
    say("takeover", green, *history, at=1895)
    say("rollback", blue, at=2995)
    (manifest,) = (path for path in (blue / ".headrace").rglob("manifest.json") if made[2] in path.read_text())
    content = bytearray((manifest.parent / "model.ubj").read_bytes())
    content[len(content) // 2] ^= 1
    (manifest.parent / "model.ubj").write_bytes(content)
    say("run", blue, "--source", folders / "events.jsonl", "--sink", folders / "out")
    found = {row["id"]: row["release"] for row in read_output(folders / "out").scores.to_pylist()}
    assert found == {n: 0 if n < 100 else 1 if n < 1900 else 3 for n in [*range(1900), *range(3000, EVENTS)]}
    options = ["--source", folders / "events.jsonl", "--sink", folders / "green out"]
    assert "names no sound bundle" in say("run", green, *options, code=1)
    register_bundles(green, load_project(green), registry_of(blue, None), [8])
    say("release", green, "champion", "--shadow", 5, at=3995)
    refused = say("run", green, *options, code=1)
    assert "release 2: bundle" in refused
    assert "another run follows the log, too, and can't know of it: its events wait until that is mended" in refused


def test_nights_of_both_and_a_comparison_of_shadow_and_champion(folders, made):
    blue, green = folders / "blue", folders / "green"
    days = [{**event, "at": START - 43_200 + 43 * event["id"]} for event in events()]  # two days, from noon on
    write_rows(folders / "days.jsonl", days)
    say("release", green, "champion", "--shadow", 4, "--at", "2018-11-01", "--reason", "try it")
    options = ["--history", folders / "days.jsonl", "--from", "2018-12-02", "--at", "2018-12-01"]
    say("takeover", green, *options, "--reason", "try it")
    found = []
    for folder in (blue, green):
        sink = folders / f"{folder.name} nights"
        night = ["--state", folders / f"{folder.name} state", "--from", "2018-11-30", "--until", "2018-12-03"]
        said = say("nightly", folder, "--source", folders / "days.jsonl", "--sink", sink, *night)
        whole = folders / f"{folder.name} out"
        say("run", folder, "--source", folders / "days.jsonl", "--sink", whole)
        rows = read_output(whole).scores
        assert read_output(sink).scores.equals(rows)
        assert said.count("0 scored") == (1 if folder is blue else 2)
        found += rows["id"].to_pylist()
    assert sorted(found) == list(range(EVENTS))
    scores, shadows = (str(folders / f"{name}/**/*.parquet") for name in ("blue out/scores", "green out/shadows"))
    done = headrace("rollout", blue, "--scores", scores, "--shadows", shadows)
    assert done.exit_code == 3, done.output  # hold: it declares no rules, and has no labels
    assert "as shadow" in done.output


def test_a_state_is_warm_and_one_of_other_features_is_refused(folders):
    """States are of whole days: events of two, of which the second is handed over."""
    blue, green = folders / "blue", folders / "green"
    say("release", green, "champion", "--shadow", 4, at=10)
    for folder in (blue, green):
        options = ["--source", folders / "events.jsonl", "--sink", folders / f"{folder.name} nights"]
        say("run", folder, *options, "--state", folders / f"{folder.name} state", "--day", "2018-12-01")
    state = "until=2018-12-02T000000Z"
    day = ["--from", "2018-12-03", "--at", "2018-12-02"]
    wrong = ["takeover", green, "--history", folders / "blue state" / state, *day, "--reason", "try it"]
    assert "of other features" in say(*wrong, code=1)
    say("takeover", green, "--history", folders / "green state" / state, *day, "--reason", "try it")
    assert "no such state" in say(
        "takeover",
        blue,
        "--history",
        folders / "green state" / "until=2018-12-05T000000Z",
        *day,
        "--reason",
        "x",
        code=1,
    )


def test_what_would_decide_twice_or_score_nothing_is_refused(folders):
    blue, green = folders / "blue", folders / "green"
    options = ["--source", folders / "events.jsonl", "--sink", folders / "out"]
    say("release", blue, 2, at=10)
    assert "names no sound bundle" in say("run", green, *options, code=1)
    text = (green / "project.yaml").read_text()
    (green / "project.yaml").write_text(text + "fallback: {action: look}\n")
    say("release", green, "champion", "--shadow", 4, at=20)
    history = ["--history", folders / "events.jsonl"]
    assert "a fallback is declared" in say("takeover", green, *history, at=1900, code=1)
    assert "declares a fallback, and the release log names champion" in say("run", green, *options, code=1)
    assert not (folders / "out").exists()
