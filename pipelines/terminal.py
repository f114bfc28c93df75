"""The terminal, where there is one: a live line while a job works, and plain tables of facts."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipelines.process import repeated

console = Console(highlight=False)
_REFRESH_SECONDS = 0.2
STEPS = ("read", "windowed", "scored", "written")  # as they are shown


@contextlib.contextmanager
def working(title: str, read: Callable[[], Mapping[str, int]] | None = None) -> Iterator[collections.Counter[str]]:
    """Show a spinner, the time and how much was done; nothing where the output is no terminal.

    What was done is what `read` tells, or, without it, what the caller adds to the counter.
    """
    counted: collections.Counter[str] = collections.Counter()
    if not console.is_terminal:
        yield counted
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title)

        def refresh() -> None:
            done = read() if read else counted
            parts = [f"{done[step]:,} {step}" for step in STEPS if step in done]
            bar.update(task, description=" · ".join([title, *parts]))

        with repeated(refresh, _REFRESH_SECONDS, "progress"):
            yield counted


def facts_table(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values, without a frame."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    return table
