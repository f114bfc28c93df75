"""A standalone Flink cluster on this machine: a JobManager and TaskManagers, each a process of its own.

    cluster.py start --folder build/flink/run --task-managers 2 --slots 1
    cluster.py stop --folder build/flink/run

`start` prints the JobManager's address, for `headrace run … --runner FlinkRunner --flink_master`. The jars come from
build.sh.
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
BUILT = HERE.parent.parent / "build" / "flink"
JOB_SERVER = BUILT / "flink-job-server.jar"
STATE = "cluster.json"
START_SECONDS = 60
STOP_SECONDS = 10
_ENTRY = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_WORKER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
# Kryo and Flink's closures look into these packages, as flink-dist's default configuration allows them to.
_OPENS = [
    f"--add-opens=java.base/java.{package}=ALL-UNNAMED"
    for package in ("lang", "lang.reflect", "net", "text", "time", "util", "util.concurrent", "util.concurrent.atomic")
]
_LOG4J = """\
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = File
appender.file.name = File
appender.file.type = File
appender.file.fileName = ${sys:log.file}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %-5p %-60c %x - %m%n
"""


class ClusterError(RuntimeError):
    """The cluster can't be started."""


@dataclasses.dataclass
class Cluster:
    """A running cluster: its folder, the address of its JobManager's REST interface, its process ids."""

    folder: pathlib.Path
    address: str
    job_manager: int
    task_managers: dict[str, int]  # by their names, which are their ids for Flink, too
    slots: int
    heap_mb: int

    def rest(self, path: str) -> Any:
        """What the JobManager's REST interface says to a GET."""
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
            return json.load(answer)

    def start_task_manager(self) -> str:
        """One more TaskManager; its name."""
        name = f"task-manager-{len(list(self.folder.glob('task-manager-*.log')))}"
        self.task_managers[name] = _launch(
            self.folder, _WORKER, name, f"-Xmx{self.heap_mb}m", f"-Dtaskmanager.resource-id={name}"
        )
        self.save()
        return name

    def kill_task_manager(self, name: str) -> None:
        """End a TaskManager at once, as a machine that fails does: with the workers it has started."""
        os.killpg(self.task_managers.pop(name), signal.SIGKILL)
        self.save()

    def kill_worker(self, name: str) -> None:
        """End the Python workers of a TaskManager at once."""
        group = self.task_managers[name]
        workers = [pid for pid in _processes() if "sdk_worker_main" in _command(pid) and os.getpgid(pid) == group]
        if not workers:
            raise ClusterError(f"{name} has no worker")
        for pid in workers:
            os.kill(pid, signal.SIGKILL)

    def stop_job(self, job: str, folder: pathlib.Path) -> str:
        """Stop a job with a savepoint below `folder`; its URI, for --savepoint_path of the job that goes on."""
        asked = json.dumps({"targetDirectory": folder.as_uri(), "drain": False}).encode()
        header = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}/jobs/{job}/stop", asked, header)
        with urllib.request.urlopen(request, timeout=10) as answer:
            number = json.load(answer)["request-id"]
        while (said := self.rest(f"/jobs/{job}/savepoints/{number}"))["status"]["id"] != "COMPLETED":
            time.sleep(0.1)
        if "location" not in said["operation"]:
            raise ClusterError(f"no savepoint of {job}: {said['operation']['failure-cause']['class']}")
        self._wait_for_end(job)
        return str(said["operation"]["location"])

    def cancel_job(self, job: str) -> None:
        """End a job without a savepoint."""
        self.rest(f"/jobs/{job}/yarn-cancel")
        self._wait_for_end(job)

    def _wait_for_end(self, job: str) -> None:
        while self.rest(f"/jobs/{job}")["state"] not in ("FINISHED", "CANCELED", "FAILED"):
            time.sleep(0.1)

    def wait_for_slots(self, slots: int) -> None:
        """Return when so many slots are registered; ClusterError after a minute."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and all(map(_alive, self._pids())):
            with contextlib.suppress(OSError, urllib.error.URLError):
                if self.rest("/overview")["slots-total"] >= slots:
                    return
            time.sleep(0.2)
        raise ClusterError(f"no {slots} slots; see the logs in {self.folder}")

    def _pids(self) -> list[int]:
        return [*self.task_managers.values(), self.job_manager]

    def save(self) -> None:
        said = {**dataclasses.asdict(self), "folder": str(self.folder)}
        (self.folder / STATE).write_text(json.dumps(said))

    def stop(self) -> None:
        """End all processes, by their ids."""
        pids = self._pids()
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, sign)
            deadline = time.monotonic() + STOP_SECONDS
            while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
                time.sleep(0.1)
        (self.folder / STATE).unlink(missing_ok=True)


def start(
    folder: pathlib.Path,
    task_managers: int = 2,
    slots: int = 1,
    heap_mb: int = 1024,
    settings: Mapping[str, str] | None = None,
    lib: pathlib.Path = BUILT / "lib",
) -> Cluster:
    """Start a cluster with its logs, checkpoints and state below `folder`, and wait until all slots are there."""
    if not list(lib.glob("flink-runtime-*.jar")):
        raise ClusterError(f"no Flink in {lib}: run deploy/flink/build.sh")
    if (folder / STATE).exists():
        raise ClusterError(f"a cluster runs in {folder}, or was not stopped: stop it")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "checkpoints").mkdir(parents=True)
    rest, rpc = _free_ports(2)
    conf = {
        "jobmanager.rpc.address": "localhost",
        "jobmanager.rpc.port": str(rpc),
        "jobmanager.bind-host": "localhost",
        "taskmanager.bind-host": "localhost",
        "taskmanager.host": "localhost",
        "rest.address": "localhost",
        "rest.bind-address": "localhost",
        "rest.port": str(rest),
        "rest.bind-port": str(rest),
        "blob.server.port": "0",
        "cluster.evenly-spread-out-slots": "true",  # a TaskManager has one Python process for each job
        "heartbeat.interval": "1000",
        "heartbeat.timeout": "6000",
        "io.tmp.dirs": str(folder / "tmp"),
        "state.checkpoints.dir": (folder / "checkpoints").as_uri(),
        # Beam's workers hold class loaders longer than Flink's check allows.
        "classloader.check-leaked-classloader": "false",
        # Beam's classes from the cluster's own jar: compiled once, not anew for each job.
        "classloader.resolve-order": "parent-first",
        # flink-dist's start script computes these from the process's size.
        "taskmanager.cpu.cores": str(float(slots)),
        "taskmanager.numberOfTaskSlots": str(slots),
        "taskmanager.memory.task.heap.size": f"{heap_mb - 128}m",
        "taskmanager.memory.task.off-heap.size": "0m",
        "taskmanager.memory.framework.heap.size": "128m",
        "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.jvm-metaspace.size": "256m",
        "taskmanager.memory.jvm-overhead.min": "192m",
        "taskmanager.memory.jvm-overhead.max": "192m",
        "taskmanager.memory.managed.size": "128m",
        "taskmanager.memory.network.min": "256m",
        "taskmanager.memory.network.max": "256m",
        "parallelism.default": "1",
        **(settings or {}),
    }
    (folder / "tmp").mkdir()
    (folder / "flink-conf.yaml").write_text("".join(f"{key}: {value}\n" for key, value in conf.items()))
    (folder / "log4j.properties").write_text(_LOG4J)
    (folder / "lib").symlink_to(lib.resolve())
    job_manager = _launch(folder, _ENTRY, "job-manager", "-Xmx512m")
    cluster = Cluster(folder, f"localhost:{rest}", job_manager, {}, slots, heap_mb)
    cluster.save()
    try:
        cluster.wait_for_slots(0)  # a TaskManager that finds nobody tries again after ten seconds
        for _ in range(task_managers):
            cluster.start_task_manager()
        cluster.wait_for_slots(task_managers * slots)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def load(folder: pathlib.Path) -> Cluster:
    """The cluster that was started in `folder`."""
    said = json.loads((folder / STATE).read_text())
    return Cluster(**{**said, "folder": folder})


@contextlib.contextmanager
def running(folder: pathlib.Path, **how: Any) -> Iterator[Cluster]:
    """A cluster for as long as the block runs."""
    cluster = start(folder, **how)
    try:
        yield cluster
    finally:
        cluster.stop()


def _launch(folder: pathlib.Path, main: str, name: str, heap: str, *more: str) -> int:
    log = folder / f"{name}.log"
    command = [
        "java",
        heap,
        *_OPENS,
        f"-Dlog4j.configurationFile={folder / 'log4j.properties'}",
        f"-Dlog.file={log}",
        "-cp",
        f"{folder / 'lib'}/*:{JOB_SERVER}",
        main,
        "--configDir",
        str(folder),
        *more,
    ]
    log.touch()
    with (folder / f"{name}.out").open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder, start_new_session=True
        )
    return process.pid


def _processes() -> list[int]:
    return [int(entry.name) for entry in pathlib.Path("/proc").iterdir() if entry.name.isdigit()]


def _command(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


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
    parser.add_argument("--task-managers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=1, help="of each TaskManager")
    parser.add_argument("--heap-mb", type=int, default=1024, help="of each TaskManager; its Python worker is beside it")
    parser.add_argument("-D", action="append", default=[], metavar="KEY=VALUE", help="a setting of Flink's")
    flags = parser.parse_args(arguments)
    folder = flags.folder.resolve()
    if flags.action == "stop":
        load(folder).stop()
        return
    settings = dict(setting.split("=", 1) for setting in flags.D)
    print(start(folder, flags.task_managers, flags.slots, flags.heap_mb, settings).address)


if __name__ == "__main__":
    main(sys.argv[1:])
