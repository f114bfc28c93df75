"""A client of one connection, the processor time of a server's processes, and load that keeps its rate."""

from __future__ import annotations

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from deploy.load.targets import target

Request = tuple[str, str, bytes]
MOST_MS = 50.0  # of p99, for a rate to count
_TICKS = os.sysconf("SC_CLK_TCK")


class Client:
    """One connection, kept alive."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of the answer, whose status must be 200."""
        kind = "Content-Type: application/json\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{kind}Content-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)
        found = b""
        while b"\r\n\r\n" not in found:
            found += self._socket.recv(1 << 16)
        told, _, answer = found.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: *(\d+)", told)[1])  # type: ignore[index]
        while len(answer) < length:
            answer += self._socket.recv(1 << 20)
        if told.split()[1] != b"200":
            raise SystemExit(f"{path}: {told.decode()}\n{answer.decode()}")
        return answer


class Measured(NamedTuple):
    """Milliseconds of requests one after another, their processor time at the server, and events a second so."""

    p50: float
    p99: float
    processor: float
    rate: float


def measure(port: int, pid: int, requests: Sequence[Request], events: int, more: Callable[[bytes], object]) -> Measured:
    """Send requests of so many events each, after some that are not counted; `more` is what a client does then."""
    client = Client(port)
    for request in requests[:50]:
        more(client.ask(*request))
    took, before = [], processor_seconds(pid)
    for request in requests:
        started = time.perf_counter()
        more(client.ask(*request))
        took.append(1000 * (time.perf_counter() - started))
    processor = 1000 * (processor_seconds(pid) - before) / len(took)
    ordered = sorted(took)
    p50, p99 = (ordered[int(share * len(ordered))] for share in (0.5, 0.99))
    return Measured(p50, p99, processor, 1000 * events * len(took) / sum(took))


def processor_seconds(pid: int) -> float:
    """What a process and its children have used so far."""
    parents, used = {}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        number = int(path.parent.name)
        parents[number], used[number] = int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS
    own = {pid}
    for _ in range(3):  # a worker's children, too
        own |= {number for number, parent in parents.items() if parent in own}
    return sum(used[number] for number in own)


def highest_rate(
    vegeta: pathlib.Path, port: int, requests: Sequence[Request], rates: Sequence[int], seconds: int
) -> int:
    """The highest of ascending rates, requests a second, that all are answered at with p99 below MOST_MS; 0 of none."""
    lines = [target(method, f"http://127.0.0.1:{port}{path}", body) for method, path, body in requests]
    targets = "\n".join(lines).encode()
    best = 0
    for rate in rates:
        attack = [vegeta, "attack", "-format", "json", "-rate", str(rate), "-duration", f"{seconds}s", "-timeout", "5s"]
        results = subprocess.run(attack, input=targets, capture_output=True, check=True).stdout
        report = subprocess.run([vegeta, "report", "-type", "json"], input=results, capture_output=True, check=True)
        found = json.loads(report.stdout)
        p99 = found["latencies"]["99th"] / 1e6
        print(f"  {rate} requests/s: p99 {p99:.0f} ms, {found['success']:.3f} answered", file=sys.stderr, flush=True)
        if found["success"] < 1 or p99 >= MOST_MS:
            break
        best = rate
    return best
