"""`headrace slo` and `headrace monitoring export`, as a user has them."""

import http.server
import json
import shutil
import subprocess
import threading

import pytest

from pipelines.serve.metrics import Counts
from tests.kit import labelled
from tests.kit.command import HEADRACE
from tests.kit.serving import SCHEMA, TEXT
from tests.kit.support import CARD_FRAUD, run_graph, transaction, write_rows

pytestmark = pytest.mark.slow


def headrace(*argv):
    done = subprocess.run([HEADRACE, *map(str, argv)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


class Shown(http.server.HTTPServer):
    """A text at a URL."""

    def __init__(self, text):
        class Say(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Say)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server_port}/metrics"

    def __exit__(self, *told):
        self.shutdown()
        super().__exit__(*told)


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


def test_labels_and_figures_of_a_finished_run_are_kept_or_not(tmp_path):
    events = labelled.make_events()
    known = write_rows(tmp_path / "labels.jsonl", labelled.make_labels(events))
    run_graph(tmp_path / "out", [write_rows(tmp_path / "rows.jsonl", events)], labelled.PROJECT, labels=[known])
    told = {}
    for name, target, at_least in (("kept", 0.05, 0.0), ("missed", 0.999, 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schema.pbtxt").write_text(labelled.SCHEMA)
        figure = {"roc_auc": {"at_least": at_least, "target": 0.9}}
        slo = {"labels": {"within": "1d", "target": target}, "performance": figure}
        (tmp_path / name / "project.yaml").write_text(labelled.TEXT + f"slo: {json.dumps(slo)}\n")
        code, told[name] = headrace("slo", tmp_path / name, "--run", tmp_path / "out")
        assert code == (name == "missed"), told
    assert told["kept"].count(" met") == told["missed"].count("MISSED") == 2, told


def test_an_endpoint_keeps_its_objectives_or_not(tmp_path):
    (tmp_path / "schema.pbtxt").write_text(SCHEMA)
    for name, serving in (("kept", {"availability": 0.5}), ("missed", {"availability": 0.9}), ("none", None)):
        shutil.copytree(tmp_path, tmp_path / name, ignore=lambda *_: ["kept", "missed", "none"])
        (tmp_path / name / "project.yaml").write_text(TEXT + (f"serving: {json.dumps(serving)}\n" if serving else ""))
    counts = Counts()
    counts.events("scored", 3)
    counts.events("fallback", 1)
    with Shown(counts.text(True)) as url:
        code, said = headrace("slo", tmp_path / "kept", "--metrics", url)
        assert (code, "3 of 4" in said) == (0, True), said
        code, said = headrace("slo", tmp_path / "missed", "--metrics", url)
        assert (code, "MISSED" in said) == (1, True), said
    code, said = headrace("slo", tmp_path / "none", "--metrics", url)
    assert (code, said) == (1, "headrace: shops declares no slo and no serving: there is nothing to tell\n")


def test_what_can_not_be_told_is_said(tmp_path):
    code, said = headrace("slo", CARD_FRAUD, "--run", tmp_path)
    assert (code, said) == (1, "headrace: card_fraud declares no slo and no serving: there is nothing to tell\n")
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
