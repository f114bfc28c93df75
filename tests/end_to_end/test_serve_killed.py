"""Stream and store are killed again and again while an endpoint answers: what it calls complete is what batch says."""

import contextlib
import datetime
import os
import threading
import time

import httpx
import numpy as np
import pytest

from models.sample import write_sample
from pipelines.jobs.parity import arrival_order
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.sinks.store import WriteStore
from pipelines.sources.payloads import event_times, read_payloads
from pipelines.store import open_store
from tests.kit import redis
from tests.kit.endpoints import serving
from tests.kit.pubsub_bench import HOLD_SECONDS, Bench
from tests.kit.serving import assert_same_bits
from tests.kit.stores import digest
from tests.kit.streams import DAY, SECOND
from tests.kit.support import card_fraud, run_graph

pytestmark = [pytest.mark.serial, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("HEADRACE_SERVE_KILLS", "2"))
HOUR = 3600 * SECOND
PROJECT = card_fraud()
TOGETHER = 20  # events of a request


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Events, and what batch makes of them: rows, and a store."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, 6000, seed=1, days=6, format="jsonl")
    store = str(folder / "store.db")
    batch = run_graph(folder / "batch", [f"{folder}/*.jsonl"], store=WriteStore(store, PROJECT, DAY))
    return read_payloads([f"{folder}/*.jsonl"]), batch, store


class Asker(threading.Thread):
    """Asks for the scores of events of the last day that a store has come past, until it is told to stop.

    While the endpoint is not ready it waits, as what stands before one does.
    """

    def __init__(self, url, payloads):
        super().__init__(daemon=True)
        self._client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._payloads = payloads
        self._times = event_times(payloads, PROJECT)
        self.stopping = threading.Event()
        self.answers, self.ahead, self.turned_away = [], [], 0

    def run(self):
        """Ask; what fails is raised by `join`."""
        self.failed = None
        try:
            with self._client:
                self._ask()
        except Exception as error:  # noqa: BLE001  it is raised where the test sees it
            self.failed = error

    def _ask(self):
        chosen, as_of_us = np.random.default_rng(5), None
        while not self.stopping.is_set():
            if as_of_us is None or self._client.get("/v2/health/ready").status_code != 200:
                time.sleep(0.02)
                reply = self._client.get("/v1/features/customer/1")
                told = reply.json().get("as_of")
                as_of_us = micros(told) if told else as_of_us
                continue
            known = np.flatnonzero((self._times < as_of_us) & (self._times > as_of_us - DAY))
            places = chosen.choice(known, TOGETHER)
            answers = self._send(np.unique(places))
            self.answers += answers
            self.turned_away += not answers
            as_of_us = max([as_of_us, *(micros(answer["as_of"]) for answer in answers)])
            self.ahead = self.ahead or self._send(np.argsort(self._times)[-3:])

    def _send(self, places):
        """Answers with scores; none while the store does not answer."""
        body = b"[" + b",".join(self._payloads[place] for place in places.tolist()) + b"]"
        reply = self._client.post("/v1/score", content=body, params={"features": "true"})
        assert reply.status_code in (200, 503), reply.text
        return reply.json() if reply.status_code == 200 else []


def micros(text):
    return round(datetime.datetime.fromisoformat(text).timestamp() * SECOND)


@contextlib.contextmanager
def asking(uri, payloads):
    """One who asks an endpoint as long as the block runs."""
    opened = open_store(uri, PROJECT.feature_set, wait_seconds=10.0)
    with serving(PROJECT, opened, absorb=False) as client:
        asker = Asker(str(client.base_url), payloads)
        asker.start()
        try:
            yield asker
        finally:
            asker.stopping.set()
            asker.join()
        if asker.failed:
            raise asker.failed


def wait_for_more(bench):
    before, until = len(bench.scores), time.monotonic() + 60
    while len(bench.scores) == before:
        assert time.monotonic() < until
        bench.collect()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=redis.needs_redis)])
def test_answers_have_the_bits_of_batch_while_stream_and_store_are_killed(sample, kind, tmp_path, monkeypatch):
    payloads, batch, expected = sample
    messages = [payloads[place] for place in arrival_order(payloads, PROJECT, HOUR, 7, 0.05)]
    random, journal = np.random.default_rng(3), tmp_path / "journal"
    *parts, last = (part.tolist() for part in np.array_split(np.array(messages, object), KILLS + 1))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis.running()) if kind == "redis" else None
        uri = str(tmp_path / "store.db") if server is None else f"redis://127.0.0.1:{server.port}"
        open_store(uri, PROJECT.feature_set, create=True).close()
        bench = Bench(stack.enter_context(PubsubEmulator()), monkeypatch)
        stack.callback(bench.close)
        asker = stack.enter_context(asking(uri, payloads))
        for number, part in enumerate(parts):
            stream = bench.start(journal, HOUR, idle_us=10 * SECOND, store=uri)
            for piece in np.array_split(np.array(part, object), 5):
                bench.publisher.publish(piece.tolist())
                time.sleep(random.uniform(0, 0.4))
            if number % 2 == 0:  # it is killed at work, however slow the machine is
                wait_for_more(bench)
            if server is not None:
                server.stop(kill=True)
                time.sleep(random.uniform(0, 0.5))
                server.start()
            time.sleep(random.uniform(0, HOLD_SECONDS + 0.5))
            stream.kill()
            stream.join()
            bench.expire_leases()
            bench.collect()
        at_work = len(bench.scores)
        stream = bench.start(journal, HOUR, idle_us=3 * SECOND, store=uri)
        bench.publisher.publish(last)
        bench.wait(len(payloads), 120)
        time.sleep(2.0)
        stream.terminate()
        stream.join(30)
        assert stream.exitcode == 0
        found = digest(uri, PROJECT)
    assert found == digest(expected, PROJECT)
    assert 0 < at_work < len(payloads)
    complete = [answer for answer in asker.answers if answer["complete"]]
    assert len(complete) >= 0.99 * len(asker.answers)
    assert asker.turned_away <= (2 * KILLS if kind == "redis" else 0)
    assert len(complete) * len(PROJECT.feature_names) * 64 > 1_000_000
    ids = {answer["event"]["TRANSACTION_ID"] for answer in complete}
    rows = batch.scores.filter([number in ids for number in batch.scores["TRANSACTION_ID"].to_pylist()])
    assert_same_bits(complete, rows, [*PROJECT.feature_names, "score"], "TRANSACTION_ID")
    assert [answer["complete"] for answer in asker.ahead] == [False] * 3
    print(
        f"{len(asker.answers)} answers, {len(complete)} complete; {asker.turned_away} requests were told to come again"
    )
