"""An endpoint's process: uvicorn with bounds, which answers what it has taken before it ends at SIGTERM."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from pipelines.serve.protocol import Patient

DRAIN_SECONDS = 20
_IDLE_SECONDS = 65  # longer than the load balancers of clouds keep a connection


def make_server(app: Starlette) -> uvicorn.Server:
    """A server of one process; it is run by `serve`, or in a thread by its own `run`."""
    config = uvicorn.Config(
        app,
        http=Patient,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ws="none",
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def running(app: Starlette) -> Iterator[str]:
    """The URL of an endpoint of this machine alone, in a thread, for as long as the block runs."""
    server, bound = make_server(app), listen("127.0.0.1", 0)
    bound.listen(128)
    thread = threading.Thread(target=server.run, args=([bound],), name="endpoint", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; OSError if the port can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio lets answers wait for more
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, error.strerror, f"port {port} of {host}") from None
    return bound


def serve(app: Starlette, bound: socket.socket, told: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, and answer what was taken till then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection is a file
    bound.listen(2048)
    told()
    signal.signal(signal.SIGTERM, lambda *_: None)  # which uvicorn sends on when it has ended
    make_server(app).run(sockets=[bound])
