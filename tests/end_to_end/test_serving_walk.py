"""docs/serving.md runs as printed: a store, and stream, endpoint and questions in three terminals."""

import contextlib
import json
import re
import subprocess
import time

import pytest

from tests.kit.support import ROOT
from tests.kit.walks import end, environment, make_clone, printed_ports, shell, start

pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = (ROOT / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
SHOWN = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])


def run(block, clone):
    done = subprocess.run(
        shell(block), cwd=clone, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{block}{done.stdout}{done.stderr}"
    return done.stdout


def test_the_page_runs_as_printed(tmp_path):
    prepare, stream, serve, ask, prove = BLOCKS
    clone = make_clone(tmp_path)
    run(prepare, clone)
    with contextlib.ExitStack() as stack:
        stack.enter_context(printed_ports(8080, 8085))
        logs = {}
        for name, block in (("stream", stream), ("serve", serve)):
            logs[name] = stack.enter_context((clone / f"{name}.log").open("w"))
            stack.callback(end, start(block, clone, logs[name]))
        wait_for(lambda: "serving served on http://127.0.0.1:8080" in (clone / "serve.log").read_text())
        wait_for(lambda: "PUBSUB_EMULATOR_HOST" in (clone / "stream.log").read_text())
        *publish, score, features = ask.splitlines(keepends=True)
        run("".join(publish), clone)
        wait_for(lambda: json.loads(run(score, clone))["complete"])
        answer = json.loads(run(score, clone))
        assert answer.keys() == SHOWN.keys()
        assert answer["event"] == SHOWN["event"]
        assert "CUSTOMER_ID_NB_TX_30DAY_WINDOW" in json.loads(run(features, clone))["features"]
    assert run(prove, clone).endswith("equal\n")


def wait_for(there):
    until = time.monotonic() + 120
    while not there():
        assert time.monotonic() < until
        time.sleep(0.2)
