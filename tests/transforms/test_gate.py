"""Gate: what warn, quarantine and stop do to rows, the same in any order, split, engine, batch and stream."""

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.utils.timestamp import Timestamp

from models.quality.gate import QualityStop, Verdicts, apply_verdicts, still_needed
from models.quality.parts import make_baseline
from models.quality.records import Verdict
from models.quality.window_statistics import WindowJudge, read_baseline
from pipelines.runners import DIRECT
from tests.kit.holds import State, make_worker
from tests.kit.quality_cuts import DAY, cut
from tests.kit.quality_rows import HOUR, START, batch_of, draw, small_project
from tests.kit.steps import END, through
from transforms.batches import LazyBatch
from transforms.gate import Gate, _Gate
from transforms.refused import DEAD
from transforms.statistics import WatchQuality

pytestmark = pytest.mark.slow

SETTINGS = "min_rows: 100, gate: {}, safe_action: block"
PROJECTS = {gate: small_project(SETTINGS.format(gate)) for gate in ("warn", "quarantine", "stop")}
BASELINE = read_baseline(make_baseline(draw(3000, 99).to_batches(), PROJECTS["warn"]), PROJECTS["warn"])


def make_rows(bad=(2,), windows=6, rows=250, empty=(1,)):
    """Windows of rows of which some are bad and some have no rows; of each, some lie on its very start."""
    shift = {"amount": lambda values: values * 9, "time": lambda values: values}
    tables = []
    for n in range(windows):
        start = START + n * HOUR
        if n not in empty:
            edge = {"time": lambda values, start=start: np.where(np.arange(len(values)) < 3, start, values)}
            tables.append(
                draw(rows, n, start, HOUR, n * rows, **(shift if n in bad else {}), **({} if n in bad else edge))
            )
    return pa.concat_tables(tables)


TABLE = make_rows()


class Gated(beam.PTransform):
    def __init__(self, project, boundary_us, on_stop="fail", shards=1):
        super().__init__()
        self.args = project, boundary_us, on_stop, shards

    def expand(self, pcoll):
        project, boundary_us, *_ = self.args
        watched = pcoll | "Watch" >> WatchQuality(WindowJudge(project, BASELINE), boundary_us)
        gated = {"rows": pcoll, "verdicts": watched.verdicts} | "Gate" >> Gate(*self.args)
        return _Outputs(gated.rows, gated.quarantine)


class _Outputs(dict):
    """What tests.kit.steps.through takes for a transform with dead letters."""

    def __init__(self, rows, held):
        super().__init__({DEAD: held})
        self.rows = rows


def run(gate, steps, boundary_us=DAY, engine=DIRECT, on_stop="fail", shards=1):
    """(rows that went on, rows that were held) by id; every row is in one of them."""
    rows, held = through(Gated(PROJECTS[gate], boundary_us, on_stop, shards), steps, engine)
    found = [{row["id"]: row for row in table.to_pylist()} if table is not None else {} for table in (rows, held)]
    assert len(found[0]) + len(found[1]) == sum(t.num_rows for t in (rows, held) if t is not None)
    return found


def as_stream(table, slice_us, pieces=2):
    items = sorted(cut(table, slice_us, pieces), key=lambda item: item[0])
    ends = sorted({end for end, _ in items})
    return [*(([item for item in items if item[0] == end], end) for end in ends), ([], END)]


WHOLE = [(cut(TABLE, DAY), END)]
EXPECTED = {
    ("warn", "fail"): run("warn", WHOLE),
    ("quarantine", "fail"): run("quarantine", WHOLE),
    ("stop", "fallback"): run("stop", WHOLE, on_stop="fallback"),
}
WINDOW_OF = {row["id"]: (int(row["time"].timestamp() * 1e6) - START) // HOUR for row in TABLE.to_pylist()}


def ids_by_window(rows):
    found = {}
    for name, row in rows.items():
        found.setdefault(WINDOW_OF[name], set()).add(row["verdict_id"])
    return found


def test_a_row_carries_the_last_verdict_before_it():
    rows, held = EXPECTED["warn", "fail"]
    assert len(rows) == TABLE.num_rows
    assert held == {}
    by_window = ids_by_window(rows)
    assert by_window[0] == {""}
    assert all(len(ids) == 1 for ids in by_window.values())
    assert by_window[2] != by_window[3] != by_window[4] != by_window[5]
    assert by_window[2] != {""}  # the verdict on window 0: window 1 had no rows
    assert all(set(row) == {*TABLE.column_names, "verdict_id"} for row in rows.values())


def test_rows_of_a_bad_window_are_held_in_quarantine():
    rows, held = EXPECTED["quarantine", "fail"]
    assert {WINDOW_OF[name] for name in held} == {2, 3}  # 3 is another drift: back
    assert {WINDOW_OF[name] for name in rows} == {0, 4, 5}
    own = ids_by_window({**rows, **held})
    after = ids_by_window(EXPECTED["warn", "fail"][0])
    assert own[0] == after[2]
    assert own[2] == after[3]
    assert own[3] == after[4]


def test_a_stopped_stream_falls_back_to_the_safe_action():
    rows, held = EXPECTED["stop", "fallback"]
    before = {row["id"]: row for row in TABLE.to_pylist()}
    assert held == {}
    for name, row in rows.items():
        stopped = WINDOW_OF[name] in (3, 4)
        assert row["decision"] == ("block" if stopped else before[name]["decision"])
        assert row["shadow_decision"] == (before[name]["decision"] if stopped else None)
        assert row["score"] == before[name]["score"]
    assert {n: ids for n, ids in ids_by_window(rows).items()}.keys() == {0, 2, 3, 4, 5}


def test_a_job_that_stops_says_why_and_fails():
    with pytest.raises(QualityStop, match=r"2018-04-01T02:00.*2018-04-01T03:00.*amount: its distribution") as stopped:
        run("stop", WHOLE)
    assert isinstance(stopped.value.verdict, Verdict)
    assert stopped.value.verdict.status == "alarm"
    good = make_rows(bad=())
    rows, held = run("stop", [(cut(good, DAY), END)])
    assert (len(rows), len(held)) == (good.num_rows, 0)
    assert all("shadow_decision" not in row for row in rows.values())


@pytest.mark.parametrize("case", list(EXPECTED))
@pytest.mark.parametrize(("slice_us", "pieces", "shards"), [(DAY, 5, 1), (HOUR // 3, 2, 3)])
def test_the_rows_are_the_same_in_batch(engine, case, slice_us, pieces, shards):
    gate, on_stop = case
    steps = [(cut(TABLE, slice_us, pieces, seed=3), END)]
    assert run(gate, steps, max(slice_us, HOUR), engine, on_stop, shards) == EXPECTED[case]


@pytest.mark.parametrize("case", list(EXPECTED))
@pytest.mark.parametrize("slice_us", [HOUR // 3, HOUR // 12])
def test_the_rows_are_the_same_in_a_stream(case, slice_us):
    gate, on_stop = case
    assert run(gate, as_stream(TABLE, slice_us), HOUR, on_stop=on_stop, shards=2) == EXPECTED[case]


def test_rows_wait_no_longer_than_for_the_verdict_they_need():
    """In a stream, a window's rows go on as they come, those in quarantine when their window is over."""
    gone = []

    class Noted(Gated):
        def expand(self, pcoll):
            outputs = super().expand(pcoll)
            rows = outputs.rows | "Note" >> beam.Map(_note).with_output_types(pa.RecordBatch)
            return _Outputs(rows, outputs[DEAD])

    for gate in ("warn", "quarantine"):
        table, _ = through(Noted(PROJECTS[gate], HOUR), as_stream(TABLE, HOUR // 4))
        rows = table.to_pylist()
        waited = [row["at"] - int(row["time"].timestamp() * 1e6) for row in rows]
        gone.append(max(waited) / HOUR)
    assert gone[0] < 0.26
    assert 1 <= gone[1] < 1.01


def _note(batch, at=beam.DoFn.TimestampParam):
    at_us = pa.array(np.full(batch.num_rows, at.micros))
    return pa.RecordBatch.from_arrays([*batch.columns, at_us], names=[*batch.schema.names, "at"])


def test_verdicts_are_forgotten_once_no_row_can_need_them():
    known = [(START + n * HOUR, f"v{n}", False, False) for n in range(10)]
    assert still_needed(known[::-1], START + 5 * HOUR) == known[5:]
    assert still_needed(known[:1], END) == known[:1]
    assert still_needed([], END) == []


def test_a_row_ahead_of_the_watermark_goes_on_at_once_when_its_verdict_is_there():
    """Scores given at arrival are timestamped ahead of the watermark; they do not wait for it."""
    batch = batch_of(draw(50, 0, START + HOUR // 2, 1000))
    gate = Gate(PROJECTS["warn"], HOUR)
    ((shard, end, rows),) = gate._route_rows(batch)
    assert (shard, end) == (0, START)
    state, worker = State(), make_worker(_Gate(PROJECTS["warn"], HOUR, "fail"))
    worker.start_bundle()
    ahead = Timestamp(micros=START + HOUR + 3000)
    for _ in range(2):
        element = (0, (end + 3000, LazyBatch(rows)))
        assert list(worker.process(element, ahead, release=state.timer, **state.cells)) == []
        assert state.timer.at == Timestamp(micros=START + 3000)  # passed already, the second time
        (out,) = state.fire(worker)
        assert (out.value.num_rows, out.timestamp) == (50, ahead)
        assert state.cells["pending"].data == []


def test_rows_without_decisions_and_verdicts_that_are_not_there():
    batch = batch_of(draw(10, 0).drop(["decision"]))
    none = Verdicts.of([])
    for gate in PROJECTS:
        rows, held = apply_verdicts(batch, none, PROJECTS[gate], "fallback")
        assert held is None
        assert set(rows.column(batch.num_columns).to_pylist()) == {""}
    alarm = Verdicts.of([(START + HOUR, "bad", True, True)])
    rows, held = apply_verdicts(batch, alarm, PROJECTS["quarantine"], "fail")
    assert rows is None
    assert held.num_rows == 10
