"""Score rows to parts of windows of event time, which add up to a window whatever rows each was made of."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import Keys, as_dictionary, as_int64, column, hash_keys, is_provisional, take_rows
from models.project.declarations import Project
from models.quality.calibration import is_estimated
from models.quality.sampling import BUNDLE, HASH, ID, TIME, least
from models.quality.window_statistics import BASELINE_ROWS, Part, baseline_of
from models.record import BUNDLE_ID, DECISION, SINCE

_END, _COUNTERS = b"headrace.window_end_us", b"headrace.counters"
_SEEN = ("bundle.", "since.")  # counters of what no declaration names


def window_end(time_us: Any, window_us: int) -> Any:
    """The end of the window [start, end) that a time, or each of an array, lies in."""
    return (time_us // window_us + 1) * window_us


def due_end(end_us: Any, boundary_us: int) -> Any:
    """The end of the slice with which all rows of a window that ends at `end_us`, or of each of an array, are there."""
    return -(-end_us // boundary_us) * boundary_us


def sum_up(batch: pa.RecordBatch, project: Project) -> Iterator[tuple[int, Part]]:
    """For each window that has rows in a batch of score rows, its end and the part that they are.

    Provisional rows are left out: they come once more when the watermark has passed them.
    """
    assert project.quality is not None
    if not batch.num_rows or is_provisional(batch):
        return
    ends = window_end(as_int64(column(batch, project.event.time)), project.quality.window)
    yield from _parts(batch, ends, project, project.quality.sample)


def make_baseline(rows: Iterable[pa.RecordBatch], project: Project) -> bytes:
    """A baseline file of score rows in any order and split; BaselineError if there are none."""
    parts, times = [], []
    for batch in rows:
        if batch.num_rows:
            parts += [part for _, part in _parts(batch, np.zeros(batch.num_rows, np.int64), project, BASELINE_ROWS)]
            event_times = as_int64(column(batch, project.event.time))
            times += [int(event_times.min()), int(event_times.max())]
    return baseline_of(parts, min(times, default=0), max(times, default=0) + 1, project)


def _parts(batch: pa.RecordBatch, ends: Keys, project: Project, size: int) -> Iterator[tuple[int, Part]]:
    if (np.diff(ends) < 0).any():
        order = np.argsort(ends, kind="stable")
        batch, ends = take_rows(batch, order), ends[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ends)) + 1])
    watched = {name: column(batch, name) for name in (*project.watched_columns, *project.said_columns)}
    counts = {"rows": np.diff(np.append(starts, len(ends)))}
    counts |= {f"decision.{band.action}": np.zeros(len(starts), np.int64) for band in project.decisions}
    counts |= {name: np.add.reduceat(flags, starts, dtype=np.int64) for name, flags in _flags(batch, watched, project)}
    for kind, name in (("decision", DECISION), ("bundle", BUNDLE_ID), ("since", SINCE)):
        if name in batch.schema.names:
            counts |= _value_counts(kind, column(batch, name), starts)
    ids, times = column(batch, project.event.id), column(batch, project.event.time)
    columns = {ID: ids, TIME: times, **watched}
    if is_estimated(project) and BUNDLE_ID in batch.schema.names:
        columns[BUNDLE] = column(batch, BUNDLE_ID)
    seen, hashes = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), hash_keys(ids)
    for place, (start, stop) in enumerate(itertools.pairwise([*starts.tolist(), len(ends)])):
        rows = least(hashes[start:stop], size) + start
        taken = map(_plain, seen.take(pa.array(rows)).columns)
        sample = pa.RecordBatch.from_arrays([pa.array(hashes[rows]), *taken], names=[HASH, *columns])
        counters = {name: int(values[place]) for name, values in counts.items()}
        for name in [name for name, number in counters.items() if not number and name.startswith(_SEEN)]:
            del counters[name]  # of other rows of the batch
        yield int(ends[start]), Part(counters, sample)


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _flags(batch: pa.RecordBatch, watched: dict[str, pa.Array], project: Project) -> Iterator[tuple[str, Keys]]:
    """Yes or no for each row: a column without a finite value, an entity that was not seen before."""
    for name, values in watched.items():
        if pa.types.is_floating(values.type):
            yield f"null.{name}", ~np.isfinite(values.to_numpy(zero_copy_only=False))
        elif values.null_count:
            yield f"null.{name}", values.is_null().to_numpy(zero_copy_only=False)
        else:
            yield f"null.{name}", np.zeros(len(values), bool)
    for entity, (name, most) in unseen_features(project).items():
        yield f"unseen.{entity}", column(batch, name).to_numpy(zero_copy_only=False) <= most


def unseen_features(project: Project) -> dict[str, tuple[str, int]]:
    """By entity, the count over its longest window, and what it is at most for an entity not seen in it before."""
    found: dict[str, tuple[str, int]] = {}
    counts = [feature for feature in project.rolling_features if feature.is_plain_count]
    for feature in sorted(counts, key=lambda feature: (feature.window_us, -feature.delay_us)):
        found[feature.entity] = (feature.name, int(feature.include_current and not feature.delay_us))
    return found


def _value_counts(kind: str, values: pa.Array, starts: Keys) -> dict[str, Keys]:
    """The rows with each value between one start and the next."""
    encoded = as_dictionary(values)
    indices = encoded.indices.to_numpy(zero_copy_only=False)
    found: dict[str, Keys] = {}
    for place, name in enumerate(encoded.dictionary.to_pylist()):
        counted = np.add.reduceat(indices == place, starts, dtype=np.int64)
        found[f"{kind}.{name}"] = found.get(f"{kind}.{name}", 0) + counted
    return found


def part_to_batch(end_us: int, part: Part) -> pa.RecordBatch:
    """A part as a batch: its sample, with the window's end and the counters in the schema's metadata."""
    metadata = {_END: str(end_us).encode(), _COUNTERS: json.dumps(part.counters).encode()}
    return part.sample.replace_schema_metadata(metadata)


def end_of(batch: pa.RecordBatch) -> int:
    """The end of the window of a part."""
    return int(batch.schema.metadata[_END])


def batch_to_part(batch: pa.RecordBatch) -> Part:
    """The inverse of part_to_batch, but for the window's end."""
    return Part(json.loads(batch.schema.metadata[_COUNTERS]), batch.replace_schema_metadata(None))
