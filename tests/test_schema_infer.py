"""The tests of `headrace schema infer`, in a process of their own.

They import TFDV, which registers a coder of its own for record batches, and which ends a process at its exit if its
extension had been loaded alone before, as models.quality.backend does.
"""

import subprocess
import sys

from tests.support import ROOT


def test_schemas_are_inferred():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/tfdv_schema_infer.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
