"""Rules and dashboard of a project's objectives, as Prometheus itself reads them."""

import http.server
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request

import pytest
import yaml

from models import metrics
from models.objectives import BURNS
from models.project.objectives import Objectives, Serving
from pipelines.jobs.children import free_port
from pipelines.monitoring.exposition import exposed
from pipelines.monitoring.rules import dashboard, expressions, rules
from pipelines.monitoring.scrape import ScrapeError, scrape
from pipelines.serve.metrics import Counts
from tests.kit.support import card_fraud

OBJECTIVES = Objectives.model_validate(
    {
        "latency": {"within": "1s", "target": 0.99},
        "valid": {"target": 0.99},
        "quality": {"target": 0.9, "minimum": 3},
    }
)
SPANS = {300: "5m", 1800: "30m", 3600: "1h", 21_600: "6h", 259_200: "3d"}
PROJECT = card_fraud().model_copy(update={"slo": OBJECTIVES})
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian's prometheus) is not there")


def promtool(*argv):
    done = subprocess.run(["promtool", *map(str, argv)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_objectives_there_are_no_rules_and_a_dashboard_of_the_rest():
    assert yaml.safe_load(rules(card_fraud())) == {"groups": []}
    assert len(json.loads(dashboard(PROJECT))["panels"]) == len(json.loads(dashboard(card_fraud()))["panels"]) + 3


SERVED = PROJECT.model_copy(
    update={
        "slo": None,
        "serving": Serving.model_validate(
            {"p99": "20ms", "availability": 0.999, "freshness": {"within": "5m", "otherwise": "mark"}}
        ),
    }
)


@needs_promtool
@pytest.mark.parametrize("project", [PROJECT, SERVED], ids=["slo", "serving"])
def test_prometheus_takes_the_rules_and_the_queries_of_the_dashboard(tmp_path, project):
    (tmp_path / "rules.yml").write_text(rules(project))
    asked = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "1m")}
        for number, expr in enumerate(expressions(project))
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": asked}]}))
    promtool("check", "rules", tmp_path / "rules.yml", tmp_path / "panels.yml")


def test_rules_of_an_endpoint_ask_for_what_it_shows():
    """Names, labels and bounds of each counter in the rules are those of an endpoint's text, letter for letter."""
    counts = Counts(SERVED.serving)
    counts.request("/v1/score", 200, 0.001)
    for outcome in ("scored", "refused", "fallback", "unanswered"):
        counts.events(outcome, 1)
    counts.ages([5])
    shown = {
        frozenset(re.findall(r'\w+="[^"]*"', line)) | {line.split("{")[0]}
        for line in counts.text(True).decode().splitlines()
    }
    groups = yaml.safe_load(rules(SERVED))["groups"]
    asked = set(re.findall(r"increase\((\w+)(?:{([^}]*)})?\[", " ".join(r["expr"] for g in groups for r in g["rules"])))
    assert [group["name"] for group in groups] == [
        f"headrace-card_fraud-{n}" for n in ("p99", "availability", "freshness")
    ]
    assert len(asked) == 7
    for name, labels in asked:
        wanted = {name, *filter(None, labels.split(","))}
        assert any(wanted <= series for series in shown), wanted


def alert(burn):
    """What fires of a burn, of the objective `valid`."""
    rate = f"{burn.rate(OBJECTIVES.period):g}"
    long, short = (SPANS[seconds] for seconds in (burn.long_s, burn.short_s))
    labels = {"project": "card_fraud", "slo": "valid", "window": long, "severity": burn.severity, "burn": rate}
    told = {
        "summary": f"card_fraud: the error budget of valid burns {rate} times too fast",
        "description": f"Over {long} and {short}; the target is 0.99.",
    }
    return {"exp_labels": labels, "exp_annotations": told}


@needs_promtool
@pytest.mark.parametrize(
    ("read", "dead", "fires"),
    [
        ("0+1000x6000", "0+9x6000", {7200: [], 300_000: []}),  # 0.9 of the budget: all is well, for days
        ("0+1000x6000", "0+20x6000", {22_200: [2]}),  # twice the budget: a ticket, and no page
        ("0+1x6000", "0+1x6000", {3000: []}),  # all are bad, but they are too few to tell
        # An hour of half bad ones, then good ones alone: a quarter later the hour's page is over.
        ("0+1000x6000", "0+500x60 30000+0x6000", {3000: [0, 1, 2], 4500: [1, 2], 6000: [2]}),
    ],
)
def test_alerts_fire_by_the_real_windows(tmp_path, read, dead, fires):
    (tmp_path / "rules.yml").write_text(rules(PROJECT))
    series = {
        'headrace_events_total{outcome="read"}': read,
        'headrace_dead_letters_total{step="Validate"}': dead,
        'headrace_dead_letters_total{step="Deduplicate"}': "0+500x6000",
    }
    case = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {
                        "eval_time": f"{seconds}s",
                        "alertname": "HeadraceBudgetBurns",
                        "exp_alerts": [alert(BURNS[place]) for place in places],
                    }
                    for seconds, places in fires.items()
                ],
            }
        ],
    }
    (tmp_path / "case.yml").write_text(yaml.safe_dump(case))
    promtool("test", "rules", tmp_path / "case.yml")


@pytest.mark.serial
@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus (Debian's package) is not there")
def test_a_real_prometheus_fires_and_clears(tmp_path):
    """Windows a 300th as long: an hour is 12 s, five minutes are a second."""
    counts = {"read": 0, "dead": 0, "bad": True}

    def read():
        counts["read"] += 100
        counts["dead"] += 50 if counts["bad"] else 0
        return {
            metrics.parse(metrics.EVENTS.beam_name({"outcome": "read"})): counts["read"],
            metrics.parse(metrics.DEAD_LETTERS.beam_name({"step": "Validate"})): counts["dead"],
        }

    (tmp_path / "rules.yml").write_text(rules(PROJECT, scale=1 / 300))
    shown, port = free_port(), free_port()
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "500ms"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "headrace", "static_configs": [{"targets": [f"127.0.0.1:{shown}"]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    argv = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with exposed(read, "127.0.0.1", shown), (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            wait_for(lambda: "page" in severities(port))
            counts["bad"] = False
            wait_for(lambda: "page" not in severities(port))
        finally:
            server.terminate()
            server.wait(30)


def severities(port):
    """Of the alerts that fire."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/alerts", timeout=5) as answer:
            alerts = json.load(answer)["data"]["alerts"]
    except OSError:
        return []
    return [each["labels"]["severity"] for each in alerts if each["state"] == "firing"]


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def test_what_is_scraped_is_what_was_shown():
    latency = metrics.LATENCY
    told = {
        metrics.SCORES.beam_name({"decision": "block", "bundle": "1f"}): 7,
        metrics.WATERMARK_LAG.beam_name({}): 2_500_000,
        latency.bucket_name({"stage": "written"}, 2): 3,
        latency.bucket_name({"stage": "written"}, len(latency.bounds)): 1,
    }
    found = {metrics.parse(name): number for name, number in told.items()}
    port = free_port()
    with exposed(lambda: found, "127.0.0.1", port):
        scraped = scrape(f"http://127.0.0.1:{port}/metrics")
    assert {series: number for series, number in scraped.items() if number and series in found} == found
    assert metrics.quantiles(scraped, {}, latency, (("stage", "written"),), [0.5, 0.99]) == [0.0025, latency.bounds[-1]]


@pytest.mark.parametrize("said", [b"\xff\xfe", b"headrace_rows_total{step=", b"<html>"])
def test_what_is_no_text_of_prometheus_is_refused(said, tmp_path):
    class Say(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Say) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ScrapeError, match="is not Prometheus's text"):
            scrape(f"http://127.0.0.1:{server.server_port}/metrics")
        server.shutdown()
    with pytest.raises(ScrapeError, match="name where `headrace run"):
        scrape("http://127.0.0.1:1/metrics")
