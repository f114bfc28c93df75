"""`headrace slo` and `headrace monitoring export`, as a user has them."""

import json
import shutil
import subprocess

import pytest

from tests.kit.command import HEADRACE
from tests.kit.support import CARD_FRAUD, run_graph, transaction, write_rows

pytestmark = pytest.mark.slow


def headrace(*argv):
    done = subprocess.run([HEADRACE, *map(str, argv)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def project_with(folder, slo):
    shutil.copytree(CARD_FRAUD, folder)
    with (folder / "project.yaml").open("a") as file:
        file.write(f"slo: {json.dumps(slo)}\n")
    return folder


def test_a_finished_run_keeps_its_objectives_or_not(tmp_path):
    rows = [transaction(n, **({"TX_AMOUNT": -1} if n == 5 else {})) for n in range(40)]
    run_graph(tmp_path / "out", [write_rows(tmp_path / "rows.jsonl", rows)])
    kept = project_with(tmp_path / "kept", {"valid": {"target": 0.97}, "rows": 39, "quality": {"target": 0.9}})
    code, said = headrace("slo", kept, "--run", tmp_path / "out")
    assert code == 0, said
    assert said.count("met") == 2
    assert "nothing to" in said  # no window was judged
    missed = project_with(tmp_path / "missed", {"valid": {"target": 0.99}, "rows": 40})
    code, said = headrace("slo", missed, "--run", tmp_path / "out")
    assert code == 1
    assert said.count("MISSED") == 2
    assert "250 %" in said


def test_what_can_not_be_told_is_said(tmp_path):
    code, said = headrace("slo", CARD_FRAUD, "--run", tmp_path)
    assert (code, said) == (1, "headrace: card_fraud declares no slo: there is nothing to tell\n")
    project = project_with(tmp_path / "own", {"rows": 1})
    for argv in ([], ["--run", "a", "--metrics", "b"]):
        code, said = headrace("slo", project, *argv)
        assert (code, said.startswith("headrace: name one: --run")) == (1, True)
    code, said = headrace("slo", project, "--run", tmp_path)
    assert code == 1
    assert "not the folder of a finished run" in said


def test_rules_and_dashboard_are_written(tmp_path):
    project = project_with(tmp_path / "own", {"valid": {"target": 0.97}})
    code, said = headrace("monitoring", "export", project, tmp_path / "there" / "it")
    assert code == 0, said
    assert "HeadraceBudgetBurns" in (tmp_path / "there" / "it" / "rules.yml").read_text()
    assert json.loads((tmp_path / "there" / "it" / "dashboard.json").read_text())["title"] == "headrace: card_fraud"
