"""Row features: arithmetic over one event's fields, evaluated on whole columns.

The language is a small part of Python's: numbers, field names, `+ - * / // %`, comparisons, `and or not`,
`abs min max where`, and, of the event time, `hour weekday day month`. Booleans become 0 and 1,
integers have 64 bits and wrap, `/ // %` give floats. All of it is exact IEEE 754 arithmetic: there is no
function, such as a logarithm, whose last bits depend on the processor. A result that is no finite number is missing.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from models.errors import HeadraceError

# What precedes the name of a feature, or of another input, in the count of events that have no finite number there.
NOT_FINITE = "not finite: "
MAX_CHARS = 1000
MAX_DEPTH = 100  # of operations in one another; deeper ones could overflow the stack where they are evaluated

_DAY_US = 86_400_000_000
Column = np.ndarray[Any, Any]


class ExpressionError(HeadraceError, ValueError):
    """An expression that is not of the language."""


def _month(time_us: Column) -> Column:
    return time_us.astype("M8[us]").astype("M8[M]").astype(np.int64) % 12 + 1


def _day(time_us: Column) -> Column:
    days = time_us.astype("M8[us]")
    return np.asarray(days.astype("M8[D]") - days.astype("M8[M]").astype("M8[D]")).astype(np.int64) + 1


_TIME_FUNCTIONS: dict[str, Callable[[Column], Column]] = {
    "hour": lambda t: t % _DAY_US // 3_600_000_000,
    "weekday": lambda t: (t // _DAY_US + 3) % 7,  # 1970-01-01 was a Thursday; Monday is 0
    "day": _day,
    "month": _month,
}


def _whole(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`//` or `%` as Python means it; of integers exact, too, beyond the 53 bits of a float."""

    def apply(a: Any, b: Any) -> Any:
        a, b = np.asarray(a), np.asarray(b)
        result = operation(a.astype(np.float64), b.astype(np.float64))
        if a.dtype.kind == b.dtype.kind == "i":
            result = np.where(b == 0, result, operation(a, np.where(b == 0, 1, b)).astype(np.float64))
        return result

    return apply


_NUMBER_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "abs": (1, np.abs),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "where": (3, lambda condition, a, b: np.where(_truth(condition), a, b)),
}
_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: lambda a, b: np.true_divide(np.asarray(a, np.float64), b),
    ast.FloorDiv: _whole(np.floor_divide),
    ast.Mod: _whole(np.mod),
}
_COMPARE: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}


def _truth(value: Any) -> Any:
    return np.asarray(value) != 0


@dataclasses.dataclass(frozen=True)
class Expression:
    """A parsed expression; `text` alone defines it."""

    text: str

    @staticmethod
    def parse(text: str) -> Expression:
        """Parse `text`; raise ExpressionError, saying what of it is not of the language."""
        expression = Expression(text)
        _check_syntax(expression._tree, text)
        return expression

    @functools.cached_property
    def _tree(self) -> ast.expr:
        if len(self.text) > MAX_CHARS:
            raise ExpressionError(f"is longer than {MAX_CHARS} characters")
        try:
            return ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"{self.text!r} is not an expression: {error}") from None

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The fields it reads."""
        functions = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        return frozenset(n.id for n in ast.walk(self._tree) if isinstance(n, ast.Name) and id(n) not in functions)

    def check(self, kinds: Mapping[str, str]) -> None:
        """Raise ExpressionError where a field's kind (int, float, string, time) does not fit its use."""
        in_time = set()
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _TIME_FUNCTIONS:
                argument = node.args[0]
                if not isinstance(argument, ast.Name) or kinds.get(argument.id, "time") != "time":
                    raise ExpressionError(f"{node.func.id}() takes the event time field")
                in_time.add(id(argument))
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Name) and id(node) not in in_time and kinds.get(node.id) in ("time", "string"):
                raise ExpressionError(f"{node.id} is not a number")

    def evaluate(self, columns: Mapping[str, Column]) -> Column:
        """Evaluate on columns of n rows: event time as int64 microseconds, numbers as int64 or float64.

        Gives int64 (comparisons as 0 and 1) or float64, n rows. A missing number is NaN and stays NaN in
        arithmetic; as in Python, no comparison with it is true but `!=`, and as a condition it is true itself.
        Division by zero gives inf or NaN, as in IEEE 754, which other operations may go on with, as in
        `where(n == 0, 0, x / n)`; but a result that is infinite is missing, too.
        """
        value = self._evaluate_raw(columns)
        infinite = np.isinf(value) if value.dtype.kind == "f" else np.zeros(0, bool)
        return np.where(infinite, np.nan, value) if infinite.any() else value

    def find_impossible(self, columns: Mapping[str, Column]) -> Column:
        """Whether each row's result, bool[n], is missing for want of a finite number, and not as an operand is."""
        value = self._evaluate_raw(columns)
        operands = [columns[name] for name in self.names]
        holed = functools.reduce(np.logical_or, [np.isnan(o) for o in operands], np.zeros(len(value), bool))
        return np.isinf(value) | (np.isnan(value) & ~holed)

    def _evaluate_raw(self, columns: Mapping[str, Column]) -> Column:
        rows = len(next(iter(columns.values())))
        with np.errstate(all="ignore"):
            value = np.asarray(_evaluate(self._tree, columns))
        value = value.astype(np.float64 if value.dtype.kind == "f" else np.int64)
        return np.broadcast_to(value, (rows,)) if value.ndim == 0 else value


def _check_syntax(node: ast.expr, text: str, depth: int = 1) -> None:
    """Refuse whatever is not of the language, at any depth."""
    if depth > MAX_DEPTH:
        raise ExpressionError(f"has more than {MAX_DEPTH} operations in one another")
    parts: list[ast.expr] = []
    match node:
        case ast.Constant(value=int() as value) if value >= 1 << 63:
            raise ExpressionError(f"{value} is more than an integer of 64 bits holds: write it with a point")
        case ast.Constant(value=int() | float()) | ast.Name():
            pass
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            parts = [operand]
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _BINARY:
            parts = [left, right]
        case ast.BoolOp(values=values):
            parts = values
        case ast.Compare(ops=ops, left=left, comparators=comparators) if all(type(o) in _COMPARE for o in ops):
            parts = [left, *comparators]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            arity = 1 if name in _TIME_FUNCTIONS else _NUMBER_FUNCTIONS.get(name, (-1, None))[0]
            if arity < 0:
                known = ", ".join([*_TIME_FUNCTIONS, *_NUMBER_FUNCTIONS])
                raise ExpressionError(f"{name}() is not a function here; there are {known}")
            if len(args) != arity:
                raise ExpressionError(f"{name}() takes {arity} argument{'s' * (arity > 1)}, not {len(args)}")
            parts = args
        case _:
            shown = ast.get_source_segment(text, node) or type(node).__name__
            raise ExpressionError(f"{shown!r} is not of the language of row features")
    for part in parts:
        _check_syntax(part, text, depth + 1)


def _evaluate(node: ast.expr, columns: Mapping[str, Column]) -> Any:
    def value(part: ast.expr) -> Any:
        return _evaluate(part, columns)

    match node:
        case ast.Constant(value=constant):
            return int(constant) if isinstance(constant, bool) else constant
        case ast.Name(id=name):
            return columns[name]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_truth(value(operand))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return np.negative(_number(value(operand)))
        case ast.UnaryOp(operand=operand):
            return value(operand)
        case ast.BinOp(op=op, left=left, right=right):
            return _BINARY[type(op)](_number(value(left)), _number(value(right)))
        case ast.BoolOp(op=op, values=values):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return functools.reduce(join, [_truth(value(v)) for v in values])
        case ast.Compare(ops=ops, left=left, comparators=comparators):
            sides = [value(left), *(value(c) for c in comparators)]
            pairs = zip(ops, sides, sides[1:], strict=False)
            return functools.reduce(np.logical_and, [_COMPARE[type(o)](a, b) for o, a, b in pairs])
        case ast.Call(func=ast.Name(id=name), args=args) if name in _TIME_FUNCTIONS:
            return _TIME_FUNCTIONS[name](value(args[0]))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _NUMBER_FUNCTIONS[name][1](*(_number(value(a)) for a in args))
    raise AssertionError(f"unchecked expression {ast.dump(node)}")


def _number(value: Any) -> Any:
    return value.astype(np.int64) if isinstance(value, np.ndarray | np.bool_) and value.dtype == bool else value
