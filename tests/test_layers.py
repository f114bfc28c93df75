"""models/ has no Beam; transforms/ no I/O and no options; nothing on the scoring path imports TensorFlow."""

import ast
import pathlib
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]

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


def runner_tests(path):
    """Comparisons that ask which runner there is, and tests of a runner's class."""
    for node in ast.walk(ast.parse(path.read_text())):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        for side in [*sides, *(node.args[:1] if called else ())]:
            name = getattr(side, "attr", getattr(side, "id", ""))
            if name.lower().endswith("runner"):
                yield node.lineno


def test_only_the_runners_profiles_know_which_runner_there_is():
    for layer in ("models", "transforms", "pipelines"):
        for path in (ROOT / layer).rglob("*.py"):
            if (ROOT / "pipelines" / "runners") not in path.parents:
                assert list(runner_tests(path)) == [], path


@pytest.mark.parametrize("code", ["x = runner == 'Flink'", "x = 'a' in self.runner", "x = isinstance(p.runner, Y)"])
def test_the_search_for_runners_finds_them(tmp_path, code):
    (tmp_path / "x.py").write_text(code)
    assert list(runner_tests(tmp_path / "x.py")) == [1]


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
    for _ in functions:  # what calls what has to do with Beam has to do with it, too
        beam |= {node.name for node in functions if used_names(node) & beam}
    wired += [node for node in functions if node.name in beam]
    mapped = set().union(*map(used_names, wired))
    for node in functions:
        if node not in wired and not (node.name.startswith("_") and node.name in mapped):
            yield node.name


def test_what_needs_no_beam_is_in_models():
    found = {path.name: list(without_beam(path.read_text())) for path in (ROOT / "transforms").glob("*.py")}
    assert {name: functions for name, functions in found.items() if functions} == {}


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


LIGHT = [
    "pipelines.cli.main",
    "pipelines.config",
    "pipelines.report",
    "pipelines.results",
    "pipelines.runners",
    "pipelines.sources.parquet_child",
    "pipelines.sources.records",
]


@pytest.mark.parametrize("module", [*LIGHT, "pipelines.jobs.score", "pipelines.jobs.train"])
def test_no_tensorflow_on_the_scoring_path(module):
    heavy = ["tensorflow", "tensorflow_data_validation", "tfx_bsl", "mlflow"]
    if module in LIGHT:
        heavy += ["apache_beam", "xgboost", "sklearn"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["jobs.score", "jobs.train", "sources.stream", "sinks.topics", "brokers.pubsub"])
def test_the_way_of_an_event_leads_through_no_proof_and_no_emulator(module):
    code = f"import sys, pipelines.{module}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout.splitlines()[-1])
    assert f"pipelines.{module}" in loaded
    assert [name for name in loaded if name.startswith(("pipelines.jobs.parity", "pipelines.pubsub_emulator"))] == []


def test_only_commands_know_commands():
    for path in (ROOT / "pipelines").rglob("*.py"):
        if (ROOT / "pipelines" / "cli") not in path.parents:
            assert not [name for name in imports(path) if name.startswith("pipelines.cli")], path


def test_only_the_commands_for_it_know_the_emulator():
    users = set()
    for path in (ROOT / "pipelines").rglob("*.py"):
        if any(name.startswith("pipelines.pubsub_emulator") for name in imports(path)):
            users.add(path.relative_to(ROOT / "pipelines").as_posix())
    users = {name for name in users if not name.startswith("pubsub_emulator/")}
    assert users == {"cli/topics.py", "jobs/parity.py"}


def test_no_test_module_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        for name in imports(path):
            assert not any(part.startswith("test_") for part in name.split(".")[1:-1]), f"{path} imports {name}"
