"""Declarations of targets, bands and inputs that are but names: every fault has its line and says what to do."""

import pytest

from models.project.parameters import find_parameter_faults
from models.project.project import parse_project
from tests.kit.targets import KINDS, SCHEMA, declarations, parsed

SPLITS = "country: splits"


def faults(text, schema=SCHEMA):
    return [str(fault) for fault in parse_project(text.encode(), lambda name: schema.encode())[1]]


def line(part, text):
    assert text.count(part) == 1, part
    return text[: text.index(part)].count("\n") + 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_can_be_declared(kind):
    assert faults(declarations(kind)) == []


@pytest.mark.parametrize(
    ("kind", "old", "new", "path", "message"),
    [
        ("binary", "target: binary", "target: ternary", "target.kind", "Input should be 'binary', 'multiclass'"),
        ("binary", "target: binary", "target: {kind: binary, quantiles: [0.5]}", "target.quantiles", "are of the kind quantile"),
        ("binary", "target: binary", "target: {kind: binary, classes: [1]}", "target.classes", "there are kind, quantiles"),
        ("binary", "field: dear", "field: cost", "label.field", "cost must be of 0 and 1"),
        ("multiclass", "field: class", "field: country", "label.field", "country must have a domain, whose values are the classes"),
        ("multiclass", "field: class", "field: code", "label.field", "code must have a domain"),
        ("multiclass", "of: high", "of: huge", "decisions[0].of", "'huge' is not an output of the model; there are low, middle, high"),
        ("multiclass", "{action: go, at_least: 0}", "{action: go, of: low, at_least: 0}", "decisions[2].of", "the last band is for all that is left"),
        ("grades", "output: [grade, code]", "output: [grade, predicted]", "output[1]", "'predicted' is not a field"),
        ("regression", "field: cost", "field: class", "label.field", "class is not a number, as a regression target needs"),
        ("regression", "{action: cheap}", "{action: cheap, at_least: 0}", "decisions[1].at_least", "leave out its bound"),
        ("regression", "at_least: 30", "of: 0.5, at_least: 30", "decisions[0].of", "a regression target has one score alone"),
        ("regression", "{action: cheap}", "{action: mid, at_least: 31}, {action: cheap}", "decisions[1].at_least", "from the highest bound to the lowest"),
        ("regression", "objective: 'reg:squarederror'", "objective: 'count:poisson'", "model.params.objective", "must be reg:squarederror or reg:absoluteerror"),
        ("regression", "max_depth: 3", "scale_pos_weight: 2", "model.params.scale_pos_weight", "has no effect with a regression target"),
        ("regression", "fixed_point: {amount: 2, cost: 2}", "fixed_point: {amount: 2}", "model.categories.shop", "shop: sums are exact: declare the decimal places of cost"),
        ("count", "field: visits", "field: code", "label.field", "code must be a count: an INT field with int_domain { min: 0 }"),
        ("count", "field: visits", "field: cost", "label.field", "cost must be a count"),
        ("count", "max_depth: 3", "max_depth: 3, early_stopping_rounds: 5", "model.params.early_stopping_rounds", "declare model.early_stopping"),
        ("quantile", "[0.1, 0.5, 0.9]", "[0.9, 0.5]", "target.quantiles", "from the lowest to the highest"),
        ("quantile", "[0.1, 0.5, 0.9]", "[0.1, 1.0]", "target.quantiles[1]", "less than 1"),
        ("quantile", "[0.1, 0.5, 0.9]", "[]", "target.quantiles", "say which, as in target"),
        ("quantile", "[0.1, 0.5, 0.9]", "[0.12345678, 0.9]", "target.quantiles", "at most six digits"),
        ("quantile", "of: 0.9", "of: 0.8", "decisions[0].of", "0.8 is not an output of the model; there are 0.1, 0.5, 0.9"),
        ("anomaly", "n_estimators: 30", "max_depth: 3", "model.params.max_depth", "has no effect with an anomaly target"),
        ("anomaly", "n_estimators: 30", "max_samples: 1", "model.params.max_samples", "a whole number from 2 to 1000000"),
        ("anomaly", "country: one_hot", SPLITS, "model.categories.country", "takes as one_hot alone: declare model.categories: {country: one_hot}"),
        ("known anomaly", "field: dear", "field: visits", "label.field", "visits must be of 0 and 1"),
        ("binary", "code: one_hot", "code: hot", "model.categories.code.encoding", "Input should be 'splits', 'one_hot'"),
        ("binary", "code: one_hot", "code: {encodin: one_hot}", "model.categories.code.encodin", "did you mean encoding?"),
        ("binary", "code: one_hot", "amount: one_hot", "model.categories.amount", "amount must be a field of texts or whole numbers"),
        ("binary", "code: one_hot", "N_D: one_hot", "model.categories.N_D", "N_D must be a field of texts or whole numbers"),
        ("binary", "code: one_hot", "nope: one_hot", "model.categories.nope", "'nope' is not an input of the model"),
        ("binary", "code: one_hot", "code: {encoding: one_hot, most: 201}", "model.categories.code.most", "is more than the 200 of one_hot"),
        ("binary", "code: one_hot", "code: {encoding: one_hot, smoothing: 3}", "model.categories.code.smoothing", "is of the encoding target"),
        ("binary", "code: one_hot", "code: {most: 0}", "model.categories.code.most", "greater than or equal to 1"),
        ("binary", "max_depth: 3", "max_depth: 3, tree_method: exact", "model.categories.country", "tree_method exact has no splits by category"),
        ("binary", "  categories:", "  early_stopping: {rounds: 3, on_last: 4d}\n  categories:", "model.early_stopping.on_last", "shorter than training.train"),
        ("anomaly", "  categories:", "  early_stopping: {rounds: 3, on_last: 1d}\n  categories:", "model.early_stopping", "has no loss to stop by"),
        ("binary", "DEVIATION: amount / MEAN_D", "DEVIATION: amount / MEAN_W", "features.row.DEVIATION", "'MEAN_W' is not a field"),
        ("count", "slices: [code]}", "slices: [code]}\nmetrics: {top: 'precision_at_k(shop, 3)'}", "metrics.top", "precision_at_k is of a binary target"),
        ("count", "slices: [code]", "group: shop", "training.group", "which a count target has not"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line(kind, old, new, path, message):
    text = declarations(kind).replace(old, new)
    assert text != declarations(kind)
    written = (
        "  categories:" if path.startswith("model.categories") else new.splitlines()[-1 if "metrics" in path else 0]
    )
    at = line(written, text)
    found = [fault for fault in faults(text) if f" {path}: " in fault and message in fault]
    assert len(found) == 1, faults(text)
    assert found[0].startswith(f"project.yaml:{at}: ")


def test_a_label_is_needed_but_for_anomalies():
    for kind in ("multiclass", "count", "quantile"):
        text = declarations(kind).replace(f"label: {{field: {KINDS[kind][0]}, delay: 1d}}\n", "")
        assert any("needs a label to learn from: declare label" in fault for fault in faults(text))


def test_a_column_of_a_score_row_is_reserved_where_there_is_one():
    schema = SCHEMA + 'feature { name: "predicted" type: INT }\nfeature { name: "score_high" type: INT }\n'
    for kind, number in (("multiclass", 2), ("binary", 0)):
        text = declarations(kind).replace(", code]\ndec", ", code, predicted, score_high]\ndec")
        assert (
            sum("is reserved: a score row has a column of that name" in fault for fault in faults(text, schema))
            == number
        )


def test_too_many_classes_are_refused():
    assert any(
        "must have a domain" in f
        for f in faults(declarations("grades"), SCHEMA.replace("min: 3 max: 5", "min: 3 max: 999"))
    )
    assert any(
        "has 1 values in its domain: 2 to 200" in f
        for f in faults(declarations("grades"), SCHEMA.replace("min: 3 max: 5", "min: 3 max: 3"))
    )


def test_an_unused_declaration_is_in_no_digest():
    """What came later leaves the definitions of projects without it as they were."""
    plain = declarations("binary").replace(
        "  categories: {country: splits, code: one_hot, shop: {encoding: target, most: 20}}\n", ""
    )
    plain = plain.replace(", country, code, shop]", ", code]").replace("target: binary\n", "")
    definitions = parsed("binary", plain).feature_definitions()
    assert b"target" not in definitions
    assert b"categor" not in definitions
    dumped = parsed("binary", plain).model_dump(mode="json")
    assert "target" not in dumped
    assert dumped["model"].keys() == {"inputs", "params"}
    assert dumped["decisions"][0].keys() == {"action", "at_least"}
    assert parsed("binary", plain.replace("label:", "target: binary\nlabel:")).feature_definitions() == definitions


def test_texts_that_are_inputs_are_coded_without_a_declaration():
    text = declarations("binary").replace(", shop: {encoding: target, most: 20}", "")
    project = parsed("binary", text)
    assert [category.encoding for category in project.categories.values()] == ["splits", "one_hot", "splits"]


@pytest.mark.parametrize("kind", ["multiclass", "quantile", "count", "regression", "anomaly"])
def test_parameters_have_a_meaning_for_the_kind(kind):
    assert [name for name, _ in find_parameter_faults({"scale_pos_weight": 2.0}, kind)] == ["scale_pos_weight"]
    base = list(find_parameter_faults({"base_score": 3.5}, kind))
    assert bool(base) == (kind not in ("count", "regression"))
