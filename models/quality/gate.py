"""What verdicts do to score rows, as the project declares: warn, quarantine or stop."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import Keys, as_int64, column, take_rows
from models.errors import HeadraceError
from models.project.declarations import Project
from models.quality.incidents import to_iso
from models.quality.parts import window_end
from models.quality.records import Verdict
from models.record import DECISION, SHADOW_DECISION, VERDICT_ID

OnStop = Literal["fail", "fallback"]
Known = tuple[int, str, bool, bool]  # of a verdict: window's end, id, whether alarming, whether the circuit is open


class QualityStop(HeadraceError, RuntimeError):
    """The gate is declared to stop, and a window is bad: nothing may be published."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        texts = "; ".join(finding.text for finding in verdict.findings[:5])
        more = len(verdict.findings) - 5
        start, end = map(to_iso, (verdict.window_start_us, verdict.window_end_us))
        super().__init__(
            f"the gate stops: the window from {start} to {end} is bad (verdict {verdict.verdict_id}): {texts}"
            + (f"; and {more} more" if more > 0 else "")
            + ". Nothing was published. Mend the data or its baseline, or declare another quality.gate."
        )


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What a gate needs of the verdicts so far: [n] arrays in the order of the windows' ends."""

    ends: Keys
    ids: list[str]
    alarm: np.ndarray[Any, np.dtype[np.bool_]]
    circuit_open: np.ndarray[Any, np.dtype[np.bool_]]

    @staticmethod
    def of(items: list[Known]) -> Verdicts:
        """From verdicts in any order."""
        items = sorted(items)
        return Verdicts(
            np.array([item[0] for item in items], np.int64),
            [item[1] for item in items],
            np.array([item[2] for item in items], bool),
            np.array([item[3] for item in items], bool),
        )


def apply_verdicts(
    batch: pa.RecordBatch, verdicts: Verdicts, project: Project, on_stop: OnStop
) -> tuple[pa.RecordBatch | None, pa.RecordBatch | None]:
    """The rows that may go on, with their verdict, and those that are to be held back; None for no rows."""
    quality = project.quality
    assert quality is not None
    times = as_int64(column(batch, project.event.time))
    if quality.gate == "quarantine":
        ends = window_end(times, quality.window)
        places = np.searchsorted(verdicts.ends, ends, side="left")
        there = np.append(verdicts.ends, -1)[places] == ends
        places = np.where(there, places, -1)
    else:
        places = np.searchsorted(verdicts.ends, times, side="right") - 1
    result = _append(batch, VERDICT_ID, _ids(places, verdicts.ids))
    bad = np.append(verdicts.alarm, False)[places]
    if quality.gate == "quarantine" and bad.any():
        good = np.flatnonzero(~bad)
        return (take_rows(result, good) if len(good) else None), take_rows(result, np.flatnonzero(bad))
    if quality.gate == "stop" and on_stop == "fallback" and DECISION in batch.schema.names:
        result = _fall_back(result, np.append(verdicts.circuit_open, False)[places], str(quality.safe_action))
    return result, None


def _fall_back(batch: pa.RecordBatch, stopped: Keys, safe_action: str) -> pa.RecordBatch:
    decided = column(batch, DECISION)
    texts, mask = decided.cast(pa.string()), pa.array(stopped)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns[DECISION] = pc.if_else(mask, safe_action, texts).dictionary_encode()
    columns[SHADOW_DECISION] = pc.if_else(mask, texts, pa.scalar(None, pa.string())).dictionary_encode()
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _ids(places: Keys, ids: list[str]) -> pa.DictionaryArray:
    """The id at each place, "" at -1."""
    return pa.DictionaryArray.from_arrays(pa.array((places + 1).astype(np.int32)), pa.array(["", *ids], pa.string()))


def _append(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    schema = batch.schema.append(pa.field(name, values.type))
    return pa.RecordBatch.from_arrays([*batch.columns, values], schema=schema)


def gate_ends(batch: pa.RecordBatch, project: Project) -> Keys:
    """The end int64[n] of the window whose verdict each row waits for: its own in quarantine, else the one before."""
    quality = project.quality
    assert quality is not None
    ends = window_end(as_int64(column(batch, project.event.time)), quality.window)
    return np.asarray(ends if quality.gate == "quarantine" else ends - quality.window)


def still_needed(verdicts: list[Known], oldest_us: int) -> list[Known]:
    """The last verdict, and those on windows that ended at `oldest_us` or later."""
    ordered = sorted(verdicts)
    return [known for known in ordered[:-1] if known[0] >= oldest_us] + ordered[-1:]
