"""How many score rows there are by hour of event time and decision, of one file and of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.project.declarations import Project
from models.record import DECISION
from pipelines.results import DAY_US, RunError
from pipelines.sinks.folder import open_file

HOUR_US = DAY_US // 24
UNDECIDED = "scored"  # what rows without a decision are called
_BATCH_ROWS = 1 << 16
_MOST_HOURS = 72  # of event time that are shown by the hour
_MOST_DAYS = 400  # and by the day
_MOST_WEEKS = 1500  # steps of weeks
MOST_DECISIONS = 12
OTHERS = "other decisions"
# Decision → start of the hour, microseconds since 1970 UTC → rows.
Counts = Mapping[str, Mapping[int, int]]
Int64 = npt.NDArray[np.int64]


def count_file(path: str, project: Project) -> Counts:
    """The rows of a file of scores; RunError if it is none that can be read."""
    counts: dict[str, dict[int, int]] = {}
    try:
        with open_file(path) as opened, pq.ParquetFile(opened) as file:
            there = set(file.schema_arrow.names)
            if project.event.time not in there:
                raise RunError(f"{path}: has no {project.event.time}: it is no file of scores of {project.name}")
            names = [project.event.time, *({DECISION} & there)]
            for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
                _count(batch, project.event.time, counts)
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{path}: can't be read: {' '.join(str(error).split())}") from None
    return counts


def _count(batch: pa.RecordBatch, time: str, counts: dict[str, dict[int, int]]) -> None:
    times = batch.column(time).drop_null().cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    names, codes = [UNDECIDED], np.zeros(len(times), np.int64)
    if DECISION in batch.schema.names and len(times) == len(batch):
        decided = batch.column(DECISION).dictionary_encode()
        names = [*map(str, decided.dictionary.to_pylist()), UNDECIDED]
        codes = pc.fill_null(decided.indices, len(names) - 1).to_numpy().astype(np.int64)
    keys, rows = np.unique(times // HOUR_US * len(names) + codes, return_counts=True)
    for key, number in zip(keys.tolist(), rows.tolist(), strict=True):
        of = counts.setdefault(names[key % len(names)], {})
        hour = key // len(names) * HOUR_US
        of[hour] = of.get(hour, 0) + number


def add_up(files: Iterable[Counts]) -> dict[str, dict[int, int]]:
    """The counts of all files; they depend on no order."""
    total: dict[str, dict[int, int]] = {}
    for counts in files:
        for name, hours in counts.items():
            of = total.setdefault(name, {})
            for hour, rows in hours.items():
                of[hour] = of.get(hour, 0) + rows
    return total


def step_of(first_us: int, last_us: int) -> int:
    """The length of a step of event time in which rows are shown: an hour, a day or weeks, in microseconds."""
    hours = (last_us - first_us) // HOUR_US + 1
    if hours <= _MOST_HOURS:
        return HOUR_US
    if hours <= 24 * _MOST_DAYS:
        return DAY_US
    return 7 * DAY_US * -(-hours // (7 * 24 * _MOST_WEEKS))


def in_steps(total: Counts, declared: Sequence[str]) -> tuple[int, list[int], dict[str, list[int]]]:
    """The step's length, the starts of all steps from first to last, in microseconds, and by decision rows of each.

    Declared decisions come first, in their order, then others by name; with more than MOST_DECISIONS, the last ones
    are one. Without rows there is no step.
    """
    hours = np.array(sorted({hour for of in total.values() for hour in of}), np.int64)
    names = [name for name in declared if name in total] + sorted(total.keys() - set(declared))
    if not len(hours):
        return HOUR_US, [], {}
    step = step_of(int(hours[0]), int(hours[-1]))
    first = int(hours[0]) // step
    number = int(hours[-1]) // step - first + 1
    rows: dict[str, Int64] = {}
    for place, name in enumerate(names):
        shown = name if place < MOST_DECISIONS else OTHERS
        made = rows.setdefault(shown, np.zeros(number, np.int64))
        places = np.fromiter(total[name], np.int64) // step - first
        np.add.at(made, places, np.fromiter(total[name].values(), np.int64))
    return step, [(first + place) * step for place in range(number)], {name: of.tolist() for name, of in rows.items()}
