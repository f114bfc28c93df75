"""models/ has no Beam; transforms/ no I/O and no options; nothing on the scoring path imports TensorFlow."""

import ast
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.both_sets

ROOT = pathlib.Path(__file__).parents[1]
FORBIDDEN = {
    "models": ("apache_beam", "transforms", "pipelines"),
    "transforms": (
        "pipelines",
        "apache_beam.io",
        "apache_beam.options",
        "argparse",
        "typer",
        "pathlib",
        "os.path",
        "google.cloud",
        "pyarrow.parquet",
    ),
    "pipelines": ("tests",),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_layer_imports_nothing_from_above_or_outside(layer):
    paths = list((ROOT / layer).rglob("*.py"))
    assert paths
    for path in paths:
        for name in imports(path):
            for forbidden in FORBIDDEN[layer]:
                assert not f"{name}.".startswith(f"{forbidden}."), f"{path} imports {name}"


LIGHT = ["pipelines.cli.main", "pipelines.sources.parquet_child", "pipelines.sources.records"]


@pytest.mark.parametrize("module", [*LIGHT, "pipelines.jobs.score", "pipelines.jobs.train"])
def test_no_tensorflow_on_the_scoring_path(module):
    heavy = ["tensorflow", "tensorflow_data_validation", "tfx_bsl", "mlflow"]
    if module in LIGHT:
        heavy += ["apache_beam", "xgboost", "sklearn"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
