"""What can be wrong with a target, with the bands on its scores, and with inputs that are but names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from models.project.documents import Path
from models.project.learned import Decision
from models.project.targets import MAX_CLASSES, MAX_QUANTILES, MOST_VALUES, output_text

if TYPE_CHECKING:
    from models.project.declarations import Project

Fault = tuple[Path, str]


def check_target(project: Project) -> Iterator[Fault]:
    """That the label is what the kind of target needs, and all that goes with it."""
    target, label = project.target, project.label
    if target.kind != "quantile" and target.quantiles:
        yield ("target", "quantiles"), f"are of the kind quantile, not of {target.kind}"
    if target.kind == "quantile":
        yield from _check_quantiles(target.quantiles)
    if target.kind in ("binary", "anomaly"):
        return
    for name in project.metrics:
        yield ("metrics", name), f"precision_at_k is of a binary target, not of {target.kind}"
    if project.training.group is not None:
        yield ("training", "group"), f"leaves out entities that are positive, which a {target.kind} target has not"
    if label is None:
        yield ("target",), f"{target.kind} needs a label to learn from: declare label"
        return
    field = project.contract.fields.get(label.field)
    if field is None:  # of which is told already
        return
    place = f"{project.schema_file}:{project.contract.line_of(label.field)}"
    path: Path = ("label", "field")
    if target.kind == "multiclass":
        if not project.classes:
            wanted = f"string_domain, or for an INT field int_domain {{ min: … max: … }}, in {place}"
            yield path, f"{label.field} must have a domain, whose values are the classes: give it {wanted}"
        elif not 1 < len(project.classes) <= MAX_CLASSES:
            yield path, f"{label.field} has {len(project.classes)} values in its domain: 2 to {MAX_CLASSES} are needed"
    elif field.kind not in ("int", "float"):
        yield path, f"{label.field} is not a number, as a {target.kind} target needs"
    elif target.kind == "count" and (field.kind != "int" or field.minimum is None or field.minimum < 0):
        yield path, f"{label.field} must be a count: an INT field with int_domain {{ min: 0 }} in {place}"


def _check_quantiles(quantiles: list[float]) -> Iterator[Fault]:
    path: Path = ("target", "quantiles")
    if not quantiles:
        yield path, "say which, as in target: {kind: quantile, quantiles: [0.1, 0.5, 0.9]}"
    if len(quantiles) > MAX_QUANTILES:
        yield path, f"are {len(quantiles)}, at most {MAX_QUANTILES} are allowed"
    if any(two <= one for one, two in itertools.pairwise(quantiles)):
        yield path, "stand from the lowest to the highest, each once"
    if any(quantile != float(f"{quantile:g}") for quantile in quantiles):
        yield path, "have at most six digits, as they name columns"


def check_categories(project: Project) -> Iterator[Fault]:
    """That what is coded is an input that can be, in a way that its model and its label allow."""
    fields, params, label = project.contract.fields, project.model.params, project.label
    for name, declared in project.model.categories.items():
        path: Path = ("model", "categories", name)
        if name not in project.model.inputs:
            yield path, f"{name!r} is not an input of the model"
        elif name not in fields or fields[name].kind not in ("int", "string"):
            yield path, f"{name} must be a field of texts or whole numbers: derive: gives one, as by str() or int()"
        if declared.most is not None and declared.most > MOST_VALUES[declared.encoding]:
            yield (*path, "most"), f"is more than the {MOST_VALUES[declared.encoding]:,} of {declared.encoding}"
        if "smoothing" in declared.model_fields_set and declared.encoding != "target":
            yield (*path, "smoothing"), "is of the encoding target"
    for name, category in project.categories.items():
        place: Path = ("model", "inputs", project.model.inputs.index(name))
        if name in project.model.categories:
            place = ("model", "categories", name)
        if project.target.kind == "anomaly" and category.encoding != "one_hot":
            wanted = f"declare model.categories: {{{name}: one_hot}}"
            yield place, f"{name} is but a name, which an anomaly target takes as one_hot alone: {wanted}"
            continue
        if category.encoding == "splits" and params.get("tree_method") == "exact":
            wanted = f"declare model.categories: {{{name}: one_hot}}, or target"
            yield place, f"{name}: tree_method exact has no splits by category: {wanted}"
        if category.encoding != "target" or label is None or label.field not in fields:
            continue
        if fields[label.field].kind == "float" and label.field not in project.fixed_point:
            yield place, f"{name}: sums are exact: declare the decimal places of {label.field} under fixed_point"


def check_early_stopping(project: Project) -> Iterator[Fault]:
    """That something is left to learn from."""
    stopping = project.model.early_stopping
    if stopping and project.target.kind == "anomaly":
        yield ("model", "early_stopping"), "an anomaly target has no loss to stop by: leave this out"
    if stopping and not 0 < stopping.on_last < project.training.train:
        yield ("model", "early_stopping", "on_last"), "must be longer than zero and shorter than training.train"


def check_decisions(project: Project) -> Iterator[Fault]:
    """That some band holds for each score, and each can."""
    bands, kind = project.decisions, project.target.kind
    last = len(bands) - 1
    for i, band in enumerate(bands):
        if band.of is not None:
            yield from _check_output(project, i, band)
        elif band.at_least is not None and band.at_least >= _bound_above(bands[:i]):
            yield ("decisions", i, "at_least"), "bands stand from the highest bound to the lowest"
        if band.at_least is None and (i < last or kind == "binary"):
            yield ("decisions", i, "at_least"), "needs a bound" + (", as only the last has none" if i < last else "")
    if not bands:
        return
    if bands[-1].of is not None:
        yield ("decisions", last, "of"), "the last band is for all that is left: take this out"
    elif kind in ("regression", "quantile") and bands[-1].at_least is not None:
        yield ("decisions", last, "at_least"), "the last band is for all that is below the others: leave out its bound"
    elif (bands[-1].at_least or 0) > 0:
        yield ("decisions", last, "at_least"), "the last band must start at 0.0"


def _bound_above(bands: list[Decision]) -> float:
    bounds = [band.at_least for band in bands if band.of is None and band.at_least is not None]
    return bounds[-1] if bounds else math.inf


def _check_output(project: Project, i: int, band: Decision) -> Iterator[Fault]:
    path: Path = ("decisions", i, "of")
    known = ", ".join(project.outputs)
    if not project.outputs and project.target.kind not in ("multiclass", "quantile"):
        yield path, f"a {project.target.kind} target has one score alone: leave this out"
    elif project.outputs and band.of is not None and output_text(band.of) not in project.outputs:
        yield path, f"{band.of!r} is not an output of the model; there are {known}"
