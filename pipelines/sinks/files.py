"""Score rows and dead letters to files: complete and the same again, or not there at all.

Scores go to a file for each month of event time (or several, by a hash of the id), sorted, written under a
staging folder and moved into place once all are written and the job's count of events is right. `_SUCCESS.json`,
written last, lists what was written.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from typing import IO, Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from models.batches import as_int64, column, concat_batches, partition, shard_of, take_rows
from models.codecs import encode_json_lines
from models.counts import mismatch
from models.errors import HeadraceError
from models.faults import rules_of
from models.features.windows import sort_order
from models.metrics import EVENTS, ROWS
from models.quality.records import Verdict, WindowStatistics
from models.record import Outcome
from pipelines.sinks.folder import Folder, claim, staging_of
from pipelines.sinks.publish import (
    BASELINE,
    DEAD_LETTERS,
    MANIFEST,
    QUALITY,
    QUARANTINE,
    SCORES,
    SUCCESS,
    Written,
    check_sink,
    publish,
    sweep,
)
from pipelines.sinks.whole_rows import CompleteRows
from transforms.deduplicate import DUPLICATE
from transforms.metrics import count

__all__ = ["DEAD_LETTERS", "QUALITY", "QUARANTINE", "SCORES", "SUCCESS", "WriteFiles"]

WRITERS = 2  # files encoded at once
ROWS_AT_ONCE = 1 << 17  # that a file is encoded in; a row group of Parquet


class CountMismatch(HeadraceError, RuntimeError):
    """Not every event that was read came out as one score, dead letter or duplicate."""


@dataclasses.dataclass(eq=False)
class WriteFiles(beam.PTransform):
    """A mapping of `scores`, `dead_letters` and `counts` (outcome, events) → files under `directory`.

    With `quarantine`, `statistics` and `verdicts` in it, also the rows held back, and a line a record in `quality`,
    beside the `baseline` that windows were compared with. `facts` stand in `_SUCCESS.json`; by those that `publish`
    names, a run knows its own output again, and with `replace` it replaces another run's.
    """

    directory: str
    event_id: str
    event_time: str
    format: Literal["parquet", "jsonl"] = "parquet"
    files: int = 1
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    source_format: str | None = None  # of files whose names don't tell it
    replace: bool = False
    baseline: bytes | None = None
    run_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def expand(self, pcolls: dict[str, beam.PCollection]) -> beam.PCollection:
        """One element, what `_SUCCESS.json` says, when all is in place."""
        scores = self._write(pcolls["scores"], SCORES, (self.event_time, self.event_id))
        letters = pcolls["dead_letters"] | "Complete rows" >> CompleteRows(self.source_format)
        dead = self._write(letters, DEAD_LETTERS, ("position", "source"))
        kinds = [scores, dead]
        if "verdicts" in pcolls:
            kinds.append(self._write(pcolls[QUARANTINE], QUARANTINE, (self.event_time, self.event_id)))
            records = (pcolls["statistics"], pcolls["verdicts"]) | "Quality" >> beam.Flatten()
            lines = records | "As lines" >> beam.Map(_as_line).with_output_types(tuple[str, tuple[int, str]])
            kinds.append(lines | "Gather quality" >> beam.GroupByKey() | "Write quality" >> beam.Map(self._write_lines))
        files = kinds | "Files" >> beam.Flatten()
        counts = pcolls["counts"] | "Sum counts" >> beam.CombinePerKey(sum)
        once = scores.pipeline | "Once" >> beam.Create([None])
        return once | "Commit" >> beam.Map(
            self._commit,
            beam.pvalue.AsList(files),
            beam.pvalue.AsDict(counts),
        )

    def _write(self, pcoll: beam.PCollection, kind: str, order: tuple[str, str]) -> beam.PCollection:
        spread = self._by_position if kind == DEAD_LETTERS else self._by_month
        return (
            pcoll
            | f"Spread {kind}" >> beam.FlatMap(spread).with_output_types(tuple[int, pa.RecordBatch])
            | f"Gather {kind}" >> beam.GroupByKey()
            | f"Write {kind}" >> beam.ParDo(_WriteFile(self, kind, order))
        )

    def _by_month(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Scores by month of event time, and within a month by a hash of the id if there are several files."""
        months = as_int64(column(batch, self.event_time)).astype("M8[us]").astype("M8[M]").astype(np.int64)
        shards = shard_of(column(batch, self.event_id), self.files)
        yield from partition(batch, months * self.files + shards)

    def _by_position(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        yield from partition(batch, shard_of(column(batch, "position"), self.files).astype(np.int64))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder while the graph runs; SinkError before it does if its output could not be published."""
        with claim(self._folder, self.run_id, take_over=True):
            check_sink(self._folder, self.facts, self.replace)
            sweep(self._folder, self.run_id)
            yield

    def discard(self) -> None:
        """Remove what a graph that failed here has staged, unless it had begun to publish."""
        if not self._folder.is_file(f"{staging_of(self.run_id)}/{MANIFEST}"):
            self._folder.remove_staging(staging_of(self.run_id))

    def write_file(self, number: int, batches: list[pa.RecordBatch], kind: str, order: tuple[str, str]) -> Written:
        """Write one file of one kind to the staging folder."""
        month, shard = divmod(number, self.files)
        prefix = "part" if kind == DEAD_LETTERS else str(np.datetime64(month, "M"))
        name = f"{prefix}-{shard:05d}-of-{self.files:05d}.{self.format}"
        batch = _gather(batches)
        ends: dict[str, str] = {SCORES: Outcome.SCORED, QUARANTINE: Outcome.QUARANTINED}
        outcomes = {ends[kind]: batch.num_rows} if kind in ends else count_reasons(batch)
        with self._create(kind, name) as file:
            _encode(_in_order(batch, *order), batch.schema, self.format, file)
        return Written(kind, name, batch.num_rows, file.hexdigest(), outcomes)

    def _write_lines(self, element: tuple[str, Iterable[tuple[int, str]]]) -> Written:
        """Write the records of one kind, in the order of their windows."""
        kind, lines = element
        ordered = sorted(lines)
        with self._create(QUALITY, f"{kind}.jsonl") as file:
            for _, line in ordered:
                file.write(f"{line}\n".encode())
        return Written(QUALITY, f"{kind}.jsonl", len(ordered), file.hexdigest(), {})

    def _write_baseline(self, baseline: bytes) -> Written:
        with self._create(QUALITY, BASELINE) as file:
            file.write(baseline)
        return Written(QUALITY, BASELINE, 0, file.hexdigest(), {})

    @contextlib.contextmanager
    def _create(self, kind: str, name: str) -> Iterator[_Digested]:
        with self._folder.create(f"{staging_of(self.run_id)}/{kind}/{name}") as file:
            yield _Digested(file)

    @property
    def _folder(self) -> Folder:
        return Folder(self.directory)

    def _commit(self, _: None, files: list[Written], counts: dict[str, int]) -> str:
        outcomes = collections.Counter(counts)
        for file in files:
            outcomes.update(file.outcomes)
        check_counts(outcomes)
        for outcome in Outcome:
            count(EVENTS, outcomes[outcome], outcome=outcome)
        if self.baseline is not None:
            files = [*files, self._write_baseline(self.baseline)]
        written = sorted(files, key=lambda file: (file.kind, file.name))
        said = {
            **self.facts,
            "events": dict(sorted(outcomes.items())),
            "files": [dataclasses.asdict(file) for file in written],
        }
        text = json.dumps(said, indent=2)
        publish(self._folder, self.run_id, written, self.facts, text, self.replace)
        return text


class _Digested:
    """A file that is written, and its SHA-256."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Nothing: who opened it closes it."""

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class _WriteFile(beam.DoFn):
    """Writes the files of a bundle side by side: encoding a file leaves Python's lock to others."""

    def __init__(self, sink: WriteFiles, kind: str, order: tuple[str, str]) -> None:
        self._sink = sink
        self._kind = kind
        self._order = order

    def setup(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(WRITERS)

    def start_bundle(self) -> None:
        self._writing: list[concurrent.futures.Future[Written]] = []

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> None:
        number, batches = element
        job = self._pool.submit(self._sink.write_file, number, list(batches), self._kind, self._order)
        self._writing.append(job)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for job in self._writing:
            written = job.result()
            count(ROWS, written.rows, step="written")
            yield GlobalWindows.windowed_value(written, GlobalWindow().max_timestamp())

    def teardown(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def check_counts(outcomes: collections.Counter[str]) -> None:
    """Raise CountMismatch unless every event that was read has one outcome."""
    if (text := mismatch(outcomes)) is not None:
        raise CountMismatch(text)


def count_reasons(dead: pa.RecordBatch) -> dict[str, int]:
    """Dead letters by outcome, and the others than duplicates by step, field and rule of each of their reasons.

    A record with two reasons counts for both, so these numbers may add up to more than the dead letters.
    """
    found: collections.Counter[tuple[str, tuple[tuple[str, str], ...]]] = collections.Counter()
    for start in range(0, dead.num_rows, ROWS_AT_ONCE):
        part = dead.slice(start, ROWS_AT_ONCE)
        rows = rules_of(column(part, "reasons").to_pylist())
        found.update(zip(column(part, "step").to_pylist(), rows, strict=True))
    counts: collections.Counter[str] = collections.Counter()
    for (step, rules), letters in found.items():
        if rules[0][1] == DUPLICATE:
            counts[Outcome.DUPLICATE] += letters
            continue
        counts[Outcome.DEAD_LETTERED] += letters
        for field, rule in rules:
            counts[f"{Outcome.DEAD_LETTERED}: {step}: {field}: {rule}"] += letters
    return dict(counts)


def _as_line(record: WindowStatistics | Verdict) -> tuple[str, tuple[int, str]]:
    kind = "verdicts" if isinstance(record, Verdict) else "statistics"
    return kind, (record.window_end_us, record.to_json())


def _gather(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """All rows of the batches, which are taken out of their list: a column at a time, so that none is there twice."""
    names = batches[0].schema.names
    columns = [list(batch.columns) for batch in batches]
    batches.clear()
    gathered = [
        concat_batches([pa.RecordBatch.from_arrays([part.pop(0)], names=[name]) for part in columns]).column(0)
        for name in names
    ]
    return pa.RecordBatch.from_arrays(gathered, names=names)


def _in_order(batch: pa.RecordBatch, first: str, second: str) -> Iterator[pa.RecordBatch]:
    """The rows sorted by two columns, in parts of ROWS_AT_ONCE."""
    numbers = as_int64(column(batch, first))
    order = None
    if not (numbers[1:] > numbers[:-1]).all():
        order = sort_order(column(batch, second), numbers)
    for start in range(0, batch.num_rows, ROWS_AT_ONCE):
        if order is None:
            yield batch.slice(start, ROWS_AT_ONCE)
        else:
            yield take_rows(batch, order[start : start + ROWS_AT_ONCE])


def _encode(parts: Iterable[pa.RecordBatch], schema: pa.Schema, kind: str, file: Any) -> None:
    if kind == "jsonl":
        for part in parts:
            file.write(encode_json_lines(part))
        return
    fields = [pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema]
    with pq.ParquetWriter(file, pa.schema(fields), compression="snappy") as writer:
        for part in parts:
            plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in part.columns]
            writer.write_table(pa.Table.from_arrays(plain, schema=pa.schema(fields)))
