"""`headrace serve --workers`: processes of one endpoint, which agree through the store, and of which any may die."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess

import httpx
import pytest

from models.project.project import load_project
from models.store.kinds import kinds_of
from pipelines.serve.workers import serve_by_workers
from pipelines.sinks.store import WriteStore
from pipelines.store import go_on, open_store
from tests.kit import redis
from tests.kit.serve_process import make_project, score, serving, wait_for
from tests.kit.serving import START, as_lines, assert_same_bits, in_order, make_events
from tests.kit.stores import digest
from tests.kit.streams import DAY
from tests.kit.support import run_graph

pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.timeout(300)]

EVENT = {"id": 10_001, "at": START + 1, "card": "anna", "shop": 1, "amount": 12.5}
EVENTS = in_order(make_events(150))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def folder(made, tmp_path):
    return pathlib.Path(shutil.copytree(made, tmp_path / "project"))


@pytest.fixture(scope="module")
def batch(made, tmp_path_factory):
    """What the graph makes of the events, and its store."""
    folder, project = tmp_path_factory.mktemp("batch"), load_project(made)
    (folder / "events.jsonl").write_bytes(b"\n".join(as_lines(EVENTS)))
    store = str(folder / "store.db")
    run = run_graph(folder / "run", [str(folder / "events.jsonl")], project, store=WriteStore(store, project, 90 * DAY))
    return run, store


@pytest.fixture(scope="module")
def server():
    with redis.running() as running:
        yield running


def ask_anew(client, event):
    """By a connection of its own, which any worker may take."""
    with httpx.Client(base_url=client.base_url, timeout=60, trust_env=False, verify=False) as one:
        return score(one, event).json()


def by_worker(client, name):
    """The values of a series by worker."""
    found = {}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(name + "{"):
            worker = line.partition('worker="')[2].partition('"')[0]
            found[worker] = found.get(worker, 0) + float(line.rpartition(" ")[2])
    return found


def workers_of(process):
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


def refuses(address):
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("kind", redis.STORES)
def test_workers_agree_through_the_store_and_end_with_their_parent(folder, kind, request, batch):
    """Each event sees those that were answered before it, whoever answered; the store is that of batch."""
    run, expected = batch
    project = load_project(folder)
    uri = str(folder / "store.db") if kind == "sqlite" else redis.emptied(request.getfixturevalue("server"))
    first, rest = EVENTS[:90], EVENTS[90:]
    random.Random(1).shuffle(rest)
    with serving(folder, "--model", "1", "--absorb", "--workers", "2", store=uri) as (process, client):
        answers = [ask_anew(client, event) for event in first]
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda event: ask_anew(client, event), [*rest, *rest[::3]]))
        asked = by_worker(client, "headrace_served_events_total")
        workers = workers_of(process)
        process.kill()
        process.wait()
        wait_for(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers))
    scored = [answer for answer in answers if "refused" not in answer]
    ids = {answer["event"]["id"] for answer in scored}
    rows = run.scores.filter([number in ids for number in run.scores["id"].to_pylist()])
    assert len(scored) > 60
    assert all(answer["complete"] for answer in scored)
    assert_same_bits(scored, rows, project.feature_names)
    assert len(workers) == 2
    assert sum(asked.values()) == len(EVENTS) + len(rest[::3])
    assert min(asked.values()) > 0
    assert same_stores(project, expected, uri)


def test_a_worker_that_dies_is_started_again_and_all_end_politely(folder):
    with serving(folder, "--model", "1", "--absorb", "--workers", "2") as (process, client):
        before = workers_of(process)
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: score(client, EVENT).status_code == 200)
        wait_for(lambda: len(workers_of(process)) == 2 and before[0] not in workers_of(process))
        wait_for(lambda: len(by_worker(client, "headrace_ready")) == 2)
        assert "worker 0 has ended by SIGKILL" in (folder / "serve.log").read_text()
        body = json.dumps(EVENT).encode()
        address = client.base_url.host, client.base_url.port
        with contextlib.ExitStack() as stack:
            taken = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(8)]
            head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
            for each in taken:
                each.sendall(head.encode())
                assert each.recv(1 << 16).startswith(b"HTTP/1.1 100")  # somebody has it
            client.close()
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: refuses(address))
            for each in taken:
                each.sendall(body)
                assert each.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        assert process.wait(60) == 0
        assert process.stdout.read() == "all that was taken is answered\n"


def test_events_that_all_workers_get_at_once_while_one_is_killed_leave_the_store_of_batch(folder, batch):
    """Each event comes by several connections at once, until all have an answer."""
    _, expected = batch
    project, uri = load_project(folder), str(folder / "store.db")
    broken = 0

    def ask(event):
        nonlocal broken
        while True:
            try:
                return ask_anew(client, event)
            except httpx.TransportError:
                broken += 1

    with serving(folder, "--model", "1", "--absorb", "--workers", "2", store=uri) as (process, client):
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            workers = workers_of(process)
            asked = [threads.submit(ask, event) for event in EVENTS for _ in range(3)]
            for number, worker in zip((80, 240), workers, strict=True):
                asked[number].result()
                os.kill(worker, signal.SIGKILL)
            answers = [each.result() for each in asked]
        log = (folder / "serve.log").read_text()
    assert log.count("has ended by SIGKILL") == 2
    assert broken > 0
    assert not any("fallback" in answer for answer in answers)
    assert same_stores(project, expected, uri)


def same_stores(project, one, other):
    """Whether two stores hold the same of what windows still need."""
    kinds = kinds_of(project).values()
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(contextlib.closing(open_store(u, project.feature_set))) for u in (one, other)]
        progress = stores[0].progress()
        for store in stores:
            go_on(store, kinds, progress, DAY)
        assert len([place for kind in kinds for place, _ in stores[1].scan(kind.name)]) > 50
    return digest(one, project) == digest(other, project)


@redis.needs_redis
def test_workers_that_lose_their_redis_say_so_and_come_back_by_themselves(folder, server, batch):
    """What is answered meanwhile is sent again, and nothing is lost."""
    _, expected = batch
    project, uri = load_project(folder), redis.emptied(server)
    with (
        serving(folder, "--model", "1", "--absorb", "--workers", "2", store=uri) as (_, client),
        concurrent.futures.ThreadPoolExecutor(4) as threads,
    ):
        asked = [threads.submit(ask_anew, client, event) for event in EVENTS]
        asked[40].result()
        server.stop(kill=True)
        answers = [each.result() for each in asked]
        missed = [event for event, answer in zip(EVENTS, answers, strict=True) if answer.get("fallback")]
        wait_for(lambda: ask_anew(client, EVENTS[-1]) and sum(by_worker(client, "headrace_ready").values()) == 0)
        server.start()
        wait_for(lambda: by_worker(client, "headrace_ready") == {"0": 1, "1": 1})
        again = [ask_anew(client, event) for event in missed]
    assert len(missed) > 20
    assert {answer["decision"] for answer in answers if answer.get("fallback")} == {"review"}
    assert all("score" in answer or "refused" in answer for answer in again)
    assert not any(answer.get("complete") for answer in again)  # what was not absorbed may have been before them
    assert same_stores(project, expected, uri)


def test_what_keeps_a_worker_from_starting_is_said_once(capfd):
    with socket.socket() as bound:
        assert serve_by_workers(["serve", "nowhere", "--store", "x"], 3, bound, lambda: None) is False
    assert capfd.readouterr().err.count("nowhere") == 1
