"""A run's score files as a Delta table: they lie where they always do, and the table's log says which of them count.

A file's name tells its content, so nothing is ever written over, and each version of the table can be read until
somebody vacuums it. The days of a run are replaced by one commit to the log.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from models.partitions import DAY, HOUR, Partitions
from pipelines.sinks.folder import Folder, SinkError
from pipelines.sinks.listed import INPUTS, PROJECT, SCORES, SPEC, Scope, Written
from pipelines.sinks.tables import schema_of, score_files

if TYPE_CHECKING:
    from deltalake import DeltaTable

LOG = "_delta_log"
_TYPES = {DAY: pa.date32(), HOUR: pa.int32()}


@dataclasses.dataclass(frozen=True)
class Delta:
    """The table of the score rows of a sink."""

    project: str
    partitions: Partitions

    def check(self, folder: Folder, schema: pa.Schema | None, scope: Scope) -> None:
        """SinkError if the table has other columns, and not all of it is replaced, or can't be where it is to be."""
        if "%" in folder.path:
            raise SinkError(f"{folder.path}: its path has a %, with which no Delta table can be: name another sink")
        table = open_delta(folder)
        if table is not None and table.metadata().name != self.project:
            raise SinkError(f"{folder.join(SCORES)}: is a Delta table of another: move it away, or name another sink")
        other = table is not None and schema is not None and table.schema() != self._columns(schema)
        if other and not scope.span.is_all:
            raise SinkError(
                f"{folder.join(SCORES)}: the table's columns are not those of this run's rows: name another sink, or "
                "have all of it replaced by a run without a span of time and with --replace"
            )

    def commit(self, folder: Folder, written: Sequence[Written], facts: Mapping[str, Any], scope: Scope) -> None:
        """Have these files in the table in place of all others of the scope, by one commit if it has not."""
        from deltalake import CommitProperties
        from deltalake.exceptions import DeltaError
        from deltalake.transaction import create_table_with_add_actions

        files = score_files(written)
        schema = schema_of(folder, files[0].place) if files else None
        self.check(folder, schema, scope)
        table = open_delta(folder)
        before = {} if table is None else self._active(table, scope)
        wanted = {file.name: file for file in files}
        adds = [self._add(folder, file) for name, file in sorted(wanted.items()) if name not in before]
        gone = [before[name] for name in sorted(before.keys() - wanted.keys())]
        if not adds and not gone:
            return
        names = list(self._values(0))
        told = CommitProperties(
            custom_metadata={"headrace": {name: facts[name] for name in (PROJECT, SPEC, INPUTS) if name in facts}},
            max_commit_retries=0,  # a commit of somebody else meanwhile is an error
        )
        try:
            columns = table.schema() if table is not None and schema is None else self._columns(schema)
            if table is None:
                create_table_with_add_actions(
                    *(folder.join(SCORES), columns, adds), partition_by=names, name=self.project, commit_properties=told
                )
                return
            if columns == table.schema():
                table.create_write_transaction([*adds, *gone], "append", columns, names, commit_properties=told)
            else:  # all of the table is replaced, its columns too
                adds = [self._add(folder, file) for file in files]
                table.create_write_transaction(adds, "overwrite", columns, names, commit_properties=told)
        except DeltaError as error:
            raise _clear(folder, error) from error

    def _columns(self, schema: pa.Schema) -> Any:
        from deltalake import Schema

        of_partitions = [pa.field(name, _TYPES[name]) for name in self._values(0)]
        return Schema.from_arrow(pa.schema([*schema, *of_partitions]))

    def _values(self, start_us: int) -> dict[str, str]:
        """The values of the partition that starts then, by their columns, as the log has them."""
        named = dict(part.split("=") for part in self.partitions.name(start_us).split("/"))
        return {name: value if name == DAY else str(int(value)) for name, value in named.items()}

    def _add(self, folder: Folder, file: Written) -> Any:
        from deltalake.transaction import AddAction

        start_us = self.partitions.start_of(file.name)
        assert start_us is not None
        size, stats = folder.size(file.place), json.dumps({"numRecords": file.rows})
        return AddAction(file.name, size, self._values(start_us), _now_ms(), True, stats)

    def _active(self, table: DeltaTable, scope: Scope) -> dict[str, Any]:
        """How the files of the scope that the table has now are removed from it, by their paths."""
        from deltalake.transaction import RemoveAction

        found = {}
        for row in pa.table(table.get_add_actions()).select(["path", "size_bytes", "partition"]).to_pylist():
            values: dict[str, str | None] = {name: str(value) for name, value in row["partition"].items()}
            start_us = self.partitions.parse(f"{values[DAY]}T{int(values.get(HOUR) or 0):02d}:00")
            if scope.span.is_all or start_us in scope.span:
                found[row["path"]] = RemoveAction(row["path"], True, _now_ms(), row["size_bytes"], values)
        return found


def open_delta(folder: Folder) -> DeltaTable | None:
    """The table of a sink's score rows as it is now; None if there is none yet."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return DeltaTable(folder.join(SCORES))
    except TableNotFoundError:
        return None
    except DeltaError as error:
        raise _clear(folder, error) from error


def active_names(folder: Folder) -> list[str]:
    """The files that the table of a sink's score rows has now."""
    table = open_delta(folder)
    return sorted(pa.table(table.get_add_actions())["path"].to_pylist()) if table else []


def is_delta(folder: Folder) -> bool:
    """Whether a sink's score rows are a table."""
    return bool(folder.names(f"{SCORES}/{LOG}"))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _clear(folder: Folder, error: Exception) -> SinkError:
    return SinkError(f"{folder.join(SCORES)}: the Delta table can't be used: {' '.join(str(error).split())}")
