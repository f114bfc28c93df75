"""What is of the language of expressions: their syntax, and whether the kinds of their parts fit."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from models.errors import HeadraceError
from models.project.functions import FUNCTIONS, TIME_UNITS, Function

MAX_CHARS = 1000
MAX_DEPTH = 100  # of operations in one another; deeper ones could overflow the stack where they are evaluated
MAX_LIST = 100

_NUMBERS = ("int", "float", "bool")
BINARY = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
COMPARE = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_EQUAL = (ast.Eq, ast.NotEq)


class ExpressionError(HeadraceError, ValueError):
    """An expression that is not of the language."""


class _Written(NamedTuple):
    """What an argument is that is written down."""

    what: str
    fits: Callable[[Any], bool]


_WRITTEN = {
    "text": _Written("a text", lambda value: isinstance(value, str) and bool(value)),
    "whole": _Written("a whole number", lambda value: type(value) is int and 0 <= value < 1000),
    "bounds": _Written("a list of numbers, ascending", lambda value: _are_bounds(value)),
}
_IN = (ast.In, ast.NotIn)


def names_of(tree: ast.expr) -> Iterator[str]:
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    yield from (n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in functions)


def constants(node: ast.expr) -> list[Any] | None:
    """The numbers or the texts of a written list; None if it is none."""
    if not isinstance(node, ast.List | ast.Tuple) or not 0 < len(node.elts) <= MAX_LIST:
        return None
    try:
        values = [ast.literal_eval(element) for element in node.elts]
    except ValueError:
        return None
    for kinds in ((int, float), (str,)):
        if all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            return values
    return None


def _are_bounds(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value[0], str) and value == sorted(set(value))


def check_syntax(node: ast.expr, text: str, depth: int = 1) -> None:
    """Refuse whatever is not of the language, at any depth."""
    if depth > MAX_DEPTH:
        raise ExpressionError(f"has more than {MAX_DEPTH} operations in one another")
    parts: Sequence[ast.expr] = []
    match node:
        case ast.Constant(value=int() as value) if value >= 1 << 63:
            raise ExpressionError(f"{value} is more than an integer of 64 bits holds: write it with a point")
        case ast.Constant(value=int() | float() | str()) | ast.Name():
            pass
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            parts = [operand]
        case ast.BinOp(op=op, left=left, right=right) if isinstance(op, BINARY):
            parts = [left, right]
        case ast.BoolOp(values=values):
            parts = values
        case ast.Compare(ops=[ast.In() | ast.NotIn()], left=left, comparators=[ast.List() as found]):
            if constants(found) is None:
                raise ExpressionError(f"{_shown(found, text)} is no list of at most {MAX_LIST} numbers or of texts")
            parts = [left]
        case ast.Compare(ops=ops, left=left, comparators=comparators) if all(isinstance(o, COMPARE) for o in ops):
            parts = [left, *comparators]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            parts = _check_call(name, args, text)
        case _:
            raise ExpressionError(f"{_shown(node, text)!r} is not of the language of expressions")
    for part in parts:
        check_syntax(part, text, depth + 1)


def _check_call(name: str, args: Sequence[ast.expr], text: str) -> Sequence[ast.expr]:
    """The arguments that are expressions; those that are to be written down are checked."""
    function = FUNCTIONS.get(name)
    if function is None:
        raise ExpressionError(f"{name}() is not a function here; there are {', '.join(FUNCTIONS)}")
    most = len(function.takes)
    if len(args) < most - function.optional or (len(args) > most and not function.repeats):
        number = f"at least {most}" if function.repeats else str(most)
        raise ExpressionError(f"{name}() takes {number} argument{'s' * (most > 1)}, not {len(args)}")
    for kind, node in zip(_takes(function, len(args)), args, strict=True):
        if kind not in _WRITTEN:
            continue
        value = constants(node) if kind == "bounds" else getattr(node, "value", None)
        if not _WRITTEN[kind].fits(value):
            raise ExpressionError(f"{name}() takes {_WRITTEN[kind].what} where {_shown(node, text)} stands")
        if name == "time" and value not in TIME_UNITS:
            raise ExpressionError(f"time() takes the unit {', '.join(TIME_UNITS)}, as in time(x, 'ms'), not {value!r}")
    return [node for kind, node in zip(_takes(function, len(args)), args, strict=True) if kind not in _WRITTEN]


def _takes(function: Function, count: int) -> list[str]:
    return [*function.takes, *[function.takes[-1]] * (count - len(function.takes))][:count]


def _shown(node: ast.expr, text: str) -> str:
    return ast.get_source_segment(text, node) or type(node).__name__


def kind_of(node: ast.expr, kinds: Mapping[str, str], text: str) -> str:
    """The kind of a part's result; ExpressionError where the kinds of its parts don't fit."""

    def of(part: ast.expr) -> str:
        return kind_of(part, kinds, text)

    def need_number(*parts: ast.expr) -> list[str]:
        found = [of(part) for part in parts]
        for part, kind in zip(parts, found, strict=True):
            if kind not in (*_NUMBERS, "any"):
                raise ExpressionError(f"{_shown(part, text)} is not a number")
        return found

    match node:
        case ast.Constant(value=value):
            return {bool: "bool", int: "int", float: "float"}.get(type(value), "string")
        case ast.Name(id=name):
            return kinds.get(name, "any")
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            need_number(operand)
            return "bool"
        case ast.UnaryOp(operand=operand):
            return _joined(need_number(operand))
        case ast.BinOp(op=op, left=left, right=right):
            found = _joined(need_number(left, right))
            return "float" if isinstance(op, ast.Div | ast.FloorDiv | ast.Mod) else found
        case ast.BoolOp(values=values):
            need_number(*values)
            return "bool"
        case ast.Compare(ops=[op], left=left, comparators=[ast.List() as found]) if isinstance(op, _IN):
            listed = "string" if isinstance((constants(found) or [""])[0], str) else "number"
            if (of(left) == "string") != (listed == "string") and of(left) != "any":
                raise ExpressionError(f"{_shown(left, text)} is no {listed}, as those of the list are")
            return "bool"
        case ast.Compare(ops=ops, left=left, comparators=comparators):
            sides = [left, *comparators]
            if {of(side) for side in sides} - {"any"} == {"string"} and all(isinstance(o, _EQUAL) for o in ops):
                return "bool"
            need_number(*sides)
            return "bool"
        case ast.Call(func=ast.Name(id=name), args=args):
            return _kind_of_call(name, args, kinds, text)
    raise AssertionError(f"unchecked expression {ast.dump(node)}")


def _kind_of_call(name: str, args: Sequence[ast.expr], kinds: Mapping[str, str], text: str) -> str:
    function, found = FUNCTIONS[name], []
    for wanted, part in zip(_takes(function, len(args)), args, strict=True):
        if wanted not in ("number", "string", "time", "any"):
            continue
        kind = kind_of(part, kinds, text)
        if wanted == "time" and kind not in ("time", "any"):
            raise ExpressionError(f"{name}() takes the event time field, or time(…)")
        if wanted == "number" and kind not in (*_NUMBERS, "any"):
            raise ExpressionError(f"{_shown(part, text)} is not a number")
        if wanted == "string" and kind not in ("string", "any"):
            raise ExpressionError(f"{_shown(part, text)} is not a text")
        found.append(kind)
    if name == "time" and (found[0] == "string") == (len(args) == 2) and found[0] != "any":
        raise ExpressionError(
            "time() takes a text such as '2018-06-08T12:00:00Z', or a number and its unit: time(x, 's')"
        )
    if function.gives != "first":
        return function.gives
    alike = found[1:] if name == "where" else found
    if len({kind if kind not in _NUMBERS else "number" for kind in alike} - {"any"}) > 1:
        raise ExpressionError(f"{name}() takes values of one kind, not {' and '.join(dict.fromkeys(alike))}")
    return _joined(alike)


def _joined(found: Sequence[str]) -> str:
    """The kind of an operation on these: float before int before bool."""
    return next((kind for kind in ("string", "time", "float", "any") if kind in found), "int")
