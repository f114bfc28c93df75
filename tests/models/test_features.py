"""All features of a project: the declared columns, the same bits whatever the batches."""

import re

import numpy as np
import pyarrow as pa
import pytest

from models.batches import partition, slice_ends, take_rows, times_us
from models.features.row import count_impossible, rolling_kernels, with_row_features
from models.project.project import parse_project
from models.record import EVENT_TIME, IS_HISTORY, IS_PROVISIONAL, MARKS, SYSTEM_FIELDS
from models.sample import generate_transactions
from models.score import model_inputs
from tests.kit.steps import END, through
from tests.kit.support import CARD_FRAUD, brute_force, card_fraud
from transforms.features import ComputeFeatures

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]

PROJECT = card_fraud()
DAY = 86_400_000_000
ROWS = 800


def to_batch(table):
    """The columns that features read of transactions, as Validate hands them on."""
    names = ["TRANSACTION_ID", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD"]
    arrays = [table[name].combine_chunks() for name in names]
    times = table["TX_DATETIME"].combine_chunks().cast(SYSTEM_FIELDS[EVENT_TIME].type)
    return pa.RecordBatch.from_arrays([*arrays, times], names=[*names, EVENT_TIME])


@pytest.fixture(scope="module")
def transactions():
    """Of few customers in few days, with many of them at one time."""
    table = generate_transactions(ROWS, seed=3, days=60)
    rng = np.random.default_rng(0)
    coarse = table["TX_DATETIME"].to_numpy().astype("M8[h]").astype("M8[us]")
    for name, values in {
        "TX_DATETIME": pa.array(coarse),
        "CUSTOMER_ID": pa.array(rng.integers(0, 4, ROWS)),
        "TERMINAL_ID": pa.array(rng.integers(0, 6, ROWS)),
        "TX_FRAUD": pa.array(
            [None if rng.random() < 0.1 else int(rng.random() < 0.3) for _ in range(ROWS)], pa.int64()
        ),
    }.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return to_batch(table)


@pytest.fixture(scope="module")
def expected(transactions):
    rows = transactions.to_pylist()
    values = {}
    for entity, kernel in rolling_kernels(PROJECT).items():
        simple = [
            {**row, "entity": row[PROJECT.entities[entity]], "time": time, "id": row["TRANSACTION_ID"]}
            for row, time in zip(rows, times_us(transactions).tolist(), strict=True)
        ]
        columns = zip(*brute_force(kernel.features, simple, PROJECT.fixed_point), strict=True)
        values.update(zip((f.name for f in kernel.features), columns, strict=True))
    values["TX_DURING_WEEKEND"] = [float(row[EVENT_TIME].weekday() >= 5) for row in rows]
    values["TX_DURING_NIGHT"] = [float(row[EVENT_TIME].hour <= 6) for row in rows]
    matrix = np.column_stack([np.array(values[name], float) for name in PROJECT.feature_names])
    return dict(zip((row["TRANSACTION_ID"] for row in rows), map(bytes, matrix), strict=True))


def bits(table):
    matrix = np.column_stack([table[name].to_numpy().astype(float) for name in PROJECT.feature_names])
    assert len(table) == ROWS
    return dict(zip(table["TRANSACTION_ID"].to_pylist(), map(bytes, matrix), strict=True))


def cut(batch, slice_us, pieces):
    parts = [take_rows(batch, np.arange(start, batch.num_rows, pieces)) for start in range(pieces)]
    return [item for part in parts for item in partition(part, slice_ends(times_us(part), slice_us))]


@pytest.mark.parametrize(("shards", "days", "pieces"), [(1, 100, 1), (3, 10, 4), (8, 40, 2)])
def test_features_are_those_of_the_definition(transactions, expected, engine, shards, days, pieces):
    order = np.random.default_rng(shards).permutation(ROWS)
    steps = [(cut(take_rows(transactions, order), days * DAY, pieces), END)]
    table, _ = through(ComputeFeatures(PROJECT, shards), steps, engine)
    assert bits(table) == expected
    assert table.schema.names[:6] == transactions.schema.names
    assert sorted(table.schema.names[6:]) == sorted(PROJECT.feature_names)
    for feature in PROJECT.rolling_features:
        assert table.schema.field(feature.name).type == (pa.int64() if feature.field is None else pa.float64())


def test_features_are_the_same_in_a_stream(transactions, expected):
    items = sorted(cut(transactions, DAY // 2, 3), key=lambda item: item[0])
    steps = [([item], item[0]) for item in items]
    table, _ = through(ComputeFeatures(PROJECT, 2), [*steps, ([], END)])
    assert bits(table) == expected


def project_with(row_features):
    text = (CARD_FRAUD / "project.yaml").read_text()
    text = re.sub(r"    TX_DURING_WEEKEND: .*\n", "".join(f"    {n}: '{e}'\n" for n, e in row_features.items()), text)
    text = text.replace("TX_DURING_WEEKEND", next(iter(row_features)))
    project, faults = parse_project(text.encode(), lambda name: (CARD_FRAUD / name).read_bytes())
    assert not faults
    return project


def test_a_row_feature_has_one_type_whether_or_not_a_value_is_missing():
    """Else a batch with a missing value could not be joined with one without."""
    project = project_with(
        {"A": "TX_TIME_DAYS + 1", "B": "CUSTOMER_ID * 2", "C": "TX_TIME_DAYS > 3", "D": "7", "E": "1 / 2"}
    )
    base = {"TX_TIME_DAYS": pa.int64(), "CUSTOMER_ID": pa.int64(), EVENT_TIME: SYSTEM_FIELDS[EVENT_TIME].type}

    def compute(days):
        arrays = [pa.array(values, kind) for values, kind in zip((days, [5, 6], [0, 0]), base.values(), strict=True)]
        return with_row_features(pa.RecordBatch.from_arrays(arrays, names=list(base)), project)

    whole, holed = compute([3, 4]), compute([None, 4])
    assert whole.schema == holed.schema
    assert [str(whole.schema.field(n).type) for n in "ABCDE"] == ["double", "int64", "int64", "int64", "double"]
    assert pa.Table.from_batches([whole]).select(list("ABCDE")).to_pydict() == {
        "A": [4.0, 5.0],
        "B": [10, 12],
        "C": [0, 1],
        "D": [7, 7],
        "E": [0.5, 0.5],
    }
    assert np.isnan(holed.column(holed.schema.get_field_index("A")).to_numpy()[0])


def test_no_rows_have_all_columns(transactions):
    empty = with_row_features(transactions.slice(0, 0), PROJECT)
    assert empty.num_rows == 0
    assert empty.schema.names[-2:] == list(PROJECT.row_features)


def test_impossible_numbers_are_missing_and_counted_by_name():
    """A quotient by zero, and what 32 bits don't hold; not what a field misses, history, or what comes once more."""
    project = project_with({"RATIO": "TX_AMOUNT / TX_TIME_DAYS", "SAFE": "where(TX_TIME_DAYS == 0, 0, 1)"})
    inputs = project.model.model_copy(update={"inputs": ["RATIO", "SAFE", "TX_AMOUNT", "CUSTOMER_ID"]})
    project = project.model_copy(update={"model": inputs})
    days = [0, 1, None, 0, 0, 0, 1]
    amounts = [5.0, 5.0, 5.0, 0.0, 5.0, 5.0, 1e300]
    marks = [0, 0, 0, 0, IS_HISTORY, IS_PROVISIONAL, 0]
    columns = {
        "TX_TIME_DAYS": pa.array(days, pa.int64()),
        "TX_AMOUNT": pa.array(amounts),
        "CUSTOMER_ID": pa.array(range(7)),
        MARKS: pa.array(marks, pa.int8()),
        EVENT_TIME: pa.array([0] * 7, SYSTEM_FIELDS[EVENT_TIME].type),
    }
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    rows = with_row_features(batch, project.model_copy(update={"features": project.features}))
    ratio = rows.column(rows.schema.names.index("RATIO")).to_numpy()
    assert ratio[[1, 6]].tolist() == [5.0, 1e300]
    assert np.isnan(ratio[[0, 2, 3, 4, 5]]).all()
    assert count_impossible(rows, project) == {"RATIO": 3}  # the schema's domain keeps TX_AMOUNT within 32 bits
    found = model_inputs(rows, project.model.inputs)
    assert np.isfinite(found[:, 1:3]).tolist() == [[True, i < 6] for i in range(7)]
    assert np.isnan(found).sum() == 7
