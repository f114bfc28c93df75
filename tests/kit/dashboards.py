"""Folders as runs leave them, for the dashboard: days of scores, verdicts, a table of label metrics."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.quality.records import Distribution, Finding, Measure, Verdict, WindowStatistics
from tests.kit.support import card_fraud

HOUR = 3_600_000_000
DAY = 24 * HOUR
START = 17_700 * DAY
EVIL = '<img src=x onerror="document.title=1">'
PROJECT = card_fraud()


def write_day(folder, day, rows=400, seed=None, decisions=("block", "review", "approve")):
    """A day's scores, by which decision rows of it were decided, in order."""
    random = np.random.default_rng(day if seed is None else seed)
    times = START + day * DAY + random.integers(0, DAY, rows)
    table = pa.table(
        {
            "TRANSACTION_ID": pa.array(np.arange(rows)),
            "TX_DATETIME": pa.array(times).cast(pa.timestamp("us", tz="UTC")),
            "score": pa.array(random.random(rows).astype(np.float32)),
            "decision": pa.array([decisions[n] for n in random.integers(0, len(decisions), rows)]),
        }
    )
    name = datetime.date(1970, 1, 1) + datetime.timedelta(START // DAY + day)
    place = folder / "scores" / f"event_day={name}"
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, place / "part-00000-of-00001.parquet", row_group_size=100)
    return table


def write_success(folder, events, project="card_fraud"):
    said = {"project": project, "bundle_id": "b1", "events": events, "files": []}
    (folder / "_SUCCESS.json").write_text(json.dumps(said))


def verdict(day, *features, value=0.01, name="score"):
    """The verdict on a day: an alarm of each of some features, and one measure."""
    findings = tuple(Finding(feature, "skew", "alarm", 0.5, 0.1, f"{feature} moved") for feature in features)
    return Verdict.make(
        window_start_us=START + day * DAY,
        window_end_us=START + (day + 1) * DAY,
        rows=500,
        status="alarm" if findings else "ok",
        judged=True,
        circuit_open=False,
        bundle_id="b1",
        findings=findings,
        measures=(Measure(name, "skew", "jensen_shannon", value, 0.1, 0.1),),
        counters={"rows": 500},
    )


def statistics(day, counts):
    scores = Distribution("number", sum(counts), 0, tuple(counts), (0.2, 0.5), minimum=0.0, maximum=1.0)
    start = START + day * DAY
    return WindowStatistics(start, start + DAY, 500, 500, 0, {}, {}, {}, {"b1": 500}, {"score": scores}, b"")


def write_quality(folder, name, *records):
    (folder / "quality").mkdir(parents=True, exist_ok=True)
    (folder / "quality" / name).write_text("".join(each.to_json() + "\n" for each in records))
