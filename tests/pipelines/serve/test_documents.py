"""What OpenAPI's page has as an example passes the contract, for each example project."""

import json

import pytest

from models.project.project import load_project
from models.serving.requests import take_in
from pipelines.serve.documents import describe_score
from tests.kit.support import ROOT

EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/project.yaml"))


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda path: path.name)
def test_the_example_is_an_event(folder):
    project = load_project(folder)
    body = describe_score(project)["requestBody"]["content"]["application/json"]
    event = body["examples"]["event"]["value"]
    taken = take_in([json.dumps(event).encode()], project.event_type)
    assert not taken.refused
    assert taken.batch.num_rows == 1
    assert set(body["schema"]["oneOf"][0]["required"]) <= set(event)
