"""An endpoint's process: uvicorn with bounds, which answers what it has taken before it ends at SIGTERM."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

_DRAIN_SECONDS = 20
_IDLE_SECONDS = 65  # longer than the load balancers of clouds keep a connection
_HEAD_BYTES = 32 << 10


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server of one process; it is run by `serve`, or in a thread by its own `run`."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; OSError if the port can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


def serve(app: FastAPI, bound: socket.socket, told: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, and answer what was taken till then."""
    bound.listen(2048)
    told()
    signal.signal(signal.SIGTERM, lambda *_: None)  # which uvicorn sends on when it has ended
    make_server(app).run(sockets=[bound])
