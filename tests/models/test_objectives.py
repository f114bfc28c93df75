"""What objectives are found to be."""

from typing import NamedTuple

import pytest

from models import metrics
from models.objectives import BURNS, Least, Ratio, bound_of, of_days, of_metrics, of_run, promises_of_serving
from models.partitions import Partitions, Span
from models.project.objectives import Objectives, Serving
from tests.kit.declared import assert_fault, declared
from tests.kit.labelled import SCHEMA, TEXT

DAY = 86_400_000_000
OBJECTIVES = Objectives.model_validate(
    {
        "latency": {"within": "1s", "target": 0.99},
        "valid": {"target": 0.999},
        "quality": {"target": 0.5},
        "rows": 10,
    }
)


def bucket(bound, stage="written"):
    bounds = [*metrics.LATENCY.bounds, None]
    return metrics.parse(metrics.LATENCY.bucket_name({"stage": stage}, bounds.index(bound)))


def series(metric, **labels):
    return metrics.parse(metric.beam_name(labels))


def test_burn_rates_are_those_of_the_workbook():
    assert [burn.rate(OBJECTIVES.period) for burn in BURNS] == [14.4, 6, 1]
    assert [burn.rate(OBJECTIVES.period // 2) for burn in BURNS] == [7.2, 3, 0.5]


@pytest.mark.parametrize(("within", "bound"), [(1_000_000, 1), (1_400_000, 1), (1_500_000, 1.5), (1000, 0.001)])
def test_what_is_soon_enough_is_taken_down_to_a_bound(within, bound):
    assert bound_of(within) == bound


@pytest.mark.parametrize("within", ["0s", "1h"])
def test_what_no_bucket_tells_is_refused(within):
    with pytest.raises(ValueError, match="latency.within"):
        Objectives.model_validate({"latency": {"within": within, "target": 0.99}})


def test_metrics_tell_all_objectives():
    found = {
        bucket(0.4): 90,
        bucket(1.0): 8,
        bucket(1.5): 1,
        bucket(None): 1,
        bucket(None, "scored"): 500,
        series(metrics.DEAD_LETTERS, step="Validate"): 3,
        series(metrics.DEAD_LETTERS, step="Deduplicate"): 70,
        series(metrics.EVENTS, outcome="read"): 1000,
        series(metrics.VERDICTS, status="alarm"): 1,
        series(metrics.VERDICTS, status="ok"): 3,
        series(metrics.SCORES, decision="block", bundle="a"): 4,
        series(metrics.SCORES, decision="approve", bundle="b"): 5,
    }
    latency, valid, quality, rows = of_metrics(OBJECTIVES, found)
    assert (latency.bad, latency.total, latency.met) == (2, 100, False)
    assert latency.burn == pytest.approx(2)
    assert (valid.bad, valid.total, valid.met) == (3, 1000, False)
    assert (quality.bad, quality.total, quality.met) == (1, 4, True)
    assert (rows.total, rows.met) == (9, False)


def test_what_nothing_tells_is_neither_met_nor_missed():
    assert [each.met for each in of_metrics(OBJECTIVES, {})] == [None, None, None, False]
    assert list(of_metrics(Objectives(), {})) == []


def test_a_finished_run_tells_but_its_latency():
    outcomes = {"read": 1000, "scored": 9, "quarantined": 1, "dead-lettered": 1, "duplicate": 500}
    assert list(of_run(OBJECTIVES, outcomes, ["ok", "warn", "alarm"])) == [
        Ratio("valid", "events that are no dead letters", 0.999, 1, 1000),
        Ratio("quality", "windows without an alarm", 0.5, 1, 3),
        Least("rows", "score rows", 10, 10),
    ]
    assert [each.met for each in of_run(OBJECTIVES, outcomes, [])] == [True, None, True]


SERVING = Serving.model_validate(
    {"p99": "20ms", "availability": 0.9, "freshness": {"within": "90s", "target": 0.5, "otherwise": "refuse"}}
)


def test_what_an_endpoint_promises_is_told_by_its_metrics():
    def within(name, bound, **labels):
        return f"{name}_bucket", (*labels.items(), ("le", bound))

    found = {
        within("headrace_http_request_seconds", "0.02", path="/v1/score"): 98,
        within("headrace_http_request_seconds", "0.025", path="/v1/score"): 1,
        within("headrace_http_request_seconds", "+Inf", path="/v1/score"): 1,
        within("headrace_http_request_seconds", "+Inf", path="/metrics"): 50,
        ("headrace_served_events_total", (("outcome", "scored"),)): 85,
        ("headrace_served_events_total", (("outcome", "refused"),)): 5,
        ("headrace_served_events_total", (("outcome", "fallback"),)): 6,
        ("headrace_served_events_total", (("outcome", "unanswered"),)): 4,
        within("headrace_state_age_seconds", "0.0"): 10,
        within("headrace_state_age_seconds", "90.0"): 20,
        within("headrace_state_age_seconds", "120.0"): 15,
        within("headrace_state_age_seconds", "+Inf"): 15,
    }
    p99, availability, freshness = (promise.kept(found) for promise in promises_of_serving(SERVING))
    assert (p99.bad, p99.total, p99.met) == (2, 100, False)
    assert (availability.bad, availability.total, availability.met) == (10, 100, True)
    assert (freshness.bad, freshness.total, freshness.met) == (30, 60, True)
    assert [promise.kept({}).met for promise in promises_of_serving(SERVING)] == [None, None, None]


@pytest.mark.parametrize(
    "wrong",
    [
        {"p99": "1us"},
        {"p99": "1h"},
        {"availability": 1},
        {"freshness": {"within": "0s"}},
        {"freshness": {"within": "8d"}},
    ],
)
def test_what_no_endpoint_can_promise_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Serving.model_validate(wrong)


def test_freshness_is_of_its_own_histogram():
    objectives = Objectives.model_validate({"freshness": {"within": "1h", "target": 0.9}})
    name = metrics.FRESHNESS.bucket_name
    bounds = [*metrics.FRESHNESS.bounds, None]
    found = {
        metrics.parse(name({}, bounds.index(bound))): n for bound, n in ((1.0, 5), (2500.0, 3), (6000.0, 2), (None, 1))
    }
    (fresh,) = of_metrics(objectives, {**found, bucket(1.0): 100})
    assert (fresh.bad, fresh.total) == (3, 11)  # an hour is taken down to 2,500 s
    assert "2500 s" in fresh.text


HOUR = 3_600_000_000


def test_days_are_due_so_long_after_their_end():
    days, spans = Partitions(), [Span(10 * DAY, 12 * DAY)]
    for now, due, there in (
        (11 * DAY + 6 * HOUR - 1, 0, 0),
        (11 * DAY + 6 * HOUR, 1, 1),
        (12 * DAY + 6 * HOUR, 2, 2),
        (13 * DAY + 6 * HOUR, 3, 2),
    ):
        found = of_days(6 * HOUR, days, spans, [], now)
        assert (found.target, found.total, found.met) == (due, there, due == there)
    assert of_days(6 * HOUR, days, spans, [12 * DAY], 13 * DAY + 6 * HOUR).met  # its files are there
    assert of_days(6 * HOUR, days, [Span()], [], 20 * DAY).target == 0  # nothing tells which days these were
    assert not of_days(0, Partitions("hour"), [Span(0, 2 * HOUR)], [], 3 * HOUR).met


def test_days_are_those_of_the_time_zone():
    days = Partitions("day", "Europe/Berlin")
    start = days.parse("2018-03-24")
    found = of_days(0, days, [Span(start, days.parse("2018-03-26"))], [], days.parse("2018-03-26"))
    assert (found.target, found.total) == (2, 2)  # the second has 23 hours
    assert of_days(0, days, [Span(start, days.parse("2018-03-26") - HOUR)], [], days.parse("2018-03-26")).total == 1


class Window(NamedTuple):
    end_us: int
    as_of_us: int
    rows: int
    labelled: int
    figures: dict[str, float | None]


OF_LABELS = {
    "labels": {"within": "1d", "target": 0.5},
    "performance": {
        "roc_auc": {"at_least": 0.8, "target": 0.75},
        "log_loss": {"at_most": 0.3, "target": 0.75},
        "brier": {"at_most": 0.1, "target": 0.9},
    },
}
WINDOWS = [  # the last of which is not to have its labels yet
    Window(DAY, 2 * DAY, 100, 60, {"roc_auc": 0.8, "log_loss": 0.3}),
    Window(2 * DAY, 4 * DAY, 100, 50, {"roc_auc": 0.79, "log_loss": 0.2}),
    Window(3 * DAY, 4 * DAY, 100, 30, {"roc_auc": None, "log_loss": None}),
    Window(4 * DAY, 4 * DAY, 100, 1, {"roc_auc": 0.0, "log_loss": 9.0}),
]


@pytest.mark.parametrize("order", [1, -1])
def test_labels_and_figures_are_judged_of_windows_whose_labels_are_due(order):
    objectives = Objectives.model_validate(OF_LABELS)
    labels, auc, loss, brier = of_run(objectives, {}, [], windows=WINDOWS[::order])
    assert (labels.bad, labels.total, labels.met) == (160, 300, False)
    assert (auc.name, auc.bad, auc.total, auc.met) == ("roc_auc", 1, 2, False)
    assert (loss.bad, loss.total, loss.met) == (0, 2, True)
    assert (brier.total, brier.met) == (0, None)
    assert [each.met for each in of_run(objectives, {}, [])] == [None] * 4
    alone = Objectives(performance=objectives.performance)
    assert [(each.bad, each.total) for each in of_run(alone, {}, [], windows=WINDOWS)] == [(2, 3), (1, 3), (0, 0)]


@pytest.mark.parametrize("wrong", [{}, {"at_least": 1, "at_most": 2}])
def test_a_figure_has_one_bound(wrong):
    with pytest.raises(ValueError, match="one of at_least and at_most"):
        Objectives.model_validate({"performance": {"roc_auc": {"target": 0.5, **wrong}}})


def test_figures_that_no_window_has_are_named():
    good = "label_metrics: {window: 2d}\nslo: {performance: {roc_auc: {at_least: 0.5, target: 0.9}}}"
    declared(TEXT.replace("label_metrics: {window: 2d}", good), SCHEMA)
    for new, fault in (
        (good.replace("roc_auc", "auc"), "'auc' is no figure; there are roc_auc, average_precision, top2"),
        (good.partition("\n")[2], "performance: needs windows whose labels are known: declare label_metrics"),
        ("slo: {labels: {within: 1d, target: 0.9}}", "labels: needs windows whose labels are known"),
    ):
        assert_fault(TEXT, SCHEMA, "label_metrics: {window: 2d}", new, fault)
