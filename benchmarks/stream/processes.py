"""The processes of a measured stream: broker, `headrace run`, publisher and reader; all end with the block."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from confluent_kafka.admin import AdminClient, NewTopic

from . import load
from .events import Bool, Int64

HEADRACE = pathlib.Path(sys.executable).with_name("headrace")
ROOT = pathlib.Path(__file__).parents[2]
PROJECT = ROOT / "examples" / "card_fraud"
BROKER = ROOT / "deploy" / "kafka" / "broker.py"
PULSAR = ROOT / "deploy" / "pulsar" / "broker.py"
ADDRESS = re.compile(r"\b127\.0\.0\.1:\d+")
TICKS = os.sysconf("SC_CLK_TCK")
OUT_PARTITIONS = 64  # the mock keeps 5 MB of each
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
SPAWN = multiprocessing.get_context("spawn")


class Failed(SystemExit):
    """A measurement that can't be made or went wrong."""


def headrace(folder: pathlib.Path, *arguments: str) -> str:
    """Run a command to its end and return what it printed."""
    done = subprocess.run(
        [str(HEADRACE), *arguments], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"headrace {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


@functools.cache
def options() -> str:
    """The help of `headrace run`."""
    return headrace(pathlib.Path.cwd(), "run", "--help")


def require_option(name: str) -> None:
    """Stop with a clear message where `headrace run` has no such option."""
    if not re.search(rf"{re.escape(name)}\b", options()):
        raise Failed(f"this headrace run has no {name}, which this measurement needs")


def train(folder: pathlib.Path, events: pathlib.Path, *options: str) -> None:
    """Register a model of the card-fraud project in the folder."""
    registry = f"sqlite:///{folder}/.headrace/registry.db"
    headrace(
        folder, "train", str(PROJECT), "--source", str(events), "--registry", registry, *(options or ("--promote",))
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore"}


@contextlib.contextmanager
def started(command: Sequence[str], log: pathlib.Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process whose stderr goes to a file; at the end it is terminated and, after 20 s, killed."""
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, text=True, env=_environment(), **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# Topics that the project's quality section needs, and those of shadows.
QUALITY = ("scores-quarantine", "scores-quality", "scores-shadow")


@dataclasses.dataclass(frozen=True)
class Topics:
    """The URIs of the topics of a stream, for writing and for reading."""

    pid: int  # of the broker
    events: str
    events_reader: str
    scores: str
    scores_reader: str
    dead: str
    dead_reader: str


@contextlib.contextmanager
def serving(kind: str, folder: pathlib.Path, partitions: int) -> Iterator[Topics]:
    """A fresh broker on a random port: the embedded Pub/Sub, a real Kafka or Pulsar, or librdkafka's mock."""
    names = ("events", "scores", "dead")
    if kind == "pubsub":
        command = [str(HEADRACE), "pubsub", "--port", "0"]
        command += [part for name in names for part in ("--topic", f"demo/{name}:{name}")]
        command += [part for name in QUALITY for part in ("--topic", f"demo/{name}")]
        with child(command, folder) as (pid, address):
            os.environ["PUBSUB_EMULATOR_HOST"] = address
            yield Topics(pid, *[uri for name in names for uri in [f"pubsub://demo/{name}"] * 2])
        return
    if kind == "pulsar":
        topics = {name: partitions for name in names} | dict.fromkeys(QUALITY, 1)
        with pulsar(folder, topics) as (pid, address):
            place = f"pulsar://{address}/public/default"
            uris = [f"{place}/{name}{end}" for name in names for end in ("", f"?subscription={name}-reader")]
            yield Topics(pid, *uris)
        return
    out = OUT_PARTITIONS if kind == "kafka-mock" else partitions
    topics = {"events": partitions, "scores": out, "dead": out, **dict.fromkeys(QUALITY, 1)}
    config = folder / "kafka.properties"
    # The mock lets a fetch that finds nothing wait to its end, even if something comes meanwhile.
    config.write_text("fetch.wait.max.ms=10\n" if kind == "kafka-mock" else "")
    os.environ["HEADRACE_KAFKA_CONFIG"] = str(config)
    with kafka(kind, folder, topics) as (pid, address):
        uris = [f"kafka://{address}/{name}{end}" for name in names for end in ("", f"?group={name}-reader")]
        try:
            yield Topics(pid, *uris)
        finally:
            del os.environ["HEADRACE_KAFKA_CONFIG"]


@contextlib.contextmanager
def kafka(kind: str, folder: pathlib.Path, topics: dict[str, int]) -> Iterator[tuple[int, str]]:
    """The process id and address of a fresh Kafka with topics of so many partitions, a real one or the mock."""
    if kind == "kafka-mock":
        mock = str(pathlib.Path(__file__).with_name("kafka_mock.py"))
        with child([sys.executable, mock, *(f"{name}:{each}" for name, each in topics.items())], folder) as running:
            yield running
        return
    command = [sys.executable, str(BROKER), "--folder", str(folder / "kafka"), "--port", "0"]
    done = subprocess.run([*command, "start"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"the broker did not start:\n{done.stderr[-3000:]}")
    try:
        address = done.stdout.strip()
        admin = AdminClient({"bootstrap.servers": address})  # its answers come as long as it is held
        made = admin.create_topics([NewTopic(name, each, 1) for name, each in topics.items()])
        for each in made.values():
            each.result(30)
        yield json.loads((folder / "kafka" / "broker.json").read_text())["pid"], address
    finally:
        subprocess.run([*command, "stop"], check=True)


@contextlib.contextmanager
def pulsar(folder: pathlib.Path, topics: dict[str, int]) -> Iterator[tuple[int, str]]:
    """The process id and address of a fresh Pulsar with topics of so many partitions."""
    command = [sys.executable, str(PULSAR)]
    made = [part for name, each in topics.items() for part in ("--topic", f"public/default/{name}:{each}")]
    run = folder / "pulsar"
    done = subprocess.run([*command, "start", "--folder", str(run), *made], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"the broker did not start:\n{done.stderr[-3000:]}")
    try:
        yield json.loads((run / "broker.json").read_text())["pid"], done.stdout.split()[0].removeprefix("pulsar://")
    finally:
        subprocess.run([*command, "stop", "--folder", str(run)], check=True)


@contextlib.contextmanager
def child(command: Sequence[str], folder: pathlib.Path) -> Iterator[tuple[int, str]]:
    """A broker that ends with its standard input, and prints its address."""
    log = folder / "broker.log"
    with started(command, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        match = ADDRESS.search(process.stdout.readline())
        if match is None:
            raise Failed(f"the broker did not start:\n{log.read_text()[-3000:]}")
        yield process.pid, match[0]


@contextlib.contextmanager
def streaming(
    folder: pathlib.Path, topics: Topics, arguments: Sequence[str], log_name: str = "stream.log"
) -> Iterator[subprocess.Popen[str]]:
    """`headrace run` from the events to the scores."""
    command = [str(HEADRACE), "run", str(PROJECT), "--source", topics.events_reader, "--sink", topics.scores]
    command += ["--dead-letters", topics.dead, *arguments]
    with started(command, folder / log_name, cwd=folder, stdout=subprocess.DEVNULL) as process:
        yield process


class Reader:
    """A process that reads a topic; `seen` counts while it does."""

    def __init__(self, uri: str, out: pathlib.Path) -> None:
        self._out = out
        self._over, self._seen = SPAWN.Event(), SPAWN.Value("q", 0)
        self._process = SPAWN.Process(target=load.read, args=(uri, out, self._over, self._seen), daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def seen(self) -> int:
        return int(self._seen.value)

    def finish(self) -> tuple[Int64, Int64, Bool]:
        """Ids and arrival times of all that was read, and which of it is a duplicate's dead letter."""
        self._over.set()
        self._process.join(60)
        if self._process.exitcode != 0:
            raise Failed(f"a reader failed: {self._process.exitcode}")
        with np.load(self._out) as found:
            return found["ids"], found["received_us"], found["again"]

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


class Publisher:
    """A process that publishes a plan; it starts at once."""

    def __init__(self, plan: load.Plan, out: pathlib.Path) -> None:
        self._out = out
        self._start, self._sent = SPAWN.Value("q", 0), SPAWN.Value("q", 0)
        self._process = SPAWN.Process(target=load.publish, args=(plan, out, self._start, self._sent), daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def sent(self) -> int:
        return int(self._sent.value)

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def begun(self) -> float:
        """Wait for its schedule to begin, and return that time in seconds since 1970."""
        while self._start.value == 0 and self._process.is_alive():
            time.sleep(0.05)
        return float(self._start.value) / 1e6

    def finish(self) -> tuple[int, Int64]:
        """When the schedule began, and when the broker had each event, in microseconds since 1970."""
        self._process.join()
        if self._process.exitcode != 0:
            raise Failed(f"the publisher failed: {self._process.exitcode}")
        with np.load(self._out) as found:
            return int(found["start_us"]), found["sent_us"]

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


class Sampler:
    """Memory (MiB) and used processor seconds of processes, each second."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.times: list[float] = []
        self.memory: dict[str, list[float]] = {name: [] for name in pids}
        self.seconds: dict[str, list[float]] = {name: [] for name in pids}
        self._pids = pids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.is_set():
            self.times.append(time.time())
            for name, pid in self._pids.items():
                memory, seconds = usage(pid)
                self.memory[name].append(memory)
                self.seconds[name].append(seconds)
            self._over.wait(1)


def usage(pid: int) -> tuple[float, float]:
    """A process's resident memory in MiB and its processor seconds; NaN once it has ended."""
    try:
        resident = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return float("nan"), float("nan")
    return resident * PAGE_MIB, (int(fields[11]) + int(fields[12])) / TICKS
