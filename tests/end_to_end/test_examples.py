"""The examples: their READMEs' commands as printed, and the real taxi trips where they are there."""

import datetime
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.kit.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.serial]

EXAMPLES = ROOT / "examples"
REAL = pathlib.Path(os.environ.get("HEADRACE_DATA", ROOT.parent / "shared" / "data")) / "chicago_taxi" / "data.csv"


def run(name, folder, real=None):
    """What the commands of an example's README say, by their names; with `real` in place of what its sample makes."""
    kept = shutil.ignore_patterns(".headrace", "schemas")
    shutil.copytree(EXAMPLES / name, folder / "examples" / name, ignore=kept)
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = {}
    for command in re.findall(r"^(?:python|headrace) .*$", (EXAMPLES / name / "README.md").read_text(), re.MULTILINE):
        if real and "sample.py" in command:
            shutil.copy(real, folder / "trips.csv")
            continue
        done = subprocess.run(
            command, shell=True, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said[command.split()[1]] = done.stdout
    assert said["parity"].rstrip().endswith("equal")
    return said


@pytest.mark.parametrize(
    "real", [None, pytest.param(REAL, marks=pytest.mark.skipif(not REAL.exists(), reason=f"no {REAL}"))]
)
def test_taxi(tmp_path, real):
    said = run("taxi", tmp_path, real)
    assert [*said][-4:] == ["check", "train", "run", "parity"]
    scores = pq.read_table(tmp_path / "trips" / "scores")
    assert len(set(scores["trip_id"].to_pylist())) == len(scores) > 14_000
    assert "No Charge" not in set(scores["payment_type"].to_pylist())
    assert 0.05 < sum(map(bool, scores["tipped"].to_pylist())) / len(scores) < 0.5


def test_support_routing(tmp_path):
    said = run("support_routing", tmp_path)
    assert [*said][-4:] == ["check", "train", "run", "parity"]
    rows = pq.read_table(tmp_path / "routed" / "scores")
    assert set(rows["decision"].to_pylist()) == {"bot", "human"}
    folders = {name: pq.read_table(tmp_path / "routed" / f"{name}_tickets") for name in ("bot", "human")}
    bots = rows.filter(pc.equal(rows["decision"], "bot"))
    assert folders["bot"].schema == bots.schema
    assert folders["bot"]["ticket_id"].equals(bots["ticket_id"])
    unscored = pq.read_table(tmp_path / "routed" / "fallback")
    assert set(unscored["decision"].to_pylist()) == {"human"}
    humans = rows.filter(pc.equal(rows["decision"], "human"))["ticket_id"].to_pylist()
    letters = pq.read_table(tmp_path / "routed" / "dead_letters")
    last_week = letters.filter(
        pc.greater_equal(letters["event_time"], datetime.datetime(2026, 3, 9, tzinfo=datetime.UTC))
    )
    assert sorted(unscored["ticket_id"].to_pylist()) == sorted(last_week["event_id"].to_pylist())
    assert 0 < len(unscored) == len(letters) < 16_000 // 500  # others are of days before, which are not written
    assert sorted(folders["human"]["ticket_id"].to_pylist()) == sorted([*humans, *unscored["ticket_id"].to_pylist()])
    assert re.search(rf"fallback decisions +.* {16_000 // 500} ", said["parity"])
    by_bot = rows.filter(pc.equal(rows["decision"], "bot"))["solved_by_bot"]
    assert pc.mean(by_bot).as_py() > 1.5 * pc.mean(rows["solved_by_bot"]).as_py()


def test_kpi(tmp_path):
    """Months and quarters add up to the same, and to what the orders add up to."""
    said = run("kpi", tmp_path)
    assert [*said][-3:] == ["check", "run", "parity"]
    orders = pq.read_table(tmp_path / "figures" / "scores")
    monthly, quarterly = (
        pq.read_table(tmp_path / "figures" / "aggregates" / name) for name in ("monthly", "quarterly")
    )
    assert pc.sum(monthly["orders"]).as_py() == pc.sum(quarterly["orders"]).as_py() == len(orders)
    assert round(pc.sum(monthly["revenue"]).as_py(), 2) == round(pc.sum(quarterly["revenue"]).as_py(), 2)
    regions = monthly.group_by("region").aggregate([("orders", "sum")])
    by_region = dict(zip(regions["region"].to_pylist(), regions["orders_sum"].to_pylist(), strict=True))
    assert by_region.keys() == {"north", "south", "west", None}
    unknown = orders.filter(pc.equal(orders["is_unknown"], 1))
    assert by_region[None] == len(unknown) > 0
