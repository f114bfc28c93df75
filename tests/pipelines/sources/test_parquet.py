"""Parquet of every writer: read right or refused by name; nothing in a file ends a run, grows without bound or is run."""

import contextlib
import datetime
import decimal
import itertools
import json
import pathlib
import pickle
import struct
import uuid
from types import SimpleNamespace

import duckdb
import fastparquet
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.batches import column, concat_batches, without
from models.codecs.columns import coerce
from models.faults import RowFaults
from models.project.contract import Field
from models.project.project import load_project
from models.record import COLUMNS, FORMAT, POSITION
from pipelines.jobs.dead_letters import Repair, replay
from pipelines.report.scores import Scores
from pipelines.results import read_kind
from pipelines.sources import journal
from pipelines.sources import parquet as source
from pipelines.sources.files import read_split, split_file
from pipelines.sources.frames import pack_header
from pipelines.sources.journal import JournalError
from pipelines.sources.parquet import read_row_group, row_groups
from pipelines.sources.raw import BrokenFile
from tests.kit.support import DATA, run_graph, transaction
from transforms.batches import RecordBatchCoder

pytestmark = pytest.mark.slow

UTC = datetime.UTC
KINDS = {"i": "int", "f": "float", "s": "string", "t": "time"}


def read(path, fields=None):
    """The rows of a file, and why each part can't be read."""
    rows, faults = [], []
    for split in split_file(str(path), "parquet", fields):
        for batch in read_split(split, fields):
            if batch.schema.metadata[FORMAT] == b"rows":
                rows.append(batch)
            else:
                faults.append(batch.schema.metadata[COLUMNS].decode())
    return rows, faults


def decoded(path, **kinds):
    """Columns as the contract's kinds, as Python values; None also where a value is not of its kind."""
    rows, faults = read(path, tuple(kinds))
    assert not faults
    batch = concat_batches(rows)
    assert column(batch, POSITION).to_pylist() == list(range(batch.num_rows))
    found = {}
    for name, kind in kinds.items():
        field = Field(name, kind, time_format="%Y-%m-%d" if kind == "time" else None)
        found[name] = coerce(column(batch, name), field, RowFaults(batch.num_rows)).to_pylist()
    return found


# ---- writers

ROWS = 500
FRAME = pl.DataFrame(
    {
        "i": [None if n % 7 == 0 else n - 250 for n in range(ROWS)],
        "f": [None if n % 5 == 0 else n / 7 for n in range(ROWS)],
        "s": [None if n % 3 == 0 else f"text {n % 20} ä" for n in range(ROWS)],
        "t": [datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=n, microseconds=7) for n in range(ROWS)],
    }
)
EXPECTED = {**FRAME.to_dict(as_series=False), "t": [at.replace(tzinfo=UTC) for at in FRAME["t"]]}


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_arrows_files(codec, tmp_path):
    path = tmp_path / "x.parquet"
    for version, dictionary, rows in itertools.product(["1.0", "2.0"], [True, False], [ROWS, 64]):
        pq.write_table(
            FRAME.to_arrow(),
            path,
            compression=codec,
            data_page_version=version,
            use_dictionary=dictionary,
            row_group_size=rows,
            data_page_size=500,
            write_page_checksum=dictionary,
        )
        assert decoded(path, **KINDS) == EXPECTED


@pytest.mark.parametrize("encoding", ["DELTA_BINARY_PACKED", "DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"])
def test_encodings(encoding, tmp_path):
    path = tmp_path / "x.parquet"
    names = {"DELTA_BINARY_PACKED": "i", "DELTA_BYTE_ARRAY": "s", "BYTE_STREAM_SPLIT": "f"}
    pq.write_table(FRAME.to_arrow(), path, use_dictionary=False, column_encoding={names[encoding]: encoding})
    assert decoded(path, **KINDS) == EXPECTED


@pytest.mark.parametrize("codec", ["uncompressed", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_files_of_polars(codec, tmp_path):
    FRAME.write_parquet(tmp_path / "x.parquet", compression=codec, row_group_size=100)
    assert decoded(tmp_path / "x.parquet", **KINDS) == EXPECTED


@pytest.mark.parametrize("codec", ["uncompressed", "snappy", "gzip", "zstd", "lz4_raw", "brotli"])
def test_files_of_duckdb(codec, tmp_path):
    frame = FRAME.to_arrow()
    for version in ("v1", "v2"):
        path = tmp_path / f"{version}.parquet"
        how = f"format parquet, compression {codec}, parquet_version {version}"
        duckdb.from_arrow(frame).query("frame", f"copy (from frame) to '{path}' ({how})")
        assert decoded(path, **KINDS) == EXPECTED


@pytest.mark.parametrize("codec", ["UNCOMPRESSED", "SNAPPY", "GZIP", "ZSTD", "LZ4_RAW", "BROTLI"])
def test_files_of_fastparquet(codec, tmp_path):
    path = str(tmp_path / "x.parquet")
    frame = pd.DataFrame({"f": np.arange(50) / 7, "i": np.arange(50), "s": [f"text {n}" for n in range(50)]})
    fastparquet.write(path, frame, compression=codec, row_group_offsets=20)
    assert decoded(path, f="float", i="int", s="string") == frame.to_dict("list")


# ---- types

AT = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
FAR = datetime.datetime(2608, 5, 6, 7, 8, 9, tzinfo=UTC)
ID = uuid.UUID(int=0x12345678123456781234567812345678)
TYPES = [
    *((pa.array([value], pa.timestamp(unit, zone)), "time", value) for value in (AT, FAR) for unit in ("s", "ms", "us") for zone in (None, "UTC", "Asia/Tokyo")),
    *((pa.array([AT], pa.timestamp("ns", zone)), "time", AT) for zone in (None, "UTC")),
    (pa.array([AT.date()], pa.date32()), "time", AT.replace(hour=0, minute=0, second=0)),
    (pa.array([FAR.date()], pa.date64()), "time", FAR.replace(hour=0, minute=0, second=0)),
    *((pa.array([decimal.Decimal("-12.25")], kind), "float", -12.25) for kind in (pa.decimal32(6, 2), pa.decimal64(12, 2), pa.decimal128(38, 2), pa.decimal256(70, 2), pa.decimal128(4, 2))),
    (pa.array([decimal.Decimal("12.00")], pa.decimal128(9, 2)), "int", 12),
    (pa.array([decimal.Decimal("12.50")], pa.decimal128(9, 2)), "int", None),
    (pa.array([1.5], pa.float16()), "float", 1.5),
    (pa.array([2.0], pa.float16()), "int", 2),
    (pa.array([1.5], pa.float32()), "float", 1.5),
    *((pa.array([200], kind), "int", 200) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.int16(), pa.int32())),
    (pa.array([2**63], pa.uint64()), "int", None),
    (pa.array([2**63], pa.uint64()), "float", 2.0**63),
    (pa.array([4_000_000_000], pa.uint32()), "int", 4_000_000_000),
    (pa.array([True]), "int", None),
    *((pa.array(["ä"], kind), "string", "ä") for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *((pa.array(["ä".encode()], kind), "string", "ä") for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2))),
    (pa.array([b"\xff"]), "string", None),
    (pa.array(["a"]).dictionary_encode(), "string", "a"),
    (pa.array([7]).dictionary_encode(), "int", 7),
    (pa.array([AT], pa.timestamp("us", "UTC")).dictionary_encode(), "time", AT),
    (pa.array([ID.bytes], pa.uuid()), "string", str(ID)),
    (pa.array(["[1]"], pa.json_()), "string", "[1]"),
    (pa.array([None], pa.null()), "int", None),
    (pa.array([datetime.time(1, 2)], pa.time32("ms")), "time", None),
    (pa.array([datetime.time(1, 2)], pa.time64("us")), "int", None),
    (pa.array([datetime.timedelta(1)], pa.duration("us")), "int", None),
    (pa.array([[1, 2]]), "int", None),
    (pa.array([{"a": 1}]), "float", None),
    (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "string", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "kind", "expected"), TYPES, ids=[f"{v.type}-{k}-{n}" for n, (v, k, _) in enumerate(TYPES)]
)
@pytest.mark.parametrize("stored", [True, False])
def test_types(values, kind, expected, stored, tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": values, "id": [1]}), path, store_schema=stored)
    if pa.types.is_duration(values.type) and not stored:
        expected = 86_400_000_000  # nothing in the file tells it from a number
    assert decoded(path, x=kind) == {"x": [expected]}


def test_types_of_duckdb(tmp_path):
    path = tmp_path / "x.parquet"
    duckdb.sql(
        f"copy (select uuid '{ID}' u, 12.25::decimal(4, 2) d, 12.25::decimal(18, 2) e, 12.25::decimal(38, 2) g, "
        "timestamp '2608-05-06 07:08:09' t, timestamptz '2608-05-06 07:08:09+00' z, timestamp_s '2608-05-06 07:08:09' s, "
        "date '2608-05-06' a, 'x'::enum('x', 'y') n, 7::utinyint i, 7::hugeint h, interval 1 day v, "
        f"'1'::json j) to '{path}' (format parquet)"
    )
    found = decoded(
        path, u="string", d="float", e="float", g="float", t="time", z="time", s="time", n="string", i="int"
    )
    assert found == {"u": [str(ID)], "d": [12.25], "e": [12.25], "g": [12.25], "t": [FAR], "z": [FAR], "s": [FAR], "n": ["x"], "i": [7]}  # fmt: skip
    assert decoded(path, h="float", j="string") == {"h": [7.0], "j": ["1"]}


def test_times_of_int96_are_right_or_none(tmp_path):
    path = tmp_path / "x.parquet"
    times = pa.array([FAR, None, AT, datetime.datetime(1500, 1, 1, tzinfo=UTC)], pa.timestamp("us"))
    pq.write_table(
        pa.table({"t": times}), path, use_deprecated_int96_timestamps=True, compression="none", use_dictionary=False
    )
    assert decoded(path, t="time")["t"] == [value and value.replace(tzinfo=UTC) for value in times.to_pylist()]
    content = path.read_bytes()
    day = struct.pack("<I", 2_460_437)  # of 2024-05-06
    assert content.count(day) == 1
    for other in (2_460_437 + 213_503_982 * 2, 2**32 - 1, 2**31):
        path.write_bytes(content.replace(day, struct.pack("<I", other)))
        assert decoded(path, t="time")["t"][2] is None


def test_a_type_that_arrow_does_not_know_matters_only_where_it_is_read(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"id": [1, 2], "half": pa.array([1.5, 2.5], pa.float16())})
    pq.write_table(table, path, store_schema=False)
    content = path.read_bytes()
    (length,) = struct.unpack("<I", content[-8:-4])
    footer = content[-8 - length : -8].replace(b"\xfc\x00\x00", b"\x0c\x50\x00\x00")  # the logical type 40
    path.write_bytes(content[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1")
    (rows,), faults = read(path, ("id",))
    assert (rows.num_rows, faults) == (2, [])
    assert json.loads(rows.schema.metadata[COLUMNS]) == ["half"]
    assert read(path, ("id", "half"))[0] == []
    assert "half is of a type that Arrow" in read(path, ("id", "half"))[1][0]


def test_empty_files(tmp_path):
    path = tmp_path / "x.parquet"
    for table in (pa.table({"id": pa.array([], pa.int64())}), pa.table({})):
        pq.write_table(table, path)
        assert read(path) == ([], [])


def test_names_with_dots_are_no_paths(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"a": [{"b": 1, "c": [2]}], "a.b": [3], "ä": [4], "z": [[{"k": 5}]]})
    pq.write_table(table, path)
    for name in table.schema.names:
        (rows,), faults = read(path, (name,))
        assert without(rows, POSITION).to_pylist() == table.select([name]).to_pylist()
        assert not faults
    (rows,), _ = read(path, ("none",))
    assert (rows.schema.names, rows.num_rows) == ([POSITION], 1)


# ---- damage


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_with_checksums_no_damage_gives_another_value(version, tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"i": np.arange(60), "s": [f"text {n % 7}" for n in range(60)], "f": np.arange(60) / 7})
    pq.write_table(
        table, path, row_group_size=20, write_page_checksum=True, data_page_version=version, compression="none"
    )
    content, expected = path.read_bytes(), table.to_pylist()
    random = np.random.default_rng(5)
    harmed = 0
    for place in random.integers(0, len(content), 400).tolist():
        broken = bytearray(content)
        broken[place] ^= 1 << int(random.integers(8))
        path.write_bytes(broken)
        rows, faults = read(path, ("i", "s", "f"))
        found = [row for batch in rows for row in without(batch, POSITION).to_pylist()]
        harmed += bool(faults)
        if all(len(row) == 3 for row in found):  # else a column has another name, which is seen
            assert all(row in expected for row in found)
            assert faults or found == expected
    assert harmed > 200


def test_a_column_that_is_not_what_the_schema_says(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"amount": [1.5]}), path, store_schema=False, use_dictionary=False)
    content = path.read_bytes()
    for found in [n for n in range(len(content)) if content.startswith(b"amount", n)]:
        path.write_bytes(content[:found] + b"amounz" + content[found + 6 :])
        assert read(path)[0] == []
        assert "amounz" in read(path)[1][0]


CHILD = """
import os, signal
from pipelines.sources import parquet_child as child
{}
child.main()
"""


@pytest.fixture
def child_that(tmp_path, monkeypatch):
    """Makes the child do something else before it serves."""

    def change(code):
        source._close_all()
        (tmp_path / "other_child.py").write_text(CHILD.format(code))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(source, "MODULE", "other_child")

    yield change
    source._close_all()


def files_of(folder, *names):
    for name in names:
        pq.write_table(pa.table({"id": [1, 2, 3]}), folder / f"{name}.parquet")


@pytest.mark.parametrize("nested", [False, True])
def test_a_column_of_a_type_that_arrow_can_not_open_costs_itself_only(tmp_path, nested):
    path = tmp_path / "x.parquet"
    wide = FRAME["i"].cast(pl.Int128)
    FRAME.with_columns((wide.to_frame("n").to_struct() if nested else wide).alias("wide")).write_parquet(path)
    with pytest.raises(pa.ArrowNotImplementedError, match="64 bits"):
        pq.ParquetFile(path)
    assert decoded(path, i="int", f="float", s="string", t="time") == {
        **FRAME.select("i", "f", "s").to_dict(as_series=False),
        "t": [time.replace(tzinfo=UTC) for time in FRAME["t"]],
    }
    rows, (why,) = read(path, ("i", "wide"))
    assert rows == []
    assert why.startswith("row group 0 is broken from row 0 on: wide")
    assert why.endswith(f"is of a type that Arrow {pa.__version__} does not know")


def test_arrow_types_that_are_no_base64_are_passed_over(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(FRAME.to_arrow(), path)
    data = path.read_bytes()
    place = data.index(b"ARROW:schema") + 20
    path.write_bytes(data[:place] + b"\xff" * 8 + data[place + 8 :])
    with pytest.raises(pa.ArrowInvalid):
        pq.ParquetFile(path)
    assert decoded(path, i="int", s="string") == FRAME.select("i", "s").to_dict(as_series=False)
    path.write_bytes(data[:place] + b"\xff" * 8 + data[place + 8 : -20] + data[-8:])
    assert read(path)[0] == []


def test_a_crash_costs_its_file_only(tmp_path, child_that):
    files_of(tmp_path, "good", "bad", "late")
    child_that(
        "plain = child._File\n"
        "class Poisoned(plain):\n"
        "    def read(self, *args):\n"
        "        yield from plain.read(self, *args)\n"
        "        if bad: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "def opened(path, *_):\n"
        "    global bad\n"
        "    bad = 'bad' in path\n"
        "    if 'late' in path: os.abort()\n"
        "    return Poisoned(path)\n"
        "child._open = opened"
    )
    assert read(tmp_path / "good.parquet")[1] == []
    rows, (why,) = read(tmp_path / "bad.parquet")
    assert sum(batch.num_rows for batch in rows) == 3
    assert why == "row group 0 is broken from row 3 on: reading it ends the process by SIGSEGV"
    assert read(tmp_path / "late.parquet") == ([], ["not a Parquet file: reading it ends the process by SIGABRT"])
    assert len(read(tmp_path / "good.parquet")[0]) == 1


def test_what_is_no_fault_of_a_file_is_no_dead_letter(tmp_path, child_that):
    files_of(tmp_path, "good")
    with pytest.raises(FileNotFoundError):
        row_groups(str(tmp_path / "none.parquet"))
    child_that("child._open = lambda path, *_: os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RuntimeError, match="ended with the code -9"):
        row_groups(str(tmp_path / "good.parquet"))
    child_that("child._open = lambda path, *_: 1 / 0")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        row_groups(str(tmp_path / "good.parquet"))


def test_reading_without_end_is_ended(tmp_path, child_that):
    files_of(tmp_path, "slow")
    child_that("child.MAX_SECONDS = 1\ndef spin(path, *_):\n    while True: pass\nchild._open = spin")
    with pytest.raises(BrokenFile, match="more than 60 s of a processor"):
        row_groups(str(tmp_path / "slow.parquet"))


def test_rows_that_grow_are_read_few_at_a_time_or_refused(tmp_path, child_that):
    path = tmp_path / "x.parquet"
    # 800 MB in all. A few rows at a time take some 310 MiB, threads' stacks and what Arrow holds on to among them.
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(16_000, np.int32)), pa.array(["x" * 50_000]))
    pq.write_table(pa.table({"s": text}), path, compression="none", store_schema=False)
    child_that("child.MAX_BYTES = 500 << 20")
    rows = [batch for batch, _ in read_row_group(str(path), 0)]
    assert sum(batch.num_rows for batch in rows) == 16_000
    assert max(batch.nbytes for batch in rows) < 70 << 20
    child_that("child.MAX_BYTES = 40 << 20")
    with pytest.raises(BrokenFile, match="of memory|ends the process"):
        list(read_row_group(str(path), 0))


def test_many_rows_of_few_bytes_are_one_dead_letter_a_row_group(tmp_path):
    path = tmp_path / "x.parquet"
    rows = 3_000_000
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 100]))
    pq.write_table(pa.table({"a": text, "n": pa.nulls(rows, pa.int64())}), path, row_group_size=rows // 2)
    found, faults = read(path, ("a", "n", "id"))
    assert found == []
    assert [why[:34] for why in faults] == ["row group 0 claims 1500000 events ", "row group 1 claims 1500000 events "]


def test_many_events_of_few_bytes_are_read(tmp_path):
    path = tmp_path / "x.parquet"
    duckdb.sql(
        "copy (select range id, to_timestamp(range) t, 1.5 v from range(1200000)) "
        f"to '{path}' (format parquet, compression zstd, parquet_version v2)"
    )
    metadata = pq.read_metadata(path)
    assert metadata.num_rows > path.stat().st_size * source.ROWS_A_BYTE
    _, groups = row_groups(str(path), ("id", "t", "v"))
    assert not any(group.why_not for group in groups)


def test_a_file_of_another_filesystem_is_read_through_this_process(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    pq.write_table(FRAME.to_arrow(), path, row_group_size=100)
    opened = []

    class Elsewhere:
        @staticmethod
        def match(patterns):
            assert patterns == ["far://x.parquet"]
            return [SimpleNamespace(metadata_list=[SimpleNamespace(size_in_bytes=path.stat().st_size)])]

        @staticmethod
        def open(name, compression_type):
            opened.append(path.open("rb"))
            return opened[-1]

    monkeypatch.setattr(source, "FileSystems", Elsewhere)
    assert decoded("far://x.parquet", **KINDS) == EXPECTED
    assert opened
    assert all(file.closed for file in opened)
    Elsewhere.open = lambda *_, **__: (tmp_path / "gone").open("rb")
    with pytest.raises(FileNotFoundError):
        row_groups("far://x.parquet")


# ---- dead letters keep their rows


def transactions(path, extra=(), **changes):
    rows = [transaction(n, note=f"note {n}", tags=[n], **changes) for n in range(6)]
    rows[1]["TX_AMOUNT"] = None  # for Validate
    rows[2]["CUSTOMER_ID"] = 2.5  # for Decode
    rows[4]["TRANSACTION_ID"] = rows[3]["TRANSACTION_ID"]  # for Deduplicate
    table = pa.Table.from_pylist([*rows, *extra])
    pq.write_table(table, path, row_group_size=2)
    return rows


def letters_of(output):
    return {letter["step"]: letter for letter in output.dead_letters.to_pylist()}


def test_a_dead_letter_of_any_step_has_all_of_its_row(tmp_path):
    rows = transactions(tmp_path / "x.parquet")
    output = run_graph(tmp_path / "out", [str(tmp_path / "x.parquet")])
    letters = letters_of(output)
    assert output.outcomes["scored"] == 3
    assert {step: json.loads(letter["payload"]) for step, letter in letters.items()} == {
        "Decode": rows[2],
        "Validate": {**rows[1], "CUSTOMER_ID": 1.0},
        "Deduplicate": {**rows[4], "CUSTOMER_ID": 1.0},
    }
    assert {step: letter["position"] for step, letter in letters.items()} == {
        "Validate": 1,
        "Decode": 2,
        "Deduplicate": 4,
    }


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_duplicate_of_a_file_of_text_has_all_of_its_record(ending, tmp_path):
    first, second = transaction(1, note="one"), transaction(1, note="two")
    second["TX_DATETIME"] = transaction(2)["TX_DATETIME"]
    if ending == "csv":
        lines = [",".join(map(str, row)) for row in (first.keys(), first.values(), second.values())]
    else:
        lines = [json.dumps(first), json.dumps(second)]
    (tmp_path / f"x.{ending}").write_text("\n".join(lines) + "\n")
    (letter,) = run_graph(tmp_path / "out", [str(tmp_path / f"x.{ending}")]).dead_letters.to_pylist()
    assert (letter["step"], letter["payload"].decode()) == ("Deduplicate", lines[-1])
    assert letter["format"] == ("csv" if ending == "csv" else "json")


def test_a_column_that_can_not_be_read_is_named_in_its_place(tmp_path):
    path = tmp_path / "x.parquet"
    rows = transactions(path)
    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    (place,) = [n for n in range(metadata.num_columns) if metadata.row_group(0).column(n).path_in_schema == "note"]
    for number in range(metadata.num_row_groups):
        chunk = metadata.row_group(number).column(place)
        content[chunk.dictionary_page_offset : chunk.dictionary_page_offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    output = run_graph(tmp_path / "out", [str(path)])
    assert output.outcomes["scored"] == 3
    payload = json.loads(letters_of(output)["Decode"]["payload"])
    assert payload.pop("note").startswith("(cannot be read: ")
    assert payload == {name: value for name, value in rows[2].items() if name != "note"}


# ---- the files

CASES = DATA.parent / "cases"
needs_cases = pytest.mark.skipif(
    not CASES.exists(), reason=f"no cases in {CASES}; set HEADRACE_DATA to the folder above"
)


@needs_cases
@pytest.mark.parametrize("name", ["f16_unused", "dlba_unused", "duck_v2"])
def test_what_is_not_read_does_no_harm(name, tmp_path):
    output = run_graph(tmp_path, [str(CASES / f"{name}.parquet")], load_project(CASES / "mini"))
    assert output.outcomes == {"read": 1000, "scored": 1000}


@needs_cases
def test_pages_of_several_gzip_members(tmp_path):
    output = run_graph(tmp_path, [str(CASES / "members.parquet")], load_project(CASES / "mini"))
    assert output.outcomes == {"read": 600, "scored": 600}
    numbers = [int(name[1:]) for name in output.scores["id"].to_pylist()]
    assert output.scores["v"].to_pylist() == [number + 1.5 for number in numbers]
    assert output.scores["n"].to_pylist() == [number + 7 for number in numbers]


@needs_cases
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_renamed_column_is_in_the_dead_letters(ending, tmp_path):
    path = CASES / f"renamed.{ending}"
    output = run_graph(tmp_path, [str(path)], load_project(CASES / "mini"))
    lines = path.read_text().splitlines() if ending == "jsonl" else map(json.dumps, pq.read_table(path).to_pylist())
    assert output.outcomes["dead-lettered"] == 3
    payloads = [json.loads(payload) for payload in output.dead_letters["payload"].to_pylist()]
    assert payloads == [json.loads(line) for line in lines]
    assert all(payload["customer"] for payload in payloads)


# ---- nothing is unpickled


class Poison:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.mark),)


def poisoned(schema, mark):
    """The schema with each field's metadata as an extension type of Python, CVE-2023-47248."""
    bad = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Poison(mark))}
    return pa.schema([field.with_metadata(bad) for field in schema], schema.metadata)


def as_poisoned(table, mark):
    return pa.Table.from_arrays([*table.columns], schema=poisoned(table.schema, mark))


def test_no_file_message_or_state_is_unpickled(tmp_path):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Poison(mark)))
    assert mark.exists()  # so a load is seen
    mark.unlink()
    rows = pa.Table.from_pylist([transaction(n) for n in range(3)])
    pq.write_table(as_poisoned(rows, mark), tmp_path / "x.parquet")
    assert mark.name.encode() in pq.read_metadata(tmp_path / "x.parquet").metadata[b"ARROW:schema"] or (
        b"ARROW:schema" in pq.read_metadata(tmp_path / "x.parquet").metadata
    )
    output = run_graph(tmp_path / "run", [str(tmp_path / "x.parquet")])
    assert output.outcomes["read"] >= 1

    encoded = pa.BufferOutputStream()
    batch = as_poisoned(rows, mark).to_batches()[0]
    with pa.ipc.new_stream(encoded, batch.schema) as writer:
        writer.write_batch(batch)
    RecordBatchCoder().decode(encoded.getvalue().to_pybytes())

    (tmp_path / "000000000000.journal").write_bytes(encoded.getvalue())
    schema = poisoned(journal._SCHEMA, mark)
    with pa.OSFile(str(tmp_path / "000000000001.journal"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([], schema=schema))
    payload = encoded.getvalue().to_pybytes()
    start, checksum = pack_header(7, 2, 0, 0, b"")
    header, _ = pack_header(7, 2, batch.num_rows, checksum, payload)
    (tmp_path / "000000000002.journal").write_bytes(start + header + payload)
    for number in range(3):
        with contextlib.suppress(JournalError):
            list(journal.read_segment_file(tmp_path / f"{number:012d}.journal"))

    folder = tmp_path / "other"
    for kind in ("scores", "dead_letters"):
        (folder / kind).mkdir(parents=True)
    pq.write_table(as_poisoned(output.scores, mark), folder / "scores" / "x.parquet")
    scores = Scores.open(str(folder))
    scores.column("score")
    read_kind(str(folder), "scores")
    letter = {"payload": b"{}", "format": "json", "reasons": '[{"field": "", "rule": ""}]', "step": "Decode"}
    pq.write_table(as_poisoned(pa.Table.from_pylist([letter]), mark), folder / "dead_letters" / "x.parquet")
    replay([str(folder / "dead_letters" / "*.parquet")], str(tmp_path / "again.jsonl"), Repair())
    assert not mark.exists()
