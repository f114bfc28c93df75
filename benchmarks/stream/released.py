"""Releases beside a running stream: what a log and a shadow cost it, and latency while models are swapped."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import statistics
import threading
from typing import Any

from models.predictors.registry import load
from models.rollout.changes import begin
from models.rollout.records import ReleaseLog
from pipelines.release_store import export

from .figures import latency, markdown, milliseconds
from .load import now_us
from .measure import Measured, Setting, measure
from .peers import Say
from .processes import PROJECT, headrace

PLAIN = "a champion"
BEFORE, WHILE = 15, 5  # seconds of events before the command and from just before a release takes effect


def costs(setting: Setting, rate: float, seconds: float, times: int, say: Say) -> None:
    """Processor time an event of a stream with no log, a log of one champion, and one with a shadow, in turns."""
    first = begin(_bundle(setting, 1), now_us(), "benchmark")
    records = {PLAIN: first, "a champion and a shadow": dataclasses.replace(first, shadows=(_bundle(setting, 2),))}
    sides: dict[str, tuple[str, ...]] = {"no log, one model": ("--model", "1")}
    for number, (name, record) in enumerate(records.items()):
        path = setting.folder / f"log-{number}.jsonl"
        export(ReleaseLog("wall", 5_000_000, (record,)), "card_fraud", path)
        sides[name] = ("--releases", str(path))
    turns: list[dict[str, Measured]] = []
    for number in range(times):
        names = list(sides)
        turn = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            turn[name] = measure(setting, rate, seconds, arguments=sides[name])
            say(f"turn {number + 1}, {name}: {_micros(turn[name]):.1f} µs an event, load {os.getloadavg()[0]:.1f}")
        turns.append(turn)
    rows: list[list[Any]] = []
    for name in sides:
        ratios = sorted(_micros(turn[name]) / _micros(turn[PLAIN]) for turn in turns)
        middle = [statistics.median(_micros(turn[name]) for turn in turns), statistics.median(ratios)]
        rows.append([name, *middle, f"{ratios[0]:.2f} to {ratios[-1]:.2f}"])
        p99 = statistics.median(turn[name].latency.p99 for turn in turns)
        rows[-1] += [milliseconds(p99), _said(*(turn[name] for turn in turns))]
    header = [
        "followed",
        "processor µs/event, median",
        f"of {PLAIN}'s in the same turn",
        "range",
        "p99",
        "every event scored",
    ]
    print(markdown(header, rows))


def swaps(setting: Setting, rate: float, seconds: float, times: int, say: Say) -> None:
    """Latency before `headrace release`, and while what it released takes effect; the versions take turns."""
    rows: list[list[Any]] = []
    _release(setting, "1", "--shadow", "none")
    for number in range(times):
        said: list[tuple[int, str]] = []

        def release(version: str = str(2 - number % 2), said: list[tuple[int, str]] = said) -> None:
            said.append((now_us(), _release(setting, version)))

        timer = threading.Timer(5 + seconds / 2, release)
        found = measure(setting, rate, seconds, begun=timer.start)
        timer.join()
        asked, effective = said[0][0], _effective(said[0][1])
        due, arrived = found.due_us, found.arrived_us
        parts = [(asked - BEFORE * 1_000_000, asked), (effective - 1_000_000, effective + (WHILE - 1) * 1_000_000)]
        before, swap = (latency(due[(due >= a) & (due < b)], arrived[(due >= a) & (due < b)]) for a, b in parts)
        memory = [mib for _, mib in found.memory if mib == mib]
        ends = [statistics.median(memory[4:10]), statistics.median(memory[-6:])]
        shown = [milliseconds(each) for each in (before.p50, before.p99, swap.p50, swap.p99)]
        rows.append([number + 1, *shown, swap.p99 / before.p99])
        rows[-1] += [found.latency.again, found.latency.missing, _said(found), *ends]
        say(f"swap {number + 1}: p99 {shown[3]} after {shown[1]}, load {os.getloadavg()[0]:.1f}")
    header = ["swap", "p50 before", "p99 before", "p50 during", "p99 during", "ratio of p99", "scored again", "missing"]
    print(markdown([*header, "every event scored", "MiB before", "MiB after"], rows))


def memory(setting: Setting, rate: float, seconds: float, versions: int, say: Say) -> None:
    """A stream's memory with one champion, and with another one every five seconds, all of them in turn."""
    rows: list[list[Any]] = []
    _release(setting, "1", "--shadow", "none")
    for name, number in (("one champion", 0), ("a champion every 5 s", int(seconds / 5))):
        made, ended = [], threading.Event()

        def release(number: int = number, made: list[str] = made, ended: threading.Event = ended) -> None:
            for turn in range(number):
                if ended.wait(5):
                    return
                made.append(_release(setting, str(2 + turn % (versions - 1))))

        thread = threading.Thread(target=release)
        found = measure(setting, rate, seconds, tail=15, begun=thread.start)  # the last ones take effect
        ended.set()
        thread.join()
        used = [mib for _, mib in found.memory if mib == mib]
        rows.append([name, len(made), statistics.median(used[4:10]), statistics.median(used[-10:]), max(used)])
        rows[-1] += [found.latency.again, found.latency.missing]
        say(f"{name}: {rows[-1][3]:.0f} MiB at the end, load {os.getloadavg()[0]:.1f}")
    header = ["stream with", "releases", "MiB at the start", "MiB at the end", "peak MiB", "scored again", "missing"]
    print(markdown(header, rows))


def _release(setting: Setting, version: str, *more: str) -> str:
    """Release a version by the command; what it prints."""
    told = ["--registry", f"sqlite:///{setting.folder}/.headrace/registry.db", "--reason", "benchmark"]
    return headrace(setting.folder, "release", str(PROJECT), version, *more, *told)


def _bundle(setting: Setting, version: int) -> str:
    return load("card_fraud", version, f"sqlite:///{setting.folder}/.headrace/registry.db").bundle_id


def _micros(found: Measured) -> float:
    return found.cores["stream"] / max(found.scored, 1) * 1e6


def _said(*found: Measured) -> str:
    return "yes" if all(each.complete for each in found) else "no"


def _effective(said: str) -> int:
    match = re.search(r"\d{4}-\d\d-\d\dT[\d:.]+Z", said)
    if match is None:
        raise SystemExit(f"no time in what the release printed: {said}")
    return round(datetime.datetime.fromisoformat(match[0]).timestamp() * 1e6)
