"""project.yaml: every fault is named, at its line, all at once; and whatever it holds, nothing is raised."""

import copy
import datetime
import functools
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.project import project as loading
from models.project.project import Fault, ProjectError, check_project, load_project, parse_project
from models.project.sections import parse_duration
from tests.kit.support import ROOT

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "card_fraud"
TEXT = (EXAMPLE / "project.yaml").read_text()
SCHEMA = (EXAMPLE / "schema.pbtxt").read_text()


def check(text, schema=SCHEMA):
    """The faults of a project as text; it is given if and only if it has none of type."""
    text, schema = (part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in (text, schema))
    project, faults = parse_project(text, lambda _: schema)
    assert project is not None or faults
    for fault in faults:
        assert str(fault).isprintable()
        assert re.match(r"(project\.yaml|schema\.pbtxt)(:\d+)?: ", str(fault))
    return list(map(str, faults))


def changed(old, new, text=TEXT):
    assert old in text
    return text.replace(old, new, 1)


def line(part, text):
    return text[: text.index(part)].count("\n") + 1


def test_the_example_has_no_fault():
    assert check(TEXT) == check(TEXT.encode("utf-16")) == []
    project = load_project(EXAMPLE)
    assert project.feature_names[:2] == ("TX_DURING_WEEKEND", "TX_DURING_NIGHT")
    assert len(project.feature_names) == 14
    assert set(project.model.inputs) <= {*project.contract.fields, *project.feature_names}
    assert project.carried_fields == ("TRANSACTION_ID", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD")


# what is replaced, by what; where the fault stands and what it says; the text of the line it is said to be in
COUNT = "features.rolling[0].features.CUSTOMER_ID_NB_TX_{window}_WINDOW"
MEAN = "features.rolling[0].features.CUSTOMER_ID_AVG_AMOUNT_{window}_WINDOW"
NIGHT = "features.row.TX_DURING_NIGHT"
FAULTS = [
    # of YAML
    ("name: card_fraud", "name: [card_fraud", "", "not YAML", None),
    ("seed: 0", "seed: !!python/object/apply:os.system [x]", "", "could not determine a constructor", "seed:"),
    ("seed: 0", "seed: !!int x", "", "not a int: invalid literal", "seed:"),
    ("seed: 0", "seed: 0b_", "", "not a int: invalid literal", "seed:"),
    ("seed: 0", "seed: !!bool x", "", "not a bool", "seed:"),
    ("2000-01-01T00:00:00Z", "2000-13-01", "", "not a timestamp: month must be in 1..12", "earliest:"),
    ("max_bytes: 65536", "max_bytes: " + "9" * 5000, "", "not a int: Exceeds the limit", "max_bytes:"),
    ("train: 7d", "train: &a 7d", "", "anchors and aliases are not read", "train:"),
    ("train: 7d", "train: *a", "", "anchors and aliases are not read", "train:"),
    ("seed: 0", "? [a, b]\n  : 1", "", "unhashable key", None),
    ("seed: 0", "\tseed: 0", "", "not YAML", None),
    ("seed: 0", "seed: 0, seed: 1", "", "the key 'seed' stands twice", "seed:"),
    ("entities:", "event: {}\nentities:", "", "the key 'event' stands twice", "event: {}"),
    # of type
    ("name: card_fraud", "nam: card_fraud", "name", "Field required", None),
    ("name: card_fraud", "nam: card_fraud", "nam", "Extra inputs are not permitted: did you mean name?", "nam:"),
    ("unknown_fields: ignore", "zzz: ignore", "event.zzz", "not permitted: there are id, time, earliest", "zzz:"),
    ("- entity: terminal", "- entity: terminal\n      dela: 1d", "features.rolling[1].dela", "did you mean delay?", "dela:"),
    ("- entity: terminal", "- entity: terminal\n      empty: 1.0e+39", "features.rolling[1].empty", "finite in the 32", "empty:"),
    ("name: card_fraud", "name: Card Fraud", "name", "String should match pattern", "name:"),
    ("schema: schema.pbtxt", "schema: ../s.pbtxt", "schema", "is not the name of a file", "schema:"),
    ("schema: schema.pbtxt", "schema: /etc/passwd", "schema", "is not the name of a file", "schema:"),
    ("schema: schema.pbtxt", "schema: .", "schema", "is not the name of a file", "schema:"),
    ("  id: TRANSACTION_ID", "  idd: TRANSACTION_ID", "event.id", "Field required", "event:"),
    ("TRANSACTION_ID", "[1]", "event.id", "Input should be a valid string", "id:"),
    ("2000-01-01T00:00:00Z", "yesterday", "event.earliest", "Input should be a valid datetime", "earliest:"),
    ("2000-01-01T00:00:00Z", '"0001-01-01T00:00:00+23:59"', "event.earliest", "is outside the years", "earliest:"),
    ("deduplicate_within: 7d", "deduplicate_within: 7", "event.deduplicate_within", "7 is not a duration", "deduplicate"),
    ("deduplicate_within: 7d", "deduplicate_within: 999999d", "event.deduplicate_within", "longer than 100 years", "dedup"),
    ("max_bytes: 65536", "max_bytes: 0", "event.max_bytes", "greater than 0", "max_bytes:"),
    ("max_bytes: 65536", "max_bytes: 1000000000000", "event.max_bytes", "less than or equal to", "max_bytes:"),
    ("unknown_fields: ignore", "unknown_fields: drop", "event.unknown_fields", "'ignore' or 'refuse'", "unknown_fields:"),
    ("customer: CUSTOMER_ID", "customer: 5", "entities.customer", "valid string", "customer:"),
    ("TX_AMOUNT: 2", "TX_AMOUNT: 10", "fixed_point.TX_AMOUNT", "less than or equal to 9", "TX_AMOUNT: 10"),
    ("windows: {1DAY: 1d,", "windows: {1DAY: 1x,", "features.rolling[0].windows.1DAY", "is not a duration", "windows:"),
    ("{1DAY: 1d, 7DAY: 7d, 30DAY: 30d}", "{}", "features.rolling[0].windows", "at least 1 item", "windows:"),
    ("    - entity: customer", "    - entity: customer\n      empty: .inf", "features.rolling[0].empty", "finite", "empty:"),
    ("seed: 0", "seed: [0]", "model.params.seed", "must be a number, a text, true or false", "params:"),
    ("at_least: 0.8", "at_least: .nan", "decisions[0].at_least", "finite number", "block"),
    ("action: block", 'action: ""', "decisions[0].action", "at least 1 character", "at_least: 0.8"),
    # of the schema
    ("schema.pbtxt", "absent.pbtxt", "schema", "absent.pbtxt cannot be read: No such file", "schema:"),
    # between declarations, and with the schema
    ("id: TRANSACTION_ID", "id: NOPE", "event.id", "'NOPE' is not a field of schema.pbtxt; it has TRANS", "id:"),
    ("id: TRANSACTION_ID", "id: TX_TIME_DAYS", "event.id", "TX_TIME_DAYS must be required", "id:"),
    ("id: TRANSACTION_ID", "id: TX_AMOUNT", "event.id", "must be a plain INT or BYTES field", "id:"),
    ("id: TRANSACTION_ID", "id: TX_DATETIME", "event.id", "must be a plain INT or BYTES field", "id:"),
    ("time: TX_DATETIME", "time: CUSTOMER_ID", "event.time", "must be a time: give it a time_domain", "time:"),
    ("2000-01-01T00:00:00Z", "2100-01-01", "event.earliest", "must be before event.latest", "earliest:"),
    ("deduplicate_within: 7d", "deduplicate_within: 0s", "event.deduplicate_within", "longer than zero", "dedup"),
    ("customer: CUSTOMER_ID", "customer: TX_DATETIME", "entities.customer", "plain INT or BYTES", "customer:"),
    ("customer: CUSTOMER_ID", "customer: NOPE", "entities.customer", "'NOPE' is not a field", "customer:"),
    ("field: TX_FRAUD", "field: NOPE", "label.field", "'NOPE' is not a field", "field:"),
    ("field: TX_FRAUD", "field: TX_AMOUNT", "label.field", "must be of 0 and 1", "field:"),
    ("field: TX_FRAUD", "field: CUSTOMER_ID", "label.field", "is the event's id or an entity", "field:"),
    ("field: TX_FRAUD", "field: TX_FRAUD\n  events: {}", "label.events.time", "Field required", "events:"),
    ("field: TX_FRAUD", "field: TX_FRAUD\n  events: {time: TX_DATETIME}", "label.events.time", "TX_DATETIME is a field of events", "events:"),
    ("field: TX_FRAUD", "field: TX_FRAUD\n  events: {time: __seen}", "label.events.time", "'__seen' can't be a field", "events:"),
    ("field: TX_FRAUD", "field: TX_FRAUD\n  events: {time: score}", "label.events.time", "'score' can't be a field", "events:"),
    ("field: TX_FRAUD", "field: TX_FRAUD\n  events: {time: ''}", "label.events.time", "'' can't be a field", "events:"),
    ("TX_AMOUNT: 2", "NOPE: 2", "fixed_point.NOPE", "'NOPE' is not a field", "NOPE:"),
    ("TX_AMOUNT: 2", "TX_DATETIME: 2", "fixed_point.TX_DATETIME", "is not a number", "TX_DATETIME: 2"),
    ("TX_AMOUNT: 2", "TX_TIME_DAYS: 2", MEAN,
     "declare the decimal places of TX_AMOUNT", "CUSTOMER_ID_AVG_AMOUNT_{window}"),
    ("hour(TX_DATETIME) <= 6", "hour(TX_AMOUNT) <= 6", NIGHT, "takes the event time", "TX_DURING_NIGHT:"),
    ("hour(TX_DATETIME) <= 6", "TX_DATETIME", NIGHT, "gives a time, and not a number", "TX_DURING_NIGHT:"),
    ("hour(TX_DATETIME) <= 6", "TX_FRAUD", NIGHT, "reads the label TX_FRAUD", "TX_DURING_NIGHT:"),
    ("hour(TX_DATETIME) <= 6", "NOPE + 1", NIGHT, "'NOPE' is not a field", "TX_DURING_NIGHT:"),
    ("hour(TX_DATETIME) <= 6", "1 +", NIGHT, "is not an expression", "TX_DURING_NIGHT:"),
    ("hour(TX_DATETIME) <= 6", "__import__(1)", NIGHT, "is not a function here", "TX_DURING_NIGHT:"),
    ("TX_DURING_NIGHT: hour", "TX_AMOUNT: hour", "features.row.TX_AMOUNT", "is the name of a field already", "TX_AMOUNT: hour"),
    ("TX_DURING_NIGHT: hour", "a-b: hour", "features.row.a-b", "'a-b' is not a name", "a-b: hour"),
    ("TX_DURING_NIGHT: hour", "__a: hour", "features.row.__a", "'__a' is not a name", "__a: hour"),
    ("TX_DURING_NIGHT: hour", "score: hour", "features.row.score", "score is reserved", "score: hour"),
    ("TX_DURING_NIGHT: hour", "TERMINAL_ID_NB_TX_1DAY_WINDOW: hour",
     "features.rolling[1].features.TERMINAL_ID_NB_TX_{window}_WINDOW", "is declared more than once", "TERMINAL_ID_NB_TX_{window}"),
    ("- entity: customer", "- entity: nobody", "features.rolling[0].entity", "'nobody' is not an entity; there are customer, terminal",
     "entity: nobody"),
    ("windows: {1DAY: 1d", "windows: {1DAY: 0d", "features.rolling[0].windows.1DAY", "longer than zero", "windows:"),
    ("- entity: terminal", "- entity: terminal\n      include_current: false", "features.rolling[1].include_current",
     "a delayed window never includes", "include_current"),
    ("NB_TX_{window}_WINDOW: count", "NB_TX: count", "features.rolling[0].features.CUSTOMER_ID_NB_TX", "needs {window} in its name",
     "CUSTOMER_ID_NB_TX:"),
    ("WINDOW: count", "WINDOW: median(TX_AMOUNT)", COUNT,
     "'median(TX_AMOUNT)' is not an aggregate", "median"),
    ("WINDOW: count", "WINDOW: count(TX_AMOUNT)", COUNT,
     "is not an aggregate", "count(TX"),
    ("mean(TX_AMOUNT)", "mean(NOPE)", MEAN, "'NOPE' is not a field",
     "mean(NOPE)"),
    ("mean(TX_AMOUNT)", "max(TX_DATETIME)", MEAN, "is not a number",
     "max(TX_DATETIME)"),
    ("mean(TX_AMOUNT)", "rate(TX_AMOUNT)", MEAN,
     "rate needs a field of 0 and 1", "rate(TX_AMOUNT)"),
    ("mean(TX_AMOUNT)", "sum(TX_FRAUD)", MEAN,
     "reads the label TX_FRAUD before it is known", "sum(TX_FRAUD)"),
    ("    - TX_AMOUNT\n", "    - NOPE\n", "model.inputs[0]", "'NOPE' is neither a feature nor a field", "- NOPE"),
    ("    - TX_AMOUNT\n", "    - TX_FRAUD\n", "model.inputs[0]", "TX_FRAUD is the label", "- TX_FRAUD"),
    ("    - TX_AMOUNT\n", "    - TX_DATETIME\n", "model.inputs[0]", "is neither a feature nor a field", "- TX_DATETIME"),
    ("    - TX_AMOUNT\n", "    - TX_AMOUNT\n    - TX_AMOUNT\n", "model.inputs[1]", "TX_AMOUNT stands twice", None),
    # of what is not known yet
    ("label:", "available: {NOPE: at_event}\nlabel:", "available.NOPE", "'NOPE' is not a field", "available:"),
    ("label:", "available: {TX_AMOUNT: later}\nlabel:", "available.TX_AMOUNT", "'later' is no such time: write at_event, after 7d",
     "available:"),
    ("label:", "available: {TX_AMOUNT: after 7}\nlabel:", "available.TX_AMOUNT", "'7' is not a duration", "available:"),
    ("label:", "available: {TX_AMOUNT: {at: NOPE}}\nlabel:", "available.TX_AMOUNT.at", "'NOPE' is not a field", "available:"),
    ("slices: [TX_DURING_WEEKEND,", "slices: [NOPE,", "training.slices[0]", "is neither a feature nor a field", "slices:"),
    ("slices: [TX_DURING_WEEKEND,", "slices: [TX_DATETIME,", "training.slices[0]", "is neither a feature", "slices:"),
    ("group: customer", "group: nobody", "training.group", "'nobody' is not an entity", "group:"),
    ("customer, 100)", "nobody, 100)", "metrics.CP_100", "'nobody' is not an entity; there are customer", "nobody"),
    ("customer, 100)", "customer)", "metrics.CP_100", "write precision_at_k(ENTITY, K)", "customer)"),
    ("customer, 100)", "customer, 0)", "metrics.CP_100", "write precision_at_k(ENTITY, K)", "customer, 0)"),
    ("CP_100:", "roc_auc:", "metrics.roc_auc", "roc_auc is always measured", "roc_auc:"),
    ("CP_100:", "CP@100:", "metrics.CP@100", "'CP@100' is not a name", "CP@100:"),
    ("train: 7d", "train: 7h", "training.train", "must be whole days", "train:"),
    ("test: 7d", "test: 0d", "training.test", "must be whole days", "test: 0d"),
    ("at_least: 0.3", "at_least: 0.9", "decisions[1].at_least", "bands stand from the highest", "review"),
    ("at_least: 0.0", "at_least: 0.1", "decisions[2].at_least", "the last band must start at 0.0", "approve"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "path", "message", "at"), FAULTS, ids=lambda value: str(value)[:30])
def test_every_fault_is_named_with_its_place(old, new, path, message, at):
    text = changed(old, new)
    if "absent" in new:
        project, faults = parse_project(text.encode(), lambda name: (EXAMPLE / name).read_bytes())
        assert project is None
        faults = list(map(str, faults))
    else:
        faults = check(text)
    place = f"project.yaml:{line(at, text)}: " if at else ""
    matching = [f for f in faults if message in f and (f": {path}: " in f if path else True) and f.startswith(place)]
    assert len(matching) == 1, faults


@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        ("type: FLOAT", "type: STRUCT", "field TX_AMOUNT: needs a type of INT, FLOAT or BYTES", "type: STRUCT"),
        ("feature {", "featur {", "not a TensorFlow Metadata schema: 2:1 : ", "featur {"),
        ("type: FLOAT", "type: FLOATS", "FLOATS is not one of INT, FLOAT, BYTES", "type: FLOATS"),
        ('name: "TX_TIME_DAYS"', 'name: "__x"', "the field name __x is reserved", '{\n  name: "__x"'),
        ('name: "TX_FRAUD"', 'name: "TX_TIME_DAYS"', "field TX_TIME_DAYS: stands twice", '{\n  name: "TX_TIME_DAYS"\n  type: INT\n  int'),
        ("int_domain { min: 0 max: 3 }", "# } feature {\n int_domain { min: 3 max: 0 }", "no number is in", "int_domain { min: 3"),
        ("int_domain { min: 0 max: 3 }", "skew_comparator { infinity_norm { threshold: 0.1 } }", "its skew_comparator has an inf", "skew_c"),
    ],
)  # fmt: skip
def test_faults_of_the_schema_are_named_at_its_lines(old, new, message, at):
    schema = changed(old, new, SCHEMA)
    faults = check(TEXT, schema)
    place = f"schema.pbtxt:{line(at, schema)}: "
    assert [fault for fault in faults if message in fault and fault.startswith(place)], faults


@pytest.mark.parametrize("end", ["", "\r", "  # the contract"])
def test_a_text_that_is_no_yaml_hides_no_fault_of_the_schema(end):
    text = changed(
        "name: card_fraud", "name: [card_fraud", changed("schema: schema.pbtxt", f"schema: schema.pbtxt{end}")
    )
    schema = changed("type: FLOAT", "type: STRUCT", SCHEMA)
    of_yaml, *others = check(text, schema)
    assert "not YAML" in of_yaml
    assert others == check(TEXT, schema)
    assert len(check(text)) == len(check(changed("schema: ", "schema: ../", text), schema)) == 1


def test_a_schema_that_is_not_there_is_no_second_fault_of_a_text_that_is_no_yaml(tmp_path):
    (tmp_path / "project.yaml").write_text("name: [a\nschema: none.pbtxt\n")
    assert [fault.message[:8] for fault in check_project(tmp_path)[1]] == ["not YAML"]


def test_a_fault_that_the_schema_mends_says_where_and_how():
    faults = check(changed("time: TX_DATETIME", "time: TX_TIME_SECONDS"))
    where = f"schema.pbtxt:{line('TX_TIME_SECONDS', SCHEMA) - 1}"
    assert any(f"give it a time_domain in {where}, such as time_domain {{ string_format" in fault for fault in faults)
    assert any("integer_format: UNIX_SECONDS" in fault for fault in faults)
    other = f"schema.pbtxt:{line('time_domain', SCHEMA)}: field TX_DATETIME: TX_DATETIME has a time_domain, which only"
    assert sum(fault.startswith(other) for fault in faults) == 1
    assert (
        check(
            changed("time: TX_DATETIME", "time: TX_TIME_SECONDS").replace("(TX_DATETIME)", "(TX_TIME_SECONDS)"),
            changed(
                'name: "TX_TIME_SECONDS"\n  type: INT',
                'name: "TX_TIME_SECONDS"\n  type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS }',
                changed('  time_domain { string_format: "%Y-%m-%d %H:%M:%S" }\n', "", SCHEMA),
            ),
        )
        == []
    )


def test_output_fields():
    def with_output(names):
        return re.sub(r"(?m)^output: .*$", f"output: {names}", TEXT)

    assert with_output("[a]") != TEXT
    assert check(with_output("[TX_TIME_DAYS, TX_AMOUNT]")) == []
    unknown, time_goes_out = check(with_output("[TX_DATETIME, NOPE]"))
    assert "output[1]: 'NOPE' is not a field" in unknown
    assert "output[0]: TX_DATETIME is the event time, which goes out anyway" in time_goes_out
    renamed = SCHEMA.replace("TX_TIME_DAYS", "bundle_id")
    (fault,) = check(with_output("[bundle_id]"), renamed)
    assert fault.startswith(f"schema.pbtxt:{line('bundle_id', renamed) - 1}: ")
    assert "the field name bundle_id is reserved" in fault
    assert check(TEXT, renamed) == []


LABEL_EVENTS = changed("field: TX_FRAUD", "field: TX_FRAUD\n  events: {time: SEEN}")


def test_labels_that_are_records_of_their_own():
    project, faults = parse_project(LABEL_EVENTS.encode(), lambda _: SCHEMA.encode())
    assert faults == []
    contract = project.label_type.contract
    assert list(contract.fields) == ["TRANSACTION_ID", "TX_FRAUD", "SEEN"]
    assert all(field.required for field in contract.fields.values())
    assert contract.fields["TX_FRAUD"].is_boolean
    assert contract.fields["SEEN"].kind == "time"
    assert not project.contract.fields["TX_FRAUD"].required
    records = project.label_type
    assert (records.id, records.time) == ("TRANSACTION_ID", "SEEN")
    assert records.max_bytes == project.event.max_bytes
    assert (project.event_type.number, records.number) == (0, 1)  # as all journals have them
    assert records.carried == ("TRANSACTION_ID", "TX_FRAUD")
    assert records.fixed_point == {}
    assert project.event_type.fixed_point == {"TX_AMOUNT": 2}
    assert "TX_FRAUD" in project.carried_fields  # may still be put out
    without = load_project(EXAMPLE)
    assert without.label_type is None


@pytest.mark.parametrize("aggregate", ["sum", "mean", "rate", "min", "max"])
def test_aggregates_over_labels_that_are_records_of_their_own(aggregate):
    risk = changed("rate(TX_FRAUD)", f"{aggregate}(TX_FRAUD)", LABEL_EVENTS)
    faults = check(risk)
    if aggregate in ("min", "max"):
        (fault,) = faults
        assert "TERMINAL_ID_RISK_{window}_WINDOW: there is no m" in fault
        assert fault.endswith("of labels that are records of their own: write sum, mean or rate")
        assert check(changed("  events: {time: SEEN}\n", "", risk)) == []
    else:
        assert faults == []


def test_labels_that_are_records_of_their_own_need_a_delay():
    at_once = changed("  delay: 7d ", "  delay: 0d ", changed("      delay: 7d\n", "", LABEL_EVENTS))
    (fault,) = check(at_once)
    assert "reads the label TX_FRAUD: where labels are records of their own, a delay must be longer than zero" in fault
    assert check(changed("  events: {time: SEEN}\n", "", at_once)) == []


TEN = [
    ("name: card_fraud", "name: Card-Fraud", "name: String should match"),
    ("unknown_fields: ignore", "unknown_fields: maybe", "event.unknown_fields"),
    ("id: TRANSACTION_ID", "id: NOPE", "event.id: 'NOPE' is not a field"),
    ("terminal: TERMINAL_ID", "terminal: TX_AMOUNT", "entities.terminal: TX_AMOUNT must be"),
    ("TX_AMOUNT: 2", "TX_AMOUNT: two", "fixed_point.TX_AMOUNT: Input should be a valid integer"),
    (
        "hour(TX_DATETIME) <= 6",
        "a.b + 1",
        "features.row.TX_DURING_NIGHT: 'a.b' is not of the language",
    ),
    ("weekday(TX_DATETIME) >= 5", "weekday(TX_AMOUNT) >= 5", "features.row.TX_DURING_WEEKEND: weekday() takes"),
    ("    - TX_AMOUNT\n", "    - NOPE\n", "model.inputs[0]: 'NOPE' is neither"),
    ("train: 7d", "train: 7h", "training.train: must be whole days"),
    ("group: customer", "group: nobody", "training.group: 'nobody' is not"),
    ("at_least: 0.3", "at_least: 0.9", "decisions[1].at_least: bands stand"),
    ("seed: 0", "seed: 0, seed: 1", "the key 'seed' stands twice"),
]


def test_all_faults_are_named_at_once():
    text = functools.reduce(lambda text, change: changed(change[0], change[1], text), TEN, TEXT)
    schema = changed("int_domain { min: 0 max: 3 }", "int_domain { min: 3 max: 0 }", SCHEMA)
    faults = check(text, schema)
    there = f"schema.pbtxt:{line('int_domain { min: 3', schema)}"
    expected = [*(message for _, _, message in TEN), f"{there}: field TX_FRAUD_SCENARIO: no number is in"]
    for message in expected:
        assert sum(message in fault for fault in faults) == 1, (message, faults)
    assert len(faults) == len(expected)


@pytest.mark.parametrize(
    "changes",
    [
        [("customer: CUSTOMER_ID", "customer: [x]")],
        [("entities:\n", "entities: 5\nentitie:\n")],
        [("TX_DURING_NIGHT: hour(TX_DATETIME) <= 6", "TX_DURING_NIGHT: []")],
        [("      delay: 7d\n", "      delay: 7\n")],
        [("  delay: 7d ", "  dela: 7d ")],
        [("{1DAY: 1d, 7DAY", "{1DAY: one, 7DAY")],
        [("at_least: 0.0", "at_least: none")],
        [("model:", "modell:")],
        [("TX_AMOUNT: 2\n", "TX_AMOUNT: two\n")],
    ],
    ids=str,
)
def test_no_fault_is_named_that_comes_of_another(changes):
    text = functools.reduce(lambda text, change: changed(*change, text), changes, TEXT)
    faults = check(text)
    wrong = ("Field required", "Extra inputs", "Input should be", "is not a duration")
    assert faults
    assert all(any(message in fault for message in wrong) for fault in faults), faults


def test_a_schema_field_that_is_wrong_is_named_once():
    (fault,) = check(TEXT, changed("type: FLOAT", "type: STRUCT", SCHEMA))
    assert "field TX_AMOUNT" in fault
    assert len(check(TEXT, changed('name: "TX_AMOUNT"', 'name: "AMOUNT"', SCHEMA))) == 3


# ---- files


def test_load_raises_all_faults_a_line_each(tmp_path):
    (tmp_path / "project.yaml").write_text(changed("train: 7d", "train: 7h", changed("group: customer", "group: x")))
    (tmp_path / "schema.pbtxt").write_text(SCHEMA)
    with pytest.raises(ProjectError) as error:
        load_project(tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert all(text.startswith(f"{tmp_path}/project.yaml:") for text in lines)
    project, faults = check_project(tmp_path)
    assert project is not None
    assert list(map(str, faults)) == lines


def test_files_that_are_not_there_or_too_large(tmp_path, monkeypatch):
    path = tmp_path / "project.yaml"
    assert check_project(tmp_path) == (None, [Fault(str(path), "cannot be read: No such file or directory")])
    path.mkdir()
    assert check_project(tmp_path) == (None, [Fault(str(path), "cannot be read: Is a directory")])
    path.rmdir()
    path.write_text("# " + "x" * loading.MAX_PROJECT_BYTES)
    assert check_project(tmp_path) == (None, [Fault(str(path), f"is larger than {256 << 10} bytes")])
    path.write_text(TEXT)
    (tmp_path / "schema.pbtxt").write_text("# " + "x" * loading.MAX_SCHEMA_BYTES)
    (fault,) = check_project(tmp_path)[1]
    assert str(fault) == f"{tmp_path}/schema.pbtxt: is larger than {1 << 20} bytes"


# ---- what to do about faults of YAML


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("      features:\n        CUSTOMER_ID_NB_TX_{window}_WINDOW: count\n", "      features: {NB_{window}: count}\n",
         'a name that has them is to be quoted: "NB_{window}": …'),
        ("      features:\n        CUSTOMER_ID_NB_TX_{window}_WINDOW: count\n", "      features: { A: count, {window}_N: count }\n",
         'is to be quoted: "{window}_N": …'),
        ("        CUSTOMER_ID_NB_TX_{window}_WINDOW: count\n", "        {window}_N: count\n", 'quoted: "{window}_N": …'),
        ("      features:\n        CUSTOMER_ID_NB_TX_{window}_WINDOW: count\n", "      features: {\n        N_{window}: count}\n",
         'is to be quoted: "N_{window}": …'),
        ("  delay: 7d ", "\tdelay: 7d ", "indent with spaces, not with a tab"),
        ("hour(TX_DATETIME) <= 6", "a: b", "quote a text that has a colon"),
        ("hour(TX_DATETIME) <= 6", "%5", "quote a text that starts so"),
        ("hour(TX_DATETIME) <= 6", "*x", "write the part out, or quote a text"),
        ("windows: {1DAY: 1d, 7DAY: 7d, 30DAY: 30d}", "windows: {1DAY: 1d", "close each {, [ and quote"),
        ("name: card_fraud", "name: 'card_fraud", "close each {, [ and quote"),
    ],
)  # fmt: skip
def test_faults_of_yaml_say_what_to_do(old, new, message):
    text = changed(old, new)
    (fault,) = check(text)
    assert re.match(r"project\.yaml:\d+: ", fault)
    assert message in fault


def test_bytes_that_are_no_text_are_named_with_their_line():
    head = TEXT.encode()[: TEXT.index("event:")]
    assert check(head + "é: 1".encode("latin-1")) == [
        f"project.yaml:{line('event:', TEXT)}: not UTF-8: invalid continuation byte: save the file as UTF-8"
    ]
    (fault,) = check(head + b"a: \x07")
    assert fault == f"project.yaml:{line('event:', TEXT)}: not YAML: it holds the character U+0007: take it out"


# ---- parameters of the model


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("max_dept: 3", "max_dept: is not a parameter that may be declared: did you mean max_depth?"),
        ("eta: 0.1", "eta: is not a parameter that may be declared: did you mean learning_rate?"),
        ("nthread: 2", "nthread: is not a parameter that may be declared: say it with --threads"),
        ("subsample: 1e-3", "subsample: must be a number above 0 and at most 1, not the text '1e-3': write 0.001"),
        ("subsample: .nan", "subsample: must be a number above 0 and at most 1, not nan"),
        ("max_bin: true", "max_bin: must be a whole number from 2 to 65536, not true or false"),
        ("max_leaves: 3.0", "max_leaves: must be a whole number from 0 to 65536, not 3.0"),
        ("objective: reg:squarederror", "objective: must be binary:logistic or reg:logistic, not 'reg:squarederror'"),
        ("objective: binary:hinge", "not 'binary:hinge': its scores are 0 and 1"),
        ("tree_method: auto", "tree_method: must be hist or approx or exact, not 'auto': name the one"),
        ("tree_method: exact, max_bin: 8", "max_bin: has no effect with tree_method exact"),
        ("reg_alpha: .inf", "reg_alpha: must be a number at least 0 and at most 1e+30, not inf"),
    ],
)
def test_every_parameter_is_checked_with_its_line(param, message):
    block = changed("  params: {n_estimators: 100, max_depth: 6, learning_rate: 0.3, base_score: 0.5, max_bin: 65536, seed: 0}\n",
                    "  params:\n    n_estimators: 100\n" + "".join(f"    {p.strip()}\n" for p in param.split(",")))  # fmt: skip
    (fault,) = check(block)
    name = re.search(r"(\w+): ", message if ": " in message and not message.startswith("not") else param)[1]
    assert fault.startswith(f"project.yaml:{line(f'    {name}:', block)}: model.params.")
    assert message in fault


@pytest.mark.parametrize(
    "param", ["objective: 'reg:logistic'", "tree_method: exact", "tree_method: approx", "gamma: 0"]
)
def test_parameters_that_may_be_declared(param):
    assert check(changed("max_bin: 65536, seed: 0", f"seed: 0, {param}")) == []


# ---- hostile YAML

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
HOSTILE = {
    "bomb": TEXT + BOMB,
    "recursive": TEXT + "\nmore: &o [*o]\n",
    "deep list": "a: " + "[" * 100_000,
    "deep mapping": "{a: " * 20_000,
    "deep sequence": "- " * 100_000,
    "deep keys": "? " * 100_000,
    "many keys": "".join(f"k{i}: 1\n" for i in range(20_000)),
    "one long text": "a: " + "x" * 200_000,
    "many anchors": "&a " * 80_000,
    "many documents": "---\n" * 60_000,
    "flow": "{" + "a," * 50_000,
    "NUL": "a\0b",
    "bytes": bytes(range(256)),
    "lone surrogate": 'name: "\\ud800"\n"\\udfff": 1\n',
    "control characters": 'name: "a\\nb\\e[2J"\n"a\\nb\\e[2J": 1\n',
    "nothing": "",
    "a list": "- a",
    "a text": "a",
    "merge": "<<: {name: a}\n",
}


@pytest.mark.timeout(60)  # of what would take for ever
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_soon(name):
    assert check(HOSTILE[name])


def test_no_tag_makes_anything(tmp_path):
    mark = tmp_path / "mark"
    for tag in (
        "python/object/apply:pathlib.Path.touch",
        "python/object/new:os.system",
        "python/name:os.system",
        "python/module:os",
    ):
        assert check(changed("seed: 0", f"seed: !!{tag} ['{mark}']"))
    assert not mark.exists()


# ---- fuzzing

ODD = [
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", "x", "7d", "{window}", "count", "mean(TX_AMOUNT)", "a+b",
    [], {}, [1], ["x"], {"a": 1}, {1: 2}, {True: 1}, {None: 1}, {1.5: 1}, datetime.date(2020, 1, 1), b"ab", "\ud800",
    datetime.datetime(1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=23))), "TX_AMOUNT", "TX_DATETIME",
    "TX_FRAUD", "customer", "\n\n", "../x", "__x", {datetime.date(2020, 1, 1): "1d"}, [[[[]]]], {"{window}": "count"},
]  # fmt: skip
KEYS = ["x", "y", 1, True, None, 2.5, datetime.date(2020, 1, 1), "__a", "a b", "windows", "delay", "features"]
TREE = yaml.safe_load(TEXT)


def places(tree, path=()):
    """Every place in a tree but its root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for part, value in items:
        yield (*path, part)
        yield from places(value, (*path, part))


@st.composite
def mutated(draw):
    tree = copy.deepcopy(TREE)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(tree)) or [("name",)]))
        holder = functools.reduce(lambda part, key: part[key], path[:-1], tree)
        match draw(st.sampled_from(["remove", "replace", "replace", "rename"])):
            case "remove":
                holder.pop(path[-1], None) if isinstance(holder, dict) else holder.pop(path[-1])
            case "replace":
                holder[path[-1]] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "rename" if isinstance(holder, dict):
                holder[draw(st.sampled_from(KEYS))] = holder.pop(path[-1], 5)
            case _:
                holder.append(copy.deepcopy(draw(st.sampled_from(ODD))))
    return tree


@settings(deadline=None, max_examples=300)
@given(mutated())
def test_any_tree_is_a_project_or_has_faults(tree):
    text = yaml.dump(tree, allow_unicode=True).encode("utf-8", "replace")
    if not check(text):
        project, _ = parse_project(text, lambda _: SCHEMA.encode())
        assert project.feature_definitions()
        assert set(project.carried_fields) <= set(project.contract.fields)
        assert len(set(project.feature_names)) == len(project.feature_names)


TOKENS = [
    "{", "}", "[", "]", ":", "- ", "\n", '"', "'", "&a ", "*a", "!!int ", "!!float ", "!!set ", "!!omap ", "!!pairs ", "!!binary ",
    "!!timestamp ", "? ", "<<: ", "| ", "> ", "%", "@", "0x", "0o9", "1:60", "1e999", ".inf", "2020-99-99", "\0", "\t", "---\n",
]  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_change_of_the_text_is_a_project_or_has_faults(data):
    place = data.draw(st.integers(0, len(TEXT)))
    put = data.draw(st.sampled_from(TOKENS) | st.text(max_size=3))
    check(TEXT[:place] + put + TEXT[place + data.draw(st.integers(0, 20)) :])


# ---- small things


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", 604_800_000_000),
        ("36h", 129_600_000_000),
        (" 5 m ", 300_000_000),
        ("0s", 0),
        ("500ms", 500_000),
        ("1us", 1),
    ],
)
def test_durations(text, expected):
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text", ["", "d", "7", "-7d", "7.5d", "7 days", "\u0667d", "7d7d", "9" * 5000 + "d", "37000d", 7, None, [], True]
)
def test_no_durations(text):
    with pytest.raises(ValueError, match=r"is not a duration|longer than 100 years"):
        parse_duration(text)


def test_the_definitions_are_those_that_change_a_value():
    def definitions(text):
        project, faults = parse_project(text.encode(), lambda _: SCHEMA.encode())
        assert faults == []
        return project.feature_definitions()

    same = definitions(TEXT)
    assert definitions(TEXT + "\n# a comment\n") == same
    assert definitions(changed("name: card_fraud", "name: other")) == same
    assert definitions(changed("train: 7d", "train: 8d")) == same
    empty = {
        definitions(changed("- entity: customer", f"- entity: customer\n      empty: {e}")) for e in ("0", "1", ".nan")
    }
    others = {
        definitions(changed("<= 6", "<= 7")),
        definitions(changed("1DAY: 1d", "1DAY: 2d")),
        definitions(changed("at_least: 0.8", "at_least: 0.7")),
        definitions(changed("TX_AMOUNT: 2", "TX_AMOUNT: 3")),
        definitions(changed("deduplicate_within: 7d", "deduplicate_within: 8d")),
        definitions(LABEL_EVENTS),
    }
    assert len(empty | others | {same}) == 10
    assert b'"label":{"delay":604800000000,"field":"TX_FRAUD"}' in same  # as in bundles without label records


# ---- what is not known when an event is scored


def test_no_input_is_of_what_is_known_later_however_it_is_computed():
    """An amount that is known a day later: as a field, in derived ones and row features, and in windows without delay."""
    text = changed("label:", "available: {TX_AMOUNT: after 1d}\nderive: {twice: 2 * TX_AMOUNT}\nlabel:")
    text = changed("  row:", "  row:\n    thrice: twice + TX_AMOUNT", text)
    text = changed("    - TX_AMOUNT\n", "    - TX_AMOUNT\n    - twice\n    - thrice\n", text)
    text = changed("fixed_point:", "fixed_point:\n  twice: 2", text)
    faults = check(text)
    known = "is known after 1d of the event"
    windows = f"{MEAN}: TX_AMOUNT {known}: the delay of its window must be at least as long"
    inputs = [f"model.inputs[{n}]: {name} {known}" for n, name in enumerate(("TX_AMOUNT", "twice", "thrice"))]
    told = [fault.partition(": ")[2] for fault in faults]
    assert [next(start for start in (windows, *inputs) if f.startswith(start)) for f in told] == [windows, *inputs]
    delayed = changed("entity: customer", "entity: customer\n      delay: 1d", text)
    assert len(check(delayed)) == 3
    at = changed("after 1d", "{at: TX_DATETIME}", delayed)
    assert any("differs from event to event: no delay of a window fits" in fault for fault in check(at))
    assert check(changed("after 1d", "at_event", text)) == []


def test_no_input_is_computed_of_the_label():
    text = changed("label:", "derive: {told: 1 - TX_FRAUD}\nlabel:")
    text = changed("    - TX_AMOUNT\n", "    - told\n", text)
    (fault,) = check(text)
    assert "model.inputs[0]: told is known as late as a label is" in fault


def test_no_window_is_over_what_reads_windows():
    text = changed("  row:", "  row:\n    DEVIATION: TX_AMOUNT / CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW")
    assert check(text) == []
    told = "DEVIATION reads the rolling feature CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW, so no window can be over it"
    (fault,) = check(changed("WINDOW: count", "WINDOW: max(DEVIATION)", text))
    assert fault.endswith(f"{COUNT}: {told}")
    (fault,) = check(changed("WINDOW: count", "WINDOW: count where DEVIATION > 2", text))
    assert fault.endswith(f"{COUNT}: {told}")
