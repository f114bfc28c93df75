"""Estimates in the records of label metrics: of all rows and of slices, whatever the parts that they come in."""

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest

from models.batches import as_float64, concat_batches, take_rows
from models.quality.calibration import calibrate_scores
from models.quality.estimates import estimate_binary, estimate_errors
from models.quality.expectations import estimates_in, expectation_fields, no_calibration
from models.quality.label_metrics import carried_columns, count_rows, measure_window, sort_records, take_labelled
from models.record import LABEL_TIME, TIMESTAMP
from models.score import columns_of_outputs
from tests.kit.declared import assert_fault, declared
from tests.kit.estimated import ESTIMATED_TEXT, OF_KIND, calibrated, draw
from tests.kit.labelled import DAY, PROJECT, SCHEMA, SECOND, START

FIRST = START * SECOND
KINDS = list(OF_KIND)
CALIBRATIONS = {kind: {"one": calibrated(kind)} for kind in KINDS}


def make_rows(kind, number=400, seed=0, bundle="one"):
    """Score rows of one window of two days, without labels."""
    project, chosen = OF_KIND[kind], np.random.default_rng(seed)
    _, outputs = draw(kind, number, seed)
    columns = {
        "id": pa.array(chosen.permutation(number)),
        "at": pa.array(FIRST + chosen.integers(0, 2 * DAY, number) * SECOND).cast(TIMESTAMP),
        "card": pa.array(chosen.integers(0, 9, number)),
        "shop": pa.array(chosen.choice(["a", "b"], number)),
        "large": pa.array(chosen.integers(0, 2, number)),
        **columns_of_outputs(outputs, project),
        "bundle_id": pa.array([bundle] * number),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def measure(rows, kind, project=None, calibrations=None):
    project, known = project or OF_KIND[kind], calibrations or CALIBRATIONS[kind].get
    parts = [part for some in rows for _, part in count_rows(some, project, known)]
    return measure_window(concat_batches(parts), FIRST + 9 * DAY * SECOND, 0, project)


def record(records, name="", value=""):
    (found,) = [row for row in records.to_pylist() if (row["slice"], row["value"]) == (name, value)]
    return found


def steps_of(rows, kind):
    steps = CALIBRATIONS[kind]["one"].steps[0]
    counted = np.bincount(steps.places(rows["score"].to_numpy()), minlength=len(steps.rows)).astype(float)
    there = counted > 0
    return counted[there], steps.expected[there], steps.variance[there], steps.rows[there].astype(float)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_has_estimates_without_any_label(kind):
    rows = make_rows(kind)
    said = record(measure([rows], kind))
    assert (said["labelled"], said["estimated_rows"]) == (0, 400)
    for name, (figure, low, high) in estimates_in(said).items():
        assert low < figure < high, name
    assert (
        set(estimates_in(said))
        == {
            "binary": {"roc_auc", "average_precision", "positives"},
            "multiclass": {"accuracy", "macro_f1"},
            "regression": {"mae", "rmse"},
        }[kind]
    )


def test_figures_are_the_estimates_of_the_rows():
    rows = make_rows("binary")
    n, share, variance, support = steps_of(rows, "binary")
    said = record(measure([rows], "binary"))
    for name, (figure, error) in estimate_binary(n, share[:, 0], variance[:, 0], support).items():
        assert said[f"estimated_{name}"] == figure
        assert said[f"estimated_{name}_low"] == max(figure - 3 * error, 0)
        assert said[f"estimated_{name}_high"] == min(figure + 3 * error, 400 if name == "positives" else 1)
    rows = make_rows("regression")
    said, found = record(measure([rows], "regression")), estimate_errors(*steps_of(rows, "regression"))
    assert said["estimated_mae"] == found["mae"][0]
    square, error = found["mse"]
    assert said["estimated_rmse"] == square**0.5
    assert said["estimated_rmse_high"] == (square + 3 * error) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_has_the_estimates_of_its_rows(kind):
    rows = make_rows(kind)
    records = measure([rows], kind)
    some = rows.filter(pa.compute.equal(rows["shop"], "a"))
    alone = record(measure([some], kind))
    assert estimates_in(record(records, "shop", "a")) == estimates_in(alone)
    for name in ("shop", "large"):
        parts = [row for row in records.to_pylist() if row["slice"] == name]
        assert sum(row["estimated_rows"] for row in parts) == 400
        if kind == "binary":
            whole = sum(row["estimated_positives"] for row in parts)
            assert whole == pytest.approx(record(records)["estimated_positives"], abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_neither_order_nor_parts_change_a_bit(kind, seed):
    chosen, rows = random.Random(seed), make_rows(kind)
    mixed = take_rows(rows, np.array(chosen.sample(range(400), 400)))
    cuts = sorted([0, 400, *chosen.sample(range(400), 6)])
    parts = [mixed.slice(a, b - a) for a, b in itertools.pairwise(cuts)]
    assert sort_records(measure(parts, kind)).equals(sort_records(measure([rows], kind)))


def test_each_bundle_has_its_own_calibration():
    label, scores = draw("binary", 3000, 5)
    other = calibrate_scores(label, 1 - scores, OF_KIND["binary"])  # one that scores say nothing to
    known = {**CALIBRATIONS["binary"], "two": other}
    rows = [make_rows("binary"), make_rows("binary", bundle="two"), make_rows("binary", bundle="three")]
    mixed = take_rows(concat_batches(rows), np.random.default_rng(0).permutation(1200))
    records = measure([mixed], "binary", calibrations=known.get).to_pylist()
    overall = {row["bundle_id"]: row for row in records if row["slice"] == ""}
    assert estimates_in(overall["one"]) == estimates_in(record(measure([rows[0]], "binary")))
    assert overall["two"]["estimated_roc_auc"] < 0.55 < overall["one"]["estimated_roc_auc"]
    assert (overall["three"]["rows"], overall["three"]["estimated_rows"]) == (400, 0)
    assert estimates_in(overall["three"]) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_that_is_not_finite_is_not_estimated(kind):
    rows = make_rows(kind)
    for name in OF_KIND[kind].score_columns:
        scores = as_float64(rows[name]).astype(np.float32)
        scores[:40] = np.nan
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(scores))
    said = record(measure([rows], kind))
    assert (said["rows"], said["estimated_rows"]) == (400, 360)
    assert estimates_in(said) == estimates_in(record(measure([rows.slice(40)], kind)))


def test_without_a_calibration_or_of_another_target_there_is_no_estimate():
    rows = make_rows("binary")
    for known in (no_calibration, {"one": calibrated("regression")}.get):
        said = record(measure([rows], "binary", calibrations=known))
        assert (said["rows"], said["estimated_rows"], said["estimated_roc_auc"]) == (400, 0, None)


def test_without_estimate_nothing_of_it_is_there():
    assert expectation_fields(PROJECT) == {}
    names = measure([make_rows("binary")], "binary", PROJECT).schema.names
    assert not [name for name in names if name.startswith("estimated")]


def test_labels_change_no_estimate():
    rows = make_rows("binary")
    label, _ = draw("binary", 400, 0)
    times = {"fraud": pa.array(label), LABEL_TIME: rows["at"]}
    labelled = pa.RecordBatch.from_arrays([*rows.columns, *times.values()], names=[*rows.schema.names, *times])
    project = OF_KIND["binary"]
    parts = [part for _, part in count_rows(rows, project, CALIBRATIONS["binary"].get)]
    parts += [part for _, part in take_labelled(labelled, project)]
    said = record(measure_window(concat_batches(parts), FIRST + 9 * DAY * SECOND, 1, project))
    assert said["labelled"] == 400
    assert estimates_in(said) == estimates_in(record(measure([rows], "binary")))
    low, high = said["estimated_roc_auc_low"], said["estimated_roc_auc_high"]
    assert low < said["roc_auc"] < high


def test_a_calibration_made_anew_is_another():
    """Rows that waited for their labels keep what was expected of them."""
    rows, known = make_rows("binary"), {"one": calibrated(seed=8)}
    project = OF_KIND["binary"]
    parts = [p for _, p in count_rows(rows.slice(0, 200), project, CALIBRATIONS["binary"].get)]
    parts += [p for _, p in count_rows(rows.slice(200), project, known.get)]
    found = record(measure_window(concat_batches(parts), FIRST + 9 * DAY * SECOND, 0, project))
    halves = [
        record(measure([rows.slice(0, 200)], "binary"))["estimated_positives"],
        record(measure([rows.slice(200)], "binary", calibrations=known.get))["estimated_positives"],
    ]
    assert found["estimated_positives"] == pytest.approx(sum(halves), abs=1e-9)


def test_what_is_carried_and_kept_depends_on_it_only_where_declared():
    assert carried_columns(OF_KIND["binary"]) == carried_columns(PROJECT)
    assert PROJECT.label_metrics.model_dump(mode="json") == {"window": 2 * DAY * SECOND}
    assert PROJECT.state_definitions != OF_KIND["binary"].state_definitions


def test_labels_need_not_come_to_a_run():
    text = ESTIMATED_TEXT.replace(", events: {time: seen}", "")
    project = declared(text, SCHEMA)
    assert record(measure([make_rows("binary")], "binary", project))["estimated_rows"] == 400


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("estimate: true", "estimate: maybe", "valid boolean"),
        ("model:", "target: {kind: quantile, quantiles: [0.5]}\nmodel:", "not of quantile"),
        ("top2:", "estimated_roc_auc:", "is a column of label metrics"),
        ("label: {field: fraud, delay: 1d, events: {time: seen}}", "", "needs labels"),
    ],
)
def test_faults(old, new, fault):
    assert_fault(ESTIMATED_TEXT, SCHEMA, old, new, fault)
