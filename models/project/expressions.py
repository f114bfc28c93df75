"""Expressions over one event's fields, evaluated on whole columns: of row features, derived fields and row filters.

The language is a small part of Python's: numbers, texts, field names, `+ - * / // %`, comparisons, `in` a list,
`and or not` and the functions of models.project.functions. Booleans become 0 and 1, integers have 64 bits and wrap,
`/ // %` give floats. All of it is exact IEEE 754 arithmetic: there is no function, such as a logarithm, whose last bits
depend on the processor. A result that is no finite number is missing.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.project.functions import ASKING, FUNCTIONS, Column, missing, numbers, truth
from models.project.syntax import MAX_CHARS, ExpressionError, check_syntax, constants, kind_of, names_of

# What precedes the name of a feature, or of another input, in the count of events that have no finite number there.
NOT_FINITE = "not finite: "
# And of an input that is but a name, in the count of events with a value there that the model does not know.
UNKNOWN = "unknown: "
# The same of the events whose value has more places than are declared.
ROUNDED = "rounded: "
# Of those with a feature that is not as expected.
NOT_EXPECTED = "not as expected: "


def _whole(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`//` or `%` as Python means it; of integers exact, too, beyond the 53 bits of a float."""

    def apply(a: Any, b: Any) -> Any:
        a, b = np.asarray(a), np.asarray(b)
        result = operation(a.astype(np.float64), b.astype(np.float64))
        if a.dtype.kind == b.dtype.kind == "i":
            result = np.where(b == 0, result, operation(a, np.where(b == 0, 1, b)).astype(np.float64))
        return result

    return apply


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


@dataclasses.dataclass(frozen=True)
class Expression:
    """A parsed expression; `text` alone defines it."""

    text: str

    @staticmethod
    def parse(text: str) -> Expression:
        """Parse `text`; raise ExpressionError, saying what of it is not of the language."""
        expression = Expression(text)
        check_syntax(expression._tree, text)
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
        return frozenset(names_of(self._tree))

    @property
    def reads_all(self) -> bool:
        """Whether it has a `hash()` of all fields that there are."""
        calls = [node for node in ast.walk(self._tree) if isinstance(node, ast.Call) and not node.args]
        return any(getattr(call.func, "id", "") == "hash" for call in calls)

    @functools.cached_property
    def unasked(self) -> frozenset[str]:
        """The fields it reads without asking, by `is_missing` or `coalesce`, whether they are there."""
        asking = [n for n in ast.walk(self._tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") in ASKING]
        return self.names - {name for call in asking for name in names_of(call)}

    def check(self, kinds: Mapping[str, str]) -> str:
        """The kind of its result: int, float, bool, string or time.

        Raises ExpressionError where a field's kind (int, float, string, time) does not fit its use; one that is not
        among `kinds` fits any.
        """
        return kind_of(self._tree, kinds, self.text)

    def evaluate(self, columns: Mapping[str, Column]) -> Column:
        """Evaluate on columns of n rows: times as int64 microseconds, numbers as int64 or float64, texts as strings.

        Gives int64 (comparisons as 0 and 1) or float64, n rows, or a pyarrow array of strings. A missing number is NaN
        and stays NaN in arithmetic; as in Python, no comparison with it is true but `!=`, and as a condition it is true
        itself. A missing text is null, and compares as NaN does. Division by zero gives inf or NaN, as in IEEE 754,
        which other operations may go on with, as in `where(n == 0, 0, x / n)`; but a result that is infinite is
        missing, too.
        """
        value = self._evaluate_raw(columns)
        if isinstance(value, pa.Array):
            return value
        infinite = np.isinf(value) if value.dtype.kind == "f" else np.zeros(0, bool)
        return np.where(infinite, np.nan, value) if infinite.any() else value

    def find_impossible(self, columns: Mapping[str, Column]) -> Column:
        """Whether each row's result, bool[n], is missing for want of a finite number, and not as an operand is."""
        value = self._evaluate_raw(columns)
        operands = [columns[name] for name in self.names]
        holed = functools.reduce(np.logical_or, map(missing, operands), np.zeros(len(value), bool))
        return np.isinf(value) | (np.isnan(value) & ~holed)

    def _evaluate_raw(self, columns: Mapping[str, Column]) -> Column:
        rows = len(next(iter(columns.values())))
        with np.errstate(all="ignore"):
            value = _evaluate(self._tree, columns)
        if isinstance(value, str):
            return pa.array([value] * rows, pa.string())
        if isinstance(value, pa.StringArray):
            return value if len(value) == rows else pa.concat_arrays([value] * rows)
        value = np.asarray(numbers(value))
        value = value.astype(np.float64 if value.dtype.kind == "f" else np.int64)
        return np.broadcast_to(value, (rows,)) if value.ndim == 0 or len(value) != rows else value


def _evaluate(node: ast.expr, columns: Mapping[str, Column]) -> Any:
    def value(part: ast.expr) -> Any:
        return _evaluate(part, columns)

    match node:
        case ast.Constant(value=constant):
            return int(constant) if isinstance(constant, bool) else constant
        case ast.List():
            return constants(node)
        case ast.Name(id=name):
            return columns[name]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~truth(value(operand))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return np.negative(numbers(value(operand)))
        case ast.UnaryOp(operand=operand):
            return numbers(value(operand))
        case ast.BinOp(op=op, left=left, right=right):
            return _BINARY[type(op)](numbers(value(left)), numbers(value(right)))
        case ast.BoolOp(op=op, values=values):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return functools.reduce(join, [truth(value(v)) for v in values])
        case ast.Compare(ops=[ast.In() | ast.NotIn() as op], left=left, comparators=[found]):
            inside = _is_in(value(left), value(found))
            return inside if isinstance(op, ast.In) else ~inside
        case ast.Compare(ops=ops, left=left, comparators=comparators):
            sides = [value(left), *(value(c) for c in comparators)]
            pairs = zip(ops, sides, sides[1:], strict=False)
            return functools.reduce(np.logical_and, [_compare(o, a, b) for o, a, b in pairs])
        case ast.Call(func=ast.Name(id="hash"), args=[]):
            return FUNCTIONS["hash"].call(*(columns[name] for name in sorted(columns)))
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name].call(*map(value, args))
    raise AssertionError(f"unchecked expression {ast.dump(node)}")


def _compare(op: ast.cmpop, a: Any, b: Any) -> Any:
    if isinstance(a, pa.StringArray) or isinstance(b, pa.StringArray):
        same = pc.equal(a, b).fill_null(False).to_numpy(zero_copy_only=False)
        return same if isinstance(op, ast.Eq) else ~same
    return _COMPARE[type(op)](a if isinstance(a, str) else numbers(a), b if isinstance(b, str) else numbers(b))


def _is_in(value: Any, found: list[Any]) -> Any:
    if isinstance(value, pa.StringArray):
        return pc.is_in(value, value_set=pa.array(found, pa.string())).to_numpy(zero_copy_only=False)
    return np.isin(numbers(value), found)
