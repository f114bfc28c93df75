"""What commands import: no more than they need, so that an answer doesn't wait for what it has no use for."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.kit.command import HEADRACE

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]

RUN = """
import json, pathlib, sys
from pipelines.cli import main
place, *sys.argv = sys.argv[1:]
try:
    main.main()
    code = 0
except SystemExit as ended:
    code = ended.code or 0
pathlib.Path(place).write_text(json.dumps([code, sorted(sys.modules)]))
"""
CLOUD = {"google.api_core", "google.auth", "google.cloud.storage", "apache_beam.io.gcp.gcsio"}
EXTRAS = {"sklearn", "pandas", "mlflow", "tensorflow", "tensorflow_data_validation"}
SCORERS = {"apache_beam", "xgboost", "scipy", "matplotlib"}
DECLARATIONS = {"models.project.declarations", "numpy", "pyarrow", "google.protobuf", "yaml"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project with a registered bundle and events."""
    folder = tmp_path_factory.mktemp("start")
    for argv in (
        ["init", "own"],
        ["sample", "own/data", "--rows", "30000"],
        ["train", "own", "--source", "own/data/*.parquet"],
    ):
        subprocess.run([HEADRACE, *argv], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def start(folder, tmp_path):
    """Run a command in a process of its own; returns its exit code, what it printed, and what it imported."""

    def run(*argv):
        place = tmp_path / "modules.json"
        line = [sys.executable, "-c", RUN, str(place), "headrace", *argv]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)
        code, modules = json.loads(place.read_text())
        return code, done.stdout + done.stderr, set(modules)

    return run


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["train", "--help"], ["schema", "infer", "--help"]])
def test_help_imports_no_declarations(start, argv):
    code, said, modules = start(*argv)
    assert code == 0
    assert "--help" in said
    assert modules & (DECLARATIONS | SCORERS | EXTRAS | CLOUD) == set()


@pytest.mark.parametrize("argv", [["check", "own"], ["models", "own"]])
def test_what_is_read_of_a_project_and_its_registry_imports_no_scorer(start, argv):
    code, _, modules = start(*argv)
    assert code == 0
    assert "models.predictors.registry_reader" in modules
    assert modules & (SCORERS | EXTRAS | CLOUD | {"pyarrow.parquet"}) == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source", "nowhere.parquet", "--sink", "out"], "nowhere.parquet: no such file"),
        (["--source", "own/data/*.parquet", "--sink", "out", "--scor-from", "2018-06-01"], "--score-from"),
        (["--source", "own/data/*.parquet", "--sink", "out", "--model", "none"], "has no version or alias 'none'"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_before_slow_imports(start, options, said):
    code, text, modules = start("run", "own", *options)
    assert code == 1
    assert said in text
    assert modules & (SCORERS | EXTRAS | CLOUD) == set()


def test_a_run_over_files_imports_no_mlflow_no_extras_and_no_cloud(start, folder):
    code, said, modules = start("run", "own", "--source", "own/data/*.parquet", "--sink", "scores")
    assert code == 0
    assert "AUC" in said
    assert {"apache_beam", "xgboost"} <= modules
    assert modules & (EXTRAS | CLOUD) == set()
    assert json.loads((folder / "scores" / "_SUCCESS.json").read_text())["events"]["scored"] == 30_000


AFTER = """
import sys
from pipelines.lean import import_libraries
import_libraries(local={local})
assert not {{"sklearn", "pandas"}} & sys.modules.keys()
import xgboost, apache_beam as beam
{then}
"""


def run_after(then, local=True):
    code = AFTER.format(local=local, then=then)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=240)


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_threads_of_the_model_wait_without_a_processor_unless_told(given, found):
    before = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = "from pipelines.lean import import_libraries; import_libraries(local=True)"
    line = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**before, **given, "OMP_DISPLAY_ENV": "true"}
    done = subprocess.run(line, env=environment, check=True, capture_output=True, text=True)
    assert f"OMP_WAIT_POLICY = '{found}'" in done.stderr


def test_what_was_left_out_can_be_imported_afterwards():
    run_after("import pandas, sklearn.metrics, mlflow; assert pandas.DataFrame({'a': [1]}).a.sum() == 1")


def test_beam_has_the_file_systems_of_clouds_unless_all_is_local():
    known = "from apache_beam.io.filesystems import FileSystems; FileSystems.get_filesystem('gs://bucket/file')"
    run_after(known, local=False)
    run_after(f"import apache_beam.io.gcp.gcsfilesystem; {known}")


def test_what_is_imported_already_is_left_as_it_is():
    run_after("")
    code = (
        "import pandas, sys; from pipelines.lean import absent, EXTRAS\n"
        "with absent(EXTRAS):\n import pandas.testing\n"
        "from sys import meta_path; assert not any('lean' in type(each).__module__ for each in meta_path)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_other_threads_import_what_they_like():
    code = (
        "import threading, sys; from pipelines.lean import absent\n"
        "def other():\n import colorsys\n"
        "with absent(['colorsys']):\n"
        " thread = threading.Thread(target=other); thread.start(); thread.join()\n"
        " assert 'colorsys' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_commands_and_a_child_of_theirs_leave_libraries_out():
    root = pathlib.Path(__file__).parents[3]
    users = [path for layer in ("models", "transforms", "pipelines") for path in (root / layer).rglob("*.py")]
    users = [path.relative_to(root).as_posix() for path in users if "pipelines.lean import" in path.read_text()]
    assert sorted(users) == [
        *(
            "pipelines/cli/dashboard.py",
            "pipelines/cli/features.py",
            "pipelines/cli/nightly.py",
            "pipelines/cli/run.py",
        ),
        *("pipelines/cli/store.py", "pipelines/cli/train.py"),
        "pipelines/jobs/probing.py",
    ]
