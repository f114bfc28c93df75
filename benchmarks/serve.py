"""What an endpoint takes a request: seconds till the answer, and processor seconds of its process.

    .venv/bin/python benchmarks/serve.py [--requests 1500]

Trains the example on sample transactions, fills an embedded store with May, starts `headrace serve`, and asks it over
one connection, one request after another: whether it lives, a tensor without features, events of June, and lists of
100.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

HEADRACE = pathlib.Path(sys.executable).with_name("headrace")
LIST = 100
Request = tuple[str, str, bytes]


class Client:
    """One connection, kept alive."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of the answer, whose status must be 200."""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
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


def processor_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, client: Client, pid: int, requests: Sequence[Request], events: int) -> None:
    """Send all requests, and print a row."""
    for request in requests[:50]:
        client.ask(*request)
    took, before = [], processor_seconds(pid)
    for request in requests:
        started = time.perf_counter()
        client.ask(*request)
        took.append(1000 * (time.perf_counter() - started))
    processor = 1000 * (processor_seconds(pid) - before) / len(took)
    ordered = sorted(took)
    p50, p99 = (ordered[int(share * len(ordered))] for share in (0.5, 0.99))
    rate = 1000 * events * len(took) / sum(took)
    print(f"| {name} | {p50:.2f} | {p99:.2f} | {processor:.2f} | {rate:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-serve-") as scratch:
        folder = pathlib.Path(scratch)
        for argv in (
            ["init", "served"],
            ["sample", "served/data", "--rows", "100000"],
            ["train", "served", "--source", "served/data/*.parquet"],
            ["store", "fill", "served", "--source", "served/data/*-2018-05-*.parquet", "--store", "served/store.db"],
        ):
            subprocess.run([HEADRACE, *argv], cwd=folder, check=True, capture_output=True)
        days = sorted(folder.glob("served/data/*-2018-06-0*.parquet"))
        rows = pa.concat_tables([pq.read_table(day) for day in days]).slice(0, max(asked.requests, 3000)).to_pylist()
        events = [json.dumps({**row, "TX_DATETIME": str(row["TX_DATETIME"])}).encode() for row in rows]
        serve = [HEADRACE, "serve", "served", "--store", "served/store.db", "--port", "0"]
        with subprocess.Popen(serve, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline().rstrip().rpartition(":")[2])
                client = Client(port)
                inputs = json.loads(client.ask("GET", "/v2/models/served"))["inputs"]
                tensor = {"shape": [1, len(inputs)], "datatype": "FP32", "data": [1.5] * len(inputs)}
                body = json.dumps({"inputs": [{"name": "features", **tensor}]}).encode()
                lists = [b"[" + b",".join(events[at : at + LIST]) + b"]" for at in range(0, len(events), LIST)]
                print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
                print("| request | p50, ms | p99, ms | processor, ms | events a second |\n|---|---|---|---|---|")
                measure("health/live", client, server.pid, [("GET", "/v2/health/live", b"")] * asked.requests, 1)
                measure("infer", client, server.pid, [("POST", "/v2/models/served/infer", body)] * asked.requests, 1)
                single = [("POST", "/v1/score", event) for event in events[: asked.requests]]
                measure("score", client, server.pid, single, 1)
                measure(f"score of {LIST}", client, server.pid, [("POST", "/v1/score", each) for each in lists], LIST)
            finally:
                server.terminate()
                server.communicate()


if __name__ == "__main__":
    main()
