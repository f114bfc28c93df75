"""Records that are ahead of the watermark, until it passes them."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import concat_batches, take_rows

Int64 = np.ndarray[Any, np.dtype[np.int64]]

MAX_RUNS = 64  # then they are sorted into one


@dataclasses.dataclass
class _Run:
    """Records in the order of their event times; `calls` numbers what they were received by."""

    batch: pa.RecordBatch
    times: Int64
    calls: Int64

    def slice(self, start: int, stop: int) -> _Run:
        return _Run(self.batch.slice(start, stop - start), self.times[start:stop], self.calls[start:stop])


class Ahead:
    """Raw batches with their event times, taken out again up to an event time, and receipts of what is out."""

    def __init__(self) -> None:
        self._runs: dict[bytes, list[_Run]] = {}  # by their schema, as formats don't mix
        self._left: collections.Counter[int] = collections.Counter()  # records of a call that are still here
        self._receipts: dict[int, Any] = {}
        self._calls = 0

    def __len__(self) -> int:
        return sum(len(run.times) for runs in self._runs.values() for run in runs)

    def add(self, batches: list[tuple[pa.RecordBatch, Int64]], receipt: Any = None) -> None:
        """Keep the records of one call."""
        self._calls += 1
        self._receipts[self._calls] = receipt
        self._left[self._calls] = sum(batch.num_rows for batch, _ in batches)
        for batch, times in batches:
            if batch.num_rows:
                runs = self._runs.setdefault(batch.schema.serialize().to_pybytes(), [])
                runs.append(_sorted(_Run(batch, times, np.full(len(times), self._calls))))
                if len(runs) > MAX_RUNS:
                    runs[:] = [_merge(runs)]

    def take(self, until_us: int) -> list[pa.RecordBatch]:
        """Take out the records up to and at a time: a batch of each format."""
        taken = []
        for runs in self._runs.values():
            due = []
            for place, run in enumerate(runs):
                count = int(np.searchsorted(run.times, until_us, side="right"))
                if count:
                    due.append(run.slice(0, count))
                    runs[place] = run.slice(count, len(run.times))
            if due:
                runs[:] = [run for run in runs if len(run.times)]
                calls, counts = np.unique(np.concatenate([run.calls for run in due]), return_counts=True)
                self._left.subtract(dict(zip(calls.tolist(), counts.tolist(), strict=True)))
                taken.append(concat_batches([run.batch for run in due]))
        return taken

    def newest(self) -> int | None:
        """The latest event time that is here."""
        return max((int(run.times[-1]) for runs in self._runs.values() for run in runs), default=None)

    def oldest(self, after_us: int) -> int | None:
        """The earliest event time after another that is here."""
        found = []
        for run in (run for runs in self._runs.values() for run in runs):
            known = int(np.searchsorted(run.times, after_us, side="right"))
            found += run.times[known : known + 1].tolist()
        return min(found, default=None)

    def done(self) -> list[Any]:
        """The receipts of calls of which nothing is here any more, once each."""
        over = [call for call, left in self._left.items() if not left]
        for call in over:
            del self._left[call]
        return [self._receipts.pop(call) for call in over]


def _sorted(run: _Run) -> _Run:
    if (run.times[1:] >= run.times[:-1]).all():
        return run
    order = np.argsort(run.times, kind="stable")
    return _Run(take_rows(run.batch, order), run.times[order], run.calls[order])


def _merge(runs: list[_Run]) -> _Run:
    batch = concat_batches([run.batch for run in runs])
    return _sorted(
        _Run(batch, *(np.concatenate(part) for part in zip(*((r.times, r.calls) for r in runs), strict=True)))
    )
