"""Two running streams that hand over to each other by commands, and are killed around it: each event is scored once."""

import random
import time

import pytest

from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.pubsub_emulator.broker import Clock
from pipelines.release_store import read_log
from tests.kit.released_shop import Rows, Traffic, check_releases, check_same, headrace, make_green, make_shop, replay
from tests.kit.stream_process import context, run_command

pytestmark = pytest.mark.serial

HOLD_SECONDS = 1.0


class Streams:
    """The runs of two folders by their names, each from a subscription and with a journal of its own."""

    def __init__(self, folder, server):
        self._folder, self._server, self._passed = folder, server, 0.0
        server._broker.clock = Clock(monotonic=lambda: time.monotonic() + self._passed)
        self._processes = {}
        self.deaths = []

    def start(self, name):
        journal, registry = (
            str(self._folder / f"{name} journal"),
            f"sqlite:///{self._folder}/blue/.headrace/registry.db",
        )
        args = ["run", str(self._folder / name), "--source", f"pubsub://p/{name}", "--sink", "pubsub://p/scores"]
        # The process that starts them may be older than this test's environment.
        args += ["--allowance", "1s", "--journal", journal, "--registry", registry]
        self._processes[name] = context().Process(
            target=run_command, args=(self._server.address, HOLD_SECONDS, args), daemon=True
        )
        self._processes[name].start()

    def kill(self, name):
        process = self._processes.pop(name)
        process.kill()
        process.join()
        self.deaths.append(process.exitcode)
        self._passed += 3600  # the leases of the killed one are over

    def stop(self):
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(30)
        return [process.exitcode for process in self._processes.values()]


def test_streams_that_are_killed_around_a_takeover_and_back_score_each_event_once(tmp_path, monkeypatch):
    chosen, kills = random.Random(7), 0
    project, (old, *_) = make_shop(tmp_path / "blue", "wall", "1s")
    _, new = make_green(tmp_path / "green", tmp_path / "blue", "wall", "1s", window="3s")
    monkeypatch.setenv("HEADRACE_REGISTRY", f"sqlite:///{tmp_path}/blue/.headrace/registry.db")
    with PubsubEmulator() as server:
        for name in ("scores", "scores-dead-letters", "scores-shadow"):
            server.create("p", name, name)
        for name in ("blue", "green"):
            server.create("p", "events", name)
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        made = headrace("release", tmp_path / "green", "champion", "--shadow", "4", "--reason", "beside")
        assert made.exit_code == 0, made.output
        streams, traffic, rows = Streams(tmp_path, server), Traffic(), Rows()
        try:
            for name in ("blue", "green"):
                streams.start(name)
            traffic.start()
            rows.collect(lambda: rows.have(1) and len(rows.shadows) > 3000)  # green's, of more than six seconds
            journal = ["--journal", tmp_path / "green journal"]
            for seq, command in enumerate(
                (["takeover", tmp_path / "green", *journal], ["rollback", tmp_path / "blue"]), 2
            ):
                made = headrace(*command, "--reason", "a change")
                assert made.exit_code == 0, made.output
                for name in ("green", "blue", "green"):  # it takes effect two seconds after the record was made
                    time.sleep(chosen.uniform(0, 1.2))
                    streams.kill(name)
                    streams.start(name)
                    kills += 1
                rows.collect(lambda seq=seq: rows.have(seq))
            published = traffic.stop()
            rows.collect(lambda: len(rows.scores) >= published)
            over = time.monotonic() + 1.5
            rows.collect(lambda: time.monotonic() > over)  # whatever else there is
        finally:
            codes = streams.stop()
            rows.close()
    assert (streams.deaths, codes) == ([-9] * kills, [0, 0])
    assert len(rows.scores) == published
    log = read_log(f"sqlite:///{tmp_path}/blue/.headrace/releases.db", project)
    assert [record.champion for record in log.records] == [old, old, new, old]
    assert all(row["bundle_id"] == log.records[row["release"]].champion for row in rows.scores.values())
    check_releases(log, rows)
    scores, shadows = {}, {}
    for name in ("blue", "green"):
        batch, beside = replay(tmp_path / name, f"{tmp_path}/{name} journal/*.journal", tmp_path / f"{name} out")
        assert batch
        assert not scores.keys() & batch.keys()
        scores, shadows = scores | batch, shadows | beside
    check_same(rows, scores, shadows, project.feature_names)
