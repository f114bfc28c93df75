"""Headrace beside Bytewax and Quix Streams: the same events, features and model; first the outputs are compared."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import confluent_kafka
import numpy as np
import pyarrow.parquet as pq

from models.predictors.registry import load

from .catchup import drain, read_rate
from .events import write_json
from .figures import markdown
from .measure import Setting
from .processes import PROJECT, Failed, headrace, kafka, started, usage

SIDES = ("bytewax", "bytewax-batch", "quix")
REQUIREMENTS = ("bytewax==0.21.1", "quixstreams==3.28.1", "xgboost==3.2.0", "numpy==1.26.4", "orjson==3.13.0")
PEERS = pathlib.Path(__file__).parents[1] / "peers"
AHEAD = 5000  # events that Quix is behind at most: the mock keeps 5 MB of the topic
GIVE_UP_SECONDS = 120.0
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Ran:
    """One side's figures, and its rows of ids, features and score."""

    seconds: float
    peak: float
    rows: dict[int, dict[str, Any]]


def compare(setting: Setting, rows: int, venv: pathlib.Path | None, sides: Sequence[str], say: Say) -> None:
    """Run every side over the file's first rows, check that their features agree, and print the table."""
    with tempfile.TemporaryDirectory(prefix="headrace-peers-") as scratch:
        folder = pathlib.Path(scratch)
        python = environment(venv or folder / "venv", say)
        registry = f"sqlite:///{setting.folder}/.headrace/registry.db"
        model, events = folder / "model.ubj", folder / "events.jsonl"
        model.write_bytes(load("card_fraud", "champion", registry).model)
        write_json(setting.source, events, rows)
        say("headrace in batch, for the features to compare with")
        command = ["run", str(PROJECT), "--source", str(events), "--sink", f"{folder}/scores", "--registry", registry]
        batch = read_rate(headrace(folder, *command))[2]
        names = ["TRANSACTION_ID", *load("card_fraud", "champion", registry).feature_names, "score"]
        wanted = reference(folder / "scores" / "scores", names)
        say(f"headrace as a stream, a backlog of {rows:,} events")
        drained = drain(setting, rows)
        ours = drained.rate
        table: list[list[Any]] = [
            [f"headrace, a backlog, {BROKERS[setting.broker]}", rows, ours, 1.0, drained.peak, "-"],
            ["headrace, batch, file to file", rows, batch, ours / batch, "-", "-"],
        ]
        for side in sides:
            say(f"{side}, {rows:,} events")
            ran = run(side, setting.broker, python, folder, model, events)
            agreement = agree(wanted, ran.rows)
            name = NAMES[side].format(BROKERS[kafka_of(setting.broker)])
            table.append([name, rows, rows / ran.seconds, ours * ran.seconds / rows, ran.peak, agreement])
        header = ["side", "events", "events/s", "headrace is … times as fast", "peak MiB", "features and scores"]
        print(markdown(header, table))
        print(f"\n{', '.join(REQUIREMENTS)}; one worker each; start-up is left out.")


NAMES = {
    "bytewax": "Bytewax, file to file, each event scored alone",
    "bytewax-batch": "Bytewax, file to file, batches of the source scored",
    "quix": "Quix Streams, {}, RocksDB state",
}
BROKERS = {"pubsub": "Pub/Sub to Pub/Sub", "kafka": "Kafka to Kafka", "kafka-mock": "Kafka mock to Kafka mock"}


def kafka_of(broker: str) -> str:
    """Which Kafka Quix runs on: the stream's own, or the mock beside another broker."""
    return "kafka" if broker == "kafka" else "kafka-mock"


def environment(venv: pathlib.Path, say: Say) -> pathlib.Path:
    """The Python of an environment with the peers in it, which is made if it is not there."""
    python = venv / "bin" / "python"
    if not python.exists():
        say(f"installing {', '.join(REQUIREMENTS)} into {venv}")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    return python


def run(
    side: str, broker: str, python: pathlib.Path, folder: pathlib.Path, model: pathlib.Path, events: pathlib.Path
) -> Ran:
    if side == "quix":
        return quix(kafka_of(broker), python, folder, model, events)
    return bytewax(python, folder, model, events, side)


def bytewax(python: pathlib.Path, folder: pathlib.Path, model: pathlib.Path, events: pathlib.Path, side: str) -> Ran:
    output = folder / f"{side}.jsonl"
    scoring = "batch" if side.endswith("batch") else "each"
    command = [str(python), str(PEERS / "bytewax_fraud.py"), str(events), str(model), str(output), scoring]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_clean())
    if done.returncode:
        raise Failed(f"{side} failed:\n{done.stderr[-3000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    with output.open("rb") as lines:
        return Ran(said["seconds"], said["peak_mib"], by_id(lines))


def quix(kind: str, python: pathlib.Path, folder: pathlib.Path, model: pathlib.Path, events: pathlib.Path) -> Ran:
    """Feed the topic as fast as the scores come, with a mock no further ahead than it keeps."""
    with kafka(kind, folder, {"events": 1, "scores": 1}) as (_, address):
        command = [str(python), str(PEERS / "quix_fraud.py"), address, str(model), str(folder / "state")]
        log = folder / "quix.log"
        with started(command, log, cwd=folder, stdout=subprocess.DEVNULL) as app:
            settings = {"bootstrap.servers": address, "log_level": 0}
            producer = confluent_kafka.Producer({**settings, "linger.ms": 5})
            reader = confluent_kafka.Consumer({**settings, "group.id": "reader", "auto.offset.reset": "earliest"})
            reader.subscribe(["scores"])
            lines = events.read_bytes().splitlines()
            ahead = AHEAD if kind == "kafka-mock" else len(lines)
            customers = [re.search(rb'"CUSTOMER_ID":(\d+)', line) for line in lines]
            payloads: list[bytes] = []
            sent, peak, first, last = 0, 0.0, 0.0, time.monotonic()
            before = 0
            while len(payloads) < len(lines):
                for place in range(sent, min(len(lines), len(payloads) + ahead)):
                    match = customers[place]
                    producer.produce("events", lines[place], key=match[1] if match else None)
                    sent += 1
                producer.poll(0)
                read = [each.value() for each in reader.consume(1000, 0.02) if each.error() is None]
                found = [value for value in read if value is not None]
                payloads += found
                if found:
                    last = time.monotonic()
                    if not first:
                        first, before = last, len(payloads)
                    peak = max(peak, usage(app.pid)[0])
                if app.poll() is not None or time.monotonic() - last > GIVE_UP_SECONDS:
                    raise Failed(f"quix stopped after {len(payloads):,} scores:\n{log.read_text()[-3000:]}")
            reader.close()
    seconds = (last - first) * len(lines) / (len(lines) - before)  # as if the first scores took as long as the others
    return Ran(seconds, peak, by_id(payloads))


def _clean() -> dict[str, str]:
    """The environment without this Python's own paths."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def by_id(lines: Iterable[bytes]) -> dict[int, dict[str, Any]]:
    rows = map(json.loads, lines)
    return {row["TRANSACTION_ID"]: row for row in rows}


def reference(folder: pathlib.Path, names: Sequence[str]) -> dict[str, Any]:
    """Columns of headrace's scores, by id."""
    table = pq.read_table(folder)
    order = np.argsort(table["TRANSACTION_ID"].to_numpy())
    return {name: table[name].to_numpy()[order] for name in names if name in table.column_names}


def agree(wanted: dict[str, Any], rows: dict[int, dict[str, Any]]) -> str:
    """Say in how many rows a side differs: features by more than 1e-9, scores by any bit; stop if it lacks rows."""
    ids = wanted["TRANSACTION_ID"].tolist()
    if sorted(rows) != ids:
        raise Failed(f"{len(rows):,} rows came out, {len(ids):,} are expected")
    different = np.zeros(len(ids), bool)
    for name, ours in wanted.items():
        theirs = np.array([float(rows[each][name]) for each in ids])
        allowed = 0.0 if name == "score" else 1e-9
        different |= ~(np.abs(theirs - ours.astype(float)) <= allowed)
    return "equal" if not different.any() else f"DIFFERENT in {int(different.sum()):,} rows"
