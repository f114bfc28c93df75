"""Benchmark peer: the card-fraud features and scores in Bytewax, event by event, in one worker.

    python bytewax_fraud.py EVENTS.jsonl MODEL.ubj OUTPUT.jsonl [each|batch]

Windows are deques with running sums in the state of a key. Sums are whole cents. The customer's and the terminal's
windows are two branches, joined by the event's id: in a chain, the second would see its events in another order,
since Bytewax hands a batch on key after key, and some features came out wrong. The model scores each event
(`each`), or what a batch of the source holds at once (`batch`). It trusts its input: no validation, no
deduplication, no late events. It prints events, seconds and peak MiB; the seconds begin with the first event,
so they leave out start-up.
"""

import json
import re
import sys
import time
from collections import deque
from datetime import datetime, timedelta
from pathlib import Path

import bytewax.operators as op
import numpy as np
import orjson
import xgboost
from bytewax.connectors.files import FileSink, FileSource
from bytewax.dataflow import Dataflow
from bytewax.testing import cluster_main

DAY = 86_400_000_000  # microseconds
WINDOWS = {"1DAY": DAY, "7DAY": 7 * DAY, "30DAY": 30 * DAY}
DELAY = 7 * DAY
EPOCH, MICROSECOND = datetime(1970, 1, 1), timedelta(microseconds=1)  # noqa: DTZ001


class Window:
    """The newest events of one length of time, their number and their sum."""

    __slots__ = ("events", "length", "total")

    def __init__(self, length):
        self.events, self.length, self.total = deque(), length, 0

    def add(self, event):
        self.events.append(event)
        self.total += event[1]

    def move_to(self, now):
        events, oldest = self.events, now - self.length
        while events and events[0][0] <= oldest:
            self.total -= events.popleft()[1]


class Customer:
    def __init__(self):
        self.windows = [(name, Window(length)) for name, length in WINDOWS.items()]

    def update(self, event):
        """The event with its customer's features."""
        now, cents = event["time"], round(event["TX_AMOUNT"] * 100)
        found = event.copy()
        for name, window in self.windows:
            window.add((now, cents))
            window.move_to(now)
            count = len(window.events)
            found[f"CUSTOMER_ID_NB_TX_{name}_WINDOW"] = count
            found[f"CUSTOMER_ID_AVG_AMOUNT_{name}_WINDOW"] = window.total / (100 * count)
        return found


class Terminal:
    def __init__(self):
        self.windows = [(name, Window(length)) for name, length in WINDOWS.items()]
        self.pending = deque()  # younger than the delay

    def update(self, event):
        """The terminal's features, with the event's id."""
        now = event["time"]
        known = now - DELAY
        found = {"TRANSACTION_ID": event["TRANSACTION_ID"]}
        self.pending.append((now, event["TX_FRAUD"]))
        while self.pending[0][0] <= known:
            each = self.pending.popleft()
            for _, window in self.windows:
                window.add(each)
        for name, window in self.windows:
            window.move_to(known)
            count = len(window.events)
            found[f"TERMINAL_ID_NB_TX_{name}_WINDOW"] = count
            found[f"TERMINAL_ID_RISK_{name}_WINDOW"] = window.total / count if count else 0.0
        return found


def update(kind):
    """A mapper of stateful_map: the key's windows are its state."""

    def mapper(state, event):
        state = state or kind()
        return state, state.update(event)

    return mapper


class Clock:
    """When the first event was decoded, and how many were."""

    started, events = 0.0, 0


def decode(line):
    if not Clock.events:
        Clock.started = time.perf_counter()
    Clock.events += 1
    event = orjson.loads(line)
    moment = datetime.fromisoformat(event["TX_DATETIME"])
    event["time"] = (moment - EPOCH) // MICROSECOND
    event["TX_DURING_WEEKEND"] = int(moment.weekday() >= 5)
    event["TX_DURING_NIGHT"] = int(moment.hour <= 6)
    return event


class Score:
    def __init__(self, path):
        self.booster = xgboost.Booster({"nthread": 1}, model_file=path)
        self.inputs = self.booster.feature_names

    def all(self, events):
        matrix = np.array([[event[name] for name in self.inputs] for event in events], np.float32)
        scores = self.booster.inplace_predict(matrix, validate_features=False)
        for event, score in zip(events, scores.tolist(), strict=True):
            event["score"] = score
            event["decision"] = "block" if score >= 0.8 else "review" if score >= 0.3 else "approve"
        return events

    def one(self, event):
        return self.all([event])[0]


def encode(event):
    del event["time"]
    return str(event["TRANSACTION_ID"]), orjson.dumps(event).decode()


def dataflow(source, model, output, scoring):
    score = Score(model)
    flow = Dataflow("fraud")
    lines = op.input("read", flow, FileSource(source))
    events = op.map("decode", lines, decode)
    sides = []
    for name, kind in (("CUSTOMER_ID", Customer), ("TERMINAL_ID", Terminal)):
        keyed = op.key_on(name, events, lambda event, name=name: str(event[name]))
        found = op.key_rm(f"{name} done", op.stateful_map(f"{name} windows", keyed, update(kind)))
        sides.append(op.key_on(f"{name} id", found, lambda event: str(event["TRANSACTION_ID"])))
    features = op.map("features", op.join("join", *sides), lambda pair: pair[1][0] | pair[1][1])
    if scoring == "batch":
        scored = op.flat_map_batch("score", features, score.all)
    else:
        scored = op.map("score", features, score.one)
    op.output("write", op.map("encode", scored, encode), FileSink(output))
    return flow


def main():
    source, model, output = sys.argv[1:4]
    flow = dataflow(Path(source), model, Path(output), sys.argv[4] if len(sys.argv) > 4 else "each")
    cluster_main(flow, [], 0)
    seconds = time.perf_counter() - Clock.started
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({"events": Clock.events, "seconds": seconds, "peak_mib": int(peak[1]) / 1024}))


if __name__ == "__main__":
    main()
