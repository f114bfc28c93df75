"""The command as people use it: the demo, what becomes of a sink, and one clear line for wrong input."""

import json
import os
import re
import shutil
import subprocess

import pytest

from models.sample import write_sample
from tests.kit.command import HEADRACE
from tests.kit.support import CARD_FRAUD

pytestmark = pytest.mark.slow


def headrace(*args, cwd, code=0):
    environment = {**os.environ, "PATH": f"{HEADRACE.parent}:{os.environ['PATH']}", "COLUMNS": "100"}
    done = subprocess.run([HEADRACE, *args], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_demo_ends_with_figures(tmp_path):
    done = headrace("demo", "--rows", "60000", "--project", str(CARD_FRAUD), cwd=tmp_path)
    assert "60,000 transactions" in done.stdout
    assert re.search(r"scored +│ +\d,\d{3}", done.stdout)
    assert "AUC" in done.stdout
    assert re.search(r"2018-06-08  \d+ scored, .* s\n2018-06-09  \d+ scored, .* s\n2 nights, each from", done.stdout)
    assert "\x1b" not in done.stdout  # no progress display where there is no terminal


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_sample(folder / "data", 40_000)
    shutil.copytree(CARD_FRAUD, folder / "card_fraud")
    (folder / "elsewhere").mkdir()
    headrace("train", "../card_fraud", "--source", "../data/*.parquet", cwd=folder / "elsewhere")
    return folder


@pytest.mark.timeout(900)
def test_a_projects_registry_is_in_its_folder_and_moves_with_it(trained, tmp_path):
    assert not any((trained / "elsewhere").iterdir())
    shutil.copytree(trained / "card_fraud", tmp_path / "moved")
    source = str(trained / "data" / "transactions-2018-04-0*.parquet")
    headrace("run", "moved", "--source", source, "--sink", "out", cwd=tmp_path)
    assert "version 1" in headrace("models", ".", cwd=tmp_path / "moved").stdout
    (tmp_path / "moved" / ".headrace").rename(tmp_path / ".headrace")
    said = headrace("models", "moved", cwd=tmp_path, code=1).stderr
    assert f"there is one at {tmp_path}/.headrace/registry.db: say --registry sqlite:///{tmp_path}/" in said
    assert "or move the folder .headrace into moved" in said
    registry = f"sqlite:///{tmp_path}/.headrace/registry.db"
    assert "version 1" in headrace("models", "card_fraud", "--registry", registry, cwd=trained).stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "{card_fraud}", "--source", "data/*", "--sink", "out", "--model", "7"], "7"),
        (["run", "{card_fraud}", "--source", "data/*", "--sink", "out", "--sorce", "x"], "did you mean --source?"),
        (["run", "{card_fraud}", "--source", "data/*", "--sink", "/proc/none"], "/proc"),
        (["run", "{card_fraud}", "--source", "data/*", "--sink", "out", "--runner", "flinkrunner"], "$PWD/data/*"),
        (["promote", "{card_fraud}", "2"], "has no version or alias '2'; there are: 1 champion"),
        (["promote", "{card_fraud}", "\u00b2"], "there are: 1 champion"),
        (["train", "{card_fraud}", "--source", "data/transactions-2018-04-01.parquet"], "the events span 1 days"),
    ],
)
def test_wrong_input_gets_one_clear_line(trained, args, message):
    done = headrace(*(arg.format(card_fraud="card_fraud") for arg in args), cwd=trained, code=1)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_changed_project_is_refused_until_it_is_trained_again(trained, tmp_path):
    project = tmp_path / "changed"
    project.mkdir()
    (project / "schema.pbtxt").write_bytes((CARD_FRAUD / "schema.pbtxt").read_bytes())
    text = (CARD_FRAUD / "project.yaml").read_text()
    (project / "project.yaml").write_text(text.replace("30DAY: 30d", "30DAY: 29d", 1))
    args = ["run", str(project), "--source", "data/*.parquet", "--sink", str(tmp_path / "out")]
    args += ["--registry", "sqlite:///card_fraud/.headrace/registry.db"]
    assert "train again" in headrace(*args, cwd=trained, code=1).stderr


def test_check_names_all_faults_with_their_lines(tmp_path):
    (tmp_path / "schema.pbtxt").write_bytes((CARD_FRAUD / "schema.pbtxt").read_bytes())
    text = (CARD_FRAUD / "project.yaml").read_text()
    text = text.replace("hour(TX_DATETIME)", "hour(TX_AMOUNT)").replace("entity: customer", "entity: client")
    (tmp_path / "project.yaml").write_text(text.replace("rate(TX_FRAUD)", "rate(TX_AMOUNT)"))
    faults = headrace("check", str(tmp_path), cwd=tmp_path, code=1).stderr.splitlines()
    assert len(faults) == 3
    assert all(re.match(r".*/project.yaml:\d+: features\.", fault) for fault in faults)


def test_jsonl_output_and_a_second_version(trained, tmp_path):
    sink = tmp_path / "out"
    args = ["run", "card_fraud", "--source", "data/*.parquet", "--sink", str(sink), "--sink-format", "jsonl"]
    headrace(*args, cwd=trained)
    lines = [line for path in sorted((sink / "scores").rglob("*.jsonl")) for line in path.read_text().splitlines()]
    assert len(lines) == 40_000
    headrace("train", "card_fraud", "--source", "data/*.parquet", "--start", "2018-05-10", "--promote", cwd=trained)
    assert "version 2" in headrace("models", "card_fraud", cwd=trained).stdout
    assert "version 1 is champion" in headrace("promote", "card_fraud", "1", cwd=trained).stdout


def test_a_sink_of_another_run_is_refused_and_a_run_of_nothing_says_so(trained, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    args = ["run", "card_fraud", "--sink", str(tmp_path / "out"), "--source"]
    assert "no event was scored" in headrace(*args, str(tmp_path / "none.jsonl"), cwd=trained).stdout
    said = json.loads((tmp_path / "out" / "_SUCCESS.json").read_text())
    listed = {f"{file['kind']}/{file['name']}" for file in said["files"]}
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").glob("*/**/*") if p.is_file()} == listed
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    (tmp_path / "broken.jsonl").write_text("{broken\n")
    refused = headrace(*args, str(tmp_path / "broken.jsonl"), cwd=trained, code=1).stderr
    assert re.fullmatch(r"headrace: .*out: holds the output of another run, with other inputs: .*--replace\n", refused)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
