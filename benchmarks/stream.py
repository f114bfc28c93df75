"""Benchmarks of a running stream as a black box; each sub-command prints one Markdown table.

    python benchmarks/stream.py sustained | latency | catchup | state | soak | peers | beside | transactions |
        releases | swaps | memory
        [-- options of headrace run]

A broker, `headrace run`, a publisher and a reader run in a process each, on this machine. The model is trained
first on the card transactions. Events are published by a schedule that does not wait for the stream. Latency is
from the time that an event is due at until its first score was read: delays of the publisher, the broker and the
reader are part of it. That time is the event's time, too, but for catchup and soak, which keep the file's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import pathlib
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from stream import beside as comparing_brokers
from stream import catchup as catching_up
from stream import peers as comparing
from stream import released as releasing
from stream.events import Defects, write_history
from stream.figures import markdown, milliseconds, slope
from stream.load import now_us
from stream.measure import Measured, Setting, measure
from stream.processes import options, require_option, train

HERE = pathlib.Path(__file__).parent
RATES = (2000, 4000, 8000, 10_000, 12_000, 16_000, 20_000, 24_000, 32_000)
MOST_SECONDS = 1.0  # of p99, for a rate to count as sustained
LATENCIES = ("p50", "p90", "p99", "p99.9", "max")
CLIENTS = {"pubsub": "grpcio", "pulsar": "pulsar-client"}
CORES = ("stream", "broker", "publisher", "reader")


def latencies(found: Measured) -> list[str]:
    one = found.latency
    return [milliseconds(each) for each in (one.p50, one.p90, one.p99, one.p999, one.max)]


def cores(found: Measured) -> list[float]:
    return [found.cores[name] for name in CORES]


def sustained(asked: argparse.Namespace, setting: Setting) -> None:
    """The highest rate of the ramp with p99 below a second and every event scored."""
    rows, best = [], 0
    for rate in asked.rates:
        say(f"{rate:,} events/s for {asked.seconds:.0f} s")
        found = measure(setting, rate, asked.seconds, tail=max(2.0, 2 * asked.allowance))
        good = found.complete and found.latency.p99 < MOST_SECONDS and found.lag_p99 < MOST_SECONDS
        best = rate if good else best
        rows.append([rate, found.published, found.scored, *latencies(found), *cores(found), peak(found), verdict(good)])
        if not good:
            break
    header = ["asked /s", "published /s", "scored /s", *LATENCIES, *(f"{n} cores" for n in CORES), "peak MiB", ""]
    print(markdown(header, rows))
    print(f"\nsustained: {best:,} events/s" + ("" if rows[-1][-1] == "no" else ", the most that was tried"))


def latency(asked: argparse.Namespace, setting: Setting) -> None:
    """Latency at a steady rate, for each --order that is asked for."""
    rows: list[list[Any]] = []
    for order in asked.order or [None]:
        say(f"{asked.rate:,.0f} events/s for {asked.seconds:.0f} s, order {order or 'of event time'}")
        if order is not None:
            require_option("--order")
        found = measure(setting, asked.rate, asked.seconds, arguments=["--order", order] if order else [])
        rows.append([order or "event_time", found.scored, *latencies(found)])
        rows[-1] += [found.latency.again, found.latency.missing, milliseconds(found.lag_p99)]
        rows[-1] += [*cores(found), f"{found.startup:.1f} s"]
    header = ["order", "scored /s", *LATENCIES, "scored again", "missing", "publisher's lag p99"]
    print(markdown([*header, *(f"{name} cores" for name in CORES), "start to first score"], rows))


def catchup(asked: argparse.Namespace, setting: Setting) -> None:
    """A backlog that was there before the stream, against a reader that does nothing with it, and batch."""
    say(f"a backlog of {asked.rows:,} events")
    found = catching_up.drain(setting, asked.rows)
    say("a reader that only receives and acknowledges them")
    reader_rate, reader_micros = catching_up.receive_only(setting, asked.rows)
    ratios = []
    rows: list[list[Any]] = [
        ["stream, from its first score on", asked.rows, found.seconds, found.rate, found.peak],
        ["stream, with start-up", asked.rows, found.whole_seconds, asked.rows / found.whole_seconds, found.peak],
        ["a reader alone", asked.rows, asked.rows / reader_rate, reader_rate, "-"],
    ]
    for name in ("jsonl", "parquet"):
        say(f"the same in batch, from {name}")
        events, seconds, rate = catching_up.batch(setting, asked.rows, name)
        rows.append([f"batch, {name}", events, seconds, rate, "-"])
        ratios.append(found.rate / rate)
    print(markdown(["run", "events", "seconds", "events/s", "peak MiB"], rows))
    print(f"\nThe stream catches up at {found.rate / reader_rate:.2f} times the rate of the reader, ", end="")
    print(f"with {found.micros:.1f} µs of a processor an event against {reader_micros:.1f},")
    print(f"and at {ratios[0]:.2f} times the rate of batch on the same JSON.")
    print(f"Missing: {found.missing:,}. Processor seconds: {found.cpu}")


def state(asked: argparse.Namespace, setting: Setting) -> None:
    """What an event costs with a month of history in the windows, and with empty ones."""
    require_option("--history")
    history = setting.folder / "history.parquet"
    rows, costs = [], []
    for name in ("empty", "30 days"):
        arguments = []
        if name != "empty":
            events = write_history(setting.source, history, now_us())
            name = f"{events:,} events of 37 days"
            arguments = ["--history", str(history)]
        say(f"{asked.rate:,.0f} events/s for {asked.seconds:.0f} s, state: {name}")
        found = measure(setting, asked.rate, asked.seconds, arguments=arguments)
        costs.append(found.cores["stream"] / max(found.scored, 1) * 1e6)
        rows.append([name, found.scored, costs[-1], *latencies(found), peak(found), f"{found.startup:.1f} s"])
    print(markdown(["state", "scored /s", "processor µs/event", *LATENCIES, "peak MiB", "start to first score"], rows))
    print(f"\nWith history, an event costs {costs[1] / costs[0]:.2f} times the processor time.")


def soak(asked: argparse.Namespace, setting: Setting) -> None:
    """A steady rate for long, with bad events and duplicates: flat memory, and every event accounted for.

    Event times are the file's, so that the windows are full, and drop what is old, after 355,000 events.
    """
    defects = Defects(asked.invalid, asked.duplicates)
    say(f"{asked.rate:,.0f} events/s for {asked.minutes:g} minutes")
    found = measure(setting, asked.rate, asked.minutes * 60, defects=defects, live=False, patience=60, each_minute=say)
    later = [(at / 60, mib) for at, mib in found.memory if at > asked.minutes * 30 and mib == mib]
    growth = slope([at for at, _ in later], [mib for _, mib in later])
    published = found.wanted + found.bad_wanted + found.duplicates_wanted
    rows: list[list[Any]] = [
        ["published", published, ""],
        ["valid, published once", found.wanted - found.duplicates_wanted, ""],
        ["valid, published twice", found.duplicates_wanted, ""],
        ["invalid", found.bad_wanted, ""],
        ["events with a score", found.scores, verdict(found.scores == found.wanted)],
        ["scored more than once", found.latency.again, verdict(found.latency.again == 0)],
        ["dead letters of invalid events", found.dead, verdict(found.dead == found.bad_wanted)],
        ["dead letters of duplicates", found.duplicates, verdict(found.duplicates == found.duplicates_wanted)],
        ["events/s scored", found.scored, ""],
        *([name, text, ""] for name, text in zip(LATENCIES, latencies(found), strict=True)),
        *([f"{name} cores", used, ""] for name, used in zip(CORES, cores(found), strict=True)),
        ["MiB after the first half", later[0][1] if later else "-", ""],
        ["MiB at the end", later[-1][1] if later else "-", ""],
        ["peak MiB", peak(found), ""],
        ["MiB/minute in the second half", growth, verdict(abs(growth) < 1.0)],
    ]
    print(markdown(["soak", "", "as it should be"], rows))
    step = max(len(found.memory) // 20, 1)
    print("\nMiB by minute: " + ", ".join(f"{at / 60:.1f}: {mib:.0f}" for at, mib in found.memory[::step]))


def peers(asked: argparse.Namespace, setting: Setting) -> None:
    """The same features and scores, event by event, in Bytewax and Quix Streams."""
    comparing.compare(setting, asked.rows, asked.venv, asked.sides, say)


def beside(asked: argparse.Namespace, setting: Setting) -> None:
    """Pub/Sub, Kafka with and without transactions, Pulsar and Quix on Kafka, in turns of one run."""
    comparing_brokers.compare(setting, asked.rows, asked.times, asked.venv, say)


def transactions(asked: argparse.Namespace, setting: Setting) -> None:
    """What --transactional costs at a steady rate."""
    comparing_brokers.transactions(setting, asked.rate, asked.seconds, asked.times, say)


def releases(asked: argparse.Namespace, setting: Setting) -> None:
    """What a log of releases and a shadow cost at a steady rate."""
    train(setting.folder, setting.source, "--start", "2018-05-24")
    releasing.costs(setting, asked.rate, asked.seconds, asked.times, say)


def swaps(asked: argparse.Namespace, setting: Setting) -> None:
    """Latency while a release takes effect."""
    train(setting.folder, setting.source, "--start", "2018-05-24")
    releasing.swaps(setting, asked.rate, asked.seconds, asked.times, say)


def memory(asked: argparse.Namespace, setting: Setting) -> None:
    """Memory while champions change, more of them than a process keeps."""
    for number in range(1, asked.versions):
        train(setting.folder, setting.source, "--start", f"2018-05-{25 - number:02d}")
    releasing.memory(setting, asked.rate, asked.seconds, asked.versions, say)


def peak(found: Measured) -> float:
    return max(mib for _, mib in found.memory if mib == mib)


def verdict(good: bool) -> str:
    return "yes" if good else "no"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """The command line; what stands behind `--` is for `headrace run`."""
    line = sys.argv[1:]
    cut = line.index("--") if "--" in line else len(line)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(run: Callable[..., None], allowance: float = 0.1) -> argparse.ArgumentParser:
        made = commands.add_parser(run.__name__, help=(run.__doc__ or "").partition("\n")[0], description=run.__doc__)
        made.set_defaults(run=run)
        made.add_argument("--data", type=pathlib.Path, default=HERE.parents[1] / "shared/data/card_transactions")
        made.add_argument("--broker", choices=("pubsub", "kafka", "kafka-mock", "pulsar"), default="pubsub")
        made.add_argument("--partitions", type=int, default=4, help="of the topics, in Kafka and Pulsar")
        made.add_argument("--allowance", type=float, default=allowance, help="seconds of disorder that are waited for")
        made.add_argument("--journal", action="store_true", help="keep a journal, as a stream in earnest does")
        return made

    one = command(sustained)
    one.add_argument("--rates", type=lambda text: [int(each) for each in text.split(",")], default=list(RATES))
    one.add_argument("--seconds", type=float, default=20)
    one = command(latency)
    one.add_argument("--rate", type=float, default=1000)
    one.add_argument("--seconds", type=float, default=60)
    one.add_argument("--order", action="append", choices=("event_time", "arrival"), help="may stand more than once")
    one = command(catchup)
    one.add_argument("--rows", type=int, default=700_000)
    one = command(state)
    one.add_argument("--rate", type=float, default=2000)
    one.add_argument("--seconds", type=float, default=30)
    one = command(soak, allowance=3600.0)
    one.add_argument("--rate", type=float, default=2000)
    one.add_argument("--minutes", type=float, default=20)
    one.add_argument("--invalid", type=float, default=0.05)
    one.add_argument("--duplicates", type=float, default=0.01)
    one = command(peers)
    one.add_argument("--rows", type=int, default=200_000)
    one.add_argument("--venv", type=pathlib.Path, help="environment of the peers; made where it is not")
    one.add_argument("--sides", nargs="+", choices=comparing.SIDES, default=list(comparing.SIDES))
    one = command(beside)
    one.add_argument("--rows", type=int, default=50_000)
    one.add_argument("--times", type=int, default=3)
    one.add_argument("--venv", type=pathlib.Path, help="environment with Quix Streams; without, it is left out")
    one = command(transactions)
    one.add_argument("--rate", type=float, default=1000)
    one.add_argument("--seconds", type=float, default=20)
    one.add_argument("--times", type=int, default=3)
    one = command(releases)
    one.add_argument("--rate", type=float, default=5000)
    one.add_argument("--seconds", type=float, default=20)
    one.add_argument("--times", type=int, default=3)
    one = command(swaps)
    one.add_argument("--rate", type=float, default=5000)
    one.add_argument("--seconds", type=float, default=40)
    one.add_argument("--times", type=int, default=3)
    one = command(memory)
    one.add_argument("--rate", type=float, default=1000)
    one.add_argument("--seconds", type=float, default=100)
    one.add_argument("--versions", type=int, default=13)
    asked = parser.parse_args(line[:cut])
    asked.rest = line[cut + 1 :]
    return asked


@contextlib.contextmanager
def prepared(asked: argparse.Namespace) -> Iterator[Setting]:
    """The setting, with a model trained on the events."""
    events = asked.data / "transactions.parquet"
    if not events.exists():
        raise SystemExit(f"no {events}: name the folder of the card transactions with --data")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        folder = pathlib.Path(scratch)
        say("training a model")
        train(folder, events)
        arguments = ["--allowance", f"{asked.allowance * 1000:.0f}ms"]
        if asked.journal:
            arguments += ["--journal", "journal"]
        yield Setting(asked.broker, events, folder, (*arguments, *asked.rest), asked.partitions)


def about(asked: argparse.Namespace) -> str:
    """The command and the versions that a figure needs to be understood."""
    names = ["apache-beam", "pyarrow", "numpy", "xgboost", CLIENTS.get(asked.broker, "confluent-kafka")]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    load = os.getloadavg()[0]
    return (
        f"`stream.py {' '.join(sys.argv[1:])}`, {os.cpu_count()} cores, load before it {load:.1f}"
        + (" (NOT QUIET)" if load > 0.5 else "")
        + f"; Python {platform.python_version()}, {versions}.\n"
    )


def main() -> None:
    asked = parse()
    if asked.rest:
        for each in asked.rest:
            if re.match(r"--\w", each):
                require_option(each.partition("=")[0])
    options()  # a headrace that does not start is found before anything else
    head = about(asked)
    with prepared(asked) as setting:
        print(head, flush=True)
        asked.run(asked, setting)


if __name__ == "__main__":
    main()
