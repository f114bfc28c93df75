"""What can be wrong with what is expected of features."""

from __future__ import annotations

from collections.abc import Iterator

from models.project.declarations import Project
from models.project.documents import Path
from models.project.expressions import Expression
from models.project.places import Fault
from models.project.sections import Expect
from models.project.syntax import ExpressionError
from models.record import UNEXPECTED


def check_expect(project: Project) -> Iterator[Fault]:
    """Each fault of `expect`."""
    try:
        whole = {f.name: f.is_count for f in project.rolling_features}
    except ValueError:  # which is told where it stands
        return
    for name in project.features.row:
        whole[name] = _is_whole(project, name)
    for name, expected in project.expect.items():
        path: Path = ("expect", name)
        if name not in whole:
            yield path, f"{name!r} is not a feature; there are {', '.join(whole) or 'none'}"
            continue
        yield from _check_rules(path, expected)
        if expected.finite and name not in project.features.row:
            yield (*path, "finite"), "no window gives an infinite number: leave this out, or write required: true"
        if expected.fallback is not None and whole[name] and not expected.fallback.is_integer():
            yield (*path, "fallback"), f"must be a whole number, as {name} is"
    taken = {*project.contract.fields, *whole}
    if project.marks_rows and UNEXPECTED in taken:
        yield ("expect",), f"{UNEXPECTED} is the name of a field or feature: rows that are marked have a column of it"


def _check_rules(path: Path, expected: Expect) -> Iterator[Fault]:
    low, high = expected.min, expected.max
    if low is None and high is None and not (expected.required or expected.finite):
        yield path, "expects nothing: write min, max, required: true or finite: true"
    if low is not None and high is not None and low > high:
        yield (*path, "min"), "is more than max"
    if (expected.fallback is None) == (expected.otherwise == "fallback"):
        yield (*path, "fallback"), "goes with otherwise: fallback, and each needs the other"
    fallback = expected.fallback
    if fallback is not None and not (low is None or fallback >= low) & (high is None or fallback <= high):
        yield (*path, "fallback"), "is not as expected itself"


def _is_whole(project: Project, name: str) -> bool:
    try:
        kinds = {n: field.kind for n, field in project.contract.fields.items()}
        return Expression.parse(project.features.row[name]).check(kinds) in ("int", "bool")
    except ExpressionError:  # which is told where it stands
        return False
