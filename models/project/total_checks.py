"""What can be wrong with declared tables of aggregates."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

from models.project.declarations import Project
from models.project.documents import Path
from models.project.expressions import Expression
from models.project.places import Fault
from models.project.rolling_checks import faults_of_reads
from models.project.syntax import ExpressionError
from models.project.table_checks import fault_of_sum
from models.project.tables import Totals

TAKEN = ("aggregate", "period_start", "period_end", "revision")  # columns of every table of aggregates


def check_totals(project: Project) -> Iterator[Fault]:
    """Each fault of `aggregates`."""
    for name, table in project.aggregates.items():
        path: Path = ("aggregates", name)
        for place, key in enumerate(table.by):
            yield from _check_key(project, (*path, "by", place), key, table.by[:place])
        for column, text in table.columns.items():
            if not re.fullmatch(r"[A-Za-z_]\w*", column) or column.startswith("__"):
                yield (*path, "columns", column), f"{column!r} is not a name: letters, digits and single underscores"
            if column in (*table.by, *TAKEN):
                yield (*path, "columns", column), f"{column} is the name of another column already"
            for message in _faults_of_column(project, table.model_copy(update={"columns": {column: text}})):
                yield (*path, "columns", column), message


def _check_key(project: Project, path: Path, key: str, before: list[str]) -> Iterator[Fault]:
    fields, label = project.contract.fields, project.label
    if key in before:
        yield path, f"{key} stands twice"
    if key in TAKEN:
        yield path, f"{key} is the name of another column already"
    if label and key == label.field:
        yield path, f"{key} is the label, which is not known when a period ends"
    if key in fields:
        if fields[key].kind not in ("int", "string"):
            yield path, f"{key} is neither a whole number nor a text"
    elif key in project.features.row:
        try:
            kind = Expression.parse(project.features.row[key]).check({n: f.kind for n, f in fields.items()})
        except ExpressionError:  # which is told where it stands
            return
        if kind not in ("int", "bool"):
            yield path, f"{key} is {kind}, not a whole number"
    else:
        yield path, f"{key!r} is neither a field of {project.schema_file} nor a row feature"


def _faults_of_column(project: Project, table: Totals) -> Iterator[str]:
    try:
        feature = next(table.expand())
    except ValueError as error:
        yield str(error)
        return
    if feature.aggregate == "approx_distinct" and importlib.util.find_spec("tfx_bsl") is None:
        yield "approx_distinct is tfx-bsl's, which is not installed: pip install tfx-bsl, or write distinct"
    yield from faults_of_reads(project, feature)
    if project.label and project.label.field in feature.reads:
        yield f"reads the label {project.label.field}, which is not known when a period ends"
    yield from fault_of_sum(project, feature)
