"""A shop's stream while releases are made by commands, and the replay in batch that must give each event the same."""

import json
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from models.project.project import load_project
from pipelines.brokers import open_broker
from pipelines.cli.main import app
from pipelines.prechecks import registry_of
from pipelines.release_store import read_log
from tests.kit.releases import register_bundles
from tests.kit.support import read_output

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT presence { min_fraction: 1.0 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card}
fixed_point: {amount: 2}
features:
  rolling:
    - {entity: card, windows: {H: 1h}, features: {n: count, mean: mean(amount)}}
model: {inputs: [amount, n, mean]}
decisions:
  - {action: block, at_least: 0.6}
  - {action: approve, at_least: 0.0}
rollout: {clock: CLOCK, lead: LEAD}
"""
TOPICS = ("events", "scores", "scores-dead-letters", "scores-shadow")
CLOCKED = ("published", "ingested", "scored")


def headrace(*args):
    """A command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def make_shop(folder, clock, lead):
    """A project's folder with a registry of three bundles; the project and their ids."""
    folder.mkdir(exist_ok=True)
    (folder / "project.yaml").write_text(TEXT.replace("CLOCK", clock).replace("LEAD", lead))
    (folder / "schema.pbtxt").write_text(SCHEMA)
    project = load_project(folder)
    return project, register_bundles(folder, project, registry_of(folder, None), range(3))


def make_green(folder, blue, clock, lead, window="30m"):
    """Another folder of the same project with shorter windows and other decisions, and its bundle's id.

    The bundle is version 4 of the registry of the folder `blue`.
    """
    folder.mkdir()
    text = TEXT.replace("CLOCK", clock).replace("LEAD", lead).replace("H: 1h", f"H: {window}").replace("block", "stop")
    text = text.replace("time: at", f"time: at, deduplicate_within: {window}")
    (folder / "project.yaml").write_text(text)
    (folder / "schema.pbtxt").write_text(SCHEMA)
    project = load_project(folder)
    return project, register_bundles(folder, project, registry_of(blue, None), [7])[0]


class Traffic:
    """500 events of now a second into `pubsub://p/events`, from `start` on until five seconds after `stop`."""

    def __init__(self):
        self.payloads = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self.start = self._thread.start

    def stop(self):
        """How many events there are, once the last one is published."""
        self._stopped.set()
        self._thread.join()
        return len(self.payloads)

    def _publish(self):
        publisher, last = open_broker("pubsub://p/events").publisher(), None
        while last is None or time.monotonic() < last + 5:
            at = int(time.time())
            numbers = range(len(self.payloads), len(self.payloads) + 50)
            rows = [{"id": n, "at": at, "card": n % 251, "amount": n * 31 % 997 / 10} for n in numbers]
            news = [json.dumps(row).encode() for row in rows]
            publisher.publish(news)
            self.payloads += news
            if self._stopped.is_set() and last is None:
                last = time.monotonic()
            time.sleep(0.1)
        publisher.close()


class Rows:
    """What a stream writes to `scores` and `scores-shadow`: by event, and by event and bundle; what is twice is equal."""

    def __init__(self):
        self.scores, self.shadows = {}, {}
        self.read, self.newest = 0, 0.0  # messages of scores, and the newest event with one, seconds since 1970
        self._readers = [
            (open_broker("pubsub://p/scores").subscribe(), self.scores, ("id",)),
            (open_broker("pubsub://p/scores-shadow").subscribe(), self.shadows, ("id", "bundle_id")),
        ]

    def collect(self, until, seconds=120):
        """Read until that is so."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, f"{len(self.scores)} events have scores"
            for reader, found, key in self._readers:
                if (messages := reader.receive(10_000, 0.05)) is None:
                    continue
                for row in map(json.loads, messages.payloads):
                    row = {name: value for name, value in row.items() if name not in CLOCKED}
                    before = found.setdefault(tuple(row[name] for name in key), row)
                    assert before == row, (before, row)
                    if found is self.scores:
                        self.read, self.newest = self.read + 1, max(self.newest, us_of(row["at"]) / 1e6)
                reader.acknowledge(messages.receipt)

    def have(self, seq):
        """Whether there is a score by a release."""
        return any(row["release"] == seq for row in self.scores.values())

    def close(self):
        """Read no more."""
        for reader, *_ in self._readers:
            reader.close()


def check_replay(folder, project, rows, source, sink):
    """See that each event has the release of its time, and that batch over all events gives the same, and no more."""
    check_releases(read_log(f"sqlite:///{folder}/.headrace/releases.db", project), rows)
    check_same(rows, *replay(folder, source, sink), project.feature_names)


def check_releases(log, rows):
    """See that each event has the release of its time."""
    for row in rows.scores.values():
        assert row["release"] == log.in_effect(us_of(row["at"])).seq
        assert not row["late"]


def replay(folder, source, sink):
    """The rows of scores and of shadows that batch gives, by their keys."""
    done = headrace("run", folder, "--source", source, "--sink", sink)
    assert done.exit_code == 0, done.output
    batch = {(row["id"],): row for row in read_output(sink).scores.to_pylist()}
    files = [pq.read_table(path, partitioning=None) for path in (sink / "shadows").rglob("*.parquet")]
    shadows = pa.concat_tables(files).to_pylist() if files else []
    return batch, {(row["id"], row["bundle_id"]): row for row in shadows}


def check_same(rows, batch, shadows, features):
    """See that a stream's rows are those of batch, and no more."""
    for ours, theirs in ((rows.scores, batch), (rows.shadows, shadows)):
        assert ours.keys() == theirs.keys()
        for key, row in ours.items():
            for name in ("release", "role", "bundle_id", "decision", *features):
                assert row[name] == theirs[key][name]
            assert np.float32(row["score"]) == np.float32(theirs[key]["score"])


def us_of(text):
    """A time of a row in microseconds."""
    return int(np.datetime64(text.rstrip("Z"), "us").astype(np.int64))
