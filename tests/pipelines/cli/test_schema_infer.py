"""The tests of `headrace schema infer`, in a process of their own.

They import TFDV, which registers a coder of its own for record batches, and which ends a process at its exit if its
extension had been loaded alone before, as models.quality.backend does.
"""

import importlib.util
import subprocess
import sys

import pytest

from tests.kit.support import ROOT

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set, pytest.mark.slow]


@pytest.mark.skipif(importlib.util.find_spec("tensorflow_data_validation") is None, reason="TFDV is not installed")
def test_schemas_are_inferred():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/kit/tfdv_schema_infer.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
