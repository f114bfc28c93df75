"""`headrace serve` as a process: it ends politely, is killed and goes on, and follows a release log meanwhile."""

import contextlib
import dataclasses
import json
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time

import httpx
import pytest

from models.project.project import load_project
from pipelines.prechecks import registry_of
from pipelines.release_store import append
from tests.kit import redis
from tests.kit.command import HEADRACE
from tests.kit.releases import make_log
from tests.kit.serve_process import make_project, score, serving, wait_for
from tests.kit.serving import START, in_order, make_events

pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.timeout(300)]

SECOND = 1_000_000


EVENT = {"id": 1, "at": START + 1, "card": "anna", "shop": 1, "amount": 12.5}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with two bundles."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it."""
    return pathlib.Path(shutil.copytree(made, tmp_path / "project"))


def test_what_was_taken_is_answered_after_sigterm(folder):
    body = json.dumps(EVENT).encode()
    with serving(folder, "--model", "1", "--absorb") as (process, client):
        address = client.base_url.host, client.base_url.port
        with socket.create_connection(address, timeout=60) as taken:
            head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            taken.sendall(head + body[:20])
            wait_for(lambda: client.get("/v2/health/live").status_code == 200)  # the head was read before that
            client.close()
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: refuses(address))
            taken.sendall(body[20:])
            assert taken.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        assert process.wait(60) == 0
        assert process.stdout.read() == "all that was taken is answered\n"


def refuses(address):
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return True
    return False


def test_answers_after_kills_are_those_without(folder):
    events = in_order(make_events(60))
    with serving(folder, "--model", "1", "--absorb") as (_, client):
        expected = [score(client, event).json() for event in events]
    (folder / "store.db").rename(folder / "other.db")
    for path in folder.glob("store.db-*"):
        path.unlink()
    answers, chosen = [], random.Random(5)
    for kill in range(3):
        with serving(folder, "--model", "1", "--absorb") as (process, client):
            for event in events[len(answers) :]:
                if len(answers) > 15 * (kill + 1) and kill < 2:
                    threading.Timer(chosen.uniform(0, 0.01), process.kill).start()
                    with contextlib.suppress(httpx.TransportError):
                        while True:
                            score(client, event)  # until the kill
                    break
                answers.append(score(client, event).json())
    assert answers == expected


def test_a_store_that_can_t_grow_is_not_ready_until_it_can(folder):
    """As on a disk that is full: by a limit on the size of files, which an administrator lifts."""
    events = in_order(make_events(60))
    with serving(folder, "--model", "1", "--absorb") as (_, client):
        expected = [score(client, event).json() for event in events]
    for path in folder.glob("store.db*"):
        path.unlink()
    with serving(folder, "--model", "1", "--absorb") as (process, client):
        found = [score(client, event).json() for event in events[:20]]
        limit, there = resource.RLIMIT_FSIZE, (folder / "store.db-wal").stat().st_size
        before = resource.prlimit(process.pid, limit, (there, resource.RLIM_INFINITY))
        missed = [score(client, event).json() for event in events[20:30]]
        seen = set()
        for _ in range(30):  # through some looks at the store
            seen.add(client.get("/v2/health/ready").status_code)
            time.sleep(0.1)
        resource.prlimit(process.pid, limit, before)
        wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
        again = [score(client, event).json() for event in events[20:]]
    assert found == expected[:20]
    assert any(answer.get("fallback") for answer in missed)
    assert seen == {503}
    assert "not ready: " in (folder / "serve.log").read_text()
    for answer, right in zip(again, expected[20:], strict=True):
        assert {**answer, "complete": True} == {**right, "complete": True}


@redis.needs_redis
def test_redis_is_killed_and_comes_back(folder):
    events = in_order(make_events(40))
    with redis.running() as server:
        store = redis.emptied(server)
        with serving(folder, "--model", "1", "--absorb", store=store) as (_, client):
            expected = [score(client, event).json() for event in events]
        store = redis.emptied(server)
        with serving(folder, "--model", "1", "--absorb", store=store) as (_, client):
            found = [score(client, event).json() for event in events[:30]]
            server.stop(kill=True)
            reply = score(client, events[30])
            assert (reply.status_code, reply.json()["decision"], reply.json()["fallback"]) == (200, "review", True)
            assert client.get("/v2/health/ready").status_code == 503
            assert client.get("/v2/health/live").status_code == 200
            server.start()
            wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
            late = [score(client, event).json() for event in events[30:]]
    assert found == expected[:30]
    assert [answer.pop("complete", None) for answer in late if "event" in answer] == [False] * scored(late)
    assert late == [{name: value for name, value in a.items() if name != "complete"} for a in expected[30:]]


def scored(answers):
    return sum("event" in answer for answer in answers)


def test_a_release_takes_over_without_a_lost_request(folder):
    project, place = load_project(folder), f"sqlite:///{folder}/.headrace/releases.db"
    old, new = (bundle_of(folder, version) for version in (1, 2))
    releases = make_log(old, {"at": START * SECOND, "champion": new}, clock="event")
    first = dataclasses.replace(releases, records=releases.records[:1])
    append(place, project.name, dataclasses.replace(first, records=()), lambda: 0, lambda _: first)
    with serving(folder, "--absorb") as (_, client):
        seen, until = [], time.monotonic() + 60
        while new not in seen and time.monotonic() < until:
            reply = score(client, EVENT)
            assert reply.status_code == 200
            seen.append(reply.json()["bundle_id"])
            if len(seen) == 5:
                append(place, project.name, first, lambda: 0, lambda _: releases)
        assert (seen[0], seen[-1]) == (old, new)
        assert sorted(seen, key=[old, new].index) == seen
        assert (reply.json()["release"], reply.json()["role"]) == (1, "champion")
        assert score(client, {**EVENT, "id": 2, "at": START - 1}).json()["bundle_id"] == old
        assert client.get("/v2/models/shops").json()["versions"] == [new]


def bundle_of(folder, version):
    from models.predictors import registry

    return registry.load("shops", version, registry_of(folder, None)).bundle_id


def test_a_port_or_store_that_can_t_be_had_is_told(folder):
    with serving(folder, "--model", "1", "--absorb") as (_, client):
        command = [HEADRACE, "serve", folder, "--store", folder / "store.db", "--port", client.base_url.port]
        again = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 1
    assert again.stderr == f"headrace: port {client.base_url.port} of 127.0.0.1: Address already in use\n"
    command = [HEADRACE, "serve", folder, "--store", folder / "none.db", "--port", "0"]
    missing = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert "none.db: no store is there" in missing.stderr
