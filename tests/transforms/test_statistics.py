"""WatchQuality: the same records in any order, split, engine, and in batch and stream."""

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from models.batches import with_column
from models.quality.parts import (
    batch_to_part,
    due_end,
    end_of,
    make_baseline,
    part_to_batch,
    sum_up,
    unseen_features,
    window_end,
)
from models.quality.records import Verdict, WindowStatistics
from models.quality.window_statistics import WindowJudge, read_baseline
from models.record import BUNDLE_ID, IS_PROVISIONAL, MARKS
from models.state import take_values, values_of
from pipelines.runners import DIRECT
from tests.kit.estimated import calibrated
from tests.kit.quality_cuts import DAY, cut
from tests.kit.quality_rows import HOUR, START, batch_of, draw, small_project
from tests.kit.steps import END, through
from transforms import statistics
from transforms.batches import RecordBatchCoder
from transforms.statistics import WatchQuality

pytestmark = pytest.mark.both_sets

PROJECT = small_project("min_rows: 100, sample: 400")
BASELINE = read_baseline(make_baseline(draw(3000, 99).to_batches(), PROJECT), PROJECT)
JUDGE = WindowJudge(PROJECT, BASELINE)


def make_rows(windows=5, rows=600):
    """Some windows of rows, one of them empty, the last but one with a shift."""
    shift = {windows - 2: {"amount": lambda values: values * 5}}
    tables = [draw(rows, n, START + n * HOUR, HOUR, n * rows, **shift.get(n, {})) for n in range(windows) if n != 1]
    return pa.concat_tables(tables)


TABLE = make_rows()


class Both(beam.PTransform):
    """Statistics and verdicts as batches of JSON, for tests.kit.steps.through."""

    def __init__(self, judge, boundary_us):
        super().__init__()
        self.watch = WatchQuality(judge, boundary_us)

    def expand(self, pcoll):
        both = pcoll | "Watch" >> self.watch
        texts = [
            both[name] | name >> beam.Map(_as_batch, name).with_output_types(pa.RecordBatch)
            for name in ("statistics", "verdicts")
        ]
        return texts | beam.Flatten()


def _as_batch(record, kind, at=beam.DoFn.TimestampParam):
    return pa.RecordBatch.from_arrays(
        [pa.array([kind]), pa.array([record.window_end_us]), pa.array([record.to_json()]), pa.array([at.micros])],
        names=["kind", "end", "json", "at"],
    )


def records(steps, boundary_us, engine=DIRECT, judge=JUDGE):
    """{(kind, window end): (JSON, timestamp)}, each once."""
    table, _ = through(Both(judge, boundary_us), steps, engine)
    rows = [] if table is None else table.to_pylist()
    found = {(row["kind"], row["end"]): (row["json"], row["at"]) for row in rows}
    assert len(found) == len(rows)
    return found


def contents(found):
    return {place: text for place, (text, _) in found.items()}


EXPECTED = contents(records([(cut(TABLE, DAY), END)], DAY))


def test_each_window_with_rows_has_statistics_and_a_verdict():
    ends = [START + n * HOUR for n in (1, 3, 4, 5)]
    assert sorted(EXPECTED) == [(kind, end) for kind in ("statistics", "verdicts") for end in ends]
    assert '"status":"alarm"' in EXPECTED["verdicts", ends[2]]
    assert '"status":"ok"' in EXPECTED["verdicts", ends[1]]
    said = WindowStatistics.from_json(EXPECTED["statistics", ends[0]])
    assert (said.rows, said.sampled, said.late) == (600, 400, 0)
    assert sum(said.decisions.values()) == sum(said.bundles.values()) == 600
    first = TABLE.slice(0, 600)
    assert said.decisions["block"] == first["decision"].to_pylist().count("block")
    assert said.unseen == {"card": sum(n <= 1 for n in first["n_D7"].to_pylist())}
    assert set(said.nulls) == {*PROJECT.watched_columns, "score"}


@pytest.mark.parametrize(("slice_us", "pieces", "seed"), [(DAY, 1, 1), (DAY, 7, 2), (HOUR, 3, 3), (HOUR // 4, 2, 4)])
def test_the_records_are_the_same_in_batch(engine, slice_us, pieces, seed):
    boundary = max(slice_us, HOUR)
    assert contents(records([(cut(TABLE, slice_us, pieces, seed), END)], boundary, engine)) == EXPECTED


@pytest.mark.parametrize(("slice_us", "pieces"), [(HOUR, 1), (HOUR // 4, 3), (HOUR // 30, 2)])
def test_the_records_are_the_same_in_a_stream(slice_us, pieces):
    """As the watermark moves slice by slice; each record comes as soon as its window is over."""
    items = sorted(cut(TABLE, slice_us, pieces), key=lambda item: item[0])
    ends = sorted({end for end, _ in items})
    steps = [([item for item in items if item[0] == end], end) for end in ends]
    found = records([*steps, ([], END)], HOUR)
    assert contents(found) == EXPECTED
    assert {end: at for (_, end), (_, at) in found.items()} == {end: due_end(end, HOUR) + 1000 for _, end in EXPECTED}


def test_series_and_estimates_are_the_same_in_batch_and_stream():
    """Windows whose scores fall in the last: fewer rows to be expected positive, and a season that was another."""
    series = "min_rows: 100, sample: 400, series: {season: 1h}"
    project = small_project(series, more="label_metrics: {window: 1d, estimate: true}\n")
    judge = WindowJudge(project, None, {"bundle": calibrated()}.get)
    fall = {27: {"score": lambda scores: scores / 2}}
    tables = [draw(120, n, START + n * HOUR, HOUR, n * 120, **fall.get(n, {})) for n in range(28)]
    table = pa.concat_tables(tables)
    found = contents(records([(cut(table, 2 * DAY), END)], 2 * DAY, judge=judge))
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    assert contents(records([(cut(shuffled, 2 * DAY, 7, 1), END)], 2 * DAY, judge=judge)) == found
    items = sorted(cut(shuffled, HOUR, 3, 2), key=lambda item: item[0])
    steps = [([item for item in items if item[0] == end], end) for end in sorted({end for end, _ in items})]
    assert contents(records([*steps, ([], END)], HOUR, judge=judge)) == found
    said = [WindowStatistics.from_json(text) for (kind, _), text in sorted(found.items()) if kind == "statistics"]
    assert all(window.estimates["roc_auc"][0] > 0.5 for window in said)
    last = Verdict.from_json(found["verdicts", START + 28 * HOUR])
    assert ("mean score", "season") in {(finding.feature, finding.kind) for finding in last.findings}
    assert {"rows", "mean score", "estimated roc_auc"} <= {m.feature for m in last.measures if m.kind == "slow_drift"}


def test_many_parts_are_added_up_on_the_way(monkeypatch):
    monkeypatch.setattr(statistics, "MAX_PARTS", 3)
    assert contents(records([(cut(TABLE, HOUR // 10, 4), END)], HOUR)) == EXPECTED


def test_rows_of_a_judged_window_are_counted_as_late():
    first, second, more = (draw(200, n, START + n * HOUR, HOUR, n * 200) for n in range(3))
    late = draw(30, 7, START, HOUR, 10_000)
    steps = [
        (cut(first, HOUR), START + HOUR + 30_000),
        ([*cut(second, HOUR), (START + 2 * HOUR, batch_of(late))], START + 2 * HOUR + 30_000),
        (cut(more, HOUR), END),
    ]
    found = contents(records(steps, HOUR))
    said = [WindowStatistics.from_json(found["statistics", START + n * HOUR]) for n in (1, 2, 3)]
    assert [(one.rows, one.late) for one in said] == [(200, 0), (200, 30), (200, 0)]


def test_provisional_rows_are_not_counted():
    batch = batch_of(draw(100, 0))
    provisional = with_column(batch, MARKS, pa.array(np.full(100, IS_PROVISIONAL, np.int8)))
    final = with_column(batch, MARKS, pa.array(np.zeros(100, np.int8)))
    assert list(sum_up(provisional, PROJECT)) == []
    assert list(sum_up(final.slice(0, 0), PROJECT)) == []
    ((_, part),) = sum_up(final, PROJECT)
    assert part.counters["rows"] == part.sample.num_rows == 100


def test_windows_hold_their_start_and_not_their_end():
    times = np.array([START - 1, START, START + HOUR - 1, START + HOUR])
    assert window_end(times, HOUR).tolist() == [START, START + HOUR, START + HOUR, START + 2 * HOUR]
    assert window_end(-1, HOUR) == 0
    assert due_end(START, HOUR) == START
    assert due_end(START + 1, HOUR) == START + HOUR


def test_unseen_entities_are_told_by_the_longest_count():
    assert unseen_features(PROJECT) == {"card": ("n_D7", 1)}


def test_counters_of_windows_in_one_batch_are_those_of_each():
    whole = {
        end: part for end, part in sum_up(batch_of(TABLE.take(np.random.default_rng(0).permutation(2400))), PROJECT)
    }
    for n in (0, 2, 3, 4):
        some = batch_of(TABLE.filter(pa.array([t.hour == n for t in TABLE["time"].to_pylist()])))
        ((end, part),) = sum_up(some, PROJECT)
        assert part.counters == whole[end].counters
        key = lambda row: row["__id"]  # noqa: E731
        assert sorted(part.sample.to_pylist(), key=key) == sorted(whole[end].sample.to_pylist(), key=key)


def test_missing_values_are_counted_whether_null_or_nan():
    batch = batch_of(draw(100, 0))
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns["mean_D1"] = pa.array([None, float("nan"), float("inf"), *[1.0] * 97])
    columns["n_D1"] = pa.array([None, *[3] * 99])
    columns["country"] = pa.array([None, None, *["DE"] * 98]).dictionary_encode()
    columns[BUNDLE_ID] = pa.array(["a"] * 60 + ["b"] * 40)
    ((end, part),) = sum_up(pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), PROJECT)
    said, verdict, _ = JUDGE.advance(part, end, 0, statistics.Memory())
    assert {name: n for name, n in said.nulls.items() if n} == {"country": 2, "mean_D1": 3, "n_D1": 1}
    assert (said.distributions["mean_D1"].missing, said.distributions["n_D1"].missing) == (3, 1)
    assert said.distributions["country"].values == ("DE",)
    assert said.bundles == {"a": 60, "b": 40}
    assert verdict.bundle_id == "a"


def test_parts_and_what_a_judge_remembers_come_back_from_their_bytes():
    """What the engine in process keeps as objects is bytes on others."""
    ((end, part),) = sum_up(batch_of(draw(300, 0)), PROJECT)
    coder = RecordBatchCoder()
    back = coder.decode(coder.encode(part_to_batch(end, part)))
    assert (end_of(back), batch_to_part(back).counters) == (end, part.counters)
    assert batch_to_part(back).sample.equals(part.sample)
    _, _, memory = JUDGE.advance(part, end, 0, statistics.Memory())
    state, taken = statistics._Judged(judged_us=end, late=3, memory=memory), statistics._Judged()
    back = statistics._Judged.from_bytes(state.to_bytes())
    take_values(taken, values_of(state))
    for other in (state, back, taken):
        assert (other.judged_us, other.late, other.recalled()) == (end, 3, memory)
        assert other.to_bytes() == state.to_bytes()
    for kind in (Verdict, WindowStatistics):
        assert beam.coders.registry.get_coder(kind) == statistics.JsonCoder(kind)
