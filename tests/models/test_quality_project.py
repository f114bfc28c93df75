"""The `quality` section: what it may say, what is wrong with it, and that nothing changes without it."""

import pytest

from models.project.project import parse_project
from tests.kit.quality_rows import DECLARATIONS, SCHEMA, small_project


def faults(quality, drift="", skew=""):
    schema = SCHEMA.replace(b"SKEW", skew.encode()).replace(b"DRIFT", drift.encode())
    return [
        f"{fault.place.partition(': ')[2]}: {fault.message}"
        for fault in parse_project(f"{DECLARATIONS}quality: {quality}\n".encode(), lambda _: schema)[1]
    ]


@pytest.mark.parametrize(
    ("quality", "expected"),
    [
        ("{}", "quality.window: Field required"),
        ("{window: 0s}", "quality.window: must be whole milliseconds, at least one"),
        ("{window: 1500us}", "quality.window: must be whole milliseconds, at least one"),
        ("{window: 1d, min_rows: 29}", "quality.min_rows: Input should be greater than or equal to 30"),
        ("{window: 1d, min_rows: 500, sample: 400}", "quality.min_rows: must not be more than quality.sample"),
        ("{window: 1d, false_alarm_rate: 0}", "quality.false_alarm_rate: Input should be greater than 0"),
        ("{window: 1d, gate: close}", "quality.gate: Input should be 'warn', 'quarantine' or 'stop'"),
        ("{window: 1d, gate: stop}", "quality.gate: stop needs a safe_action"),
        ("{window: 1d, safe_action: wait}", "quality.safe_action: 'wait' is not an action of decisions; there are block"),
        ("{window: 1d, limit: 3}", "quality.limit: Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_each_fault_is_named(quality, expected):
    (fault,) = faults(quality)
    assert fault.startswith(expected)


def test_comparators_that_are_not_computed_are_named():
    (fault,) = faults("{window: 1d}", skew="skew_comparator { infinity_norm { threshold: 0.1 } }")
    assert "field amount: its skew_comparator has an infinity_norm, which is for texts" in fault
    (fault,) = faults("{window: 1d}", drift="drift_comparator { normalized_abs_difference { threshold: 0.1 } }")
    assert "field country: its drift_comparator has a normalized_abs_difference" in fault


def test_names_of_the_gates_columns_are_reserved():
    text = DECLARATIONS.replace("night: hour", "verdict_id: hour").replace("[amount, night,", "[amount,")
    _, found = parse_project(text.encode(), lambda _: SCHEMA.replace(b"SKEW", b"").replace(b"DRIFT", b""))
    assert [fault.message for fault in found] == ["verdict_id is reserved: a score row has a column of that name"]


def test_features_inputs_and_fields_that_go_out_are_watched_but_for_the_label():
    watched = ("n_D1", "mean_D1", "n_D7", "mean_D7", "amount", "country")
    project = small_project()
    assert project.watched_columns == watched  # in windows of an hour, night is what it is by their nature
    daily = project.model_copy(update={"quality": project.quality.model_copy(update={"window": 86_400_000_000})})
    assert daily.watched_columns == ("night", *watched)


def test_quality_is_no_part_of_what_a_bundle_is():
    assert small_project("psi: 0.3").feature_definitions() == small_project("gate: quarantine").feature_definitions()
    without, _ = parse_project(DECLARATIONS.encode(), lambda _: SCHEMA.replace(b"SKEW", b"").replace(b"DRIFT", b""))
    assert without.quality is None
    assert without.feature_definitions() == small_project().feature_definitions()
