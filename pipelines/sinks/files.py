"""Score rows and dead letters to files: complete and the same again, or not there at all.

Scores go to a file for each partition of event time (or several, by a hash of the id), sorted, written under a
staging folder and moved into place once all are written and the job's count of events is right. `_SUCCESS.json`,
written last, lists what is there.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import as_int64, column, partition, shard_of, take_rows, without
from models.metrics import EVENTS, ROWS
from models.partitions import EVER, Partitions, Span, joined
from models.quality.label_metrics import as_of_us, sort_records
from models.quality.records import Verdict, WindowStatistics
from models.record import BUNDLE_ID, DECISION, SOURCE, Outcome
from models.routes import DUE, FALLBACK, LABEL_METRICS, ROUTED, SHADOWS, UNSCORED
from models.score import take_decided
from models.totals import TABLE, last_revisions, period_end_us
from pipelines.sinks.accounting import OTHER_DAYS, check_counts, count_reasons
from pipelines.sinks.closes import Closes
from pipelines.sinks.encode import Digested, encode, gather, in_order, in_order_on_disk
from pipelines.sinks.folder import Folder, claim, staging_of
from pipelines.sinks.listed import (
    AGGREGATES,
    BASELINE,
    DEAD_LETTERS,
    FEATURE_SET,
    MANIFEST,
    PARTITION,
    QUALITY,
    QUARANTINE,
    SCORES,
    SPANS,
    SUCCESS,
    TABLE_FORMAT,
    Scope,
    Written,
    read_former,
    untimed,
)
from pipelines.sinks.publish import check_sink, publish, sweep
from pipelines.sinks.state import KeepStates, StateFile, WriteParts
from pipelines.sinks.tables import Table, schema_of, score_files
from pipelines.sinks.whole_rows import CompleteRows
from transforms.batches import GatherOnDisk, timestamp_of
from transforms.metrics import count

STATE, SOURCE_SPANS = "state", "source_spans"  # parts of states, and the spans of event times by source
__all__ = ["DEAD_LETTERS", "QUALITY", "QUARANTINE", "SCORES", "SUCCESS", "WriteFiles"]

UNTIMED = (DEAD_LETTERS, FALLBACK)  # rows whose time may not be known, and which are all there at the end
_SECOND_US = 1_000_000
_ALL = "all"  # outcomes together
POSITION = "position"  # of dead letters alone
_NO_TIME = -(1 << 50)  # the start, in seconds, of the partition of dead letters without a time


@dataclasses.dataclass(eq=False)
class WriteFiles(beam.PTransform):
    """A mapping of `scores`, `dead_letters` and `counts` (outcome, events) → files under `directory`.

    With `quarantine`, `statistics` and `verdicts` in it, also the rows held back, and a line a record in `quality`,
    beside the `baseline` that windows were compared with; with `aggregates`, a folder a table; with `shadows`, a folder
    a bundle. Rows of the decisions `routed` are in the folders named, too. `facts` stand in `_SUCCESS.json`; by those
    that `publish` names, a run knows its own output again, and with `replace` it replaces all that other runs left. A
    run over a `span` of event time replaces the partitions of that span and no others; dead letters of other times are
    counted as history, and those without one of the `times` have a partition of their own. Where it is known when a
    partition `closes`, its scores are written then, and not kept until the end.
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
    routed: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # folder → decisions
    partitions: Partitions = Partitions()  # noqa: RUF009, it is frozen
    span: Span = EVER
    times: Span = EVER  # that events can have
    keep: KeepStates | None = None
    closes: Closes | None = None
    tables: tuple[Table, ...] = ()  # that score rows go to
    versioned: bool = False  # score files are never written over: their names tell their content
    run_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def expand(self, pcolls: dict[str, beam.PCollection]) -> beam.PCollection:
        """One element, what `_SUCCESS.json` says, when all is in place."""
        scores = self._write(pcolls["scores"], SCORES)
        chosen = pcolls["dead_letters"] | "Of span" >> beam.FlatMap(self._of_span).with_output_types(
            pa.RecordBatch, others=tuple[str, int]
        ).with_outputs("others", main="letters")
        whole = chosen.letters | "Complete rows" >> CompleteRows(self.source_format)
        spans = [] if self.keep is None else [beam.pvalue.AsDict(pcolls[SOURCE_SPANS])]
        dead = self._write(whole, DEAD_LETTERS, spans=spans)
        kinds = [scores, dead]
        if "verdicts" in pcolls:
            kinds.append(self._write(pcolls[QUARANTINE], QUARANTINE))
            records = (pcolls["statistics"], pcolls["verdicts"]) | "Quality" >> beam.Flatten()
            lines = records | "As lines" >> beam.Map(self._as_line).with_output_types(tuple[str, tuple[int, str]])
            kinds.append(lines | "Gather quality" >> beam.GroupByKey() | "Write quality" >> beam.Map(self._write_lines))
        if AGGREGATES in pcolls:
            named = pcolls[AGGREGATES] | "By table" >> beam.WithKeys(self._table_of).with_output_types(
                tuple[str, pa.RecordBatch]
            )
            kinds.append(named | "Gather tables" >> beam.GroupByKey() | "Write tables" >> beam.Map(self._write_table))
        if LABEL_METRICS in pcolls:
            known = beam.WithKeys(self._known_in).with_output_types(tuple[str, pa.RecordBatch])
            gathered = pcolls[LABEL_METRICS] | "By day" >> known | "Gather label metrics" >> beam.GroupByKey()
            kinds.append(gathered | "Write label metrics" >> beam.Map(self._write_label_metrics))
        if SHADOWS in pcolls:
            by_bundle = beam.FlatMap(self._by_bundle).with_output_types(tuple[str, pa.RecordBatch])
            gathered = pcolls[SHADOWS] | "By bundle" >> by_bundle | "Gather shadows" >> beam.GroupByKey()
            kinds.append(gathered | "Write shadows" >> beam.Map(self._write_shadow).with_output_types(Written))
        if FALLBACK in pcolls:
            kinds.append(self._write(pcolls[FALLBACK], FALLBACK, spans=spans))
        for rows in (SCORES, FALLBACK) if self.routed else ():
            for name, decisions in self.routed.items() if rows in pcolls else ():
                take = beam.Map(take_decided, decisions).with_output_types(pa.RecordBatch)
                taken = pcolls[rows] | f"Take {rows} of {name}" >> take
                kinds.append(self._write(taken, rows, name, spans if rows == FALLBACK else ()))
        files = kinds | "Files" >> beam.Flatten()
        counts = (
            (pcolls["counts"], chosen.others) | "All counts" >> beam.Flatten() | "Sum counts" >> beam.CombinePerKey(sum)
        )
        sides = [beam.pvalue.AsList(files), beam.pvalue.AsDict(counts)]
        if self.keep is not None:
            parts = pcolls[STATE] | "State" >> WriteParts(self.keep.states.path, self.run_id)
            sides += [beam.pvalue.AsList(parts), *spans]
        once = scores.pipeline | "Once" >> beam.Create([None])
        return once | "Commit" >> beam.Map(self._commit, *sides)

    def _write(self, pcoll: beam.PCollection, rows: str, folder: str | None = None, spans: Sequence[Any] = ()) -> Any:
        """Files of rows of a kind, in its own folder or another."""
        timed = rows not in UNTIMED
        spread = beam.FlatMap(self._by_time) if timed else beam.FlatMap(self._by_time_if_any, *spans)
        label = f"{rows} of {folder}" if folder else rows
        spreaded = pcoll | f"Spread {label}" >> spread.with_output_types(tuple[int, pa.RecordBatch])
        closing = timed and self.closes is not None
        if closing:
            spreaded |= f"Until closed {label}" >> beam.WindowInto(beam.window.FixedWindows(1))
        written = (
            spreaded
            | f"Gather {label}" >> (beam.GroupByKey() if timed else GatherOnDisk())
            | f"Write {label}" >> beam.Map(self._write_file, rows, folder or rows).with_output_types(Written)
        )
        return written | f"Together {label}" >> beam.WindowInto(beam.window.GlobalWindows()) if closing else written

    def _of_span(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """Dead letters that are of the span or of no time, and how many are of another."""
        times = column(batch, "event_time")
        chosen = _are_in(times, self.span) | ~_are_in(times, self.times)
        if others := int(np.count_nonzero(~chosen)):
            yield beam.pvalue.TaggedOutput("others", (Outcome.HISTORY, others))
            yield beam.pvalue.TaggedOutput("others", (OTHER_DAYS, others))
            batch = take_rows(batch, np.flatnonzero(chosen))
        if batch.num_rows:
            yield batch

    def _by_time(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """Scores by partition, and within it by a hash of the id if there are several files."""
        starts = self.partitions.starts_us(as_int64(column(batch, self.event_time))) // _SECOND_US
        shards = shard_of(column(batch, self.event_id), self.files)
        for number, rows in partition(batch, starts * self.files + shards):
            if self.closes is None:
                yield number, rows
            else:
                end_us = self.partitions.next_us(number // self.files * _SECOND_US)
                yield beam.window.TimestampedValue((number, rows), timestamp_of(self.closes.at_us(end_us)))

    def _by_time_if_any(
        self, batch: pa.RecordBatch, spans: Mapping[str, tuple[int, int]] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Rows whose time may not be known by partition, or by the state that knows their file, if states are kept."""
        is_letter = POSITION in batch.schema.names
        times = column(batch, "event_time" if is_letter else self.event_time)
        starts = self.partitions.starts_us(as_int64(times.fill_null(0))) // _SECOND_US
        none = np.full(len(starts), _NO_TIME)
        if self.keep is not None:
            sources = column(batch, "source" if is_letter else SOURCE).dictionary_encode()
            untils = [self.keep.until_us(source, spans or {}) for source in sources.dictionary.to_pylist()]
            none += np.array(untils, np.int64)[sources.indices.to_numpy()] // _SECOND_US
        starts = np.where(_are_in(times, self.times), starts, none)
        rows = batch if is_letter else without(batch, SOURCE)
        shards = shard_of(column(batch, POSITION if is_letter else self.event_id), self.files)
        yield from partition(rows, starts * self.files + shards)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder while the graph runs; SinkError before it does if its output could not be published."""
        with contextlib.ExitStack() as held:
            held.enter_context(claim(self._folder, self.run_id, take_over=True))
            if self.keep is not None:
                held.enter_context(self.keep.states.held(self.run_id))
            check_sink(self._folder, self._facts, self.replace, self._scope, kinds=self.routed)
            for table in self.tables:
                table.check(self._folder, None, self._scope)
            sweep(self._folder, self.run_id)
            yield

    def discard(self) -> None:
        """Remove what a graph that failed here has staged, unless it had begun to publish."""
        if not self._folder.is_file(f"{staging_of(self.run_id)}/{MANIFEST}"):
            self._folder.remove_staging(staging_of(self.run_id))
            if self.keep is not None:
                self.keep.states.folder.remove_staging(staging_of(self.run_id))

    def _write_file(self, element: tuple[int, Iterable[pa.RecordBatch]], rows: str, folder: str) -> Written:
        """Write one file of one kind of rows to a folder of the staging folder."""
        number, batches = element
        start, shard = divmod(number, self.files)
        prefix = "unscored" if rows == FALLBACK and folder != FALLBACK else "part"  # beside rows with scores
        part = f"{prefix}-{shard:05d}-of-{self.files:05d}.{self.format}"
        if start > _NO_TIME // 2:
            name = f"{self.partitions.name(start * _SECOND_US)}/{part}"
        else:
            name = untimed(part, (start - _NO_TIME) * _SECOND_US if self.keep else None)
        order = (POSITION, "source") if rows == DEAD_LETTERS else (self.event_time, self.event_id)
        parts = in_order_on_disk(batches, *order) if rows in UNTIMED else in_order(gather(list(batches)), *order)
        outcomes: collections.Counter[str] = collections.Counter()
        with self._create(folder, name) as file:
            encode(self._counted(parts, rows, folder, outcomes), self.format, file)
        if self.versioned and folder == SCORES:
            staged, name = name, name.replace(part, f"part-{shard:05d}-{file.hexdigest()[:32]}.{self.format}")
            place = f"{staging_of(self.run_id)}/{folder}"
            self._folder.move([(f"{place}/{staged}", f"{place}/{name}")])
        total = outcomes.pop(_ALL)
        count(ROWS, total, step="written")
        features = None if rows in UNTIMED else self.facts.get(FEATURE_SET)
        return Written(folder, name, total, file.hexdigest(), dict(outcomes), features)

    def _counted(
        self, parts: Iterable[pa.RecordBatch], rows: str, folder: str, outcomes: collections.Counter[str]
    ) -> Iterator[pa.RecordBatch]:
        """The same parts of a file, whose rows are counted, and by their outcomes."""
        for part in parts:
            outcomes[_ALL] += part.num_rows
            outcomes.update({ROUTED + folder: part.num_rows} if folder in self.routed else self._outcomes(rows, part))
            yield part

    def _outcomes(self, rows: str, batch: pa.RecordBatch) -> dict[str, int]:
        """How many rows had which outcome; of those decided also how many are due in which other folder."""
        if rows == DEAD_LETTERS:
            return count_reasons(batch)
        if rows == QUARANTINE:
            return {Outcome.QUARANTINED: batch.num_rows}
        said = Outcome.SCORED if rows == SCORES else f"{UNSCORED}{column(batch, DECISION)[0]}"
        due = {name: take_decided(batch, decisions).num_rows for name, decisions in self.routed.items()}
        return {said: batch.num_rows, **{DUE + name: number for name, number in due.items()}}

    def _write_table(self, element: tuple[str, Iterable[pa.RecordBatch]]) -> Written:
        """Write a table's periods that end in one partition, in their order, with the last revision of each row."""
        folder, found = element
        periods: dict[int, list[pa.RecordBatch]] = {}
        for batch in found:
            periods.setdefault(period_end_us(batch), []).append(batch)
        batches = [last_revisions(periods[end_us]) for end_us in sorted(periods)]
        name = f"{folder}/part.{self.format}"
        with self._create(AGGREGATES, name) as file:
            encode(iter(batches), self.format, file)
        return Written(AGGREGATES, name, sum(batch.num_rows for batch in batches), file.hexdigest(), {})

    def _table_of(self, batch: pa.RecordBatch) -> str:
        start_us = self.partitions.start_us(period_end_us(batch) - 1)
        return f"{column(batch, TABLE)[0].as_py()}/{self.partitions.name(start_us)}"

    def _write_label_metrics(self, element: tuple[str, Iterable[pa.RecordBatch]]) -> Written:
        """Write what became known in one partition, in the order of windows and revisions."""
        name, records = f"{element[0]}/part.{self.format}", sort_records(gather(list(element[1])))
        with self._create(LABEL_METRICS, name) as file:
            encode(iter([records]), self.format, file)
        return Written(LABEL_METRICS, name, records.num_rows, file.hexdigest(), {})

    def _known_in(self, records: pa.RecordBatch) -> str:
        return self.partitions.name(self.partitions.start_us(as_of_us(records) - 1))

    def _by_bundle(self, batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Rows of one shadow by its bundle and their partition."""
        bundle = column(batch, BUNDLE_ID)[0].as_py()
        starts = self.partitions.starts_us(as_int64(column(batch, self.event_time))) // _SECOND_US
        for start, rows in partition(batch, starts):
            yield f"{bundle}/{self.partitions.name(start * _SECOND_US)}", rows

    def _write_shadow(self, element: tuple[str, Iterable[pa.RecordBatch]]) -> Written:
        """Write what a shadow made of the events of one partition, in the order of the scores."""
        name, batch = f"{element[0]}/part.{self.format}", gather(list(element[1]))
        with self._create(SHADOWS, name) as file:
            encode(in_order(batch, self.event_time, self.event_id), self.format, file)
        return Written(SHADOWS, name, batch.num_rows, file.hexdigest(), {})

    def _as_line(self, record: WindowStatistics | Verdict) -> tuple[str, tuple[int, str]]:
        kind = "verdicts" if isinstance(record, Verdict) else "statistics"
        start_us = self.partitions.start_us(record.window_end_us - 1)
        return f"{self.partitions.name(start_us)}/{kind}", (record.window_end_us, record.to_json())

    def _write_lines(self, element: tuple[str, Iterable[tuple[int, str]]]) -> Written:
        """Write the records of one kind on windows that end in one partition, in the windows' order."""
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
    def _create(self, kind: str, name: str) -> Iterator[Digested]:
        with self._folder.create(f"{staging_of(self.run_id)}/{kind}/{name}") as file:
            yield Digested(file)

    @property
    def _folder(self) -> Folder:
        return Folder(self.directory)

    def _commit(
        self,
        _: None,
        files: list[Written],
        counts: dict[str, int],
        parts: Sequence[StateFile] = (),
        spans: Mapping[str, tuple[int, int]] | None = None,
    ) -> str:
        if self.keep is not None:
            self.keep.check(spans or {})
        outcomes = collections.Counter(counts)
        for file in files:
            outcomes.update(file.outcomes)
        check_counts(outcomes)
        for outcome in Outcome:
            count(EVENTS, outcomes[outcome], outcome=outcome)
        if self.baseline is not None:
            files = [*files, self._write_baseline(self.baseline)]
        written = sorted(files, key=lambda file: (file.kind, file.name))
        scope, former = self._scope, read_former(self._folder)
        kept, done = ([], ()) if scope.span.is_all else (former.kept(self._folder, scope), former.spans)
        listed = [*kept, *map(dataclasses.asdict, written)]
        said = {
            **self._facts,
            SPANS: [span.facts() for span in joined([*done, self.span])],
            "events": dict(sorted(outcomes.items())),
            "files": sorted(listed, key=lambda file: (file["kind"], file["name"])),
        }
        text = json.dumps(said, indent=2)
        self._check_tables(written)
        publish(self._folder, self.run_id, written, self._facts, text, self.replace, self._scope, self.tables)
        if self.keep is not None:
            self.keep.publish(self.run_id, parts, spans or {})
        return text

    def _check_tables(self, written: Sequence[Written]) -> None:
        """SinkError if a table can't take the rows that are staged, while nothing has been published yet."""
        staged = [f"{staging_of(self.run_id)}/{file.place}" for file in score_files(written)] if self.tables else []
        for place in [each for each in staged if self._folder.is_file(each)][:1]:
            for table in self.tables:
                table.check(self._folder, schema_of(self._folder, place), self._scope)

    @property
    def _facts(self) -> dict[str, Any]:
        return {**self.facts, PARTITION: self.partitions.facts(), **({TABLE_FORMAT: "delta"} if self.versioned else {})}

    @property
    def _scope(self) -> Scope:
        return Scope(self.partitions, Span() if self.replace else self.span, adds=self.keep is not None)


def _are_in(times: pa.Array, span: Span) -> Any:
    """Which times, null where there is none, are in a span, bool[n]."""
    return np.asarray(times.is_valid()) & span.holds(as_int64(times.fill_null(0)))
