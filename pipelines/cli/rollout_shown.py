"""What people see of a comparison of challenger and champion in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from models.rollout.rules import Decided
from models.rollout.tables import facts_of, notes_of, tables_of
from pipelines.terminal import console, facts_table

MAX_ROWS = 30  # of a table


def print_decided(decided: Decided, versions: Mapping[str, int]) -> None:
    """Print facts, tables, notes, and the verdict last."""
    console.print(facts_table(facts_of(decided, versions)))
    for shown in tables_of(decided):
        table = Table(title=shown.title, title_justify="left")
        for place, name in enumerate(shown.headings):
            table.add_column(name, justify="left" if place < shown.texts else "right")
        for row in shown.rows[:MAX_ROWS]:
            table.add_row(*map(escape, row))
        console.print(table)
        if len(shown.rows) > MAX_ROWS:
            console.print(f"and {len(shown.rows) - MAX_ROWS:,} more")
    for note in notes_of(decided.comparison):
        console.print(escape(note), soft_wrap=True)
    console.print(f"verdict: {decided.verdict}", soft_wrap=True)
