"""A backlog that was published before the stream began, and the same events in batch."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import tempfile
import time

import numpy as np

from .events import write_json
from .figures import at_times, first_arrivals
from .load import Plan, receive
from .measure import Setting, alive
from .processes import PROJECT, SPAWN, Failed, Publisher, Reader, Sampler, Topics, headrace, serving, streaming

QUIET_SECONDS = 60.0  # without a score, after which a drain is given up
GIVE_UP_SECONDS = 300.0


@dataclasses.dataclass(frozen=True)
class Drained:
    """How a backlog went: the rate leaves out start-up and what came with the first scores."""

    rate: float
    seconds: float
    whole_seconds: float
    peak: float
    missing: int
    cpu: str
    micros: float  # of a processor an event, in the stream's process


def drain(setting: Setting, rows: int) -> Drained:
    """Publish the file's first rows with their own times, then start the stream and wait for all scores."""
    if setting.broker == "kafka-mock":
        raise Failed("the Kafka mock keeps 5 MB of a partition only, so it holds no backlog: use another --broker")
    with contextlib.ExitStack() as stack:
        folder, topics = _backlog(stack, setting, rows)
        scores = Reader(topics.scores_reader, folder / "scores.npz")
        stack.callback(scores.kill)
        registry = ("--registry", f"sqlite:///{setting.folder}/.headrace/registry.db")
        began_us = time.time_ns() // 1000
        stream = stack.enter_context(streaming(folder, topics, [*registry, *setting.arguments]))
        sampler = Sampler({"stream": stream.pid, "broker": topics.pid, "reader": scores.pid})
        stack.callback(sampler.stop)
        seen, since = 0, time.monotonic()
        while scores.seen < rows and time.monotonic() - since < QUIET_SECONDS:
            alive(stream, folder)
            if scores.seen > seen:
                seen, since = scores.seen, time.monotonic()
            time.sleep(0.1)
        sampler.stop()
        ids, received_us, _ = scores.finish()
    arrived, _ = first_arrivals(0, rows, ids, received_us)
    times = np.sort(arrived[np.isfinite(arrived)])
    if len(times) < 2 or times[-1] == times[0]:
        raise Failed(f"{len(times)} scores came: too few to measure a rate")
    seconds = float(times[-1] - times[0]) / 1e6
    used = {name: np.nanmax(each) for name, each in sampler.seconds.items()}
    low, high = at_times(sampler.times, sampler.seconds["stream"], times[0] / 1e6, times[-1] / 1e6)
    return Drained(
        rate=float((times > times[0]).sum() / seconds),
        seconds=seconds,
        whole_seconds=float(times[-1] - began_us) / 1e6,
        peak=float(np.nanmax(sampler.memory["stream"])),
        missing=rows - len(times),
        cpu=", ".join(f"{name} {each:.1f}" for name, each in used.items()),
        micros=(high - low) / int((times > times[0]).sum()) * 1e6,
    )


def receive_only(setting: Setting, rows: int) -> tuple[float, float]:
    """Events a second, and processor µs an event, of a reader that receives and acknowledges the same backlog."""
    with contextlib.ExitStack() as stack:
        folder, topics = _backlog(stack, setting, rows)
        out = folder / "received.npz"
        reader = SPAWN.Process(target=receive, args=(topics.events_reader, out, rows), daemon=True)
        reader.start()
        stack.callback(reader.kill)
        reader.join(GIVE_UP_SECONDS)
        if reader.exitcode != 0:
            raise Failed(f"the reader that only receives has not ended well: {reader.exitcode}")
        with np.load(out) as found:
            count, seconds, cpu = (float(found[name]) for name in ("count", "seconds", "cpu"))
    if not count:
        raise Failed(f"all {rows} events came at once: too few to measure a rate")
    return count / seconds, cpu / count * 1e6


def _backlog(stack: contextlib.ExitStack, setting: Setting, rows: int) -> tuple[pathlib.Path, Topics]:
    """A folder, and the topics of a broker that has the file's first rows, until the stack is left."""
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-stream-")))
    topics = stack.enter_context(serving(setting.broker, folder, setting.partitions))
    publisher = Publisher(Plan(setting.source, topics.events, rows, 0, live=False), folder / "published.npz")
    stack.callback(publisher.kill)
    publisher.finish()
    return folder, topics


def batch(setting: Setting, rows: int, form: str) -> tuple[int, float, float]:
    """Events, seconds, and events a second, of `headrace run` over the same events in a file, or the whole Parquet."""
    with tempfile.TemporaryDirectory(prefix="headrace-stream-") as scratch:
        folder = pathlib.Path(scratch)
        source = setting.source
        if form == "jsonl":
            source = folder / "events.jsonl"
            write_json(setting.source, source, rows)
        registry = f"sqlite:///{setting.folder}/.headrace/registry.db"
        command = ["run", str(PROJECT), "--source", str(source), "--sink", f"{folder}/out", "--registry", registry]
        return read_rate(headrace(folder, *command))


def read_rate(printed: str) -> tuple[int, float, float]:
    """Events, seconds, and events a second, as `headrace run` prints them; start-up is left out."""
    rate = re.search(r"read a second\D*([\d,]+)", printed)
    read = re.search(r"\bread\b\D*([\d,]+)", printed)
    if rate is None or read is None:
        raise Failed(f"headrace run did not say how many events it read a second:\n{printed}")
    events, each = (int(match[1].replace(",", "")) for match in (read, rate))
    return events, events / max(each, 1), float(each)
