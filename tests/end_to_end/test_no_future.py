"""No feature of an event knows anything of what comes after it, nor a label before it is known."""

import numpy as np
import pyarrow as pa
import pytest

from models.batches import partition, slice_ends, take_rows, times_us
from models.record import EVENT_TIME, SYSTEM_FIELDS
from models.sample import generate_transactions
from tests.kit.steps import END, through
from tests.kit.support import card_fraud
from transforms.features import ComputeFeatures

pytestmark = pytest.mark.slow

PROJECT = card_fraud()
DAY = 86_400_000_000
ROWS = 1200
START = 17_622 * DAY


def to_batch(columns):
    arrays = {name: pa.array(values) for name, values in columns.items()}
    arrays[EVENT_TIME] = arrays[EVENT_TIME].cast(SYSTEM_FIELDS[EVENT_TIME].type)
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


@pytest.fixture(scope="module")
def columns():
    """Transactions of few entities over 60 days, every one of them on a full hour."""
    rng = np.random.default_rng(0)
    amounts = generate_transactions(ROWS, seed=5)["TX_AMOUNT"].to_numpy()
    return {
        "TRANSACTION_ID": np.arange(ROWS),
        "CUSTOMER_ID": rng.integers(0, 6, ROWS),
        "TERMINAL_ID": rng.integers(0, 6, ROWS),
        "TX_AMOUNT": amounts,
        "TX_FRAUD": (rng.random(ROWS) < 0.2).astype(np.int64),
        EVENT_TIME: START + rng.integers(0, 60 * 24, ROWS) * (DAY // 24),
    }


def features(columns, slice_days=100):
    """Transaction → the bits of its features."""
    batch = to_batch(columns)
    items = list(partition(batch, slice_ends(times_us(batch), slice_days * DAY)))
    table, _ = through(ComputeFeatures(PROJECT, 2), [(items, END)])
    matrix = np.column_stack([table[name].to_numpy().astype(float) for name in PROJECT.feature_names])
    return dict(zip(table["TRANSACTION_ID"].to_pylist(), map(bytes, matrix), strict=True))


@pytest.fixture(scope="module")
def unchanged(columns):
    return features(columns)


def those(columns, where):
    return {name: values[where] for name, values in columns.items()}


@pytest.mark.parametrize("day", [1, 20, 45])
@pytest.mark.parametrize("slice_days", [7, 100])
@pytest.mark.parametrize("how", ["deleted", "other amounts", "other entities", "more of them"])
def test_what_comes_after_changes_nothing_before(columns, unchanged, day, slice_days, how):
    moment = START + day * DAY
    future = columns[EVENT_TIME] >= moment
    changed = {name: values.copy() for name, values in columns.items()}
    if how == "deleted":
        changed = those(changed, ~future)
    elif how == "other amounts":
        changed["TX_AMOUNT"][future] = 999_999.99
    elif how == "other entities":
        changed["CUSTOMER_ID"][future] = changed["TERMINAL_ID"][future] = 0
    else:
        more = those(changed, future)
        more["TRANSACTION_ID"] = more["TRANSACTION_ID"] + ROWS
        more[EVENT_TIME] = np.full_like(more[EVENT_TIME], moment)
        changed = {name: np.concatenate([changed[name], more[name]]) for name in changed}
    found = features(changed, slice_days)
    before = columns["TRANSACTION_ID"][~future].tolist()
    assert len(before) > 10
    assert all(found[number] == unchanged[number] for number in before)
    if how != "deleted":
        assert any(found[number] != unchanged[number] for number in columns["TRANSACTION_ID"][future].tolist())


def test_a_label_changes_nothing_before_it_is_known(columns, unchanged):
    """And from that very moment on it changes the windows that hold it, of its own terminal."""
    delay = PROJECT.label.delay
    rng = np.random.default_rng(1)
    at_once = 0
    for row in rng.choice(np.flatnonzero(columns[EVENT_TIME] < START + 40 * DAY), 12, replace=False).tolist():
        known = columns[EVENT_TIME][row] + delay
        changed = {name: values.copy() for name, values in columns.items()}
        changed["TX_FRAUD"][row] = 1 - changed["TX_FRAUD"][row]
        if row % 2 == 0:  # an event of the terminal at the first moment that the label is known
            place = (row + 1) % ROWS
            changed["TERMINAL_ID"][place] = changed["TERMINAL_ID"][row]
            changed[EVENT_TIME][place] = known
        base = {**changed, "TX_FRAUD": columns["TX_FRAUD"]}
        one, other = features(base) if row % 2 == 0 else unchanged, features(changed)
        differing = np.array([one[n] != other[n] for n in range(ROWS)])
        assert differing.any()
        assert (changed[EVENT_TIME][differing] >= known).all()
        assert (changed[EVENT_TIME][differing] < known + 30 * DAY).all()
        assert set(changed["TERMINAL_ID"][differing]) == {changed["TERMINAL_ID"][row]}
        at_once += changed[EVENT_TIME][differing].min() == known
    assert at_once >= 3


def test_a_missing_label_is_as_if_there_were_no_fraud(columns):
    labels = columns["TX_FRAUD"]
    holed = to_batch({**columns, "TX_FRAUD": labels})
    holed = pa.RecordBatch.from_arrays(
        [
            pa.array(labels, mask=labels == 0) if name == "TX_FRAUD" else c
            for name, c in zip(holed.schema.names, holed, strict=True)
        ],
        names=holed.schema.names,
    )
    table, _ = through(ComputeFeatures(PROJECT, 1), [([(START + 100 * DAY, take_rows(holed, np.arange(ROWS)))], END)])
    whole = features(columns)
    matrix = np.column_stack([table[name].to_numpy().astype(float) for name in PROJECT.feature_names])
    assert dict(zip(table["TRANSACTION_ID"].to_pylist(), map(bytes, matrix), strict=True)) == whole
