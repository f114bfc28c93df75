"""The dashboard over HTTP, and in a browser: light, dark, on a phone; hostile names stay text."""

import contextlib
import importlib.util
import json
import re
import time

import httpx
import pytest
from starlette.responses import HTMLResponse
from starlette.routing import Route

from pipelines.dashboard import app as dashboard_app
from pipelines.dashboard.app import make_app
from pipelines.dashboard.board import Board
from pipelines.serve.server import running
from tests.kit.browser import browse_url, needs_chromium
from tests.kit.dashboards import EVIL, PROJECT, statistics, verdict, write_day, write_quality, write_success

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("plotly") is None, reason="plotly is not installed"),
]
PHONE = """<!DOCTYPE html><iframe id="f" src="/" style="width:390px;height:5000px;border:0"></iframe><script>
setTimeout(() => {
  const page = document.getElementById("f").contentWindow, wrong = [];
  if (page.document.documentElement.scrollWidth > page.innerWidth) wrong.push("the page is wider");
  for (const each of page.document.querySelectorAll("h1, h2, p, figure, .card, .facts > div, .plot"))
    if (each.getBoundingClientRect().right > page.innerWidth) wrong.push(each.textContent.slice(0, 40));
  document.title = JSON.stringify([page.innerWidth, page.document.querySelectorAll(".plot svg").length, wrong]);
}, 6000);
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five days with evil names of features and decisions; an incident is open."""
    folder = tmp_path_factory.mktemp("run")
    for day in range(5):
        write_day(folder, day, decisions=("block", EVIL, "approve", "approve"))
    days = [verdict(n, *([EVIL] if n > 2 else []), value=0.3 if n > 2 else 0.02, name=EVIL) for n in range(5)]
    write_quality(folder, "all.jsonl", *days, *(statistics(n, (10, 20, 70)) for n in range(5)))
    write_success(folder, {"read": 2010, "scored": 2000, "dead-lettered": 10, f"dead-lettered: Decode: {EVIL}": 10})
    return folder


@pytest.fixture
def board(folder):
    made = Board(PROJECT, [str(folder)], None, None)
    made.refresh()
    return made


@contextlib.contextmanager
def client(board, host="127.0.0.1"):
    with running(make_app(board, host)) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as asked:
        yield asked


def test_state_is_told_once(board):
    with client(board) as asked:
        first = asked.get("/v1/state")
        assert first.status_code == 200
        facts = first.json()
        (run,) = facts["runs"]
        assert sum(sum(each["rows"]) for each in run["decisions"]) == 2000
        assert [each["feature"] for each in run["open"]] == [EVIL]
        assert (facts["reading"], facts["has_metrics"], facts["faults"], facts["releases"]) == (False, False, [], [])
        again = asked.get("/v1/state", headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert asked.get("/v1/state", headers={"If-None-Match": '"another"'}).status_code == 200


def test_a_growing_folder_changes_what_is_told(tmp_path):
    write_day(tmp_path, 0, 10)
    board = Board(PROJECT, [str(tmp_path)], None, None)
    assert json.loads(board.state.body)["reading"]
    board.refresh()
    before = board.state
    board.refresh()
    assert board.state is before
    write_day(tmp_path, 1, 10)
    board.refresh()
    assert board.state.etag != before.etag
    assert sum(sum(each["rows"]) for each in json.loads(board.state.body)["runs"][0]["decisions"]) == 20


def test_a_folder_that_is_gone_is_named_and_the_last_of_it_stays(tmp_path):
    write_day(tmp_path / "run", 0, 10)
    board = Board(PROJECT, [str(tmp_path / "run")], None, str(tmp_path / "no.jsonl"))
    board.refresh()
    (fault,) = json.loads(board.state.body)["faults"]
    assert "no.jsonl" in fault


def test_every_answer_has_the_policy_and_nothing_is_cached_blindly(board):
    with client(board) as asked:
        for path in ("/", "/page.css", "/page.js", "/charts.js", "/plotly.js", "/v1/state", "/v1/live", "/nothing"):
            answer = asked.get(path)
            assert answer.status_code == (404 if path == "/nothing" else 200), path
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'; script-src 'self';" in policy
            assert "unsafe-eval" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert path == "/nothing" or answer.headers["Cache-Control"] == "no-cache"
        assert asked.post("/v1/state").status_code == 405
        assert asked.get("/../pyproject.toml").status_code == 404


def test_a_page_from_elsewhere_can_not_ask_by_a_name_of_its_own(board):
    for host, named, status in (
        ("127.0.0.1", "evil.example", 400),
        ("127.0.0.1", "evil.example:8050", 400),
        ("127.0.0.1", "localhost:8050", 200),
        ("::1", "[::1]:8050", 200),
        ("0.0.0.0", "the.machine", 200),
    ):
        with client(board, host) as asked:
            answer = asked.get("/v1/state", headers={"Host": named})
            assert (answer.status_code, "runs" in answer.text) == (status, status == 200), named


def test_metrics_that_are_not_there_are_a_fault_of_the_live_part_alone(folder):
    board = Board(PROJECT, [str(folder)], "http://127.0.0.1:1/metrics", None)
    board.ask()
    live = json.loads(board.live.body)
    assert "http://127.0.0.1:1/metrics" in live["fault"]
    assert (live["times"], live["events"], live["objectives"]) == ([], {}, [])


def test_the_app_reads_by_itself_and_stops(folder):
    board = Board(PROJECT, [str(folder)], None, None)
    with client(board) as asked:
        until = time.monotonic() + 60
        while asked.get("/v1/state").json()["reading"] and time.monotonic() < until:
            time.sleep(0.05)
        assert asked.get("/v1/state").json()["runs"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_app_that_can_not_go_on_says_so(folder, monkeypatch):
    board = Board(PROJECT, [str(folder)], None, None)
    monkeypatch.setattr(board, "refresh", lambda: 1 / 0)
    with client(board) as asked:
        until = time.monotonic() + 60
        while not board.broken and time.monotonic() < until:
            time.sleep(0.01)
        assert asked.get("/v1/state").status_code == 503


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_has_no_complaint_and_asks_nobody_else(board, tmp_path, scheme):
    log = tmp_path / "net.json"
    with running(make_app(board, "127.0.0.1")) as url:
        dom, console = browse_url(
            url, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=4000", f"--log-net-log={log}",
            *(["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []),
        )  # fmt: skip
    assert console == []
    assert len(re.findall(r'class="main-svg"', dom)) >= 8
    assert "<title>card_fraud: dashboard</title>" in dom  # the evil names did nothing
    assert dom.count("&lt;img src=x onerror=") > 5
    assert "<img" not in dom
    assert 'class="card fault"' not in dom
    assert "2,000 rows from 2018-06-18 to 2018-06-23" in dom
    lines = [line for line in log.read_text().splitlines() if f'"initiator":"{url}"' in line]
    asked = {found for line in lines for found in re.findall(r'"url":"([^"]*)"', line)}
    assert {f"{url}/v1/state", f"{url}/plotly.js"} <= asked
    assert [found for found in asked if not found.startswith((f"{url}/", "data:"))] == []


@needs_chromium
def test_the_page_fits_a_phone(board, tmp_path, monkeypatch):
    policy = dashboard_app._HEADERS["Content-Security-Policy"]
    policy = policy.replace("frame-ancestors 'none'", "frame-ancestors 'self'; frame-src 'self'")
    policy = policy.replace("script-src 'self'", "script-src 'self' 'unsafe-inline'")
    monkeypatch.setitem(dashboard_app._HEADERS, "Content-Security-Policy", policy)
    app = make_app(board, "127.0.0.1")
    app.router.routes.append(Route("/phone", lambda request: HTMLResponse(PHONE)))
    with running(app) as url:
        dom, _ = browse_url(f"{url}/phone", tmp_path / "profile", "--dump-dom", "--virtual-time-budget=9000")
    width, plots, wrong = json.loads(re.search("<title>(.*?)</title>", dom)[1])
    assert width == 390
    assert plots >= 8
    assert wrong == []
