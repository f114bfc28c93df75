"""Estimates of how many different values there are: near, and the same however the values come."""

import numpy as np
import pyarrow as pa
import pytest

from models.project.aggregates import OF_PERIODS_ALONE
from models.project.project import parse_project
from tests.kit.targets import SCHEMA, declarations

pytest.importorskip("tfx_bsl", reason="tfx-bsl is not installed", exc_type=ImportError)

from models.features.sketches import estimate, sketch_of


@pytest.mark.parametrize("number", [0, 1, 4095, 30_000])
@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.string()])
def test_a_sketch_depends_on_the_set_of_values_alone(number, kind):
    random = np.random.default_rng(number)
    values = pa.array(np.arange(number) * 7).cast(kind)
    whole = sketch_of(values)
    again = [*random.permutation(number), *random.integers(0, max(number, 1), number // 3)]
    cuts = np.sort(random.integers(0, len(again) + 1, 9))
    parts = [values.take(pa.array(part, pa.int64())) for part in np.split(np.array(again, np.int64), cuts)]
    parts[0] = pa.concat_arrays([parts[0], pa.nulls(3, kind)])
    assert sketch_of(pa.array([sketch_of(part) for part in parts], pa.binary())) == whole
    assert len(whole) < 40_000
    assert estimate(whole) == number if number < 4096 else abs(estimate(whole) / number - 1) < 0.05


@pytest.mark.parametrize("name", OF_PERIODS_ALONE)
def test_windows_that_roll_have_none(name):
    text = declarations("binary").replace('"N_{window}": count', f'"N_{{window}}": {name}(code)')
    _, faults = parse_project(text.encode(), lambda _: SCHEMA.encode())
    (fault,) = map(str, faults)
    assert f"N_{{window}}: there is {name} in aggregates alone" in fault
    assert "Write distinct, which is exact" in fault
    assert fault.startswith("project.yaml:")
