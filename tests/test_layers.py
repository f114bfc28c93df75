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


def test_only_the_commands_for_it_know_the_emulator():
    users = set()
    for path in (ROOT / "pipelines").rglob("*.py"):
        if any(name.startswith("pipelines.pubsub_emulator") for name in imports(path)):
            users.add(path.relative_to(ROOT / "pipelines").as_posix())
    users = {name for name in users if not name.startswith("pubsub_emulator/")}
    assert users == {"cli/topics.py", "jobs/parity.py"}
