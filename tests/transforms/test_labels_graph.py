"""Labels that come as records of their own, through the whole graph and through windows as a watermark moves."""

import json
import random

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from models import metrics
from models import steps as segments
from models.batches import slice_ends
from models.features.row import label_horizon_us
from models.project.project import parse_project
from models.record import EVENT_TIME, IS_PROVISIONAL, LABEL_TIME, MARKS, SYSTEM_FIELDS
from pipelines.graph import GraphConfig, build
from pipelines.runners import DIRECT, FN_API, make_pipeline
from pipelines.sinks.files import WriteFiles
from tests.kit.given import Given
from tests.kit.steps import END, through
from tests.kit.streams import METRICS, stream
from tests.kit.support import CARD_FRAUD, read_files, read_output, tiny_scorer, write_rows
from transforms import slices as holding
from transforms.features import ComputeFeatures
from transforms.score import Score

pytestmark = pytest.mark.slow

YAML = (CARD_FRAUD / "project.yaml").read_text()


def project_of(text):
    project, faults = parse_project(text.encode(), lambda name: (CARD_FRAUD / name).read_bytes())
    assert faults == []
    return project


COLUMN = project_of(YAML)
PROJECT = project_of(YAML.replace("  field: TX_FRAUD\n", "  field: TX_FRAUD\n  events: {time: SEEN}\n"))
FEATURES = PROJECT.feature_names
DAY = 86_400_000_000
START = 17_622 * DAY
ROWS = 500


def make(seed=0):
    rng = np.random.default_rng(seed)
    time = START + rng.integers(0, 70 * 24, ROWS) * (DAY // 24)
    return {
        "id": np.arange(ROWS),
        "customer": rng.integers(0, 5, ROWS),
        "terminal": rng.integers(0, 4, ROWS),
        "amount": rng.integers(1, 9999, ROWS) / 100,
        "fraud": (rng.random(ROWS) < 0.3).astype(int),
        "time": time,
    }


def iso(us):
    return str(np.datetime64(int(us), "us")).replace("T", " ")


def events_of(data, label=None):
    return [
        {
            "TRANSACTION_ID": n,
            "TX_DATETIME": iso(data["time"][n])[:19],
            "CUSTOMER_ID": int(data["customer"][n]),
            "TERMINAL_ID": int(data["terminal"][n]),
            "TX_AMOUNT": float(data["amount"][n]),
            "TX_FRAUD": None if label is None else label[n],
        }
        for n in range(ROWS)
    ]


def score(folder, project, events, labels=None, *, runner=DIRECT, shards=1, slice_us=30 * DAY):
    folder.mkdir()
    labelled = [] if labels is None else [write_rows(folder / "labels.jsonl", labels)]
    source = read_files(project, [write_rows(folder / "events.jsonl", events)], labelled, slice_us=slice_us)
    return score_source(folder, project, source, runner=runner, shards=shards)


def score_source(folder, project, source, *, runner=DIRECT, shards=1):
    config = GraphConfig(
        project,
        source,
        Score(project, tiny_scorer(project.model.inputs), "bundle"),
        WriteFiles(str(folder / "out"), project.event.id, project.event.time),
        shards,
    )
    pipeline = make_pipeline(runner, [])
    build(pipeline, config)
    pipeline.run().wait_until_finish()
    return read_output(folder / "out")


def bits(table):
    names = [*FEATURES, "score"]
    rows = np.column_stack([table[name].to_numpy().astype(float) for name in names])
    return dict(zip(table["TRANSACTION_ID"].to_pylist(), map(bytes, rows), strict=True))


def test_labels_within_the_delay_give_the_bits_of_a_column(tmp_path):
    data = make()
    rng = np.random.default_rng(1)
    known = data["time"] + rng.integers(0, 7 * 24 + 1, ROWS) * (DAY // 24)
    labels = [{"TRANSACTION_ID": n, "TX_FRAUD": int(data["fraud"][n]), "SEEN": iso(known[n])} for n in range(ROWS)]
    rng.shuffle(labels)
    expected = score(tmp_path / "column", COLUMN, events_of(data, data["fraud"].tolist()))
    found = score(tmp_path / "labels", PROJECT, events_of(data), labels)
    assert bits(found.scores) == bits(expected.scores)
    assert found.dead_letters.num_rows == 0
    none = score(tmp_path / "none", PROJECT, events_of(data), [])
    assert bits(none.scores) != bits(expected.scores)
    # The events' own labels are not looked at.
    own = score(tmp_path / "own", PROJECT, events_of(data, data["fraud"].tolist()), [])
    assert bits(own.scores) == bits(none.scores)


def expected_risk(data, known, n, window):
    t, d = data["time"][n], 7 * DAY
    same = data["terminal"] == data["terminal"][n]
    age = t - data["time"]
    inside = same & (age >= d) & (age < d + window)
    counted = same & (age < d + window) & (np.maximum(data["time"] + d, known) <= t)
    count = int(inside.sum())
    return data["fraud"][counted].sum() / count if count else 0.0


@pytest.mark.parametrize(
    ("runner", "shards", "slice_us"),
    [(DIRECT, 1, 30 * DAY), (DIRECT, 3, 5 * DAY), (DIRECT, 2, DAY), (FN_API, 2, 10 * DAY)],
)
def test_late_labels_through_the_graph(tmp_path, runner, shards, slice_us):
    data = make()
    rng = np.random.default_rng(2)
    known = data["time"] + rng.integers(0, 20 * 24, ROWS) * (DAY // 24)
    labels = [{"TRANSACTION_ID": n, "TX_FRAUD": int(data["fraud"][n]), "SEEN": iso(known[n])} for n in range(ROWS)]
    more = [{**label, "SEEN": iso(known[label["TRANSACTION_ID"]] + DAY)} for label in labels[:9]]
    unknown = [
        {"TRANSACTION_ID": ROWS + 1, "TX_FRAUD": 1, "SEEN": iso(START + 9 * DAY)},
        {"TRANSACTION_ID": 3, "SEEN": "x"},
    ]
    everything = [*labels, *more, *unknown]
    rng.shuffle(everything)
    events = events_of(data)
    random.Random(0).shuffle(events)
    found = score(tmp_path / "found", PROJECT, events, everything, runner=runner, shards=shards, slice_us=slice_us)
    risks = {f"TERMINAL_ID_RISK_{days}DAY_WINDOW": days * DAY for days in (1, 7, 30)}
    for name, window in risks.items():
        by_id = dict(zip(found.scores["TRANSACTION_ID"].to_pylist(), found.scores[name].to_pylist(), strict=True))
        assert by_id == {n: expected_risk(data, known, n, window) for n in range(ROWS)}
    assert sorted(found.reasons) == sorted(
        [("SEEN", found.reasons[[f for f, _ in found.reasons].index("SEEN")][1])]
        + [("TRANSACTION_ID", "label already known")] * 9
        + [("TRANSACTION_ID", "no event with this id")]
    )


class WithLabels(beam.PTransform):
    def expand(self, pcoll):
        events = pcoll | "Events" >> beam.Filter(lambda batch: LABEL_TIME not in batch.schema.names)
        labels = pcoll | "Labels" >> beam.Filter(lambda batch: LABEL_TIME in batch.schema.names)
        return {"events": events, "labels": labels} | ComputeFeatures(PROJECT, 2)


def to_batch(data, rows, known=None, marks=0):
    arrays = {
        "TRANSACTION_ID": pa.array(data["id"][rows]),
        "CUSTOMER_ID": pa.array(data["customer"][rows]),
        "TERMINAL_ID": pa.array(data["terminal"][rows]),
        EVENT_TIME: pa.array(data["time"][rows]).cast(SYSTEM_FIELDS[EVENT_TIME].type),
    }
    if known is not None:
        arrays[LABEL_TIME] = pa.array(known[rows]).cast(SYSTEM_FIELDS[EVENT_TIME].type)
        arrays["TX_FRAUD"] = pa.array(data["fraud"][rows])
    else:
        arrays["TX_AMOUNT"] = pa.array(data["amount"][rows])
        arrays[MARKS] = pa.array(np.full(len(rows), marks, np.int8))
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


class Forgetful(dict):
    def __setitem__(self, key, value):
        """Nothing is kept."""


@pytest.mark.parametrize("forgetful", [False, True])
def test_windows_with_labels_as_the_watermark_moves(forgetful, monkeypatch):
    if forgetful:  # the history is read from a state that is joined and tidied often
        monkeypatch.setattr(segments, "MAX_RECENT_SEGMENTS", 3)
        monkeypatch.setattr(segments, "SEGMENT_ROWS", 20)
        monkeypatch.setattr(holding.AdvanceSlices, "setup", lambda self: setattr(self, "_memories", Forgetful()))
    data = make(3)
    rng = np.random.default_rng(4)
    known = data["time"] + rng.integers(0, 20 * 24, ROWS) * (DAY // 24)
    slice_us, steps = 2 * DAY, []
    event_end, label_end = slice_ends(data["time"], slice_us), slice_ends(known, slice_us)
    for end in range(START, START + 100 * DAY, slice_us):
        items = [
            (end, to_batch(data, rows)) for rows in np.array_split(rng.permutation(np.flatnonzero(event_end == end)), 2)
        ]
        items += [(end, to_batch(data, np.flatnonzero(label_end == end), known))]
        items = [item for item in items if item[1].num_rows]
        rng.shuffle(items)
        steps.append((items, end))
    found, _ = through(WithLabels(), [*steps, ([], END)])
    assert label_horizon_us(PROJECT) == 37 * DAY
    for days in (1, 7, 30):
        name = f"TERMINAL_ID_RISK_{days}DAY_WINDOW"
        by_id = dict(zip(found["TRANSACTION_ID"].to_pylist(), found[name].to_pylist(), strict=True))
        assert by_id == {n: expected_risk(data, known, n, days * DAY) for n in range(ROWS)}


def test_provisional_events_see_the_labels_that_are_known():
    data = make(5)
    known = data["time"] + 8 * DAY
    order = np.argsort(data["time"], kind="stable")
    past, last = order[: ROWS // 2], order[ROWS // 2]
    end = int(-(-data["time"][last] // DAY) * DAY) - DAY
    seen = np.flatnonzero(known <= end)
    past = past[data["time"][past] <= end]
    ahead = to_batch(data, np.array([last]), marks=IS_PROVISIONAL)
    steps = [([(end, to_batch(data, past)), (end, to_batch(data, seen, known))], end + DAY // 2)]
    found, _ = through(WithLabels(), [*steps, ([(end + DAY, ahead)], end + DAY // 2), ([], END)])
    row = found.filter(pa.compute.equal(found[MARKS], IS_PROVISIONAL))
    was_known = {
        **data,
        "time": np.where(np.isin(np.arange(ROWS), [*past, last]), data["time"], data["time"] + 999 * DAY),
    }
    expected = expected_risk(was_known, np.where(known <= end, known, known + 999 * DAY), last, 30 * DAY)
    assert row["TERMINAL_ID_RISK_30DAY_WINDOW"].to_pylist() == [expected]
    assert expected > 0


def test_labels_in_a_stream_give_the_bits_of_batch(tmp_path):
    """Labels come long before their time, in any order; so do they from the journal."""
    data = make()
    rng = np.random.default_rng(5)
    known = data["time"] + rng.integers(0, 15 * 24, ROWS) * (DAY // 24)
    labels = [{"TRANSACTION_ID": n, "TX_FRAUD": int(data["fraud"][n]), "SEEN": iso(known[n])} for n in range(ROWS)]
    labels += [{"TRANSACTION_ID": 10**6, "TX_FRAUD": 1, "SEEN": iso(known[3])}, {"TRANSACTION_ID": 1}]
    rng.shuffle(labels)
    order = np.argsort(data["time"] + rng.integers(0, DAY, ROWS))
    events = [json.dumps(events_of(data)[n]).encode() for n in order]
    batch = score(tmp_path / "batch", PROJECT, events_of(data), labels)
    texts = [json.dumps(label).encode() for label in labels]
    journal = tmp_path / "journal"
    scores, dead = stream(events, DAY, False, project=PROJECT, labels=Given(texts, 1, 10**9), journal=str(journal))
    assert bits(scores) == bits(batch.scores)
    counted = metrics.by_label(METRICS, metrics.FEEDBACK)
    assert set(counted) <= {f"{d} {n}" for d in ("block", "review", "approve") for n in (0, 1)}
    assert sum(counted.values()) == ROWS  # the live metrics saw each label
    rules = sorted(json.loads(text)[0]["rule"] for text in dead["reasons"].to_pylist())
    assert rules == sorted(rule for _, rule in batch.reasons) == ["missing", "no event with this id"]
    from_journal = score_source(
        tmp_path / "journaled", PROJECT, read_files(PROJECT, [f"{journal}/*.journal"], [f"{journal}/*.journal"])
    )
    assert bits(from_journal.scores) == bits(batch.scores)
    again, dead = stream([], DAY, False, project=PROJECT, labels=Given([], 1), journal=str(journal))
    assert (again, dead) == (None, None)  # all is done
