"""Connections of clients that are slow, silent or many."""

import asyncio
import contextlib
import json
import re
import resource
import socket
import time
from http.client import HTTPResponse

import pytest

from pipelines.serve import http, protocol
from tests.kit.declared import declared
from tests.kit.endpoints import open_faulty, serving
from tests.kit.serving import SCHEMA, START, TEXT

pytestmark = pytest.mark.slow

PROJECT = declared(TEXT, SCHEMA)
EVENT = {"id": 1, "at": START + 60, "card": "anna", "shop": 1, "amount": 12.5}
BODY = json.dumps(EVENT).encode()
REQUEST = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY


@pytest.fixture
def client(tmp_path):
    with serving(PROJECT, open_faulty(tmp_path, PROJECT)) as client:
        yield client


@contextlib.contextmanager
def connected(client):
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
        yield connection


def status_of(connection):
    """That of an answer, which is read to its end."""
    answer = HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def ended(connection):
    """Whether the other side has ended it, or does within half a minute."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_head_that_does_not_come_ends_its_connection(client, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    with connected(client) as silent, connected(client) as slow, connected(client) as patient:
        patient.sendall(REQUEST)
        assert status_of(patient) == 200
        with contextlib.suppress(ConnectionError):
            for byte in REQUEST[:60]:  # a byte now and then, for longer than that
                slow.sendall(bytes([byte]))
                time.sleep(0.02)
        assert ended(silent)
        assert ended(slow)
        patient.sendall(REQUEST)  # who has been served may be silent for longer, but not dally with the next head
        assert status_of(patient) == 200
        patient.sendall(REQUEST[:20])
        assert ended(patient)
    assert client.get("/v2/health/ready").status_code == 200


def test_a_body_that_does_not_come_is_told_so(client, monkeypatch):
    monkeypatch.setattr(http, "BODY_SECONDS", 0.3)
    with connected(client) as slow:
        slow.sendall(REQUEST[:-10])
        assert status_of(slow) == 408
    assert client.post("/v1/score", content=BODY).status_code == 200


def test_a_body_that_ends_too_early_is_no_fault_of_the_endpoint(client, caplog):
    with connected(client) as gone:
        gone.sendall(REQUEST[:-10])
        gone.shutdown(socket.SHUT_WR)
        assert ended(gone)
    counted = 'headrace_http_requests_total{path="/v1/score",status="400"} 1.0'
    until = time.monotonic() + 30
    while counted not in client.get("/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "failed" not in caplog.text


def test_a_body_whose_length_is_told_in_two_ways_is_refused(client):
    both = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(client) as smuggling:
        smuggling.sendall(both + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n" + REQUEST)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := smuggling.recv(1 << 16):
                answer += part
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


def test_requests_in_one_piece_are_answered_in_their_order(client):
    lines = [json.dumps({**EVENT, "id": n}).encode() for n in range(20)]
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nConnection: %s\r\nContent-Length: %d\r\n\r\n"
    heads = [head % (b"close" if line is lines[-1] else b"keep-alive", len(line)) for line in lines]
    with connected(client) as pipelined:
        pipelined.sendall(b"".join(first + line for first, line in zip(heads, lines, strict=True)))
        answers = b""
        while part := pipelined.recv(1 << 16):
            answers += part
    assert [int(n) for n in re.findall(rb'"event":\{"id":(\d+)', answers)] == list(range(20))


def test_who_has_said_all_gets_every_answer(client):
    with connected(client) as pipelined:
        pipelined.sendall(REQUEST * 5)
        pipelined.shutdown(socket.SHUT_WR)
        answers = b""
        while part := pipelined.recv(1 << 16):
            answers += part
    assert answers.count(b"HTTP/1.1") == answers.count(b"HTTP/1.1 200 OK") == 5


def test_what_is_no_request_behind_one_does_not_take_the_place_of_its_answer(client):
    with connected(client) as pipelined:
        pipelined.sendall(REQUEST + REQUEST + b"\r\n\0\r\n")
        answers = b""
        while part := pipelined.recv(1 << 16):
            answers += part
    assert answers.count(b"HTTP/1.1") == answers.count(b"HTTP/1.1 200 OK") == 2


def test_a_body_that_is_too_large_is_not_read_to_its_end(client, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    with connected(client) as large:
        large.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                large.sendall(chunk)
        with contextlib.suppress(ConnectionError):
            assert large.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_answers_that_are_not_read_end_their_connection(client, monkeypatch):
    monkeypatch.setattr(protocol, "READ_SECONDS", 0.5)
    events = json.dumps([{**EVENT, "id": number, "card": None} for number in range(1000)]).encode()
    request = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(events) + events
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(30)
        deaf.connect((client.base_url.host, client.base_url.port))
        with pytest.raises(ConnectionError):  # it stops to read, too, as its answers are not read, and then ends
            deaf.sendall(request * 1000)
    assert client.post("/v1/score", content=BODY).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 1_000_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
        b"\r\n" * 50_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["head", "endless", "tls", "negative", "twice", "chunk", "blank", "http2"],
)
def test_what_is_no_request_ends_its_connection(client, monkeypatch, sent):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 1.0)
    with connected(client) as hostile:
        answer = b""
        with contextlib.suppress(ConnectionError):
            hostile.sendall(sent)
            while part := hostile.recv(1 << 16):
                answer += part
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 500"))
    assert client.post("/v1/score", content=BODY).status_code == 200


def test_who_asks_for_another_protocol_is_answered_by_this_one(client):
    upgrade = b"Host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    with connected(client) as asking:
        for _ in range(2):
            asking.sendall(REQUEST.replace(b"Host: x\r\n", upgrade))
            assert status_of(asking) == 200


def test_many_connections_are_all_answered(tmp_path, monkeypatch):
    """Silent ones keep nobody from an answer; as many as this process may have files for both of their ends."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 600.0)
    number = min(2_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 500)

    async def ask(client):
        async def answer(reader, writer):
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            head = await reader.readuntil(b"\r\n")
            writer.close()
            await writer.wait_closed()
            return head

        place = client.base_url.host, client.base_url.port
        connections = [await asyncio.open_connection(*place) for _ in range(number)]
        scored = await asyncio.to_thread(client.post, "/v1/score", content=BODY)
        return scored.status_code, await asyncio.gather(*(answer(*each) for each in connections))

    with serving(PROJECT, open_faulty(tmp_path, PROJECT)) as client:
        status, answers = asyncio.run(ask(client))
    assert status == 200
    assert set(answers) == {b"HTTP/1.1 200 OK\r\n"}
    assert len(answers) == number > 100
