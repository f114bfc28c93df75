"""A sink's folder as the page shows it; only what was not read before is read."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.batches import as_batch
from models.objectives import Least, Ratio, of_run
from models.partitions import Span
from models.predictors.measures import heading
from models.project.declarations import Project
from models.quality.incidents import to_iso
from models.quality.records import Distribution
from models.routes import LABEL_METRICS
from pipelines.dashboard.files import Files
from pipelines.dashboard.live import read_outcomes
from pipelines.dashboard.quality import Drift, Part, Quality, read_part, shares, sum_up, told
from pipelines.dashboard.scores import Counts, add_up, count_file, in_steps
from pipelines.report.labels import Said, label_metrics_of
from pipelines.report.quality import QUALITY_ENDINGS
from pipelines.results import RunError, judge_days, read_success, stamps_of
from pipelines.sinks.folder import Folder, open_file
from pipelines.sinks.listed import PROJECT, QUALITY, SCORES, SPANS, SUCCESS

MOST_DRIFT = 40  # series
MOST_ALERTS = 20
MOST_WINDOWS = 400  # verdicts and figures, the newest
MOST_RECORDS = 1_000_000  # of a file of label metrics
MOST_TEXT = 300  # characters of what comes from the data
STORE_SECONDS = 60.0  # between two looks at an object store, which counts them
_MOST_FAULTS = 5
_AT_ONCE = 32  # files whose records are unpacked together
_Packed = tuple[pa.Schema, bytes]  # a batch as Arrow's IPC has it, and its schema


class Sink:
    """One folder that runs of a project write to."""

    def __init__(self, project: Project, folder: str) -> None:
        self.project, self.folder = project, folder
        self._scores: Files[Counts] = Files(lambda path: count_file(path, project))
        self._quality: Files[Part] = Files(lambda path: read_part(path, project))
        self._labels: Files[_Packed] = Files(self._read_records)
        self._success: Files[dict[str, Any]] = Files(lambda path: self._read_success())
        self._schema: pa.Schema | None = None
        self._facts: dict[str, Any] | None = None
        self._done: Least | None = None
        self._again = 0.0  # when to look again, by the monotonic clock

    def refresh(self) -> bool:
        """Read what is new; whether anything was. An object store is asked no more than once in STORE_SECONDS."""
        changed = [self._look()] if time.monotonic() >= self._again else []
        done = self._judge_days()
        if any(changed) or self._facts is None or done != self._done:
            self._done = done
            self._facts = self._make()
            return True
        return False

    def _look(self) -> bool:
        folder = Folder(self.folder)
        success = folder.stamp(SUCCESS)
        changed = [
            self._success.refresh({} if success is None else {folder.join(SUCCESS): success}),
            self._scores.refresh(stamps_of(self.folder, SCORES)),
            self._quality.refresh(stamps_of(self.folder, QUALITY, QUALITY_ENDINGS)),
            self._labels.refresh(stamps_of(self.folder, LABEL_METRICS)),
        ]
        if not folder.is_local:
            self._again = time.monotonic() + STORE_SECONDS
        return any(changed)

    def _judge_days(self) -> Least | None:
        """Of the days that should be there by now those that are; None where that is not promised."""
        if self.project.slo is None or self.project.slo.done_within is None:
            return None
        spans = [Span.of_facts(each) for said in self._success.values() for each in said[SPANS]]
        before = Folder(self.folder).join(SCORES, "")
        names = [path.removeprefix(before) for path in self._scores.paths()]
        return judge_days(self.project, spans, names, time.time_ns() // 1000)

    def facts(self) -> dict[str, Any]:
        """What the page shows, as of the last refresh; times in milliseconds since 1970 UTC."""
        return self._facts or self._make()

    def _read_success(self) -> dict[str, Any]:
        said = read_success(self.folder)
        if said.get(PROJECT, self.project.name) != self.project.name:
            raise RunError(f"{self.folder}: is of the project {said[PROJECT]}, not of {self.project.name}")
        return {"events": {n: said["events"][n] for n in sorted(said["events"])}, SPANS: said.get(SPANS, [])}

    def _read_records(self, path: str) -> _Packed:
        """A file of label metrics without those of slices; packed, as a table of few rows is mostly frame."""
        try:
            with open_file(path) as opened, pq.ParquetFile(opened) as file:
                if file.metadata.num_rows > MOST_RECORDS:
                    raise RunError(f"{path}: has more than {MOST_RECORDS:,} rows: it is no file of label metrics")
                table = file.read(use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"{path}: can't be read: {' '.join(str(error).split())}") from None
        if "slice" not in table.schema.names:
            raise RunError(f"{path}: has no slice: it is no file of label metrics")
        batch = as_batch(table.filter(pc.equal(table["slice"], "")))
        columns = [each.dictionary_decode() if pa.types.is_dictionary(each.type) else each for each in batch.columns]
        schema = pa.schema([pa.field(name, each.type) for name, each in zip(batch.schema.names, columns, strict=True)])
        if self._schema is None or not schema.equals(self._schema):
            self._schema = schema  # one of them all, as it is the larger part
        packed = pa.RecordBatch.from_arrays(columns, schema=self._schema).serialize()
        return self._schema, packed.to_pybytes()

    def _make(self) -> dict[str, Any]:
        events: dict[str, int] = next((said["events"] for said in self._success.values()), {})
        step, starts, rows = in_steps(
            add_up(self._scores.values()), [band.action for band in self.project.decisions or ()]
        )
        quality = sum_up(self._quality.values(), self.project)
        faults = [fault for each in (self._success, self._scores, self._quality) for fault in each.faults()]
        windows, wrong = self._label_windows()
        faults += [*self._labels.faults(), *wrong]
        return {
            "folder": self.folder,
            "faults": [cut(fault) for fault in faults[:_MOST_FAULTS]],
            "more_faults": max(0, len(faults) - _MOST_FAULTS),
            "events": read_outcomes(events),
            "step": step // 1000,
            "starts": [us // 1000 for us in starts],
            "decisions": [{"name": cut(name), "rows": numbers} for name, numbers in rows.items()],
            **quality_facts(quality),
            "figures": _figures(windows),
            "objectives": self._objectives(events, quality, windows),
        }

    def _label_windows(self) -> tuple[tuple[Said, ...], list[str]]:
        """What is known by labels of each window and bundle, the newest first; and why there is none."""
        try:
            packed = self._labels.values()
            tables = [_unpacked(packed[start : start + _AT_ONCE]) for start in range(0, len(packed), _AT_ONCE)]
            metrics = label_metrics_of(pa.concat_tables(tables)) if tables else None
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            return (), [f"{self.folder}: its label metrics are not those of one project: {error}"]
        return metrics.windows if metrics else (), []

    def _objectives(self, events: dict[str, int], quality: Quality, windows: Sequence[Said]) -> list[dict[str, Any]]:
        if self.project.slo is None or not (events or self._done):
            return []
        statuses = [verdict.status for verdict in quality.verdicts if verdict.judged]
        return [objective(each) for each in of_run(self.project.slo, events, statuses, self._done, windows)]


def _unpacked(files: list[_Packed]) -> pa.Table:
    """The records of some files in one piece; ArrowInvalid if they are not of one schema."""
    batches = [pa.ipc.read_record_batch(pa.py_buffer(packed), schema) for schema, packed in files]
    return pa.concat_tables([pa.Table.from_batches([each]) for each in batches]).combine_chunks()


def quality_facts(quality: Quality) -> dict[str, Any]:
    """What the page shows of quality records; times in milliseconds since 1970 UTC."""
    return {
        "windows": [
            {"end": v.window_end_us // 1000, "status": v.status if v.judged else "unjudged"}
            for v in quality.verdicts[-MOST_WINDOWS:]
        ],
        "drift": [_series(each) for each in quality.drift[:MOST_DRIFT]],
        "more_drift": max(0, len(quality.drift) - MOST_DRIFT),
        "open": [
            {"feature": cut(i.feature), "kind": i.kind, "text": cut(i.text), "alarms": i.alarms,
             "opened": to_iso(i.opened_us)}
            for i in quality.incidents.open
        ],
        "alerts": [{name: cut(text) for name, text in alert.items()} for alert in told(quality.alerts, MOST_ALERTS)],
        "score": _score(quality),
    }  # fmt: skip


def objective(found: Ratio | Least) -> dict[str, Any]:
    """An objective as the page shows it; `used` is the share of the error budget, null where there is none."""
    if isinstance(found, Least):
        share, used = f"{found.total:,} of {found.target:,}", None
    else:
        share = f"{found.total - found.bad:,} of {found.total:,}" if found.total else ""
        used = None if found.burn is None else round(found.burn, 4)
    target = f"{found.target:,}" if isinstance(found, Least) else f"{100 * found.target:g} %"
    return {"name": found.name, "text": found.text, "target": target, "found": share, "used": used, "met": found.met}


def cut(text: str) -> str:
    """A text that comes from the data, not too long."""
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def _series(drift: Drift) -> dict[str, Any]:
    return {
        "kind": drift.kind,
        "feature": cut(drift.feature),
        "measure": drift.measure,
        "ends": (drift.ends.astype(np.int64) // 1000).tolist(),
        "values": _digits(drift.values.tolist()),
        "thresholds": _digits(drift.thresholds.tolist()),
        "last": _digits(drift.last),
        "worst": _digits([drift.worst])[0],
    }


def _score(quality: Quality) -> dict[str, Any] | None:
    if quality.recent is None or quality.recent.kind != "number":
        return None

    def of(distribution: Distribution | None) -> list[float | None] | None:
        return None if distribution is None else _digits(shares(distribution))

    return {"cuts": _digits(quality.recent.cuts), "recent": of(quality.recent), "baseline": of(quality.baseline)}


def _figures(windows: Sequence[Said]) -> list[dict[str, Any]]:
    """Figures by bundle over the windows, realised and expected."""
    made = []
    names = dict.fromkeys(name for each in windows for name in (*each.estimates, *each.figures))
    for bundle in sorted({each.bundle for each in windows}):
        of = [each for each in reversed(windows) if each.bundle == bundle][-MOST_WINDOWS:]
        made += [_figure(name, bundle, of) for name in names]
    return [each for each in made if _is_known(each)]


def _figure(name: str, bundle: str, windows: list[Said]) -> dict[str, Any]:
    realised = [each.realised(name) if name in each.figures or name in each.estimates else None for each in windows]
    expected = [each.estimates.get(name) for each in windows]
    return {
        "name": heading(name),
        "bundle": cut(bundle),
        "ends": [each.end_us // 1000 for each in windows],
        "labelled": [each.labelled for each in windows],
        "rows": [each.rows for each in windows],
        "realised": _digits(realised),
        **{
            end: _digits([None if each is None else each[place] for each in expected])
            for place, end in enumerate(("expected", "low", "high"))
        },
    }


def _is_known(figure: dict[str, Any]) -> bool:
    return any(value is not None for name in ("realised", "expected") for value in figure[name])


def _digits(values: Any) -> list[float | None]:
    """Six digits of each, null where there is no finite number."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.6g}") for v in values]
