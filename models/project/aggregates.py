"""What may be computed of a window's events, and how it is written: `count`, `sum(x)`, `last(x, 3) where y > 0`."""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

from models.project.expressions import Expression

MOST_BACK = 1000  # the N of last(x, N)
_DAY_US = 86_400_000_000
# The longest that a calendar period lasts.
PERIODS = {"day": _DAY_US, "week": 7 * _DAY_US, "month": 31 * _DAY_US, "quarter": 92 * _DAY_US, "year": 366 * _DAY_US}


class Aggregate(NamedTuple):
    """What it takes in brackets, and what it is of a window without events.

    `alike`: its values are among those of the field. `ordered`: it needs a window's events themselves, in their order.
    """

    takes: Literal["nothing", "number", "boolean", "any"]
    empty: float
    alike: bool = False
    ordered: bool = False


AGGREGATES = {
    "count": Aggregate("nothing", 0.0),
    "sum": Aggregate("number", 0.0),
    "mean": Aggregate("number", math.nan),
    "min": Aggregate("number", math.nan, alike=True),
    "max": Aggregate("number", math.nan, alike=True),
    "rate": Aggregate("boolean", 0.0),
    "std": Aggregate("number", math.nan),
    "first": Aggregate("number", math.nan, alike=True, ordered=True),
    "last": Aggregate("number", math.nan, alike=True, ordered=True),
    "distinct": Aggregate("any", 0.0, ordered=True),
    "since_last": Aggregate("nothing", math.nan, ordered=True),
    "approx_distinct": Aggregate("any", 0.0),
}
COUNTS = ("count", "distinct", "approx_distinct")  # those that are whole numbers
OF_PERIODS = ("count", "sum", "mean", "min", "max", "distinct", "approx_distinct")  # those that add up to tables
OF_PERIODS_ALONE = ("approx_distinct",)
SUMMED = ("sum", "mean", "std")
_BARE = [name for name, kind in AGGREGATES.items() if kind.takes == "nothing"]
_OF_FIELD = [name for name, kind in AGGREGATES.items() if kind.takes != "nothing"]
_WRITTEN = re.compile(
    rf"({'|'.join(AGGREGATES)})(?:\(\s*([A-Za-z_]\w*)\s*(?:,\s*([0-9]{{1,9}})\s*)?\))?(?:\s+where\s+(\S.*))?", re.DOTALL
)


class Written(NamedTuple):
    """An aggregate as it is declared: of which field, the how many-th from the end, of which events only."""

    name: str
    field: str | None
    rank: int
    where: Expression | None


def parse_aggregate(text: str) -> Written:
    """Read an aggregate; ValueError for what is none."""
    match = _WRITTEN.fullmatch(text.strip())
    if match is None or (match[1] in _BARE) != (match[2] is None) or (match[3] and match[1] != "last"):
        of_field = f"{', '.join(_OF_FIELD[:-1])} or {_OF_FIELD[-1]} with a field in brackets"
        known = f"write {' or '.join(_BARE)}, or {of_field}"
        raise ValueError(f"{text!r} is not an aggregate: {known}, and of some events only as in count where x > 0")
    rank = int(match[3] or 1)
    if not 1 <= rank <= MOST_BACK:
        raise ValueError(f"{text!r} is not an aggregate: last(x, N) takes an N from 1 to {MOST_BACK}")
    return Written(match[1], match[2], rank, Expression.parse(match[4].strip()) if match[4] else None)
