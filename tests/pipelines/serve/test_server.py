"""The socket that an endpoint listens on."""

import socket

import pytest

from pipelines.serve.server import listen


def test_asyncio_sends_answers_at_once():
    with listen("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP  # of other sockets it leaves Nagle's algorithm on


def test_a_port_that_is_taken_is_named():
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(OSError, match="in use") as told:
            listen("127.0.0.1", port)
    assert told.value.filename == f"port {port} of 127.0.0.1"
