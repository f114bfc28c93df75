"""`headrace parity`: the same events through the stream and through batch, and every bit compared."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_int64
from models.predictors.bundle import Bundle
from models.project.declarations import Project
from models.project.sections import parse_duration
from models.quality.label_metrics import AS_OF, REVISION
from models.record import BUNDLE_ID, DECISION, OUTCOME, RELEASE, ROLE, UNEXPECTED
from models.rollout.assign import Releases
from models.rollout.records import ReleaseLog
from models.routes import FALLBACK
from pipelines.brokers.pubsub import PubsubBroker
from pipelines.config import RunSpec
from pipelines.jobs.released import Released
from pipelines.jobs.score import RunResult, score_files
from pipelines.results import read_aggregates, read_kind, read_label_metrics, read_verdicts
from pipelines.sinks.listed import DEAD_LETTERS, SCORES
from pipelines.sources.payloads import event_times, read_payloads
from transforms.expect import CHECK

IDLE = "2s"
MOST_PUBLISHED = 1000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One thing that was compared: in how many rows, and in how many of them bits differ."""

    what: str
    rows: int
    different: int
    first: str = ""


@dataclasses.dataclass(frozen=True)
class Proof:
    """What came of comparing batch with another way."""

    batch: RunResult
    comparisons: tuple[Comparison, ...]
    controls: tuple[Comparison, ...]

    @property
    def equal(self) -> bool:
        """All bits are equal, and those of the controls are not, so that the comparison can see."""
        same = not any(c.different for c in self.comparisons)
        return self.scored > 0 and same and all(c.different for c in self.controls)

    @property
    def scored(self) -> int:
        """How many rows were scored and compared; where none were, nothing is proven."""
        return next(c.rows for c in self.comparisons if c.what == "ids and fields")

    @property
    def blind(self) -> bool:
        """Nothing differs, and a control neither: the order of arrival, or a late release, could make no difference."""
        return not any(c.different for c in self.comparisons) and not all(c.different for c in self.controls)

    @property
    def runs(self) -> dict[str, RunResult]:
        """The runs that were compared, by what they are called."""
        return {"batch": self.batch}


@dataclasses.dataclass(frozen=True)
class Parity(Proof):
    """What a parity run found."""

    stream: RunResult

    @property
    def runs(self) -> dict[str, RunResult]:
        """Batch and stream."""
        return {**super().runs, "stream": self.stream}


def check_parity(
    project: Project,
    bundle: Bundle | None,
    scorer: Any,
    uris: Sequence[str],
    allowance: str,
    seed: int,
    share: float,
    tables: tuple[str, ...] = (),
    released: Released | None = None,
) -> Parity:
    """Run both ways over the files at `uris`; `share` of the events is published twice. `tables` are of files.

    With `released`, both follow that log of releases.
    """
    payloads = read_payloads(uris, project.event_type)
    return check_payloads(project, bundle, scorer, payloads, allowance, seed, share, tables, released)


def check_payloads(
    project: Project,
    bundle: Bundle | None,
    scorer: Any,
    payloads: Sequence[bytes],
    allowance: str,
    seed: int,
    share: float,
    tables: tuple[str, ...] = (),
    released: Released | None = None,
) -> Parity:
    """Run both ways over JSON records; see `check_parity`."""
    order = arrival_order(payloads, project, parse_duration(allowance), seed, share)
    with tempfile.TemporaryDirectory(prefix="headrace-parity-") as scratch:
        events = pathlib.Path(scratch) / "events.jsonl"
        events.write_bytes(b"".join(payload + b"\n" for payload in payloads))
        sink = f"{scratch}/batch"
        told = RunSpec(project, (str(events),), sink, tables=tables, allowance=allowance, until_idle=IDLE)
        told.check_tables()
        batch = score_files(told, bundle, scorer, released)
        with _published([payloads[i] for i in order], seed) as uri:
            journal = f"{scratch}/journal"
            told = dataclasses.replace(told, sources=(uri,), sink=f"{scratch}/stream", journal=journal)
            stream = score_files(told, bundle, scorer, released)
        streamed = collections.Counter(payloads[i] for i in order)
        times = {payload: (count, streamed[payload]) for payload, count in collections.Counter(payloads).items()}
        compared = tuple(_compare(project, batch, stream, times, released is not None))
        controls = [_control(payloads, order)]
        if released is not None and len((log := released.read()).records) > 1:
            rows = read_kind(batch.directory, SCORES)
            controls.append(late_releases(project, log, rows, parse_duration(allowance)))
        return Parity(batch, compared, tuple(controls), stream)


def arrival_order(payloads: Sequence[bytes], project: Project, allowance_us: int, seed: int, share: float) -> list[int]:
    """An order that the disorder of `allowance_us` allows, some events standing in it twice."""
    random = np.random.default_rng(seed)
    times = event_times(payloads, project)
    delay = random.integers(0, max(allowance_us, 1), len(payloads))
    twice = np.flatnonzero(random.random(len(payloads)) < share)
    rows = np.concatenate([np.arange(len(payloads)), twice])
    arrival = times[rows] + np.concatenate([delay, random.integers(0, max(allowance_us, 1), len(twice))])
    return [int(row) for row in rows[np.argsort(arrival, kind="stable")]]


@contextlib.contextmanager
def _published(payloads: Sequence[bytes], seed: int) -> Iterator[str]:
    """An embedded Pub/Sub that the payloads are published to, in batches of random sizes, while it is read."""
    from pipelines.pubsub_emulator import PubsubEmulator

    before = os.environ.get("PUBSUB_EMULATOR_HOST")
    with PubsubEmulator() as server:
        server.create("parity", "events", "events")
        os.environ["PUBSUB_EMULATOR_HOST"] = server.address
        broker = PubsubBroker.parse("pubsub://parity/events")

        def publish() -> None:
            random = np.random.default_rng(seed)
            publisher = broker.publisher()
            start = 0
            while start < len(payloads):
                stop = start + int(random.integers(1, MOST_PUBLISHED))
                publisher.publish(payloads[start:stop])
                start = stop
            publisher.close()

        thread = threading.Thread(target=publish, name="publish", daemon=True)
        thread.start()
        try:
            yield broker.uri
            thread.join()
        finally:
            if before is None:
                del os.environ["PUBSUB_EMULATOR_HOST"]
            else:
                os.environ["PUBSUB_EMULATOR_HOST"] = before


def _compare(
    project: Project,
    batch: RunResult,
    stream: RunResult,
    times: Mapping[bytes, tuple[int, int]],
    released: bool = False,
) -> Iterator[Comparison]:
    """Compare what came out; `times` says how often each record stands in the files, and was published."""
    ours, theirs = (read_kind(result.directory, SCORES) for result in (batch, stream))
    for what, names in (
        ("ids and fields", [project.event.id, project.event.time, *project.entities.values(), *project.output]),
        ("features", [*project.feature_names, *([UNEXPECTED] if project.marks_rows else [])]),
        ("releases", [BUNDLE_ID, ROLE, RELEASE] if released else None),
        ("scores", list(project.said_columns) if project.has_model else None),
        ("decisions", [DECISION] if project.decisions else []),
    ):
        if names is None:
            continue
        yield compare_tables(what, ours, theirs, names)
    if project.fallback:
        unscored = [_distinct(read_kind(result.directory, FALLBACK), project) for result in (batch, stream)]
        yield compare_counts("fallback decisions", *unscored)
    if project.quality:
        verdicts = [collections.Counter(v.to_json() for v in read_verdicts(r.directory)) for r in (batch, stream)]
        yield compare_counts("verdicts on windows", *verdicts)
    tables = [read_aggregates(result.directory) for result in (batch, stream)]
    for name in project.aggregates:
        one, other = (found.get(name, pa.table({})) for found in tables)
        yield compare_tables(f"aggregates {name}", one, other, one.schema.names)
    if project.label_metrics:
        one, other = (read_label_metrics(result.directory) for result in (batch, stream))
        names = [name for name in one.schema.names if name not in (AS_OF, REVISION)]
        yield compare_tables("label metrics", one, other, names)
    dead, others = (_comparable(read_kind(result.directory, DEAD_LETTERS)) for result in (batch, stream))
    rows = dead.total()
    for letter in dead:
        stand, came = times.get(letter[0], (1, 1))
        # Each time that the record comes it is refused for the same reasons, unless it was a duplicate before that.
        if dead[letter] == stand and letter[2] != CHECK:
            dead[letter] = came
    yield dataclasses.replace(compare_counts("dead letters", dead, others), rows=rows)


def _comparable(dead: pa.Table) -> collections.Counter[tuple[Any, ...]]:
    """What of dead letters does not depend on where they came from, counted; duplicates are the stream's own."""
    names = ["payload", "reasons", "step", "event_id"]
    rows = dead.select(names).to_pylist() if dead.num_rows else []
    return collections.Counter(tuple(row[n] for n in names) for row in rows if row["step"] != "Deduplicate")


def _distinct(rows: pa.Table, project: Project) -> collections.Counter[tuple[Any, ...]]:
    """Rows with the fallback decision, each once: one comes as often as its record was refused."""
    names = [project.event.id, project.event.time, DECISION, OUTCOME]
    return collections.Counter({tuple(row.values()) for row in (rows.select(names).to_pylist() if len(rows) else ())})


def compare_counts(what: str, ours: collections.Counter[Any], theirs: collections.Counter[Any]) -> Comparison:
    """How many of things without an order stand on one side only, each as often as it comes."""
    only, too_many = ours - theirs, theirs - ours
    first = ""
    for thing in itertools.chain(only, too_many):
        first = f"{ours[thing]} in batch, {theirs[thing]} streamed: {str(thing)[:300]}"
        break
    return Comparison(what, ours.total(), only.total() + too_many.total(), first)


def compare_tables(
    what: str, ours: pa.Table, theirs: pa.Table, names: Sequence[str], done: str = "streamed"
) -> Comparison:
    """In how many rows some bit of the columns differs; tables of other lengths differ in each missing row.

    `done` says what was done to get `theirs`.
    """
    rows = max(len(ours), len(theirs))
    if len(ours) != len(theirs):
        lengths = f"{len(ours)} rows in batch, {len(theirs)} {done}"
        return Comparison(what, rows, abs(len(ours) - len(theirs)), lengths)
    if not rows:  # and perhaps no columns
        return Comparison(what, 0, 0)
    columns = {name: _unequal(ours[name], theirs[name]) for name in names}
    different = np.zeros(rows, bool)
    for unequal in columns.values():
        different |= unequal
    first = ""
    if different.any():
        place = int(np.argmax(different))
        name = next(name for name, unequal in columns.items() if unequal[place])
        first = f"row {place}: {name} {ours[name][place].as_py()!r}, {theirs[name][place].as_py()!r}"
    return Comparison(what, rows, int(different.sum()), first)


def _unequal(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The rows, bool[n], in which a bit differs; a null is equal to a null alone, and a NaN to the same NaN."""
    if ours.type != theirs.type:
        return np.ones(len(ours), bool)
    if pa.types.is_null(ours.type):
        return np.zeros(len(ours), bool)
    one, two = (_with_bits(values.combine_chunks()) for values in (ours, theirs))
    values = pc.fill_null(pc.not_equal(one, two), False)
    return np.asarray(pc.or_(values, pc.xor(pc.is_null(one), pc.is_null(two))))


def _with_bits(values: pa.Array) -> pa.Array:
    """Floats as the integers of the same bits, so that what compares equal is equal."""
    if not pa.types.is_floating(values.type):
        return values
    return values.view({16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[values.type.bit_width])


def late_releases(project: Project, log: ReleaseLog, rows: pa.Table, late_us: int) -> Comparison:
    """The bundles of score rows, if each release were learnt so much later: some must be others."""
    late = [
        release
        if release.effective_from_us is None
        else dataclasses.replace(release, effective_from_us=release.effective_from_us + late_us)
        for release in log.records
    ]
    times = as_int64(rows[project.event.time].combine_chunks())
    keys = {name: rows[field].combine_chunks() for name, field in project.entities.items()}
    ours, theirs = (Releases(each).assign(times, keys).bundle for each in (log.records, late))
    one, other = (pa.table({BUNDLE_ID: bundle.dictionary_decode()}) for bundle in (ours, theirs))
    return compare_tables("control: releases learnt late", one, other, [BUNDLE_ID])


def _control(payloads: Sequence[bytes], order: Sequence[int]) -> Comparison:
    """A running float32 sum in order of arrival, which must come out otherwise in the stream."""
    values = np.array([len(payload) for payload in payloads], np.float32) / np.float32(7)
    first_seen = list(dict.fromkeys(order))
    streamed = np.empty(len(values), np.float32)
    streamed[first_seen] = np.cumsum(values[first_seen], dtype=np.float32)
    in_order = pa.table({"sum": pa.array(np.cumsum(values, dtype=np.float32))})
    in_arrival = pa.table({"sum": pa.array(streamed)})
    return compare_tables("control", in_order, in_arrival, ["sum"])
