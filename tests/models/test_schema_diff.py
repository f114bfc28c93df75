"""A change is called compatible only if no old event is refused or read otherwise; the reasons name the cause."""

import dataclasses
import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.codecs import decode_json
from models.faults import RowFaults
from models.project.contract import Contract
from models.schemas import Needs, diff_schemas, field_needs, is_breaking, read_declarations, render_changes
from tests.kit.support import CARD_FRAUD, card_fraud

pytestmark = pytest.mark.slow

NOBODY = Needs({}, frozenset(), False)


def schema(*features: str) -> Contract:
    return Contract.parse("\n".join(f"feature {{ {feature} }}" for feature in features).encode())


def one_change(old: str, new: str, needs: Needs | None = NOBODY) -> tuple[bool, str]:
    keep = 'name: "keep" type: INT'
    changes = diff_schemas(schema(keep, *([old] if old else [])), schema(keep, *([new] if new else [])), needs)
    assert len(changes) == 1, render_changes(changes)
    assert changes[0].field == "a"
    return changes[0].breaking, changes[0].what


A = 'name: "a" type: INT'
F = 'name: "a" type: FLOAT'
B = 'name: "a" type: BYTES'
REQUIRED = "presence { min_fraction: 1.0 }"


@pytest.mark.parametrize(
    ("old", "new", "breaking", "what"),
    [
        ("", A, False, "added, optional"),
        ("", f"{A} {REQUIRED}", True, "added, required"),
        (A, "", False, "removed"),
        (A, F, True, "type whole number -> number"),
        (A, B, True, "type whole number -> text"),
        (A, f"{A} {REQUIRED}", True, "optional -> required"),
        (f"{A} {REQUIRED}", A, False, "required -> optional"),
        (f"{A} int_domain {{ min: 2 }}", f"{A} int_domain {{ min: 3 }}", True, "minimum 2 -> 3"),
        (f"{A} int_domain {{ min: 3 }}", f"{A} int_domain {{ min: 2 }}", False, "minimum 3 -> 2"),
        (A, f"{A} int_domain {{ max: 3 }}", True, "maximum none -> 3"),
        (f"{A} int_domain {{ max: 3 }}", A, False, "maximum 3 -> none"),
        (f"{F} float_domain {{ max: 0.5 }}", f"{F} float_domain {{ max: 0.25 }}", True, "maximum 0.5 -> 0.25"),
        (B, f'{B} string_domain {{ value: "x" }}', True, "domain none -> x"),
        (f'{B} string_domain {{ value: "x" }}', B, False, "domain x -> none"),
        (
            f'{B} string_domain {{ value: "x" value: "y" }}',
            f'{B} string_domain {{ value: "y" }}',
            True,
            "out of the domain: x",
        ),
        (
            f'{B} string_domain {{ value: "y" }}',
            f'{B} string_domain {{ value: "x" value: "y" }}',
            False,
            "into the domain: x",
        ),
        (
            f'{B} time_domain {{ string_format: "%Y-%m-%d %H:%M:%S" }}',
            f'{B} time_domain {{ string_format: "%Y-%m-%dT%H:%M:%SZ" }}',
            False,
            "time format %Y-%m-%d %H:%M:%S -> %Y-%m-%dT%H:%M:%SZ",
        ),
        (
            f'{B} time_domain {{ string_format: "%d/%m/%Y" }}',
            f'{B} time_domain {{ string_format: "%m/%d/%Y" }}',
            True,
            "time format %d/%m/%Y -> %m/%d/%Y",
        ),
        (
            f"{A} time_domain {{ integer_format: UNIX_SECONDS }}",
            f"{A} time_domain {{ integer_format: UNIX_MILLISECONDS }}",
            True,
            "time format UNIX_SECONDS -> UNIX_MILLISECONDS",
        ),
        (A, f"{A} drift_comparator {{ infinity_norm {{ threshold: 0.1 }} }}", False, "drift_comparator changed"),
    ],
)
def test_each_kind_of_change_has_its_verdict(old, new, breaking, what):
    assert one_change(old, new) == (breaking, what)


def test_leaving_0_and_1_breaks_events_that_say_true():
    old, new = schema(f"{A} int_domain {{ min: 0 max: 1 }}"), schema(f"{A} int_domain {{ min: 0 max: 2 }}")
    assert [(c.what, c.breaking) for c in diff_schemas(old, new, NOBODY)] == [
        ("maximum 1 -> 2", False),
        ("no longer of 0 and 1 only", True),
    ]


def test_bool_domain_is_the_domain_of_0_and_1():
    old, new = schema(f"{A} bool_domain {{ }}"), schema(f"{A} int_domain {{ min: 0 max: 1 }}")
    (change,) = diff_schemas(old, new, NOBODY)
    assert (change.field, change.what, change.breaking) == ("", "written otherwise", False)


def test_the_same_schema_has_no_change_and_a_new_order_is_told():
    a, b = 'name: "a" type: INT', 'name: "b" type: INT'
    assert diff_schemas(schema(a, b), schema(a, b), None) == []
    (change,) = diff_schemas(schema(a, b), schema(b, a), None)
    assert (change.breaking, change.what) == (False, "the order of fields changed")


def test_without_a_project_a_field_that_may_be_needed_counts_as_needed():
    assert one_change(A, "", None)[0]
    assert one_change(f"{A} {REQUIRED}", A, None)[0]


def test_what_a_project_needs():
    needs = field_needs(card_fraud())
    assert set(needs.roles) == {
        "TRANSACTION_ID",
        "TX_DATETIME",
        "CUSTOMER_ID",
        "TERMINAL_ID",
        "TX_AMOUNT",
        "TX_FRAUD",
    }
    assert needs.roles["TX_AMOUNT"][0] == "a model input"
    assert "the feature CUSTOMER_ID_AVG_AMOUNT_1DAY_WINDOW" in needs.roles["TX_AMOUNT"]
    assert {"the label", "an output field", "the feature TERMINAL_ID_RISK_7DAY_WINDOW"} <= set(needs.roles["TX_FRAUD"])
    assert needs.never_missing == needs.roles.keys() - {"TX_FRAUD"}
    assert field_needs(read_declarations(CARD_FRAUD)) == needs


def test_what_a_project_needs_can_not_go():
    project = card_fraud()
    needs, text = field_needs(project), project.contract.text.decode()

    def without(name):
        return Contract.parse(
            "feature".join(part for part in text.split("feature") if f'"{name}"' not in part).encode()
        )

    breaking = {n for n in project.contract.fields if is_breaking(diff_schemas(project.contract, without(n), needs))}
    assert breaking == set(needs.roles)
    (change,) = diff_schemas(project.contract, without("TX_DATETIME"), needs)
    assert change.reason == ("needed by the event time, the feature TX_DURING_WEEKEND, the feature TX_DURING_NIGHT")
    (change,) = diff_schemas(
        project.contract, without("TX_TIME_DAYS"), dataclasses.replace(needs, refuses_unknown=True)
    )
    assert change.breaking
    optional = Contract.parse(text.replace(f"  {REQUIRED}\n", "").encode())
    assert {c.field for c in diff_schemas(project.contract, optional, needs) if c.breaking} == needs.never_missing


def test_breaking_changes_come_first_and_odd_text_is_shown_safely():
    old = schema(f'{B} string_domain {{ value: "x" value: "y" }}', 'name: "c" type: INT')
    new = schema(f'{B} string_domain {{ value: "\\033[31mred" value: "y" }}', 'name: "c" type: INT')
    lines = render_changes(diff_schemas(old, new, NOBODY)).splitlines()
    assert [line.split()[0] for line in lines] == ["breaking", "compatible"]
    assert "\033" not in lines[1]
    assert "red" in lines[1]


VALUES = [None, -1, 0, 1, 2, 1.0, 0.5, 2.5, True, False, "x", "y", "", "2024-02-29 13:14:15", "2024-03-04T05:06:07Z"]
VALUES += [1_700_000_000, 1_700_000_000_000, 1e300, [1], {"b": 1}]

bounds = st.sampled_from(["", "min: 0", "max: 1", "min: 0 max: 1", "min: -1 max: 2", "min: 1"])
bodies = st.one_of(
    bounds.map(lambda b: f"type: INT int_domain {{ {b} }}"),
    bounds.map(lambda b: f"type: FLOAT float_domain {{ {b} }}"),
    st.just("type: INT bool_domain { }"),
    st.sets(st.sampled_from(["x", "y", "z"]), min_size=1).map(
        lambda d: "type: BYTES string_domain { " + " ".join(f'value: "{v}"' for v in sorted(d)) + " }"
    ),
    st.just("type: BYTES"),
    st.sampled_from(["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%d/%m/%Y"]).map(
        lambda f: f'type: BYTES time_domain {{ string_format: "{f}" }}'
    ),
    st.sampled_from(["UNIX_SECONDS", "UNIX_MILLISECONDS"]).map(
        lambda f: f"type: INT time_domain {{ integer_format: {f} }}"
    ),
)
fields = st.tuples(bodies, st.sampled_from(["", REQUIRED]))
schemas = st.fixed_dictionaries({"a": fields}, optional={"b": fields}).map(
    lambda found: schema(*(f'name: "{n}" {body} {presence}' for n, (body, presence) in found.items()))
)


def read(contract: Contract, events: list[dict], refuse_unknown: bool):
    faults = RowFaults(len(events))
    payloads = pa.array([json.dumps(event).encode() for event in events], pa.binary())
    columns = decode_json(payloads, contract, refuse_unknown, faults)
    contract.check(columns, faults)
    return columns, faults.bad


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schemas, schemas, st.booleans())
def test_compatible_means_that_old_events_stay_valid_with_the_same_values(old, new, refuses_unknown):
    changes = diff_schemas(old, new, Needs({}, frozenset(), refuses_unknown))
    pool = [{}, *({name: value} for name in old.fields for value in VALUES)]
    pool += [{name: value for name in old.fields} for value in VALUES]
    before, bad_before = read(old, pool, refuses_unknown)
    after, bad_after = read(new, pool, refuses_unknown)
    stay_valid = not (bad_after & ~bad_before).any()
    good = pa.array(~bad_before)
    common = [name for name in old.fields if name in new.fields]
    same = all(before[name].filter(good).equals(after[name].filter(good)) for name in common)
    if not is_breaking(changes):
        assert stay_valid, render_changes(changes)
        assert same, render_changes(changes)
    if not stay_valid:
        assert is_breaking(changes)
