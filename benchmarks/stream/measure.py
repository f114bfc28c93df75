"""One run of a stream under load: start everything, publish by the schedule, read, and tell what was seen."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.brokers import open_broker

from .events import NO_DEFECTS, Defects, Int64, Transactions
from .figures import Latency, at_times, first_arrivals, latency
from .load import PROBE_ID, Plan, expected, now_us
from .processes import Failed, Publisher, Reader, Sampler, Topics, serving, streaming

START_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """What does not change from run to run: the broker's kind, the file, the folder of the model, the options."""

    broker: str
    source: pathlib.Path
    folder: pathlib.Path
    arguments: tuple[str, ...]
    partitions: int = 1


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one run showed. Rates are events a second; `cores` are processor seconds a second by process."""

    published: float
    scored: float
    lag_p99: float
    latency: Latency
    cores: dict[str, float]
    memory: list[tuple[float, float]]  # the stream's: seconds since the schedule began, MiB
    wanted: int
    scores: int
    bad_wanted: int
    dead: int
    duplicates_wanted: int
    duplicates: int
    startup: float
    due_us: Int64  # of each valid event, since 1970
    arrived_us: npt.NDArray[np.float64]  # of its first score, NaN if there was none

    @property
    def complete(self) -> bool:
        """Whether all that was published came out: each valid event with a score, each other as a dead letter."""
        letters = self.dead == self.bad_wanted and self.duplicates == self.duplicates_wanted
        return self.scores == self.wanted and letters


def measure(
    setting: Setting,
    rate: float,
    seconds: float,
    *,
    warm_up: float = 5.0,
    tail: float = 2.0,
    patience: float = 20.0,
    defects: Defects = NO_DEFECTS,
    live: bool = True,
    arguments: Sequence[str] = (),
    each_minute: Callable[[str], None] | None = None,
    begun: Callable[[], None] = lambda: None,
) -> Measured:
    """Publish at a rate for `warm_up + seconds + tail`; what is due in the middle part is measured.

    `patience` is how long scores may be outstanding after the last event was published. `begun` is called once
    events are published.
    """
    count = int((warm_up + seconds + tail) * rate)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-stream-")))
        topics = stack.enter_context(serving(setting.broker, folder, setting.partitions))
        scores = Reader(topics.scores_reader, folder / "scores.npz")
        stack.callback(scores.kill)
        dead = Reader(topics.dead_reader, folder / "dead.npz")
        stack.callback(dead.kill)
        registry = ("--registry", f"sqlite:///{setting.folder}/.headrace/registry.db")
        # A worker of another process is told where the broker is, such as by "$PUBSUB_EMULATOR_HOST".
        options = [os.path.expandvars(each) for each in [*registry, *setting.arguments, *arguments]]
        began = time.monotonic()
        stream = stack.enter_context(streaming(folder, topics, options))
        wait_until_it_scores(stream, folder, topics, setting, scores, live)
        startup = time.monotonic() - began
        plan = Plan(setting.source, topics.events, count, rate, live, defects)
        publisher = Publisher(plan, folder / "published.npz")
        stack.callback(publisher.kill)
        pids = {"stream": stream.pid, "broker": topics.pid, "publisher": publisher.pid, "reader": scores.pid}
        start = publisher.begun()
        begun()
        sampler = Sampler(pids)
        stack.callback(sampler.stop)
        valid, bad, duplicates = expected(plan)
        wanted = len(valid) + 1  # and the probe
        minute = 1
        while publisher.running:
            alive(stream, folder)
            time.sleep(0.2)
            if each_minute is not None and time.time() - start >= 60 * minute:
                each_minute(f"minute {minute}: {scores.seen:,} scores, stream {sampler.memory['stream'][-1]:.0f} MiB")
                minute += 1
        start_us, sent_us = publisher.finish()
        deadline = time.monotonic() + patience
        while (scores.seen < wanted or dead.seen < bad + duplicates) and time.monotonic() < deadline:
            alive(stream, folder)
            time.sleep(0.1)
        time.sleep(0.5)  # what is too much would come now
        sampler.stop()
        ids, received_us, _ = scores.finish()
        _, _, repeated = dead.finish()
    due_us = plan.due_us(start_us)
    begin, end = start_us / 1e6 + warm_up, start_us / 1e6 + warm_up + seconds
    arrived, again = first_arrivals(0, count, ids, received_us)
    found = int(np.isfinite(arrived[valid]).sum())
    middle = valid[(due_us[valid] >= begin * 1e6) & (due_us[valid] < end * 1e6)]
    lag = np.sort(sent_us - due_us)
    cores = {}
    for name, used in sampler.seconds.items():
        low, high = at_times(sampler.times, used, begin, end)
        cores[name] = (high - low) / seconds
    return Measured(
        published=float(((sent_us >= begin * 1e6) & (sent_us < end * 1e6)).sum() / seconds),
        scored=float(((received_us >= begin * 1e6) & (received_us < end * 1e6)).sum() / seconds),
        lag_p99=float(lag[int(len(lag) * 0.99)] / 1e6),
        latency=latency(due_us[middle], arrived[middle], again),
        cores=cores,
        memory=[(at - start_us / 1e6, mib) for at, mib in zip(sampler.times, sampler.memory["stream"], strict=True)],
        wanted=len(valid),
        scores=found,
        bad_wanted=bad,
        dead=int((~repeated).sum()),
        duplicates_wanted=duplicates,
        duplicates=int(repeated.sum()),
        startup=startup,
        due_us=due_us[valid],
        arrived_us=arrived[valid],
    )


def wait_until_it_scores(
    stream: subprocess.Popen[str],
    folder: pathlib.Path,
    topics: Topics,
    setting: Setting,
    scores: Reader,
    live: bool,
) -> None:
    """Publish one event and wait for its score: from then on the stream is subscribed, and its model loaded."""
    publisher = open_broker(topics.events).publisher()
    first = Transactions(setting.source, 1)
    second = (now_us() if live else int(first.times_us[0])) // 1_000_000 * 1_000_000
    [probe] = first.messages(np.array([PROBE_ID]), np.array([second]))
    publisher.publish([probe])
    publisher.close()
    deadline = time.monotonic() + START_SECONDS
    while not scores.seen:
        alive(stream, folder)
        if time.monotonic() > deadline:
            raise Failed(f"no score after {START_SECONDS:.0f} s:\n{log_of(folder)}")
        time.sleep(0.05)


def alive(stream: subprocess.Popen[str], folder: pathlib.Path) -> None:
    """Stop if the stream has ended."""
    if stream.poll() is not None:
        raise Failed(f"the stream ended with {stream.returncode}:\n{log_of(folder)}")


def log_of(folder: pathlib.Path) -> str:
    return (folder / "stream.log").read_text()[-3000:]
