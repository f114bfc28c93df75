"""The brokers beside each other, and Quix Streams on the same Kafka: the same events, side after side, in turns."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from models.predictors.registry import load

from .catchup import drain
from .events import write_json
from .figures import markdown, milliseconds
from .measure import Measured, Setting, measure
from .peers import Say, environment, quix

# Broker and options of each side; all keep a journal.
SIDES = {
    "embedded Pub/Sub": ("pubsub", ()),
    "Kafka": ("kafka", ()),
    "Kafka, --transactional": ("kafka", ("--transactional",)),
    "Pulsar": ("pulsar", ()),
}
QUIX = "Quix Streams on Kafka, RocksDB"
AGAINST = "Kafka"


def compare(setting: Setting, rows: int, times: int, venv: pathlib.Path | None, say: Say) -> None:
    """Drain a backlog on each side `times` times, in turns, and print medians, and medians of each turn's ratios."""
    with tempfile.TemporaryDirectory(prefix="headrace-beside-") as scratch:
        folder = pathlib.Path(scratch)
        sides: dict[str, Callable[[], float]] = {
            name: lambda side=side: drain(_on(setting, *side), rows).rate for name, side in SIDES.items()
        }
        if venv is not None:
            sides[QUIX] = _quix(setting, rows, venv, folder, say)
        turns, loads = [], []
        for number in range(times):
            rates = {}
            for name in list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]:
                loads.append(os.getloadavg()[0])
                rates[name] = sides[name]()
                say(f"turn {number + 1}, {name}: {rates[name]:,.0f} events/s, load {loads[-1]:.1f}")
            turns.append(rates)
    table = []
    for name in sides:
        ratios = sorted(turn[name] / turn[AGAINST] for turn in turns)
        found = [statistics.median(turn[name] for turn in turns), statistics.median(ratios)]
        table.append([name, *found, f"{ratios[0]:.2f} to {ratios[-1]:.2f}"])
    print(markdown(["side", "events/s, median", f"of {AGAINST}'s in the same turn, median", "range"], table))
    print(f"\n{times} turns of {rows:,} events; load {min(loads):.1f} to {max(loads):.1f}, median ", end="")
    print(f"{statistics.median(loads):.1f}.")


def transactions(setting: Setting, rate: float, seconds: float, times: int, say: Say) -> None:
    """Latency and processor time on Kafka at a steady rate, with --transactional and without, in turns."""
    found: dict[str, list[Measured]] = {"Kafka": [], "Kafka, --transactional": []}
    for number in range(times):
        for name in sorted(found, reverse=bool(number % 2)):
            found[name].append(measure(_on(setting, *SIDES[name]), rate, seconds))
            one = found[name][-1].latency
            say(f"turn {number + 1}, {name}: p50 {milliseconds(one.p50)}, load {os.getloadavg()[0]:.1f}")
    table: list[list[Any]] = []
    for name, runs in found.items():
        times_of = [statistics.median(getattr(run.latency, each) for run in runs) for each in ("p50", "p90", "p99")]
        cores = [statistics.median(run.cores[each] for run in runs) for each in ("stream", "broker")]
        scored = statistics.median(run.scored for run in runs)
        table.append([name, scored, *map(milliseconds, times_of), *cores, all(run.complete for run in runs)])
    header = ["side", "scored /s", "p50", "p90", "p99", "stream cores", "broker cores", "every event scored"]
    print(markdown(header, table))


def _on(setting: Setting, broker: str, options: Sequence[str]) -> Setting:
    return dataclasses.replace(setting, broker=broker, arguments=(*setting.arguments, "--journal", "journal", *options))


def _quix(setting: Setting, rows: int, venv: pathlib.Path, folder: pathlib.Path, say: Say) -> Callable[[], float]:
    python = environment(venv, say)
    model, events = folder / "model.ubj", folder / "events.jsonl"
    model.write_bytes(load("card_fraud", "champion", f"sqlite:///{setting.folder}/.headrace/registry.db").model)
    write_json(setting.source, events, rows)

    def run() -> float:
        with tempfile.TemporaryDirectory(prefix="headrace-quix-") as scratch:
            return rows / quix("kafka", python, pathlib.Path(scratch), model, events).seconds

    return run
