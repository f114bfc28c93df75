"""`headrace parity --serve`: an endpoint that gets events one by one says what batch says, bit for bit."""

import dataclasses

import pytest
from typer.testing import CliRunner

from models.project.project import load_project
from pipelines.cli.main import app
from pipelines.prechecks import registry_of
from pipelines.release_store import append
from pipelines.serve.service import Service
from tests.kit.releases import canary, make_log, register_bundles
from tests.kit.serving import SCHEMA, START, TEXT, as_lines, make_events

pytestmark = pytest.mark.slow

SECOND = 1_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with two bundles, its events, some of which stand there twice, and a log of releases."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "project.yaml").write_text(TEXT)
    (folder / "schema.pbtxt").write_text(SCHEMA)
    project = load_project(folder)
    old, new = register_bundles(folder, project, registry_of(folder, None), range(2))
    changes = [{"at": (START + 15 * 86_400) * SECOND, "challenger": new, "canary": canary("card", 5000)}]
    log = f"sqlite:///{folder}/releases.db"
    releases = make_log(old, *changes)
    append(log, "shops", dataclasses.replace(releases, records=()), lambda: 0, lambda _: releases)
    events = make_events(250)
    again = [{**event, "card": "dora", "at": event["at"] + 60 * (n % 3)} for n, event in enumerate(events[7:40])]
    lines = as_lines([*events, *events[:5], *again, {**again[0], "at": again[0]["at"] + 600_000}])
    (folder / "events.jsonl").write_bytes(b"\n".join([*lines, b"{not JSON"]) + b"\n")
    return folder, log


def run(folder, *more):
    return CliRunner().invoke(
        app,
        ["parity", str(folder), "--source", f"{folder}/events.jsonl", "--serve", *more],
        env={"COLUMNS": "200"},
        catch_exceptions=False,
    )


@pytest.mark.parametrize("by_log", [False, True])
def test_an_endpoint_says_what_batch_says(made, by_log):
    folder, log = made
    told = run(folder, *(["--releases", log] if by_log else ["--model", "1"]))
    assert told.exit_code == 0, told.output
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in told.output.splitlines() if "│" in line}
    assert [int(rows["features"][0]), int(rows["features"][1])] == [int(rows["scores"][0]), 0]
    assert int(rows["control: values of the event before"][1]) > 100
    assert int(rows["dead letters"][0]) == 37  # of which 34 are duplicates
    assert ("releases" in rows) is by_log
    assert told.output.endswith("equal\n")


def test_an_endpoint_that_forgets_an_event_is_seen(made, monkeypatch):
    folder, _ = made
    score = Service._score

    def forget(self, intake, *options):
        self.absorbs = b'"id": 77,' not in intake.payloads[0]
        return score(self, intake, *options)

    monkeypatch.setattr(Service, "_score", forget)
    told = run(folder, "--model", "1")
    assert told.exit_code == 1
    assert told.output.endswith("NOT EQUAL\n")
