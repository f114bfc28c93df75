"""The emulator as a server on a port: in this process, or as a command until it is told to stop."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

import grpc

from pipelines.pubsub_emulator import wire
from pipelines.pubsub_emulator.broker import Broker, Clock
from pipelines.pubsub_emulator.errors import AlreadyExists
from pipelines.pubsub_emulator.service import Service
from pipelines.pubsub_emulator.subscription import Backlog
from pipelines.pubsub_emulator.threads import DaemonPool

DEFAULT_MAX_BACKLOG_BYTES = 1 << 30
_MAX_STREAMS = 64
_TICK_SECONDS = 0.1
_GOODBYE_SECONDS = 0.1
_REBIND_SECONDS = 5.0
# A publish of more than 10 MB must reach the handler, to be refused there with a reason.
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Past its default of 1000 calls waiting to be accepted the server would cancel some at random.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.so_reuseport", 0),  # two emulators on one port would each get half of the calls
]


class PubsubEmulator:
    """A Pub/Sub server for development and tests, in this process.

    Point clients at it with PUBSUB_EMULATOR_HOST set to its `address`. What it holds outlives stop() and
    start(), which a client sees as an outage, but not the object: nothing is persisted.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        max_backlog_bytes: int = DEFAULT_MAX_BACKLOG_BYTES,
        max_streams: int = _MAX_STREAMS,
        pull_wait_seconds: float = 1.0,
    ) -> None:
        self._host = host
        self._port = port
        self._broker = Broker(max_backlog_bytes, Clock())
        self._service = Service(self._broker, max_waiting=max_streams, pull_wait_seconds=pull_wait_seconds)
        self._server: grpc.Server | None = None
        self._pool = DaemonPool()
        self._ticker: threading.Thread | None = None
        self._stopped = threading.Event()

    @property
    def address(self) -> str:
        """host:port; known once it was started, and the same after each start."""
        if not self._port:
            raise RuntimeError("The emulator has no port before it is started.")
        return f"{self._host}:{self._port}"

    def start(self) -> None:
        """Serve; OSError if the port is taken."""
        if self._server is not None:
            raise RuntimeError("The emulator is already started.")
        pool = DaemonPool()
        server = grpc.server(pool, handlers=self._service.handlers(), options=_OPTIONS)
        # After a stop the port may take a moment to be free; before that a port that is taken stays taken.
        self._port = _bind(server, self._host, self._port, wait=_REBIND_SECONDS if self._ticker else 0.0)
        self._service.go_up()
        self._stopped.clear()
        self._ticker = threading.Thread(target=self._tick, name="pubsub-ticker", daemon=True)
        self._ticker.start()
        server.start()
        self._server, self._pool = server, pool

    def stop(self, grace: float = 1.0) -> None:
        """Stop serving, keep the state: streams end with UNAVAILABLE, other calls within `grace` seconds."""
        if self._server is None:
            return
        stopped = self._server.stop(grace)
        # By now the server takes no new calls, and its clients are being told. Only then end their streams:
        # a stream reopened at once, on a connection about to close, would end as CANCELLED, which Google's
        # subscriber does not retry.
        time.sleep(_GOODBYE_SECONDS)
        self._service.go_down()
        stopped.wait()
        self._pool.shutdown()
        self._server = None
        self._stopped.set()
        if self._ticker is not None:
            self._ticker.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def create(self, project: str, topic: str, subscription: str | None = None, **settings: Any) -> tuple[str, str]:
        """Create a topic, unless it exists, and a subscription; returns their full names.

        `settings` are fields of google.pubsub.v1.Subscription.
        """
        topic_name = f"projects/{project}/topics/{topic}"
        name = f"projects/{project}/subscriptions/{subscription}" if subscription else ""
        with self._broker.lock:
            with contextlib.suppress(AlreadyExists):
                self._broker.registry.create_topic(wire.Topic(name=topic_name))
            if name:
                self._broker.create_subscription(wire.Subscription(name=name, topic=topic_name, **settings))
        return topic_name, name

    def backlog(self, subscription: str) -> Backlog:
        """What a subscription, by its full name, holds."""
        with self._broker.lock:
            return self._broker.registry.subscription(subscription).backlog()

    def pause_delivery(self) -> None:
        """Deliver nothing, to nobody, until resumed; publishing, acks and deadlines go on."""
        with self._broker.lock:
            self._broker.paused = True

    def resume_delivery(self) -> None:
        with self._broker.lock:
            self._broker.paused = False
            self._broker.wake_consumers()

    def fail_publishing(self, seconds: float) -> None:
        """Answer each publish with UNAVAILABLE for so long from now; 0 ends it."""
        with self._broker.lock:
            self._broker.publish_fails_until = self._broker.clock.monotonic() + seconds

    def _tick(self) -> None:
        while not self._stopped.wait(_TICK_SECONDS):
            with self._broker.lock:
                self._broker.tick()


def serve(
    host: str = "127.0.0.1",
    port: int = 8085,
    *,
    max_backlog_bytes: int = DEFAULT_MAX_BACKLOG_BYTES,
    on_start: Callable[[PubsubEmulator], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; call it from the main thread.

    `on_start` is called once it serves, for example to print the address or to create topics.
    """
    told = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        told.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with PubsubEmulator(port, host, max_backlog_bytes=max_backlog_bytes) as emulator:
            if on_start is not None:
                on_start(emulator)
            told.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _bind(server: grpc.Server, host: str, port: int, *, wait: float) -> int:
    end = time.monotonic() + wait
    while True:
        try:
            return int(server.add_insecure_port(f"{host}:{port}"))
        except RuntimeError as error:
            if time.monotonic() >= end:
                raise OSError(f"The emulator cannot listen on {host}:{port}: {error}") from error
            time.sleep(0.1)
