"""The scenario of a load test is requests that an endpoint answers."""

import base64
import json
import subprocess
import sys

import httpx
import pytest

from tests.kit.declared import declared
from tests.kit.endpoints import open_faulty, serving
from tests.kit.serving import SCHEMA, TEXT, as_lines, make_events
from tests.kit.support import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("events", "requests"), [(1, 40), (15, 3)])
def test_targets_are_requests_that_are_answered(tmp_path, events, requests):
    (tmp_path / "project.yaml").write_text(TEXT)
    (tmp_path / "schema.pbtxt").write_text(SCHEMA)
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(as_lines(make_events(40))))
    with serving(declared(TEXT, SCHEMA), open_faulty(tmp_path, declared(TEXT, SCHEMA))) as client:
        program = [sys.executable, ROOT / "deploy" / "load" / "targets.py", tmp_path, tmp_path / "events.jsonl"]
        more = ["--url", str(client.base_url).rstrip("/"), "--events", str(events)]
        done = subprocess.run([*program, *more], capture_output=True, text=True, check=True, cwd=ROOT)
        targets = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(targets) == requests
        answered = 0
        for target in targets:
            headers = {name: values[0] for name, values in target["header"].items()}
            body = base64.b64decode(target["body"])
            reply = httpx.request(target["method"], target["url"], headers=headers, content=body, trust_env=False)
            assert reply.status_code in (200, 422)
            answered += 1 if events == 1 else len(reply.json())
    assert answered == 40
