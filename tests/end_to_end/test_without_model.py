"""A project without a model: features alone, in batch and stream, and commands that need a model say so."""

import json
import re

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from models.project.project import parse_project
from pipelines.cli.main import app
from tests.kit.streams import stream
from tests.kit.support import CARD_FRAUD, card_fraud, run_graph, transaction, write_rows

pytestmark = pytest.mark.slow

TEXT = (CARD_FRAUD / "project.yaml").read_text()
# Sections that are of a model, as they stand in the example, and their ends.
OF_A_MODEL = ("model:", "training:", "metrics:", "decisions:", "quality:")


def without(text, *sections):
    for section in sections:
        text = re.sub(rf"(?ms)^{section}.*?(?=^[a-z]|\Z)", "", text)
    return text


BARE = without(TEXT, *OF_A_MODEL)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "project"
    made.mkdir()
    (made / "project.yaml").write_text(BARE)
    (made / "schema.pbtxt").write_bytes((CARD_FRAUD / "schema.pbtxt").read_bytes())
    return made


def invoke(*args):
    result = CliRunner().invoke(app, list(map(str, args)))
    return result.exit_code, result.output


def project_of(text):
    return parse_project(text.encode(), lambda name: (CARD_FRAUD / name).read_bytes())


ROWS = [transaction(n) for n in range(200)]


def test_features_are_those_that_a_model_would_get(tmp_path, folder):
    source = write_rows(tmp_path / "events.jsonl", ROWS)
    assert invoke("check", folder)[0] == 0
    code, said = invoke("run", folder, "--source", source, "--sink", tmp_path / "out")
    assert code == 0, said
    assert "no model: features alone" in said
    found = pq.read_table(tmp_path / "out" / "scores", partitioning=None)
    scored = run_graph(tmp_path / "scored", [source]).scores
    project = card_fraud()
    names = ["TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_FRAUD", *project.feature_names]
    assert found.schema.names == names
    assert found.to_pylist() == scored.select(names).to_pylist()
    facts = json.loads((tmp_path / "out" / "_SUCCESS.json").read_text())
    assert facts["events"] == {"read": 200, "scored": 200}
    assert facts["bundle_id"] is None


@pytest.mark.serial
def test_parity_needs_no_model(tmp_path, folder):
    source = write_rows(tmp_path / "events.jsonl", ROWS)
    code, said = invoke("parity", folder, "--source", source, "--allowance", "1d", "--duplicates", "0.1")
    assert code == 0, said
    assert "equal" in said
    assert "scores" not in said


def test_a_stream_publishes_features_at_arrival_too():
    project, _ = project_of(BARE)
    payloads = [json.dumps(row).encode() for row in ROWS]
    assert project is not None
    assert not project.has_model
    rows, _ = stream(payloads, 1_000_000, True, project=project)
    assert {"correction", "late", "scored"} <= set(rows.schema.names)
    assert "score" not in rows.schema.names
    assert len(set(rows["TRANSACTION_ID"].to_pylist())) == len(ROWS)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["train", "--source", "x"], "there is nothing to train"),
        (["baseline", "--source", "x"], "there is nothing to make a baseline for"),
        (["models"], "there is nothing to list"),
        (["promote"], "there is nothing to promote"),
        (["report", "--run", "x"], "there is nothing to report on"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_that_need_a_model_say_so(folder, command, what):
    code, said = invoke(command[0], folder, *command[1:])
    assert code == 1
    assert f"card_fraud declares no model: {what}" in " ".join(said.split())


def test_the_demo_and_reason_codes_need_a_model(tmp_path, folder):
    assert "there is nothing to train and to score with" in " ".join(invoke("demo", "--project", folder)[1].split())
    source = write_rows(tmp_path / "events.jsonl", ROWS)
    code, said = invoke("run", folder, "--source", source, "--sink", tmp_path / "out", "--reason-codes", 3)
    assert code == 1
    assert "--reason-codes is for a project that declares a model" in " ".join(said.split())


@pytest.mark.parametrize("kept", OF_A_MODEL[1:])
def test_what_is_of_a_model_needs_one(kept):
    text = without(TEXT, *(part for part in OF_A_MODEL if part != kept))
    _, faults = project_of(text)
    number = text[: text.index(kept)].count("\n") + 1
    name = kept.rstrip(":")
    assert [str(fault) for fault in faults] == [
        f"project.yaml:{number}: {name}: needs a model: declare model, or leave {name} out"
    ]
