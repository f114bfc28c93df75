"""The recipes of deploy/nightly: each calls the command as it is, and is read by what it is for."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import typer
import yaml

from pipelines.cli.main import app
from tests.kit.support import ROOT

RECIPES = ROOT / "deploy" / "nightly"
AIRFLOW = ROOT / "build" / "airflow"
KUBECONFORM = ROOT / "build" / "k8s" / "kubeconform"
READ = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
dags = {name: [task.bash_command for task in dag.tasks] for name, dag in bag.dags.items()}
print(json.dumps({"errors": bag.import_errors, "dags": dags}))
"""


def options_of(words):
    """The options of a call of `headrace nightly`, which must be the command's own."""
    assert words[0].rsplit("/", 1)[-1] == "headrace"
    assert words[1] == "nightly"
    command = typer.main.get_command(app).commands["nightly"]
    context = command.make_context("nightly", words[2:])
    assert context.args == []  # of the engine, which needs none here
    return {name: value for name, value in context.params.items() if value}


def check(words):
    given = options_of(words)
    assert given["source"][0].endswith("in/*.parquet")
    assert [uri.rsplit("/", 1)[-1] for uri in given["sink"]] == ["nights"]
    assert given["state"].endswith("state")


def cron_job():
    return yaml.safe_load((RECIPES / "cronjob.yaml").read_text())


def test_cron_calls_the_command():
    (line,) = [line for line in (RECIPES / "crontab").read_text().splitlines() if not line.startswith("#")]
    fields = line.split(maxsplit=5)
    assert all(field.isdigit() or field == "*" for field in fields[:5])
    check(shlex.split(fields[5].split("&&")[1].split(">>")[0]))


def test_systemd_calls_the_command(tmp_path):
    service = (RECIPES / "headrace-nightly.service").read_text()
    (call,) = [line.partition("=")[2] for line in service.splitlines() if line.startswith("ExecStart=")]
    check(shlex.split(call))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: the units are not verified")
    (tmp_path / "headrace-nightly.service").write_text(service.replace("/opt/headrace/bin/headrace", sys.executable))
    shutil.copy(RECIPES / "headrace-nightly.timer", tmp_path)

    def verify():
        units = [str(tmp_path / f"headrace-nightly.{kind}") for kind in ("service", "timer")]
        done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    assert verify() == (0, "")
    (tmp_path / "headrace-nightly.service").write_text(service)  # there is no such command here
    assert verify()[0]


def test_kubernetes_calls_the_command():
    job = cron_job()["spec"]
    (container,) = job["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    check([*container["command"], *container["args"]])
    assert job["concurrencyPolicy"] == "Forbid"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["jobTemplate"]["spec"]["template"]["spec"]["volumes"]}
    version = f'version="{container["image"].split(":")[1]}"'
    assert version in (ROOT / "setup.py").read_text()


@pytest.mark.skipif(not KUBECONFORM.exists(), reason="no kubeconform in build/k8s: make k8s-schemas")
def test_the_cron_job_fits_its_schema():
    schemas = f"{KUBECONFORM.parent}/schemas/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"

    def fits(text):
        command = [KUBECONFORM, "-strict", "-schema-location", schemas]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False).returncode == 0

    text = (RECIPES / "cronjob.yaml").read_text()
    assert fits(text)
    assert not fits(text.replace("concurrencyPolicy", "concurencyPolicy"))


@pytest.mark.skipif(not (AIRFLOW / "inputs").exists(), reason="no Airflow in build/airflow: make airflow")
def test_airflow_reads_the_dag(tmp_path):
    settings = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [str(AIRFLOW / "venv" / "bin" / "python"), "-c", READ, str(RECIPES / "airflow_dag.py")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["errors"] == {}
    (bash,) = said["dags"]["headrace_nightly"]
    check(shlex.split(bash))
