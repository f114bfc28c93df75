"""The commands of docs/tables.md run as printed, in a project without a model."""

import json
import re
import shutil
import sqlite3
import subprocess

import pytest

from models.sample import write_sample
from tests.kit.command import HEADRACE
from tests.kit.support import CARD_FRAUD, ROOT

pytestmark = pytest.mark.slow

OF_A_MODEL = ("model:", "training:", "metrics:", "decisions:", "quality:")


def bash(text, folder):
    command = f"export PATH={HEADRACE.parent}:$PATH\n{text}"
    return subprocess.run(["bash", "-euc", command], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(CARD_FRAUD, tmp_path / "my_project")
    text = (CARD_FRAUD / "project.yaml").read_text()
    for section in OF_A_MODEL:
        text = re.sub(rf"(?ms)^{section}.*?(?=^[a-z]|\Z)", "", text)
    (tmp_path / "my_project" / "project.yaml").write_text(text)
    write_sample(tmp_path / "my_project" / "data", 20_000)
    return tmp_path


def test_the_commands_of_the_page(folder):
    polars = pytest.importorskip("polars")
    pytest.importorskip("deltalake")
    block = re.search(r"```sh\n(headrace.*?)```", (ROOT / "docs" / "tables.md").read_text(), re.DOTALL)[1]
    done = bash(block, folder)
    assert done.returncode == 0, done.stderr
    assert "score rows also in the table card_fraud of sqlite:///my_project/scores.db" in done.stdout
    rows = polars.scan_delta(str(folder / "my_project" / "table" / "scores")).collect()
    with sqlite3.connect(folder / "my_project" / "scores.db") as database:
        (count,) = database.execute("SELECT count(*) FROM card_fraud").fetchone()
    database.close()
    assert len(rows) == count > 100
    bash(block, folder)
    assert not list((folder / "my_project" / "table" / "scores" / "_delta_log").glob("*1.json"))


def test_a_database_alone_keeps_the_runs_own_files_in_the_project(folder):
    said = "headrace run my_project --source 'my_project/data/*.parquet' --day 2018-06-08 --sink sqlite:///x.db"
    done = bash(said, folder)
    assert done.returncode == 0, done.stderr
    success = json.loads((folder / "my_project" / ".headrace" / "sink" / "_SUCCESS.json").read_text())
    assert success["options"]["databases"] == ["sqlite:///x.db"]
    assert "output in my_project/.headrace/sink" in done.stdout


def test_a_password_in_a_url_is_refused_and_not_shown(folder):
    run = "headrace run my_project --source 'my_project/data/*.parquet' --sink postgresql://me:hunter2-secret@db/x"
    done = bash(run, folder)
    assert done.returncode == 1
    assert "put it into a variable" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
