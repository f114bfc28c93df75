"""What a graph that scores nothing leaves in a folder of this machine: counts, and answers to a spine as they come."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import as_int64, column
from models.record import ASKED
from pipelines.sinks.accounting import count_reasons

_COUNTS = "counts.json"


@dataclasses.dataclass(eq=False)
class KeepCounts(beam.PTransform):
    """{"dead_letters", "counts"} → a file that `read_counts` reads."""

    folder: str

    def expand(self, pcolls: dict[str, beam.PCollection]) -> beam.PCollection:
        """One element, when the counts are written."""
        reasons = pcolls["dead_letters"] | "Reasons" >> beam.FlatMap(_reasons).with_output_types(tuple[str, int])
        counts = (pcolls["counts"], reasons) | "All counts" >> beam.Flatten() | "Sum counts" >> beam.CombinePerKey(sum)
        once = pcolls["counts"].pipeline | "Once" >> beam.Create([None])
        return once | "Write counts" >> beam.Map(self._write_counts, beam.pvalue.AsDict(counts))

    def _write_counts(self, _: None, counts: dict[str, int]) -> None:
        pathlib.Path(self.folder, _COUNTS).write_text(json.dumps(counts))


class KeepAnswers(KeepCounts):
    """{"answers": batches of `complete`, "dead_letters", "counts"} → files that `read_answers` reads."""

    def expand(self, pcolls: dict[str, beam.PCollection]) -> beam.PCollection:
        """One element, when the counts are written."""
        pcolls["answers"] | "Keep" >> beam.Map(self._keep)
        return super().expand(pcolls)

    def _keep(self, batch: pa.RecordBatch) -> None:
        """Each row comes in one batch, so that the first one's number names it."""
        path = pathlib.Path(self.folder, f"{column(batch, ASKED)[0].as_py()}.arrow")
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)


def _reasons(letters: pa.RecordBatch) -> Iterator[tuple[str, int]]:
    yield from count_reasons(letters).items()


def read_answers(folder: str) -> tuple[pa.Table, collections.Counter[str]]:
    """The answers in the order of the spine's rows, and events by outcome."""
    tables = []
    for path in pathlib.Path(folder).glob("*.arrow"):
        with pa.ipc.open_file(pa.memory_map(str(path))) as file:
            tables.append(file.read_all())
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    order = np.argsort(as_int64(table.column(ASKED).combine_chunks()))
    return table.take(pa.array(order)).drop_columns([ASKED]), read_counts(folder)


def read_counts(folder: str) -> collections.Counter[str]:
    """Events by outcome, and dead letters by reason."""
    return collections.Counter(json.loads(pathlib.Path(folder, _COUNTS).read_text()))
