"""Score rows and dead letters to files: complete and the same again, or not there at all.

Scores go to a file for each month of event time (or several, by a hash of the id), sorted, written under a
staging folder and moved into place once all are written and the job's count of events is right. `_SUCCESS.json`,
written last, lists what was written.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterable, Iterator
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from models import progress
from models.codecs import encode_json_lines
from models.quality.records import Verdict, WindowStatistics
from models.windows import sort_order
from pipelines.sinks.whole_rows import CompleteRows
from transforms.batches import as_int64, column, concat_batches, partition, shard_of, take_rows
from transforms.deduplicate import DUPLICATE

SUCCESS = "_SUCCESS.json"
SCORES = "scores"
DEAD_LETTERS = "dead_letters"
QUARANTINE = "quarantine"
QUALITY = "quality"
WRITERS = 2  # files encoded at once
ENDS = ("scored", "quarantined", "dead-lettered", "duplicate", "history", "labelled")


class CountMismatch(RuntimeError):
    """Not every event that was read came out as one score, dead letter or duplicate."""


@dataclasses.dataclass(frozen=True)
class Written:
    """A file that was written, not yet moved into place, and how many of its rows had which outcome."""

    kind: str
    name: str
    rows: int
    sha256: str
    outcomes: dict[str, int]


@dataclasses.dataclass(eq=False)
class WriteFiles(beam.PTransform):  # type: ignore[misc]
    """A mapping of `scores`, `dead_letters` and `counts` (outcome, events) → files under `directory`.

    With `quarantine`, `statistics` and `verdicts` in it, also the rows held back, and a line a record in `quality`.
    """

    directory: str
    event_id: str
    event_time: str
    format: Literal["parquet", "jsonl"] = "parquet"
    files: int = 1
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    source_format: str | None = None  # of files whose names don't tell it
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

    def write_file(self, number: int, batches: list[pa.RecordBatch], kind: str, order: tuple[str, str]) -> Written:
        """Write one file of one kind to the staging folder."""
        batch = _sorted(concat_batches(batches), *order)
        month, shard = divmod(number, self.files)
        prefix = "part" if kind == DEAD_LETTERS else str(np.datetime64(month, "M"))
        name = f"{prefix}-{shard:05d}-of-{self.files:05d}.{self.format}"
        data = _encode(batch, self.format)
        path = FileSystems.join(self._staging, kind, name)
        with FileSystems.create(path, compression_type="uncompressed") as file:
            file.write(data)
        progress.advance("written", batch.num_rows)
        ends = {SCORES: "scored", QUARANTINE: "quarantined"}
        outcomes = {ends[kind]: batch.num_rows} if kind in ends else count_reasons(batch)
        return Written(kind, name, batch.num_rows, hashlib.sha256(data).hexdigest(), outcomes)

    def _write_lines(self, element: tuple[str, Iterable[tuple[int, str]]]) -> Written:
        """Write the records of one kind, in the order of their windows."""
        kind, lines = element
        data = "".join(f"{line}\n" for _, line in sorted(lines)).encode()
        name = f"{kind}.jsonl"
        with FileSystems.create(
            FileSystems.join(self._staging, QUALITY, name), compression_type="uncompressed"
        ) as file:
            file.write(data)
        return Written(QUALITY, name, data.count(b"\n"), hashlib.sha256(data).hexdigest(), {})

    @property
    def _staging(self) -> str:
        return str(FileSystems.join(self.directory, f".staging-{self.run_id}"))

    def _commit(self, _: None, files: list[Written], counts: dict[str, int]) -> str:
        written = sorted(files, key=lambda file: (file.kind, file.name))
        outcomes = collections.Counter(counts)
        for file in written:
            outcomes.update(file.outcomes)
        check_counts(outcomes)
        success = FileSystems.join(self.directory, SUCCESS)
        if FileSystems.exists(success):
            FileSystems.delete([success])
        for kind in (SCORES, DEAD_LETTERS, QUARANTINE, QUALITY):
            names = [file.name for file in written if file.kind == kind]
            stale = FileSystems.exists(FileSystems.join(self.directory, kind))
            if names or stale or kind in (SCORES, DEAD_LETTERS):
                self._publish(kind, names)
        said = {
            **self.facts,
            "events": dict(sorted(outcomes.items())),
            "files": [dataclasses.asdict(file) for file in written],
        }
        text = json.dumps(said, indent=2)
        staged = FileSystems.join(self._staging, SUCCESS)
        with FileSystems.create(staged, compression_type="uncompressed") as file:
            file.write(text.encode())
        FileSystems.rename([staged], [success])
        self._clean_up()
        return text

    def _clean_up(self) -> None:
        """Remove staging folders: this run's, and those of runs into this folder that were killed."""
        pattern = FileSystems.join(self.directory, ".staging-*", "**")
        if "://" not in self.directory:
            for folder in pathlib.Path(self.directory).glob(".staging-*"):
                shutil.rmtree(folder)
            return
        left = [m.path for m in FileSystems.match([pattern])[0].metadata_list]
        if left:
            FileSystems.delete(left)

    def _publish(self, kind: str, names: list[str]) -> None:
        """Put the staged files of one kind in the place of what is there."""
        staged, target = (FileSystems.join(folder, kind) for folder in (self._staging, self.directory))
        if "://" not in self.directory:
            # One rename of a folder: a reader never sees some of the files. If it is gone, this was done before.
            if names and not os.path.isdir(staged) and os.path.isdir(target):
                return
            os.makedirs(staged, exist_ok=True)
            if os.path.isdir(target):
                os.rename(target, FileSystems.join(self._staging, f"former-{kind}"))
            os.rename(staged, target)
            return
        present = [m.path for m in FileSystems.match([FileSystems.join(target, "*")])[0].metadata_list]
        moves = [(FileSystems.join(staged, n), FileSystems.join(target, n)) for n in names]
        moves = [(source, final) for source, final in moves if FileSystems.exists(source)]
        if moves:
            FileSystems.rename([m[0] for m in moves], [m[1] for m in moves])
        stale = [path for path in present if path.rsplit("/", 1)[-1] not in names]
        if stale:
            FileSystems.delete(stale)


class _WriteFile(beam.DoFn):  # type: ignore[misc]
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
            yield GlobalWindows.windowed_value(job.result(), GlobalWindow().max_timestamp())

    def teardown(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def check_counts(outcomes: collections.Counter[str]) -> None:
    """Raise CountMismatch unless every event that was read has one outcome."""
    ended = sum(count for outcome, count in outcomes.items() if outcome in ENDS)
    if outcomes["read"] != ended:
        parts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ENDS if outcomes[outcome])
        raise CountMismatch(f"{outcomes['read']} events were read, but {ended} came out: {parts}")


def count_reasons(dead: pa.RecordBatch) -> dict[str, int]:
    """Dead letters by outcome, and the others than duplicates by step, field and rule of their first reason."""
    counts: collections.Counter[str] = collections.Counter()
    steps = column(dead, "step").to_pylist()
    for step, text in zip(steps, column(dead, "reasons").to_pylist(), strict=True):
        reason = json.loads(text)[0]
        if reason["rule"] == DUPLICATE:
            counts["duplicate"] += 1
        else:
            counts["dead-lettered"] += 1
            counts[f"dead-lettered: {step}: {reason['field']}: {reason['rule']}"] += 1
    return dict(counts)


def _as_line(record: WindowStatistics | Verdict) -> tuple[str, tuple[int, str]]:
    kind = "verdicts" if isinstance(record, Verdict) else "statistics"
    return kind, (record.window_end_us, record.to_json())


def _sorted(batch: pa.RecordBatch, first: str, second: str) -> pa.RecordBatch:
    numbers = as_int64(column(batch, first))
    if (numbers[1:] > numbers[:-1]).all():
        return batch
    order = sort_order(column(batch, second), numbers)
    return batch if (order[1:] > order[:-1]).all() else take_rows(batch, order)


def _encode(batch: pa.RecordBatch, kind: str) -> bytes:
    if kind == "jsonl":
        return encode_json_lines(batch)
    plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    table = pa.Table.from_arrays(plain, names=batch.schema.names)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="snappy")
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]
