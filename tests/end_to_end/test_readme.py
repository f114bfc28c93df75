"""Every command of the README runs as printed, in its order, with PATH as the README leaves it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time

import httpx
import pytest

from tests.kit.support import ROOT, read_output
from tests.kit.walks import EXPORT, end, environment, make_clone, printed_ports, shell, start

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
STREAM = ("headrace pubsub", "pubsub://")
LIVE = "headrace demo --live"

pytestmark = [pytest.mark.serial, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder that looks like a clone after `make setup`."""
    return make_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def said(clone):
    """What each block of commands printed, but for those of the stream and of make."""
    said = {}
    for block in BLOCKS:
        if block.startswith("make ") or any(part in block for part in (*STREAM, LIVE)):
            continue
        assert said or block.startswith(EXPORT), "the README's first command has no PATH to it"
        done = subprocess.run(
            shell(block), cwd=clone, env=environment(), capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, f"{block}{done.stdout}{done.stderr}"
        said[block] = done.stdout
    return said


def block_with(said, command):
    return next(text for block, text in said.items() if command in block)


def test_the_two_commands_are_targets():
    make = (ROOT / "Makefile").read_text()
    commands = [line.split()[1] for block in BLOCKS for line in block.splitlines() if line.startswith("make ")]
    assert {"demo", "test"} <= set(commands)
    for command in [*commands, *re.findall(r"`make ([a-z0-9-]+)", README)]:
        assert re.search(rf"(?m)^{command}:", make + (ROOT / "deploy" / "flink.mk").read_text()), command


def test_nights_leave_the_bytes_of_one_run(said, clone):
    printed = block_with(said, "headrace nightly")
    assert [line.split()[0] for line in printed.splitlines()] == ["2018-06-08", "2018-06-09", "2018-06-10"]
    for day in ("2018-06-08", "2018-06-09", "2018-06-10"):
        place = f"scores/event_day={day}/part-00000-of-00001.parquet"
        one, other = (clone / "my_project" / sink / place for sink in ("nights", "scores"))
        assert one.read_bytes() == other.read_bytes()


def test_a_new_project_is_made_trained_and_run(said, clone):
    first = block_with(said, "headrace init my_project")
    assert "version 1" in first
    assert "champion" in first
    output = read_output(clone / "my_project" / "scores")
    assert output.outcomes["read"] == 100_000
    assert output.scores.num_rows == output.outcomes["scored"] > 5000
    (bundle,) = set(output.scores["bundle_id"].to_pylist())
    assert bundle in first


def test_another_version_is_promoted_and_rolled_back(said):
    text = block_with(said, "headrace rollback my_project")
    assert "my_project: version 2 is champion" in text
    assert "my_project: release 2 from " in text
    assert text.splitlines()[-1] == "my_project: version 1 is champion"


def test_parity_says_equal_and_the_report_is_written(said, clone):
    assert block_with(said, "headrace parity").endswith("equal\n")
    assert (clone / "my_project" / "scores" / "report.html").stat().st_size > 10_000


def test_the_stream_runs_in_three_terminals(said, clone):
    """It is stopped once rows have come out: at the README's speed it would take twenty minutes."""
    server, stream, publisher = (block for block in BLOCKS if any(part in block for part in STREAM))
    with contextlib.ExitStack() as stack:
        stack.enter_context(printed_ports(8085))
        running = []
        for name, block in (("server", server), ("stream", stream), ("publisher", publisher)):
            log = stack.enter_context((clone / f"{name}.log").open("w"))
            process = start(block, clone, log)
            running.append(process)
            stack.callback(end, process)
            if name == "server":
                wait_for(lambda: "PUBSUB_EMULATOR_HOST" in (clone / "server.log").read_text(), running)
        wait_for(lambda: scored(clone) > 0, running)
        os.killpg(running[1].pid, signal.SIGTERM)
        running[1].wait(60)
    log = (clone / "stream.log").read_text()
    assert "Traceback" not in log, log
    assert list((clone / "my_project" / "journal").glob("*.journal"))


def scored(clone):
    found = re.findall(r"INFO headrace: .* in, ([\d,]+) out,", (clone / "stream.log").read_text())
    return int(found[-1].replace(",", "")) if found else 0


def wait_for(done, running):
    deadline = time.monotonic() + 300
    while not done():
        assert time.monotonic() < deadline, "nothing came out"
        assert all(process.poll() is None for process in running), [process.args for process in running]
        time.sleep(0.2)


def test_the_live_demo_shows_an_incident_and_its_end(clone):
    """Until the wrong numbers, and what they had moved by the day, are right again; then Ctrl-C ends all of it."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8050)) == 0:
            pytest.skip("port 8050, which the dashboard has, is taken")
    (block,) = (block for block in BLOCKS if LIVE in block)
    path = clone / "live.log"
    with path.open("w") as log, contextlib.ExitStack() as stack:
        process = start(block, clone, log)
        stack.callback(end, process)
        wait_for(lambda: "CLEAR card_fraud: TX_AMOUNT" in path.read_text(), [process])
        urls = dict(re.findall(r"(?m)^(\w+): +(http://[^/\s]+)", path.read_text()))
        assert urls.keys() == {"dashboard", "endpoint", "stream"}
        with httpx.Client(timeout=30, trust_env=False) as client:
            live = client.get(f"{urls['dashboard']}/v1/live").json()
            wait_for(lambda: tells_the_end(client.get(f"{urls['dashboard']}/v1/state").json()), [process])
            served = client.get(f"{urls['endpoint']}/metrics").text
        assert sum(map(sum, live["rates"].values())) > 0
        assert (live["replay"], live["behind"] < 120) == (True, True)
        assert float(re.search(r'headrace_served_events_total{outcome="scored"} (\S+)', served)[1]) > 0
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
    said = path.read_text()
    assert "Traceback" not in said, said
    assert re.search(r"alerts: [1-9]\d* opened, \d+ reminders, [1-9]\d* over\n$", said), said
    with pytest.raises(httpx.ConnectError):
        httpx.get(urls["endpoint"], trust_env=False)


def tells_the_end(state):
    (run,) = state["runs"]
    return {"open", "clear"} <= {each["event"] for each in run["alerts"] if each["feature"] == "TX_AMOUNT"}


def test_the_success_file_lists_what_the_run_wrote(said, clone):
    folder = clone / "my_project" / "scores"
    listed = {f"{file['kind']}/{file['name']}" for file in json.loads((folder / "_SUCCESS.json").read_text())["files"]}
    assert listed == {str(path.relative_to(folder)) for path in folder.glob("*/**/*") if path.is_file()}
