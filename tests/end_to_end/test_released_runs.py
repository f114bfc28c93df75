"""Commands that follow a release log: run and parity, over files and streams, with the bundles of a registry."""

import dataclasses
import json
import os
import random
import shutil
import subprocess

import pyarrow.compute as pc
import pytest

from pipelines.jobs.registered import RegisteredBundles
from pipelines.jobs.released import Released
from pipelines.prechecks import registry_of
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.refusals import read_refusals
from pipelines.release_store import append, export, read_log
from tests.kit.bundles import rewrite
from tests.kit.command import HEADRACE
from tests.kit.released_shop import TOPICS, Rows, Traffic, check_replay, headrace, make_shop
from tests.kit.releases import canary, make_log
from tests.kit.support import ROOT, read_output, write_rows

pytestmark = pytest.mark.slow

START = 1_543_622_400
EVENTS = 4_000  # one a second
SECOND = 1_000_000
LEAD = 5 * SECOND
MUTATIONS = int(os.environ.get("HEADRACE_MUTATIONS", "300"))


def events():
    return [{"id": n, "at": START + n, "card": n * 7919 % 251, "amount": (n * 31 % 997) / 10} for n in range(EVENTS)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with three bundles and a log of six records: canary 10 %, canary 50 %, promotion, another, rollback."""
    folder = tmp_path_factory.mktemp("project")
    project, (old, new, worse) = make_shop(folder, "event", "5s")

    def at(seconds):
        return (START + seconds) * SECOND

    log = make_log(
        old,
        {"at": at(500), "challenger": new, "canary": canary("card", 1000), "shadows": (worse,)},
        {"at": at(1500), "canary": canary("card", 5000)},
        {"at": at(2000), "champion": new, "challenger": None, "canary": None, "shadows": ()},
        {"at": at(3000), "champion": worse},
        {"at": at(3200), "champion": new},
        lead_us=LEAD,
    )
    write_rows(folder / "events.jsonl", events())
    return folder, project, log, (old, new, worse)


def write_log(place, log, project="shops"):
    append(place, project, dataclasses.replace(log, records=()), lambda: 0, lambda _: log)


def by_release(scores):
    return {row["id"]: (row["release"], row["role"], row["bundle_id"]) for row in scores.to_pylist()}


def test_run_follows_the_log_beside_the_registry_and_a_model_overrides_it(made, tmp_path):
    folder, project, log, (old, new, _) = made
    options = ["--source", folder / "events.jsonl", "--sink"]
    assert headrace("run", folder, *options, tmp_path / "bare").exit_code == 0
    bare = read_output(tmp_path / "bare")
    assert "release" not in bare.scores.schema.names
    place = f"sqlite:///{folder}/.headrace/releases.db"
    write_log(place, log)
    try:
        done = headrace("run", folder, *options, tmp_path / "followed")
        assert done.exit_code == 0, done.output
        assert "releases of sqlite:///" in done.output.replace("\n", "")
        output = read_output(tmp_path / "followed")
        scores = output.scores
        expected = {n: log.in_effect((START + n) * SECOND) for n in range(EVENTS)}
        found = by_release(scores)
        assert {n: seq for n, (seq, *_) in found.items()} == {n: release.seq for n, release in expected.items()}
        share = [row for n, row in found.items() if 1500 <= n < 2000]
        assert 0.3 < sum(role == "canary" for _, role, _ in share) / len(share) < 0.7
        assert {bundle for seq, role, bundle in found.values() if role == "canary"} == {new}
        said = json.loads((tmp_path / "followed" / "_SUCCESS.json").read_text())
        assert said["releases"]["records"] == 6
        assert {file["kind"] for file in said["files"]} == {"scores", "shadows"}
        assert headrace("run", folder, *options, tmp_path / "one", "--model", "champion").exit_code == 0
        assert read_output(tmp_path / "one").scores.equals(bare.scores)
        export(read_log(place, project), "shops", tmp_path / "log.jsonl")
    finally:
        (folder / ".headrace" / "releases.db").unlink()
    done = headrace("run", folder, *options, tmp_path / "exported", "--releases", tmp_path / "log.jsonl")
    assert done.exit_code == 0, done.output
    assert read_output(tmp_path / "exported").digest == output.digest
    for name in (old, new):
        assert scores.filter(pc.equal(scores["bundle_id"], name)).num_rows
    # Days are scored alone with the releases of the days before.
    day = ["--score-from", "2018-12-01", "--score-to", "2018-12-02"]
    done = headrace("run", folder, *options, tmp_path / "day", *day, "--releases", tmp_path / "log.jsonl")
    assert done.exit_code == 0, done.output
    assert read_output(tmp_path / "day").scores.equals(scores)
    night = ["--state", tmp_path / "state", "--from", "2018-12-01", "--until", "2018-12-02"]
    done = headrace("nightly", folder, *options, tmp_path / "night", *night, "--releases", tmp_path / "log.jsonl")
    assert done.exit_code == 0, done.output
    assert read_output(tmp_path / "night").scores.equals(scores)


def test_a_log_that_is_not_there_or_was_changed_is_an_error(made, tmp_path):
    folder, _, log, _ = made
    options = ["--source", folder / "events.jsonl", "--sink", tmp_path / "out"]
    done = headrace("run", folder, *options, "--releases", f"sqlite:///{tmp_path}/none.db")
    assert done.exit_code != 0
    assert "has no release of shops" in done.output
    export(log, "shops", tmp_path / "log.jsonl")
    changed = (tmp_path / "log.jsonl").read_bytes().replace(b'"per_10000":5000', b'"per_10000":5001')
    (tmp_path / "changed.jsonl").write_bytes(changed)
    done = headrace("run", folder, *options, "--releases", tmp_path / "changed.jsonl")
    assert done.exit_code != 0
    assert "is not as it was written" in done.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_parity_proves_the_releases(made, tmp_path):
    folder, _, log, _ = made
    export(log, "shops", tmp_path / "log.jsonl")
    options = ["--source", folder / "events.jsonl", "--releases", tmp_path / "log.jsonl"]
    done = headrace("parity", folder, *options, "--allowance", "40s")
    assert done.exit_code == 0, done.output
    assert "equal" in done.output.splitlines()[-1]
    rows = {line.split("│")[1].strip(): line.split("│")[3].strip() for line in done.output.splitlines() if "│" in line}
    assert rows["releases"] == rows["scores"] == rows["decisions"] == "0"
    assert int(rows["control: releases learnt late"].replace(",", "")) > 50


@pytest.mark.parametrize("fault", ["features", "golden", "model"])
def test_a_bundle_that_is_not_as_it_was_registered_is_refused(made, tmp_path, fault):
    folder, project, log, (_, _, worse) = made
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    place = next(path for path in (copy / ".headrace").rglob("manifest.json") if worse in path.read_text()).parent
    if fault == "features":
        rewrite(place, "features.json", b"{}")
    elif fault == "golden":
        golden = json.loads((place / "golden.json").read_text())
        golden["scores"][0] += 0.25
        rewrite(place, "golden.json", json.dumps(golden).encode())
    else:
        content = bytearray((place / "model.ubj").read_bytes())
        content[len(content) // 2] ^= 1
        (place / "model.ubj").write_bytes(bytes(content))
    export(log, "shops", tmp_path / "log.jsonl")
    options = ["--source", copy / "events.jsonl", "--sink", tmp_path / "out", "--releases", tmp_path / "log.jsonl"]
    done = headrace("run", copy, *options)
    assert done.exit_code == 0, done.output
    found = by_release(read_output(tmp_path / "out").scores)
    assert {found[n][0] for n in range(3000, 3200)} == {3}  # the release before goes on
    assert {seq for seq, *_ in found.values()} == {0, 1, 2, 3, 5}
    assert not (tmp_path / "out" / "shadows").exists()
    place = f"sqlite:///{tmp_path}/releases.db"
    write_log(place, log)
    damaged, whole = (RegisteredBundles(project, where, registry_of(where, None)) for where in (copy, folder))

    def accepted(bundles, **options):
        found = {release.seq: release for release in Released(place, project, bundles, **options).accept(log.records)}
        return set(found), found[1].shadows

    assert accepted(damaged) == ({0, 1, 2, 3, 5}, ())
    assert accepted(whole) == ({0, 1, 2, 3, 4, 5}, (worse,))
    assert accepted(damaged, notes=True) == ({0, 1, 2, 3, 5}, ())
    carried = Released(place, project, whole).load_all(log.records)
    assert carried(worse).feature_names == tuple(project.model.inputs)
    # A replay refuses the same, when the bundle is mended, too.
    assert accepted(whole) == accepted(damaged) == ({0, 1, 2, 3, 5}, ())
    assert set(read_refusals(place, "shops")) == {(seq, worse) for seq in (1, 2, 4)}
    assert read_refusals(place, "others") == read_refusals(str(tmp_path / "log.jsonl"), "shops") == {}


def test_no_bundle_with_a_changed_byte_scores_otherwise(made, tmp_path):
    """Whatever is changed, cut or added, by accident or with a manifest that agrees, is refused or changes no score."""
    folder, project, _, (_, new, _) = made
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    place = next(path for path in (copy / ".headrace").rglob("manifest.json") if new in path.read_text()).parent
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    bundles, chosen, refused = RegisteredBundles(project, copy, registry_of(copy, None)), random.Random(1), 0
    digest = bundles.load(new).digest
    for _ in range(MUTATIONS):
        name = chosen.choice(sorted(before))
        content = bytearray(before[name])
        for _ in range(chosen.randrange(1, 4)):
            at = chosen.randrange(len(content) + 1)
            content[at : at + chosen.choice([0, 1, 1, 9])] = chosen.choice([b"", b"0", bytes([chosen.randrange(256)])])
        if name == "manifest.json" or chosen.random() < 0.5:
            (place / name).write_bytes(content)
        else:
            rewrite(place, name, bytes(content))
        if bundles.fault_of(new) is None:
            assert bundles.load(new).digest == digest
        else:
            refused += 1
        for each in (name, "manifest.json"):
            (place / each).write_bytes(before[each])
    assert refused > MUTATIONS // 2
    assert bundles.fault_of(new) is None


@pytest.mark.serial
def test_a_running_stream_takes_a_release_and_a_replay_gives_the_same(tmp_path, monkeypatch):
    """A canary, a promotion, a shadow and a rollback by commands while events flow; then batch over the journal."""
    folder = tmp_path / "project"
    project, (old, new, worse) = make_shop(folder, "wall", "1s")
    with PubsubEmulator() as server:
        for name in TOPICS:
            server.create("p", name, name)
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        first = headrace("release", folder, "1", "--shadow", "3", "--reason", "begin")
        assert first.exit_code == 0, first.output
        arguments = ["--source", "pubsub://p/events", "--sink", "pubsub://p/scores", "--allowance", "1s"]
        stream = subprocess.Popen(
            [HEADRACE, "run", folder, *arguments, "--journal", tmp_path / "journal"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PUBSUB_EMULATOR_HOST": server.address},
        )
        traffic, rows = Traffic(), Rows()
        try:
            traffic.start()
            rows.collect(lambda: rows.have(1))
            commands = [("release", folder, "2", "--canary", "50%"), ("promote", folder, "2"), ("rollback", folder)]
            for seq, command in enumerate(commands, 2):
                made = headrace(*command, "--reason", "a change")
                assert made.exit_code == 0, made.output
                rows.collect(lambda seq=seq: rows.have(seq))
            published = traffic.stop()
            rows.collect(lambda: len(rows.scores) >= published)
        finally:
            stream.terminate()
            stream.wait(30)
            rows.close()
    assert stream.returncode == 0
    assert rows.read == len(rows.scores) == published  # none lost, none twice
    assert {row["bundle_id"] for row in rows.scores.values() if row["role"] == "canary"} == {new}
    assert {row["bundle_id"] for row in rows.scores.values() if row["release"] == 1} == {old}
    assert {row["bundle_id"] for row in rows.shadows.values()} == {worse}
    check_replay(folder, project, rows, f"{tmp_path}/journal/*.journal", tmp_path / "replayed")
