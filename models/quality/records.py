"""What is said of a window of score rows: its statistics, and the verdict on them. Both go to and from JSON."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from typing import Any, Literal

import pyarrow as pa

from models.quality.circuit import Circuit

Status = Literal["ok", "warn", "alarm"]
Severity = Literal["warn", "alarm"]
_VERDICT = "verdict"
Kind = Literal[
    "schema",
    "drift",
    "skew",
    "psi",
    "null_rate",
    "decision_share",
    "unseen",
    "score_range",
    "season",
    "slow_drift",
    "budget",
]


@dataclasses.dataclass(frozen=True)
class Distribution:
    """How the values of one column of the sample are spread.

    `kind` is "number" or "text". Of numbers, `cuts` are b - 1 rising bounds and `counts` the rows in the b bins
    between them: bin i holds cuts[i - 1] < x <= cuts[i], the first all up to cuts[0], the last all above. The
    cuts are the baseline's quantiles (without a baseline: those of the first window with enough rows), so they
    are the same in every window. Of texts, `values` are the most frequent ones, sorted by text, with their
    `counts`; `other` counts the rest.
    """

    kind: Literal["number", "text"]
    rows: int  # of the sample, with a value
    missing: int  # of the sample, without
    counts: tuple[int, ...]
    cuts: tuple[float, ...] = ()
    values: tuple[str, ...] = ()
    other: int = 0
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    deviation: float | None = None  # standard, of the population

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Distribution:
        """From the fields by name, lists for tuples allowed."""
        lists = {name: tuple(data[name]) for name in ("counts", "cuts", "values")}
        return Distribution(**{**data, **lists})


@dataclasses.dataclass(frozen=True)
class WindowStatistics:
    """One window [start, end) of event time; `rows`, `nulls`, `decisions`, `unseen` count all rows, not a sample."""

    window_start_us: int
    window_end_us: int
    rows: int
    sampled: int
    late: int  # rows of earlier windows that came after those had been judged; they are in no `rows`
    nulls: dict[str, int]  # by column; NaN counts as null
    decisions: dict[str, int]  # by action
    unseen: dict[str, int]  # by entity: rows whose entity has no event in its longest window but the row itself
    bundles: dict[str, int]  # by bundle id
    distributions: dict[str, Distribution]  # by column: features, output fields and the score
    dataset: bytes  # a DatasetFeatureStatisticsList of the sample, serialized; empty if statistics are off
    # By figure what is to be expected of the sample's scores, and the ends of its interval; where that is declared.
    estimates: dict[str, tuple[float, float, float]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """One line of canonical JSON; `dataset` is base64, and without estimates there is no key of them."""
        distributions = {name: vars(distribution) for name, distribution in self.distributions.items()}
        dataset = base64.b64encode(self.dataset).decode()
        fields = {**vars(self), "distributions": distributions, "dataset": dataset}
        if not self.estimates:
            del fields["estimates"]
        return _canonical(fields)

    @staticmethod
    def from_json(text: str | bytes) -> WindowStatistics:
        """The inverse of to_json; KeyError, TypeError or ValueError for anything else."""
        data = json.loads(text)
        distributions = {name: Distribution.from_dict(value) for name, value in data["distributions"].items()}
        dataset = base64.b64decode(data["dataset"], validate=True)
        estimates = {name: tuple(values) for name, values in data.get("estimates", {}).items()}
        return WindowStatistics(**{**data, "distributions": distributions, "dataset": dataset, "estimates": estimates})


@dataclasses.dataclass(frozen=True)
class Measure:
    """One comparison that was made: `value` is beyond `threshold` if and only if it is a finding.

    `threshold` is the larger of what is `declared` and what chance alone makes of so few rows.
    """

    feature: str  # a column, `score`, an action, an entity or a series
    kind: Kind
    measure: str  # infinity_norm, jensen_shannon, psi, share, rate, deviation, sum
    value: float
    declared: float
    threshold: float


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a window; `text` says it to people."""

    feature: str
    kind: Kind
    severity: Severity
    value: float | None
    threshold: float | None
    text: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is to be thought of a window.

    `status` is the worst severity of its findings, "ok" without any. `judged` is false for a window of fewer rows
    than min_rows, of which nothing is said. `circuit_open` is true from an alarm on until the declared number of
    judged windows in a row was ok: a gate that stops lets nothing through after this window. `bundle_id` is that
    of most of the window's rows. `circuit` is the circuit breaker's after this window, where one is declared.
    """

    verdict_id: str  # of all that follows, 16 hex characters
    window_start_us: int
    window_end_us: int
    rows: int
    status: Status
    judged: bool
    circuit_open: bool
    bundle_id: str
    findings: tuple[Finding, ...]
    measures: tuple[Measure, ...]
    counters: dict[str, int]  # rows, sampled, late; null.COLUMN, decision.ACTION, unseen.ENTITY
    circuit: Circuit | None = None

    @staticmethod
    def make(**fields: Any) -> Verdict:
        """A verdict of these fields with the id that belongs to them."""
        unnamed = Verdict(verdict_id="", **fields)
        digest = hashlib.sha256(unnamed.to_json().encode()).hexdigest()
        return dataclasses.replace(unnamed, verdict_id=digest[:16])

    def to_json(self) -> str:
        """One line of canonical JSON; without a circuit breaker there is no key of it."""
        findings, measures = map(vars, self.findings), map(vars, self.measures)
        fields = {**vars(self), "findings": list(findings), "measures": list(measures)}
        if self.circuit is None:
            del fields["circuit"]
        else:
            fields["circuit"] = vars(self.circuit)
        return _canonical(fields)

    @staticmethod
    def from_json(text: str | bytes) -> Verdict:
        """The inverse of to_json; KeyError, TypeError or ValueError for anything else."""
        data = json.loads(text)
        findings = tuple(Finding(**item) for item in data["findings"])
        measures = tuple(Measure(**item) for item in data["measures"])
        circuit = Circuit.from_data(data.get("circuit"))
        return Verdict(**{**data, "findings": findings, "measures": measures, "circuit": circuit})


def verdict_to_batch(verdict: Verdict) -> pa.RecordBatch:
    """A verdict as a batch of one row, for steps that hold batches."""
    return pa.RecordBatch.from_arrays([pa.array([verdict.to_json()])], names=[_VERDICT])


def batch_to_verdicts(batch: pa.RecordBatch) -> list[Verdict]:
    """The verdicts of such batches, in the order of their windows' ends."""
    verdicts = map(Verdict.from_json, batch.column(0).to_pylist())
    return sorted(verdicts, key=lambda verdict: (verdict.window_end_us, verdict.verdict_id))


def _canonical(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
