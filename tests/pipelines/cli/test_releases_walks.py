"""The walks of docs/releases.md run as printed, in a clone, over days of the sample that the page names."""

import collections
import json
import re
import shutil
import subprocess

import pyarrow.parquet as pq
import pytest

from models.predictors.registry import list_versions
from tests.kit.support import ROOT, read_output
from tests.kit.walks import environment, make_clone, shell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = (ROOT / "docs" / "releases.md").read_text()
HEX = re.compile(r"\b[0-9a-f]{12,64}\b")


def blocks(title, kind="sh"):
    """What a section has of a kind, in its order."""
    section = PAGE[PAGE.index(f"\n## {title}") + 1 :].split("\n## ")[0]
    return [text for each, text in re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL) if each == kind]


FIRST, *REST = blocks("From two models to a rollback")


def walk(text, clone):
    """What commands print as ann runs them; all of them end well."""
    told = {**environment(), "LOGNAME": "ann"}
    done = subprocess.run(shell(text), cwd=clone, env=told, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A clone with the project, its data and two versions, by the page's first commands."""
    clone = make_clone(tmp_path_factory.mktemp("walks"))
    walk(FIRST, clone)
    return clone


@pytest.fixture
def clone(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "clone", symlinks=True)


def versions(clone):
    """Of each bundle its version."""
    found = list_versions("my_project", f"sqlite:///{clone}/my_project/.headrace/registry.db")
    return {version.bundle_id: version.version for version in found}


def test_two_models_a_canary_a_breaker_a_rollback_and_a_replay(clone):
    said = walk("".join(REST), clone)
    number = versions(clone)
    rows = read_output(clone / "my_project" / "nights").scores.to_pylist()
    found = collections.defaultdict(collections.Counter)
    for row in rows:
        told = (row["release"], row["role"], number[row["bundle_id"]])
        found[row["TX_DATETIME"].day][told] += 1
    canary = found[10].pop((2, "canary", 2))
    assert {day: set(told) for day, told in found.items()} == {
        8: {(1, "champion", 1)},
        9: {(1, "champion", 1)},
        10: {(2, "champion", 1)},
        11: {(3, "champion", 2)},
        12: {(4, "champion", 3)},
        13: {(4, "fallback", 2)},
        14: {(5, "champion", 2)},
    }
    assert 0.05 < canary / (canary + found[10].total()) < 0.2
    bad, fallen = ([row for row in rows if row["TX_DATETIME"].day == day] for day in (12, 13))
    assert {row["decision"] for row in bad} == {row["shadow_decision"] for row in fallen} == {"review"}
    assert min(row["score"] for row in bad) > 0.37
    assert sum(row["decision"] == "approve" for row in fallen) > 0.9 * len(fallen)
    shadows = {path.relative_to(clone / "my_project/nights/shadows").parts for path in shadow_files(clone)}
    assert {(number[bundle], day[-2:]) for bundle, day, _ in shadows} == {(2, "08"), (2, "09")}
    assert "verdict: promote\n" in said
    assert said.endswith("equal\n")
    assert (
        said.count("circuit breaker open from 2018-06-13T00:00:00.000000Z: verdict ") == 3
    )  # of the nights, and of the replay
    assert re.search(r"circuit breaker closed from 2018-06-15T00:00:00\.000000Z: verdict \w+\n", said)
    late = re.search(r"learnt late *│ *([\d,]+) *│ *([\d,]+) *│", said)
    assert 0 < int(late[2]) < int(late[1].replace(",", "")) > 9000
    replayed = json.loads((clone / "my_project" / "replay" / "_SUCCESS.json").read_text())
    assert (replayed["events"]["scored"], replayed["releases"]["records"]) == (len(rows), 6)
    for line in blocks("From two models to a rollback", "")[
        0
    ].splitlines():  # bundles of other libraries have other ids
        assert re.search(".*".join(map(re.escape, HEX.sub("…", line).split("…"))), said), line


def shadow_files(clone):
    paths = (clone / "my_project" / "nights" / "shadows").rglob("*.parquet")
    return [path for path in paths if pq.read_metadata(path).num_rows]


def test_blue_and_green(clone):
    said = walk(blocks("Blue and green: another feature set")[0], clone)
    number, days = versions(clone), {}
    for name in ("blue_scores", "green_scores"):
        output = read_output(clone / name)
        days[name] = {str(time.date()) for time in output.scores["TX_DATETIME"].to_pylist()}
        (bundle,) = set(output.scores["bundle_id"].to_pylist())
        assert bundle in said
        assert number[bundle] == (1 if name == "blue_scores" else 3)
        days[name, "scored"] = output.outcomes["scored"], output.outcomes["standby"]
    assert days["green_scores"] == {"2018-06-09"}
    assert {"2018-06-08", "2018-06-10"} <= days["blue_scores"]
    assert "2018-06-09" not in days["blue_scores"]
    assert days["blue_scores", "scored"] == days["green_scores", "scored"][::-1]
