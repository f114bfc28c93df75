"""Files in any order, read slice by slice or sorted on disk first, leave the bytes of files that are read at once."""

import gc
import pathlib
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import spill
from pipelines.config import RunSpec
from pipelines.jobs.score import assemble, score_files
from pipelines.sources import in_order, parquet, runs
from tests.kit.bundles import AnyBundle
from tests.kit.declared import declared
from tests.kit.support import tiny_scorer, write_rows

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: BYTES presence { min_fraction: 1.0 } time_domain { string_format: "%Y-%m-%dT%H:%M:%S" } }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at, deduplicate_within: 3d}
entities: {card: card}
label: {field: fraud, delay: 1d, events: {time: seen}}
fixed_point: {amount: 2}
features:
  rolling:
    - entity: card
      windows: {3D: 3d}
      features: {"n_{window}": count, "mean_{window}": mean(amount), "last_{window}": last(amount)}
    - entity: card
      delay: 1d
      windows: {5D: 5d}
      features: {"risk_{window}": rate(fraud)}
aggregates:
  weekly: {period: week, columns: {events: count, spent: sum(amount)}}
model: {inputs: [amount, n_3D, mean_3D, last_3D, risk_5D]}
decisions:
  - {action: block, at_least: 0.6}
  - {action: approve, at_least: 0.0}
quality: {window: 3d, min_rows: 30, gate: GATE}
"""
START, DAY, DAYS, EVENTS = 1_543_622_400, 86_400, 12, 400
LAYOUTS = ("days", "row groups", "shuffled", "jsonl", "partly told")


def make_rows(seed):
    chosen = random.Random(seed)
    events, labels = [], []
    for number in range(EVENTS):
        at = START + number * DAYS * DAY // EVENTS
        event = {"id": number, "at": at, "card": chosen.randrange(5), "amount": chosen.randrange(9999) / 100}
        events.append(event)
        if chosen.random() < 0.1:
            events.append({**event, "at": at + chosen.randrange(DAY)})
        if chosen.random() < 0.05:
            events.append({**event, "id": 10_000 + number, "card": None})
        if chosen.random() < 0.7:
            labels.append({"id": number, "fraud": int(chosen.random() < 0.3), "seen": at + chosen.randrange(3 * DAY)})
    return events, labels


def as_table(rows, time):
    times = pa.array([row[time] for row in rows]).cast(pa.timestamp("s")).cast(pa.timestamp("us"))
    table = pa.Table.from_pylist(rows)
    return table.set_column(table.schema.get_field_index(time), time, times)


def write(folder, layout, seed=0):
    events, labels = make_rows(seed)
    folder.mkdir(parents=True)
    pq.write_table(as_table(labels, "seen"), folder / "labels.parquet", row_group_size=40)
    if layout == "days":
        random.Random(seed).shuffle(events)
        for day in range(DAYS + 1):
            of_day = [row for row in events if (row["at"] - START) // DAY == day]
            pq.write_table(as_table(of_day, "at"), folder / f"events-{day}.parquet") if of_day else None
    elif layout == "row groups":
        pq.write_table(as_table(sorted(events, key=lambda row: row["at"]), "at"), folder / "events.parquet", 30)
    else:
        random.Random(seed).shuffle(events)
        if layout == "partly told":
            pq.write_table(as_table(events[:200], "at"), folder / "events.parquet", 30, write_statistics=False)
            events = sorted(events[200:], key=lambda row: row["at"])
        if layout == "jsonl":
            write_rows(folder / "events.jsonl", [{**row, "at": iso(row["at"])} for row in events])
        else:
            pq.write_table(as_table(events, "at"), folder / "events-of-others.parquet", 30)
    return folder


def iso(seconds):
    return str(pa.scalar(seconds, pa.timestamp("s")).as_py()).replace(" ", "T")


def spec_of(folder, sink, gate="warn", **options):
    project = declared(TEXT.replace("GATE", gate), SCHEMA)
    source, labels = str(folder / "events*"), str(folder / "labels.parquet")
    return RunSpec(project, (source,), str(sink), labels=(labels,), **options)


def run(folder, sink, gate="warn", **options):
    spec = spec_of(folder, sink, gate, **options)
    result = score_files(spec, AnyBundle(), tiny_scorer(spec.project.model.inputs))
    # Dead letters name the file that they are of.
    files = {str(p.relative_to(sink)): p.read_bytes() for p in pathlib.Path(sink).rglob("event_*/*.*")}
    return result.outcomes, {name: data for name, data in files.items() if not name.startswith("dead_letters")}


@pytest.fixture
def large(monkeypatch):
    """All files are taken for large ones."""
    monkeypatch.setattr(in_order, "SMALL_BYTES", 0)
    monkeypatch.setattr(in_order, "SLICE_ROWS", 60)
    monkeypatch.setattr(in_order, "MAX_ROWS_AT_ONCE", 100)
    monkeypatch.setattr(runs, "_GATHERED_ROWS", 50)


@pytest.mark.parametrize("gate", ["warn", "quarantine"])
def test_files_of_any_layout_leave_the_same_bytes(tmp_path, request, gate):
    expected = run(write(tmp_path / "days", "days"), tmp_path / "out", gate)
    assert expected[0]["scored"] + expected[0].get("quarantined", 0) == EVENTS
    request.getfixturevalue("large")
    for layout in LAYOUTS:
        folder = tmp_path / layout / "in"
        assert run(write(folder, layout), tmp_path / layout / "out", gate) == expected, layout
        assert run(folder, tmp_path / layout / "hours", gate, shards=3)[1] == expected[1], layout


@pytest.mark.parametrize(("layout", "sorts"), [(layout, layout not in ("days", "row groups")) for layout in LAYOUTS])
def test_what_is_in_order_is_not_sorted(tmp_path, large, layout, sorts):
    spec = spec_of(write(tmp_path / "in", layout), tmp_path / "out")
    source = assemble(spec, AnyBundle(), tiny_scorer(spec.project.model.inputs)).source
    assert source.in_order
    assert (source.spill is not None) is sorts
    assert source.slice_us < in_order.SLICE_US


def test_small_files_are_not_looked_at(tmp_path, monkeypatch):
    spec = spec_of(write(tmp_path / "in", "shuffled"), tmp_path / "out")
    monkeypatch.setattr(in_order, "row_groups", None)
    source = assemble(spec, AnyBundle(), tiny_scorer(spec.project.model.inputs)).source
    assert source.spill is None
    assert source.slice_us == in_order.SLICE_US


def test_a_file_with_wrong_statistics_is_sorted(tmp_path, large, monkeypatch, capsys):
    folder = write(tmp_path / "in", "row groups")
    expected = run(folder, tmp_path / "out")
    real = parquet.row_groups

    def later(*args):
        names, groups = real(*args)
        return names, [group._replace(span=group.span and (group.span[1], group.span[1])) for group in groups]

    monkeypatch.setattr("pipelines.sources.files.row_groups", later)
    assert run(folder, tmp_path / "again") == expected
    assert "earlier times than its statistics say" in " ".join(capsys.readouterr().out.split())


def test_no_room_to_sort_is_told_with_what_to_do(tmp_path, large, monkeypatch):
    folder = write(tmp_path / "in", "shuffled")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with pytest.raises(
        spill.SpillError, match="no room for rows that do not fit into memory: No space left on device; .* TMPDIR"
    ):
        run(folder, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet"))
    gc.collect()


def test_what_was_sorted_takes_no_space_after_a_run(tmp_path, large):
    folder = write(tmp_path / "in", "shuffled")
    run(folder, tmp_path / "out")
    gc.collect()
    assert not list(spill._OPEN)


@pytest.mark.parametrize("absurd_us", [-(1 << 61), -62_000_000_000_000_000, 1 << 61])
def test_times_that_are_none_do_not_stretch_slices(tmp_path, large, absurd_us):
    folder = write(tmp_path / "in", "days")
    _, expected = run(folder, tmp_path / "out")
    row = as_table([{"id": 1, "at": START, "card": 1, "amount": 1.0}], "at")
    row = row.set_column(1, "at", pa.array([absurd_us], pa.timestamp("us")))
    pq.write_table(row, folder / "events-absurd.parquet")
    source = assemble(spec := spec_of(folder, tmp_path / "out"), AnyBundle(), tiny_scorer(spec.project.model.inputs))
    assert source.source.slice_us < in_order.SLICE_US
    outcomes, files = run(folder, tmp_path / "again")
    assert files == expected
    assert outcomes["dead-lettered"] > 0
