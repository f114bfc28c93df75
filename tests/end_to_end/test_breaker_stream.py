"""Bad models in a running stream: it is back on the old one within the windows that are declared, and so is a replay."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import xgboost

from models.predictors.booster import predict
from models.predictors.registry import register
from models.project.project import load_project
from models.quality.parts import make_baseline
from pipelines.monitoring.breaker import AUTHOR
from pipelines.prechecks import registry_of
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.release_store import read_log
from tests.kit import released_shop
from tests.kit.bundles import make_bundle
from tests.kit.released_shop import TOPICS, Rows, Traffic, headrace, us_of
from tests.kit.support import ROOT, read_output, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.serial]

WINDOW = 3
TEXT = re.sub(r"(?s)features:.*?model: .*?\n", "model: {inputs: [amount]}\n", released_shop.TEXT)
TEXT = TEXT.replace("CLOCK", "wall").replace("LEAD", "1s") + "output: [amount]\n"
QUALITY = f"quality: {{window: {WINDOW}s, min_rows: 300, psi: 0.3, decision_share: 0.2}}\n"
BREAKER = """
breaker:
  kinds: [score_range, psi, decision_share]
  wait: 1000
  clock: {every: 3s, latency: {within: 4s, target: 0.5}}
"""
BAD = os.environ.get("HEADRACE_BAD", "nan slow").split()  # or constant, shifted; slow is the last
SECOND = 1_000_000


def bundle_of(seed):
    """A bundle of a model of amounts up to 100."""
    random = np.random.default_rng(seed)
    rows = random.uniform(0, 100, (400, 1)).astype(np.float32)
    labels = rows[:, 0] + random.normal(0, 20, 400) > 60
    told = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
    booster = xgboost.train(told, xgboost.DMatrix(rows, labels, feature_names=["amount"]), 10)
    golden = rows[:5]
    model, scores = bytes(booster.save_raw("ubj")), predict(booster, golden)
    return dataclasses.replace(make_bundle(["amount"]), model=model, golden_features=golden, golden_scores=scores)


def make_shop(folder, scratch):
    """A project with a good bundle, whose baseline is of its own scores, and one for each way to be bad."""
    for place, text in ((scratch, TEXT), (folder, TEXT + QUALITY + BREAKER)):
        place.mkdir()
        (place / "project.yaml").write_text(text)
        (place / "schema.pbtxt").write_text(released_shop.SCHEMA)
    project = load_project(folder)

    def give(to, bundle):
        told = {name: (to / name).read_bytes() for name in ("schema.pbtxt", "project.yaml")}
        made = dataclasses.replace(
            bundle,
            schema=told["schema.pbtxt"],
            project=told["project.yaml"],
            feature_definitions=load_project(to).feature_definitions(),
        )
        register(made, "shops", registry_of(to, None))
        return made.bundle_id

    give(scratch, bundle_of(0))
    events = [{"id": n, "at": 1_543_622_400 + n, "card": n % 251, "amount": n * 31 % 997 / 10} for n in range(5000)]
    source = write_rows(scratch / "events.jsonl", events)
    done = headrace("run", scratch, "--source", source, "--sink", scratch / "out", "--model", "1")
    assert done.exit_code == 0, done.output
    rows = read_output(scratch / "out").scores
    good = dataclasses.replace(bundle_of(0), baseline=make_baseline(rows.to_batches(), project))
    return project, [give(folder, good), *(give(folder, bundle_of(1 + n)) for n in range(len(BAD)))]


def release(folder, *words):
    done = headrace("release", folder, *words, "--reason", "a test")
    assert done.exit_code == 0, done.output


def test_a_running_stream_is_back_on_the_old_model(tmp_path, monkeypatch):
    monkeypatch.setattr(released_shop, "CLOCKED", (*released_shop.CLOCKED, "verdict_id", "late"))
    folder = tmp_path / "project"
    project, (good, *bad) = make_shop(folder, tmp_path / "scratch")
    place = f"sqlite:///{folder}/.headrace/releases.db"
    command = [sys.executable, "-m", "tests.kit.injected", "run", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["HEADRACE_INJECTED"] = json.dumps(dict(zip(bad, BAD, strict=True)))
    with PubsubEmulator() as server:
        for name in (*TOPICS, "scores-quality"):
            server.create("p", name, name)
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        environment["PUBSUB_EMULATOR_HOST"] = server.address
        release(folder, "1", "--fallback", "1", "--shadow", "2")
        options = ["--source", "pubsub://p/events", "--sink", "pubsub://p/scores", "--allowance", "1s"]
        start = [*command, *options, "--journal", tmp_path / "journal"]
        stream, traffic, rows = subprocess.Popen(start, env=environment), Traffic(), Rows()

        def back(seq):
            """Whether a release has fallen back, or is followed by a rollback that is in effect."""
            log = read_log(place, project).records
            later = log[-1].seq > seq and log[-1].author == AUTHOR and rows.have(log[-1].seq)
            return later or any(r["release"] == seq and r["role"] == "fallback" for r in rows.scores.values())

        try:
            traffic.start()
            rows.collect(lambda: rows.have(1))
            released = {}
            for number, way in enumerate(BAD, 2):
                if way == "slow":
                    release(folder, "1", "--shadow", "none")
                release(folder, str(number), "--shadow", "none")
                seq = read_log(place, project).records[-1].seq
                released[way] = seq
                rows.collect(lambda seq=seq: back(seq))
                if way == "nan":  # and killed, it is back there still
                    stream.kill()
                    stream.wait()
                    stream = subprocess.Popen(start, env=environment)
                    newest = rows.newest
                    rows.collect(lambda newest=newest: rows.newest > newest + 5)
            published = traffic.stop()
            rows.collect(lambda: len(rows.scores) >= published)
        finally:
            stream.terminate()
            stream.wait(30)
            rows.close()
    assert len(rows.scores) == published
    log = read_log(place, project)
    for way, seq in released.items():
        from_us = log.records[seq].effective_from_us
        if way == "slow":
            assert log.records[seq + 1].author == AUTHOR
            assert "written within 4 s" in log.records[seq + 1].why
            assert log.records[seq + 1].champion == good
            continue
        whole = -(-from_us // (WINDOW * SECOND)) * WINDOW * SECOND + WINDOW * SECOND
        for row in rows.scores.values():
            if row["release"] == seq:
                time_us = us_of(row["at"])
                wanted = ("champion", bad[BAD.index(way)]) if time_us < whole else ("fallback", good)
                assert (row["role"], row["bundle_id"]) == wanted
    told = headrace("releases", folder).output
    for seq in (seq for way, seq in released.items() if way != "slow"):
        said = told.split(f"release {seq} ")[1].split("\nrelease ")[0]
        assert "circuit breaker open from" in said
    check_replay(command, environment, tmp_path, rows)


def check_replay(command, environment, folder, rows):
    """See that batch over the journal gives each event the same; NaN is written as none."""
    sink = folder / "replayed"
    arguments = [*command, "--source", f"{folder}/journal/*.journal", "--sink", sink]
    subprocess.run(arguments, env=environment, check=True, timeout=300)
    batch = {(row["id"],): row for row in read_output(sink).scores.to_pylist()}
    assert batch.keys() == rows.scores.keys()
    for key, row in rows.scores.items():
        for name in ("release", "role", "bundle_id", "decision", "shadow_decision"):
            assert row[name] == batch[key][name]
        ours, theirs = (np.float32(np.nan if each["score"] is None else each["score"]) for each in (row, batch[key]))
        assert ours == theirs or (np.isnan(ours) and np.isnan(theirs))
