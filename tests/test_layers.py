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


# Their functions go to models/ with the record types.
NOT_YET = {"validate.py"}


def names_from(tree, *modules):
    """The names that a module's imports from `modules`, or from within them, bind."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in modules:
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.asname or alias.name for alias in node.names if alias.name.split(".")[0] in modules)


def used_names(node):
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def without_beam(source):
    """The functions of a module of transforms/ that should be in models/.

    A public function has to do with Beam, itself or by another transform. A private one may also be what one of
    these, or one of the module's classes, calls or maps with.
    """
    tree = ast.parse(source)
    beam = set(names_from(tree, "apache_beam", "transforms"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    wired = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    beam |= {node.name for node in wired}
    wired += [node for node in functions if used_names(node) & beam]
    mapped = set().union(*map(used_names, wired))
    for node in functions:
        if node not in wired and not (node.name.startswith("_") and node.name in mapped):
            yield node.name


def test_what_needs_no_beam_is_in_models():
    found = {path.name: list(without_beam(path.read_text())) for path in (ROOT / "transforms").glob("*.py")}
    assert {name: functions for name, functions in found.items() if functions and name not in NOT_YET} == {}


def test_a_function_without_beam_is_found():
    source = """
import apache_beam as beam
import numpy as np
class Step(beam.PTransform):
    def expand(self, pcoll):
        return pcoll | beam.Map(_double)
def _double(values):
    return values * 2
def _unused(values):
    return np.sum(values)
def total(values):
    return np.sum(values)
def as_map(step):
    return beam.Map(step)
"""
    assert list(without_beam(source)) == ["_unused", "total"]


@pytest.mark.parametrize("module", ["models.score", "models.quality.gate", "models.features.row", "models.steps"])
def test_scoring_needs_no_beam(module):
    code = f"import sys, {module}; print('apache_beam' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


LIGHT = ["pipelines.cli.main", "pipelines.sources.parquet_child", "pipelines.sources.records"]


@pytest.mark.parametrize("module", [*LIGHT, "pipelines.jobs.score", "pipelines.jobs.train"])
def test_no_tensorflow_on_the_scoring_path(module):
    heavy = ["tensorflow", "tensorflow_data_validation", "tfx_bsl", "mlflow"]
    if module in LIGHT:
        heavy += ["apache_beam", "xgboost", "sklearn"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
