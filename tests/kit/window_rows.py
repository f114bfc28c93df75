"""Rolling features of every kind and rows for them, as hypothesis draws them."""

import math

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa

from models.features.aggregates import code_name
from models.features.windows import Events, encode_values
from models.project.expressions import Expression
from models.project.sections import RollingFeature

HOUR = 3_600_000_000
BIG = Expression("amount > 100")
DECIMALS = {"amount": 2, "__amount where amount > 100": 2}
# Of each its field and whether it may have a condition.
WRITTEN = [
    ("count", None), ("sum", "amount"), ("mean", "amount"), ("min", "amount"), ("max", "amount"), ("rate", "fraud"),
    ("std", "amount"), ("first", "amount"), ("last", "amount"), ("distinct", "shop"), ("distinct", "amount"), ("since_last", None),
]  # fmt: skip


@st.composite
def features(draw, most=5):
    made = []
    for number in range(draw(st.integers(1, most))):
        aggregate, field = draw(st.sampled_from(WRITTEN))
        gap = draw(st.sampled_from([None, None, 1, 3 * HOUR]))
        delay = 0 if gap else draw(st.sampled_from([0, 0, 1, 5 * HOUR]))
        period = draw(st.sampled_from([None, None, None, "day", "week", "month", "quarter", "year"]))
        made.append(
            RollingFeature(
                f"f{number}",
                "e",
                aggregate,
                field,
                366 * 24 * HOUR if period else draw(st.integers(1, 30)) * HOUR,
                delay,
                draw(st.booleans()) if not delay else True,
                draw(st.sampled_from([0.0, -1.0])),
                BIG if draw(st.booleans()) and aggregate != "rate" and field != "shop" else None,
                draw(st.integers(1, 4)) if aggregate == "last" else 1,
                period,
                gap,
            )
        )
    return tuple(made)


def with_columns(row):
    big = row["amount"] is not None and row["amount"] > 100
    return {
        **row,
        "__ where amount > 100": 1 if big else None,
        "__amount where amount > 100": row["amount"] if big else None,
    }


START = 17_865 * 24 * HOUR  # the last days of November 2018: a Friday
rows = st.lists(
    st.fixed_dictionaries(
        {
            "entity": st.integers(0, 2),
            "time": st.integers(0, 60).map(lambda hours: START + hours * HOUR) | st.integers(0, 3).map(lambda n: START + n),
            "amount": st.none() | st.sampled_from([0.0, -0.01, 12.5]) | st.integers(-(10**11), 10**11).map(lambda cents: cents / 100),
            "fraud": st.sampled_from([0, 1]),
            "shop": st.none() | st.sampled_from("abc"),
        }
    ),
    max_size=30,
).map(lambda found: [with_columns({**row, "id": number}) for number, row in enumerate(found)])  # fmt: skip


def to_events(part, codes):
    values = {}
    for name in ("amount", "fraud", "__ where amount > 100", "__amount where amount > 100"):
        values[name] = np.array([math.nan if r[name] is None else r[name] for r in part], float)
    for name in ("shop", "amount", "__amount where amount > 100"):
        kind = pa.string() if name == "shop" else pa.float64()
        values[code_name(name)] = encode_values(pa.array([r[name] for r in part], kind), codes)
    return Events(
        np.array([r["entity"] for r in part], np.int64),
        np.array([r["time"] for r in part], np.int64),
        pa.array([r["id"] for r in part], pa.int64()),
        values,
    )


def same_bits(one, other):
    return np.asarray(one, float).tobytes() == np.asarray(other, float).tobytes()
