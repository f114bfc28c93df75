"""A standalone Pulsar on this machine: a broker with its bookie and metadata, in one process on loopback.

    broker.py start --folder build/pulsar/run
    broker.py stop --folder build/pulsar/run

`start` prints the addresses of its service, for `headrace run … --source pulsar://…`, and of its admin interface. The
jars come from build.sh.
"""

from __future__ import annotations

import argparse
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
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
BUILT = HERE.parent.parent / "build" / "pulsar"
STATE = "broker.json"
START_SECONDS = 180  # on a busy machine; 20 s when it is idle
STOP_SECONDS = 20
MOST_STARTS = 4
_MAIN = "org.apache.pulsar.PulsarStandaloneStarter"
_OPENS = [
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in ("java.lang", "java.nio", "jdk.internal.misc", "sun.nio.ch")
]
_LOG4J = """\
rootLogger.level = warn
rootLogger.appenderRef.file.ref = File
logger.bookies.name = org.apache.bookkeeper.net.NetworkTopologyImpl
logger.bookies.level = info
appender.file.name = File
appender.file.type = File
appender.file.fileName = ${sys:log.file}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %-5p %-60c %x - %m%n
"""


class BrokerStartError(RuntimeError):
    """The broker can't be started."""


@dataclasses.dataclass
class Pulsar:
    """A running broker: its folder, the ports of its service, admin interface and bookie, and its process."""

    folder: pathlib.Path
    service_port: int
    admin_port: int
    bookie_port: int
    heap_mb: int
    token: str | None = None  # of who may administer, where the broker asks for one
    brief: bool = False
    tls_port: int | None = None
    pid: int = 0

    @property
    def service(self) -> str:
        """HOST:PORT that clients connect to."""
        return f"127.0.0.1:{self.service_port}"

    @property
    def admin(self) -> str:
        """The URL of the admin interface."""
        return f"http://127.0.0.1:{self.admin_port}"

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What the admin interface answers, None if that is nothing but "ok"; urllib.error.HTTPError if it refuses."""
        header = {"Content-Type": "application/json"}
        header |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.admin}/admin/v2/{path}", data, header, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content.strip() not in (b"", b"ok") else None

    def create_topic(self, topic: str, partitions: int = 0) -> None:
        """A topic TENANT/NAMESPACE/NAME, in so many partitions, or none."""
        self.ask("PUT", f"persistent/{topic}" + ("/partitions" if partitions else ""), partitions or None)

    def launch(self) -> None:
        """Start the process, on the data that it left; returns when it is ready, BrokerStartError if it is not.

        After a kill, the bookie's registration that the dead process left may be deleted and made again in a circle,
        hundreds of times a second and for good: ledgers can't be made then, and reads fail. Such a start is one more
        kill.
        """
        for _ in range(MOST_STARTS):
            self._launch()
            if self._keeps_its_bookie():
                return
            self.kill()
        raise BrokerStartError(f"the bookie of {self.service} comes and goes; see {self.folder}/broker.log")

    def _keeps_its_bookie(self) -> bool:
        """Whether within seconds the bookie is no longer taken away."""
        log = self.folder / "broker.log"
        before = -1
        for _ in range(10):
            if before == (before := log.read_bytes().count(b"Removing a node")):
                return True
            time.sleep(1)
        return False

    def _launch(self) -> None:
        log = self.folder / "broker.log"
        command = ["java", f"-Xmx{self.heap_mb}m", f"-XX:MaxDirectMemorySize={self.heap_mb}m", *_OPENS]
        if self.brief:
            # Without the second compiler it is up in half the time on a machine that has other things to do.
            command += ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        command += [
            "-Dio.netty.tryReflectionSetAccessible=true",
            *[f"-Dlog4j.configurationFile={self.folder}/log4j.properties", f"-Dlog.file={log}"],
            *["-cp", f"{self.folder}/lib/*", _MAIN],
            *["--config", f"{self.folder}/standalone.conf", "-nss", "-nfw", "--num-bookies", "1"],
            *["--bookkeeper-dir", f"{self.folder}/bookkeeper", "--bookkeeper-port", str(self.bookie_port)],
            *["--metadata-dir", f"{self.folder}/metadata", "--advertised-address", "127.0.0.1"],
        ]
        with (self.folder / "broker.out").open("ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder, start_new_session=True
            )
        self.pid, process.returncode = process.pid, 0  # it is ended by its id, maybe by another process
        self.save()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and _alive(self.pid):
            with contextlib.suppress(OSError, urllib.error.URLError):
                if (
                    "public/default" in self.ask("GET", "namespaces/public")
                    and self.ask("GET", "bookies/all")["bookies"]
                ):
                    self.ask("GET", "brokers/health")
                    return
            time.sleep(0.2)
        self.kill()
        raise BrokerStartError(f"no Pulsar at {self.service}; see {log} and broker.out beside it")

    def kill(self) -> None:
        """End the process at once, as a machine that fails does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the process, by its id."""
        if not self._end(signal.SIGTERM):
            self._end(signal.SIGKILL)
        (self.folder / STATE).unlink(missing_ok=True)

    def _end(self, sign: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, sign)
        deadline = time.monotonic() + STOP_SECONDS
        while _alive(self.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        return not _alive(self.pid)

    def save(self) -> None:
        said = {**dataclasses.asdict(self), "folder": str(self.folder)}
        (self.folder / STATE).write_text(json.dumps(said))
        (self.folder / STATE).chmod(0o600)


def start(
    folder: pathlib.Path,
    heap_mb: int = 1024,
    settings: Mapping[str, str] | None = None,
    token: str | None = None,
    brief: bool = False,
    tls: bool = False,
    lib: pathlib.Path = BUILT / "lib",
) -> Pulsar:
    """Start a broker with its data and logs in `folder`, which is emptied, and wait until it is ready.

    Topics are not created by use, so that a wrong name is an error. `settings` go into its standalone.conf. One that
    is `brief` starts sooner and works slower. With `tls`, for which `settings` name the certificates, it has a port
    for that beside the other.
    """
    if not list(lib.glob("pulsar-broker-*.jar")):
        raise BrokerStartError(f"no Pulsar in {lib}: run deploy/pulsar/build.sh")
    if (folder / STATE).exists():
        raise BrokerStartError(f"a broker runs in {folder}, or was not stopped: stop it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pulsar = Pulsar(folder, *_free_ports(3), heap_mb, token, brief, *_free_ports(tls))
    conf = {
        "clusterName": "standalone",
        "brokerServicePort": str(pulsar.service_port),
        "webServicePort": str(pulsar.admin_port),
        "bindAddress": "127.0.0.1",
        "allowLoopback": "true",
        "managedLedgerDefaultEnsembleSize": "1",
        "managedLedgerDefaultWriteQuorum": "1",
        "managedLedgerDefaultAckQuorum": "1",
        "allowAutoTopicCreation": "false",
        "brokerDeleteInactiveTopicsEnabled": "false",
        "acknowledgmentAtBatchIndexLevelEnabled": "true",
        "webSocketServiceEnabled": "false",
        "loadBalancerEnabled": "false",
        "numIOThreads": "2",
        "numHttpServerThreads": "8",
        "maxConcurrentHttpRequests": "64",
        "httpServerEnabled": "false",  # the bookie's own
        # There is one bookie: it is never to be left alone for half an hour, nor asked again only after 15 to 60 s, as
        # it is by default where a first read fails right after a start.
        "bookkeeperClientHealthCheckEnabled": "false",
        "dispatcherReadFailureBackoffInitialTimeInMs": "500",
        "dispatcherReadFailureBackoffMaxTimeInMs": "2000",
        "diskUsageThreshold": "0.99",
        "diskUsageWarnThreshold": "0.99",
        **({"brokerServicePortTls": str(pulsar.tls_port)} if tls else {}),
        **(settings or {}),
    }
    (folder / "standalone.conf").write_text("".join(f"{key}={value}\n" for key, value in conf.items()))
    (folder / "log4j.properties").write_text(_LOG4J)
    (folder / "lib").symlink_to(lib.resolve())
    try:
        pulsar.launch()
    except BaseException:
        pulsar.stop()
        raise
    return pulsar


def load(folder: pathlib.Path) -> Pulsar:
    """The broker that was started in `folder`."""
    said = json.loads((folder / STATE).read_text())
    return Pulsar(**{**said, "folder": folder})


@contextlib.contextmanager
def running(folder: pathlib.Path, **how: Any) -> Iterator[Pulsar]:
    """A broker for as long as the block runs."""
    pulsar = start(folder, **how)
    try:
        yield pulsar
    finally:
        pulsar.stop()


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--folder", type=pathlib.Path, default=BUILT / "run")
    parser.add_argument("--heap-mb", type=int, default=1024)
    parser.add_argument("--topic", action="append", default=[], metavar="TENANT/NAMESPACE/NAME[:PARTITIONS]")
    parser.add_argument("-D", action="append", default=[], metavar="KEY=VALUE", help="a setting of Pulsar's")
    flags = parser.parse_args(arguments)
    folder = flags.folder.resolve()
    if flags.action == "stop":
        load(folder).stop()
        return
    pulsar = start(folder, flags.heap_mb, dict(setting.split("=", 1) for setting in flags.D))
    for topic in flags.topic:
        name, _, partitions = topic.partition(":")
        pulsar.create_topic(name, int(partitions or 0))
    print(f"pulsar://{pulsar.service} {pulsar.admin}")


if __name__ == "__main__":
    main(sys.argv[1:])
