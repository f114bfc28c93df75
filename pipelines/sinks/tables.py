"""Tables of score rows that a run keeps up to date beside its files: what they are told, and when.

A run's files are placed first, then each table takes them in one commit, and `_SUCCESS.json` comes last. So a run that
is cut off in between is done again, and a table that has taken its rows already is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sinks.folder import Folder, open_file
from pipelines.sinks.listed import SCORES, Scope, Written

ROWS_AT_ONCE = 1 << 16


class Table(Protocol):
    """A table that score rows go to."""

    def check(self, folder: Folder, schema: pa.Schema | None, scope: Scope) -> None:
        """SinkError if the rows of a run with this sink can't be put there, or those of a schema once it is known."""

    def commit(self, folder: Folder, written: Sequence[Written], facts: Mapping[str, Any], scope: Scope) -> None:
        """Have these files' rows, and no others, in a scope, by one commit; again, it changes nothing."""


def score_files(written: Sequence[Written]) -> list[Written]:
    """The files of score rows among all of a run."""
    return [file for file in written if file.kind == SCORES]


def schema_of(folder: Folder, place: str) -> pa.Schema:
    """The columns of a Parquet file."""
    with open_file(folder.join(place)) as file:
        return pq.read_schema(file).remove_metadata()


def read_rows(folder: Folder, written: Sequence[Written]) -> Iterator[pa.RecordBatch]:
    """The rows of a run's score files, in their order."""
    for each in score_files(written):
        with open_file(folder.join(each.place)) as file:
            yield from pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE)
