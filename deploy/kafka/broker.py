"""One Apache Kafka broker on this machine: a KRaft node, controller and broker in one process, on loopback.

    broker.py start --folder build/kafka/run --port 9092
    broker.py stop --folder build/kafka/run

`start` prints the broker's address, for `kafka://ADDRESS/TOPIC`. The jars come from build.sh.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence

HERE = pathlib.Path(__file__).resolve().parent
BUILT = HERE.parent.parent / "build" / "kafka"
LIB = BUILT / "lib"
STATE = "broker.json"
START_SECONDS = 180
STOP_SECONDS = 20
_STARTED = b"Kafka Server started"
# Compiling little halves what a start costs (4.0 instead of 7.4 processor seconds).
_QUICK = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
_LOG = ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]


class StartError(RuntimeError):
    """The broker can't be started."""


@dataclasses.dataclass
class RealBroker:
    """A broker: its folder, the address of its plain listener, its process id; what it holds is kept by a kill."""

    folder: pathlib.Path
    address: str
    heap_mb: int
    quick: bool = False
    pid: int = 0

    def launch(self) -> None:
        """Start its process on what the folder holds, and wait until it answers; StartError if it does not."""
        log = self.folder / "broker.log"
        log.touch()
        before = log.stat().st_size
        command = _java(self.folder, self.heap_mb, self.quick, "kafka.Kafka", str(self.folder / "server.properties"))
        out = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_APPEND, 0)
        actions = [out, (os.POSIX_SPAWN_DUP2, 1, 2), (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        self.pid = os.posix_spawnp("java", command, os.environ, file_actions=actions, setsid=True)
        said = {**dataclasses.asdict(self), "folder": str(self.folder)}
        (self.folder / STATE).write_text(json.dumps(said))
        deadline = time.monotonic() + START_SECONDS
        while _STARTED not in log.read_bytes()[before:]:
            if not _alive(self.pid) or time.monotonic() > deadline:
                self.stop()
                raise StartError(f"the broker does not start; see {log}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End it at once, as a machine that fails does; `launch` starts it again."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order, or at once where that takes long."""
        self._signal(signal.SIGTERM)
        if self.pid:
            self.kill()
        (self.folder / STATE).unlink(missing_ok=True)

    def _signal(self, sign: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.pid:
                os.kill(self.pid, sign)
        deadline = time.monotonic() + STOP_SECONDS
        while self.pid and time.monotonic() < deadline:
            if not _alive(self.pid):
                self.pid = 0
            time.sleep(0.05)


def start(
    folder: pathlib.Path,
    port: int = 0,
    heap_mb: int = 512,
    settings: Mapping[str, str] | None = None,
    users: Sequence[str] = (),
    quick: bool = False,
) -> RealBroker:
    """Start a new broker with its data and log below `folder`; port 0 is a free one.

    A `quick` one starts sooner and is slower later. `users` are SCRAM credentials as Kafka's own tool takes them:
    SCRAM-SHA-512=[name=NAME,password=PASSWORD].
    """
    if (why := why_not()) is not None:
        raise StartError(why)
    if (folder / STATE).exists():
        raise StartError(f"a broker runs in {folder}, or was not stopped: stop it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free, controller = free_ports(2)
    port = port or free
    conf = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL",
        "log.dirs": str(folder / "data"),
        # One broker has one copy of everything.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "500",
    }
    for name, value in (settings or {}).items():
        conf[name] = f"{conf[name]},{value}" if name == "listeners" else value
    (folder / "server.properties").write_text("".join(f"{name}={value}\n" for name, value in conf.items()))
    (folder / "lib").symlink_to(LIB.resolve())
    number = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    more = [part for user in users for part in ("--add-scram", user)]
    made = subprocess.run(
        _java(
            folder,
            256,
            True,
            "kafka.tools.StorageTool",
            "format",
            "-t",
            f"h{number[1:]}",
            "-c",
            str(folder / "server.properties"),
            *more,
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise StartError(f"{folder}: can't be formatted: {made.stdout[-500:]}{made.stderr[-500:]}")
    broker = RealBroker(folder, f"127.0.0.1:{port}", heap_mb, quick)
    broker.launch()
    return broker


def why_not() -> str | None:
    """Why no broker can be started here; None if one can."""
    if shutil.which("java") is None:
        return "there is no java"
    return None if list(LIB.glob("kafka_2.13-*.jar")) else f"no Kafka in {LIB}: run deploy/kafka/build.sh"


def load(folder: pathlib.Path) -> RealBroker:
    """The broker that was started in `folder`."""
    said = json.loads((folder / STATE).read_text())
    return RealBroker(**{**said, "folder": folder})


@contextlib.contextmanager
def running(folder: pathlib.Path, **how: object) -> Iterator[RealBroker]:
    """A broker for as long as the block runs."""
    broker = start(folder, **how)  # type: ignore[arg-type]
    try:
        yield broker
    finally:
        broker.stop()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _java(folder: pathlib.Path, heap_mb: int, quick: bool, main: str, *arguments: str) -> list[str]:
    return [
        "java",
        f"-Xmx{heap_mb}m",
        *(_QUICK if quick else ()),
        *_LOG,
        "-cp",
        f"{folder / 'lib'}/*",
        main,
        *arguments,
    ]


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--folder", type=pathlib.Path, default=BUILT / "run")
    parser.add_argument("--port", type=int, default=9092, help="on 127.0.0.1; 0 is a free one")
    parser.add_argument("--heap-mb", type=int, default=512)
    parser.add_argument("-D", action="append", default=[], metavar="KEY=VALUE", help="a setting of Kafka's")
    flags = parser.parse_args(arguments)
    folder = flags.folder.resolve()
    if flags.action == "stop":
        load(folder).stop()
        return
    settings = dict(setting.split("=", 1) for setting in flags.D)
    print(start(folder, flags.port, flags.heap_mb, settings).address)


if __name__ == "__main__":
    main(sys.argv[1:])
