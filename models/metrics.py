"""All metrics of a run: one table of names; transforms.metrics counts them by Beam's metrics.

Names are Prometheus's: with units, `_total` of what only grows. Beam's metrics have no labels and no histograms that
travel, so a label's value stands in the name behind it, `headrace_events_total.outcome.scored`, and a histogram is a
counter for each of its buckets, and one of the sum. `parse` takes such a name apart. Numbers are whole in Beam; seconds
are kept in microseconds there.

No result depends on a metric.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

UNKNOWN = -1  # of a gauge
# What is published later after it happened is sent again: how late that makes it is no fault of whoever reads it.
RESENT_SECONDS = 86_400


@dataclasses.dataclass(frozen=True)
class Metric:
    """One row of the table. `event_time` tells that it is the same in batch and stream; else it goes by the clock."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    event_time: bool = False
    bounds: tuple[float, ...] = ()  # upper ones of a histogram's buckets, in the unit of its name

    @property
    def scale(self) -> float:
        """How many of Beam's whole numbers one unit of a gauge or of a histogram's sum is."""
        return 1e6 if self.name.endswith("_seconds") else 1

    def bucket_name(self, labels: Mapping[str, str], place: int) -> str:
        """The name in Beam of a histogram's bucket by its place; the last has no bound."""
        bound = repr(self.bounds[place]) if place < len(self.bounds) else "+Inf"
        return f"{self.beam_name(labels, '_bucket')}.le.{_escaped(bound)}"

    def beam_name(self, labels: Mapping[str, str], suffix: str = "") -> str:
        """The name of one series in Beam; ValueError unless each label has a value."""
        if tuple(labels) != self.labels:
            raise ValueError(f"{self.name} has the labels {self.labels}, not {tuple(labels)}")
        return ".".join([self.name + suffix, *(part for pair in labels.items() for part in map(_escaped, pair))])


Labels = tuple[tuple[str, str], ...]  # with their values
Series = tuple[str, Labels]  # a metric's name, and its labels

_SECONDS = tuple(round(base * 10.0**power, 6) for power in range(-3, 3) for base in (1, 1.5, 2.5, 4, 6))
_LONG_SECONDS = (*_SECONDS, 1000.0, 2500.0, 6000.0, 15_000.0, 40_000.0, 86_400.0)

EVENTS = Metric("headrace_events_total", "counter", "Events by what became of them.", ("outcome",), True)
FEEDBACK = Metric("headrace_feedback_total", "counter", "Scores whose label came.", ("decision", "label"), True)
LABELLED = Metric(
    "headrace_labelled_total",
    "counter",
    "Scores whose label came by who made them, where breaker.clock.labels is declared.",
    ("release", "bundle", "decision", "label"),
    True,
)
IMPOSSIBLE = Metric("headrace_not_finite_total", "counter", "Values that no number can hold.", ("column",), True)
UNKNOWN_VALUES = Metric(
    "headrace_unknown_values_total", "counter", "Values that the model has not learned.", ("column",), True
)
ROUNDED = Metric("headrace_rounded_total", "counter", "Values with more places than fixed_point.", ("column",), True)
NOT_EXPECTED = Metric(
    "headrace_unexpected_total", "counter", "Features that are not as expected.", ("column", "otherwise"), True
)
LOOKUP_MISSES = Metric(
    "headrace_lookup_misses_total", "counter", "Events that a table has no row for.", ("table",), True
)
TOO_LATE = Metric("headrace_late_aggregates_total", "counter", "Events too late to change their period.", ("table",))
FALLBACKS = Metric(
    "headrace_fallback_decisions_total",
    "counter",
    "Events that were not scored and got the fallback decision.",
    (),
    True,
)
MISSING = Metric("headrace_missing_events_total", "counter", "Events of a slice that were read and did not come out.")
LATE = Metric("headrace_late_events_total", "counter", "Events that came when the watermark was past them.")
CORRECTED = Metric("headrace_corrections_total", "counter", "Rows published once more, as bits of them changed.")
ROWS = Metric("headrace_rows_total", "counter", "Rows that a step has handled, of history too.", ("step",))
SCORES = Metric(
    "headrace_scores_total", "counter", "Score rows by what was decided and by whom.", ("decision", "bundle"), True
)
DEAD_LETTERS = Metric(
    "headrace_dead_letters_total", "counter", "Dead letters by the step that refused them.", ("step",), True
)
REASONS = Metric(
    "headrace_dead_letter_reasons_total",
    "counter",
    "Reasons of dead letters, by what they break; an unknown field has no name here.",
    ("step", "field", "rule"),
    True,
)
VERDICTS = Metric("headrace_verdicts_total", "counter", "Windows of score rows by their verdict.", ("status",), True)
ALERTS = Metric("headrace_alerts_total", "counter", "Alerts of incidents that open, go on or end.", ("event",), True)
OPEN = Metric("headrace_open_incidents", "gauge", "Incidents that are open.", (), True)
CIRCUIT = Metric("headrace_circuit", "gauge", "The circuit breaker: 0 closed, 1 half-open, 2 open.", (), True)
CIRCUIT_CHANGES = Metric(
    "headrace_circuit_changes_total", "counter", "Changes of the circuit breaker by its new state.", ("to",), True
)
FALLEN_BACK = Metric(
    "headrace_fallen_back_total", "counter", "Score rows that the circuit breaker made fall back.", ("to",), True
)
ASSIGNED = Metric("headrace_assigned_total", "counter", "Events that a release gave a model.", ("role",), True)
RELEASE = Metric("headrace_release", "gauge", "The newest release that gave events of the last slice a model.")
REFUSED_RELEASES = Metric("headrace_refused_releases_total", "counter", "Releases whose bundles were refused.")
STATE = Metric(
    "headrace_state_bytes", "gauge", "History that a step keeps of a shard, as Arrow has it.", ("step", "shard")
)
WAITING = Metric("headrace_waiting_records", "gauge", "Records that wait for the watermark.")
BACKLOG = Metric("headrace_backlog_messages", "gauge", "Messages that wait at the broker.")
WATERMARK_LAG = Metric("headrace_watermark_lag_seconds", "gauge", "How far the watermark is behind the clock.")
PUBLISH_DELAY = Metric(
    "headrace_publish_delay_seconds", "gauge", "How long after it happened the newest event was published."
)
FIRST_ROW = Metric("headrace_first_row_seconds", "gauge", "From the start of the process to its first score row.")
ROUNDS = Metric("headrace_rounds_total", "counter", "Rounds of the reader: what was received, and became due.")
LATENCY = Metric(
    "headrace_latency_seconds", "histogram", "From published to the end of a stage.", ("stage",), bounds=_SECONDS
)
FRESHNESS = Metric(
    "headrace_freshness_seconds",
    "histogram",
    "From an event to its score row, but of events that are sent again.",
    bounds=_LONG_SECONDS,
)
METRICS = (
    EVENTS,
    FEEDBACK,
    LABELLED,
    IMPOSSIBLE,
    UNKNOWN_VALUES,
    ROUNDED,
    NOT_EXPECTED,
    LOOKUP_MISSES,
    TOO_LATE,
    FALLBACKS,
    MISSING,
    LATE,
    CORRECTED,
    ROWS,
    SCORES,
    DEAD_LETTERS,
    REASONS,
    VERDICTS,
    ALERTS,
    OPEN,
    CIRCUIT,
    CIRCUIT_CHANGES,
    FALLEN_BACK,
    ASSIGNED,
    RELEASE,
    REFUSED_RELEASES,
    STATE,
    WAITING,
    BACKLOG,
    WATERMARK_LAG,
    PUBLISH_DELAY,
    FIRST_ROW,
    ROUNDS,
    LATENCY,
    FRESHNESS,
)
_BY_NAME = {metric.name: metric for metric in METRICS}

# Those of an endpoint, which are not counted by Beam.
REQUESTS = Metric("headrace_http_requests_total", "counter", "Requests by route and status.", ("path", "status"))
REQUEST_SECONDS = Metric(
    "headrace_http_request_seconds", "histogram", "From a request's head to its answer.", ("path",), bounds=_SECONDS
)
SERVED = Metric("headrace_served_events_total", "counter", "Events by what they were answered.", ("outcome",))
STATE_AGE = Metric(
    "headrace_state_age_seconds",
    "histogram",
    "How far events were past the state that they were answered by.",
    bounds=(0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0, 86400.0),
)
READY = Metric("headrace_ready", "gauge", "Whether the endpoint can score.")
QUEUED = Metric(
    "headrace_queued_requests", "gauge", "Requests that wait for the thread that answers, and the one it is at."
)
SERVING = (REQUESTS, REQUEST_SECONDS, SERVED, STATE_AGE, READY, QUEUED)

# Those of a process that prometheus-client shows, in whole seconds and bytes.
PROCESSOR = Metric("process_cpu_seconds_total", "counter", "Processor seconds of the process.")
MEMORY = Metric("process_resident_memory_bytes", "gauge", "Memory of the process.")
PROCESS = (PROCESSOR, MEMORY)


def parse(beam_name: str) -> Series | None:
    """The metric's name and its labels of a name in Beam; None if it is none of the table's."""
    name, *parts = beam_name.split(".")
    if _stem(name) not in _BY_NAME or len(parts) % 2:
        return None
    texts = [_unescaped(part) for part in parts]
    return name, tuple(zip(texts[::2], texts[1::2], strict=True))


@dataclasses.dataclass(frozen=True)
class Family:
    """A metric with all of its series: values of labels → value in the unit of its name, or a histogram's part.

    A histogram has of each of its values of labels what is below each bound, with the bound's text, and the sum.
    """

    metric: Metric
    values: Mapping[tuple[str, ...], float]
    histograms: Mapping[tuple[str, ...], tuple[tuple[tuple[str, int], ...], float]]


def families(found: Mapping[Series, int]) -> Iterator[Family]:
    """What was found by metrics, in the order of the table; those of which nothing was found are left out."""
    by_name: dict[str, dict[Labels, int]] = {}
    for (name, labels), number in sorted(found.items()):
        by_name.setdefault(name, {})[labels] = number
    for metric in METRICS:
        if metric.kind == "histogram":
            histograms = _histograms(metric, by_name)
            if histograms:
                yield Family(metric, {}, histograms)
            continue
        series = by_name.get(metric.name, {})
        scale = metric.scale if metric.kind == "gauge" else 1
        known = {
            tuple(value for _, value in labels): number / scale
            for labels, number in series.items()
            if metric.kind == "counter" or number != UNKNOWN
        }
        if known:
            yield Family(metric, known, {})


def _histograms(
    metric: Metric, by_name: Mapping[str, Mapping[Labels, int]]
) -> dict[tuple[str, ...], tuple[tuple[tuple[str, int], ...], float]]:
    counts: dict[Labels, dict[str, int]] = {}
    for labels, number in by_name.get(f"{metric.name}_bucket", {}).items():
        counts.setdefault(labels[:-1], {})[labels[-1][1]] = number
    sums = by_name.get(f"{metric.name}_sum", {})
    bounds = [*map(repr, metric.bounds), "+Inf"]
    made = {}
    for labels, numbers in counts.items():
        below = itertools.accumulate(numbers.get(bound, 0) for bound in bounds)
        values = tuple(value for _, value in labels)
        made[values] = (tuple(zip(bounds, below, strict=True)), sums.get(labels, 0) / metric.scale)
    return made


def single_buckets(found: Mapping[Series, int]) -> dict[Series, int]:
    """Metrics whose buckets tell what is below their bounds → each bucket's own number, as in Beam."""
    made = dict(found)
    below: dict[Series, list[tuple[float, Series]]] = {}
    for name, labels in found:
        if name.endswith("_bucket"):
            below.setdefault((name, labels[:-1]), []).append((float(labels[-1][1]), (name, labels)))
    for buckets in below.values():
        ordered = [series for _, series in sorted(buckets)]
        for series, lower in itertools.pairwise(reversed(ordered)):
            made[series] = found[series] - found[lower]
    return made


def by_label(found: Mapping[Series, int], metric: Metric) -> dict[str, int]:
    """The values of a metric of one label by that label's, or of two by both with a space between."""
    return {" ".join(value for _, value in labels): n for (name, labels), n in found.items() if name == metric.name}


def value_of(found: Mapping[Series, int], metric: Metric) -> float | None:
    """The value of a metric without labels, in the unit of its name; None if it is not known."""
    value = found.get((metric.name, ()))
    if value is None or (metric.kind == "gauge" and value == UNKNOWN):
        return None
    return value / metric.scale


@dataclasses.dataclass(frozen=True)
class Lag:
    """How far a stream's watermark is behind, in seconds, and how long after they happened events are published.

    Where these are sent again, `seconds` are behind what is published, else behind the clock.
    """

    seconds: float
    delay: float = 0.0

    @property
    def is_resent(self) -> bool:
        """Whether the events are old ones that are sent again."""
        return self.delay > RESENT_SECONDS


def lag(found: Mapping[Series, int]) -> Lag | None:
    """How far a stream is behind; None if that is not known."""
    behind, delay = value_of(found, WATERMARK_LAG), value_of(found, PUBLISH_DELAY) or 0.0
    if behind is None:
        return None
    return Lag(max(behind - delay, 0.0), delay) if delay > RESENT_SECONDS else Lag(behind, delay)


def quantiles(
    found: Mapping[Series, int], before: Mapping[Series, int], metric: Metric, labels: Labels, shares: Sequence[float]
) -> list[float] | None:
    """Upper bounds of quantiles of what a histogram's series counted since `before`; None if it was nothing."""
    name = f"{metric.name}_bucket"
    numbers = {
        float(of[-1][1]): number - before.get((each, of), 0)
        for (each, of), number in found.items()
        if each == name and of[:-1] == labels
    }
    bounds = sorted(numbers)
    below = np.cumsum([numbers[bound] for bound in bounds])
    if not len(below) or not below[-1]:
        return None
    places = np.searchsorted(below, below[-1] * np.asarray(shares))
    return [min(bounds[place], metric.bounds[-1]) for place in places.tolist()]


def flink_name(beam_name: str) -> str:
    """The name in Flink of what has a name in Beam; Flink writes the operator's before it."""
    return "headrace_" + beam_name.replace(".", "_")


def table() -> Iterator[str]:
    """The lines of the table in docs/metrics.md, which a test holds to be these."""
    yield "| Metric | Kind | Same in batch and stream | In Beam, namespace `headrace` | In Flink | What |"
    yield "|---|---|---|---|---|---|"
    for metric in METRICS:
        labels = f" by {', '.join(metric.labels)}" if metric.labels else ""
        name = metric.name + ("_bucket" if metric.kind == "histogram" else "")
        name += "".join(f".{label}.…" for label in (*metric.labels, *(["le"] if metric.kind == "histogram" else ())))
        same = "yes" if metric.event_time else "no"
        yield f"| `{metric.name}` | {metric.kind}{labels} | {same} | `{name}` | `{flink_name(name)}` | {metric.help} |"


def served_table() -> Iterator[str]:
    """The lines of the endpoint's table in docs/metrics.md."""
    yield "| Metric | Kind | What |"
    yield "|---|---|---|"
    for metric in SERVING:
        labels = f" by {', '.join(metric.labels)}" if metric.labels else ""
        yield f"| `{metric.name}` | {metric.kind}{labels} | {metric.help} |"


def _stem(name: str) -> str:
    """The metric's name of one of its series."""
    return name if name in _BY_NAME else name.removesuffix("_bucket").removesuffix("_sum")


def _escaped(text: str) -> str:
    """Of letters, digits and `_`, so that no engine changes it; everything else as -HEX-."""
    return re.sub(r"[^A-Za-z0-9_]", lambda found: f"-{ord(found[0]):x}-", text)


def _unescaped(text: str) -> str:
    return re.sub(r"-([0-9a-f]+)-", lambda found: chr(int(found[1], 16)), text)
