"""Label metrics: the records of a window are those of its rows, whatever the parts that they come in."""

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics

from models.batches import as_float64, column, concat_batches, take_rows
from models.quality.label_metrics import (
    carried_columns,
    count_rows,
    last_revisions,
    measure_window,
    sort_records,
    take_labelled,
)
from models.record import LABEL_TIME, TIMESTAMP
from models.score import columns_of_outputs
from tests.kit.declared import assert_fault
from tests.kit.labelled import DAY, PROJECT, SCHEMA, SECOND, START, TEXT

FIRST = START * SECOND


def make_rows(number=400, seed=0):
    """Score rows of one window of two days, with the label, null of a third of them, and the time it was known."""
    chosen = np.random.default_rng(seed)
    at = FIRST + chosen.integers(0, 2 * DAY, number) * SECOND
    scores = chosen.integers(0, 20, number).astype(np.float32) / np.float32(20)  # many are equal
    label = (chosen.random(number) < scores).astype(np.int64)
    columns = {
        "id": pa.array(chosen.permutation(number)),
        "at": pa.array(at).cast(TIMESTAMP),
        "card": pa.array(chosen.integers(0, 9, number)),
        "shop": pa.array(chosen.choice(["a", "b"], number)),
        "large": pa.array(chosen.integers(0, 2, number)),
        **columns_of_outputs(scores, PROJECT),
        "bundle_id": pa.array(["one"] * number),
        "fraud": pa.array(label, mask=chosen.random(number) < 1 / 3),
        LABEL_TIME: pa.array(at + chosen.integers(0, 5 * DAY, number) * SECOND).cast(TIMESTAMP),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


ROWS = make_rows()


def parts_of(rows):
    return [part for take in (count_rows, take_labelled) for _, part in take(rows, PROJECT)]


def measure(parts):
    return measure_window(concat_batches(parts), FIRST + 9 * DAY * SECOND, 0, PROJECT)


def record(records, name="", value=""):
    found = [row for row in records.to_pylist() if (row["slice"], row["value"]) == (name, value)]
    assert len(found) == 1
    return found[0]


def test_figures_are_those_of_the_rows_with_a_label():
    said = record(measure(parts_of(ROWS)))
    known = ROWS.filter(ROWS["fraud"].is_valid())
    label, score = known["fraud"].to_numpy(), as_float64(known["score"])
    assert (said["rows"], said["labelled"]) == (400, len(label))
    assert 0 < len(label) < 400
    assert said["coverage"] == len(label) / 400
    assert said["positives"] == label.sum()
    assert said["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(label, score), abs=1e-12)
    assert said["average_precision"] == pytest.approx(sklearn.metrics.average_precision_score(label, score), abs=1e-12)
    clipped = np.clip(score, 2**-23, 1 - 2**-23)
    assert said["log_loss"] == pytest.approx(sklearn.metrics.log_loss(label, clipped), abs=1e-9)
    assert said["mean_score"] == pytest.approx(score.mean(), abs=1e-12)
    assert 0 <= said["top2"] <= 1
    delays = (known[LABEL_TIME].cast(pa.int64()).to_numpy() - known["at"].cast(pa.int64()).to_numpy()) / SECOND
    assert said["delay_max_s"] == delays.max()
    assert said["delay_median_s"] == np.sort(delays)[(len(delays) - 1) // 2]


def test_slices_are_decisions_bins_of_the_score_and_what_is_declared():
    records = measure(parts_of(ROWS))
    for name in ("decision", "score", "shop", "large"):
        values = [row for row in records.to_pylist() if row["slice"] == name]
        assert len(values) > 1
        for what in ("rows", "labelled", "positives"):
            assert sum(row[what] for row in values) == record(records)[what]
    known = ROWS.filter(ROWS["fraud"].is_valid())
    in_bin = (as_float64(known["score"]) >= 0.3) & (as_float64(known["score"]) < 0.4)
    said = record(records, "score", "0.3")
    assert said["positives"] == known["fraud"].to_numpy()[in_bin].sum()
    blocked = known["decision"].cast(pa.string()).to_numpy(zero_copy_only=False) == "block"
    assert record(records, "decision", "block")["positives"] == known["fraud"].to_numpy()[blocked].sum()


@pytest.mark.parametrize("seed", range(5))
def test_neither_order_nor_parts_change_a_bit(seed):
    chosen = random.Random(seed)
    rows = take_rows(ROWS, np.array(chosen.sample(range(400), 400)))
    cuts = sorted([0, 400, *chosen.sample(range(400), 6)])
    parts = [part for a, b in itertools.pairwise(cuts) for part in parts_of(rows.slice(a, b - a))]
    chosen.shuffle(parts)
    assert sort_records(measure(parts)).equals(sort_records(measure(parts_of(ROWS))))


def test_a_row_counts_from_the_midnight_after_its_label_and_not_before_its_window_ends():
    assert {due for due, _ in count_rows(ROWS, PROJECT)} == {FIRST + 2 * DAY * SECOND}
    for due, part in take_labelled(ROWS, PROJECT):
        known = column(part, "__event_time").cast(pa.int64()).to_numpy() + column(part, "__delay").to_numpy()
        ends = column(part, "__window_end").to_numpy()
        assert due % (DAY * SECOND) == 0
        assert (known < due).all()
        assert (ends <= due).all()
        assert ((due - known <= DAY * SECOND) | (ends == due)).all()


def test_rows_without_a_label_have_no_figure():
    none = ROWS.set_column(ROWS.schema.get_field_index("fraud"), "fraud", pa.nulls(400, pa.int64()))
    for row in measure(parts_of(none)).to_pylist():
        assert (row["labelled"], row["coverage"], row["positives"]) == (0, 0.0, 0)
        assert {row[name] for name in ("roc_auc", "log_loss", "top2", "mean_score", "delay_max_s")} == {None}


def test_bundles_are_apart():
    other = ROWS.set_column(ROWS.schema.get_field_index("bundle_id"), "bundle_id", pa.array(["two"] * 400))
    records = measure([*parts_of(ROWS.slice(0, 100)), *parts_of(other.slice(100))])
    overall = {row["bundle_id"]: row["rows"] for row in records.to_pylist() if row["slice"] == ""}
    assert overall == {"one": 100, "two": 300}


def test_the_last_revision_of_a_window_counts():
    parts = parts_of(ROWS)
    first, last = (measure_window(concat_batches(some), FIRST, n, PROJECT) for n, some in enumerate((parts[:1], parts)))
    found = last_revisions(sort_records(concat_batches([last, first])))
    assert found.equals(sort_records(last))


def test_what_a_label_is_measured_by_is_carried():
    assert carried_columns(PROJECT) == ("score", "decision", "bundle_id", "card", "shop", "large")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("{window: 2d}", "{window: 36h}", "must be whole days"),
        (", events: {time: seen}", "", "name the label among output"),
        ("top2:", "coverage:", "is a column of label metrics"),
        ("label_metrics:", "retrain: {every: 7d, gate: {metric: auc}}\nlabel_metrics:", "'auc' is no figure"),
        (
            "label_metrics:",
            "retrain: {every: 7d, gate: {metric: top2, slices: {card: 0.1}}}\nlabel_metrics:",
            "card is not among training.slices",
        ),
        (
            "label_metrics:",
            "retrain: {every: 7d, or_on: [drift], gate: {metric: top2}}\nlabel_metrics:",
            "drift needs what it is seen by: declare quality",
        ),
    ],
)
def test_faults(old, new, fault):
    assert_fault(TEXT, SCHEMA, old, new, fault)
