"""Files of every format: each record once and with its place, however a file is cut; damage costs what it hits."""

import base64
import bz2
import contextlib
import datetime
import gzip
import io
import json
import os
import tracemalloc
import zlib

import apache_beam as beam
import cramjam
import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batches import column, without
from models.codecs import decode_csv, decode_rows
from models.decode import decode_batch
from models.faults import RowFaults
from models.project.contract import Contract, Field
from models.record import COLUMNS, FORMAT, MARKS, PAYLOAD, POSITION, SLICE, SOURCE
from pipelines.runners import FN_API, make_pipeline
from pipelines.sources import avro_blocks, files, lines
from pipelines.sources import parquet as parquet_source
from pipelines.sources.files import read_split, split_file
from pipelines.sources.listing import SourceError, format_of, match_files
from pipelines.sources.raw import BrokenFile
from tests.kit.support import card_fraud, read_files, run_graph, transaction

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]


EVENT_FEED = read_files(card_fraud(), ["none"]).feeds[0]


def batches(path, kind=None):
    return [batch for split in split_file(str(path), kind or format_of(str(path))) for batch in read_split(split)]


def records(path, kind=None):
    """(format, position, payload) of each record of a file of text."""
    found = []
    for batch in batches(path, kind):
        kind_of = batch.schema.metadata[FORMAT].decode()
        positions, payloads = column(batch, POSITION).to_pylist(), column(batch, PAYLOAD).to_pylist()
        found += zip([kind_of] * batch.num_rows, positions, payloads, strict=True)
    return found


def faults(path, kind=None):
    """(why, position, payload) of each part that could not be read."""
    return [
        (b.schema.metadata[COLUMNS].decode(), column(b, POSITION)[0].as_py(), column(b, PAYLOAD)[0].as_py())
        for b in batches(path, kind)
        if b.schema.metadata[FORMAT] == b"unreadable"
    ]


def expected(data, header=False, kind="json"):
    """By definition: each line that isn't empty, where it starts, without the header."""
    found, at = [], 0
    for number, line in enumerate(data.split(b"\n")):
        text = line + (b"\n" if at + len(line) < len(data) else b"")
        if line not in (b"", b"\r") and not (header and number == 0):
            found.append((kind, at, text))
        at += len(text)
    return found


BODIES = {
    "plain": b'{"a":1}\n{"a":22}\n{"a":333}\n',
    "no end": b'{"a":1}\n{"a":22}\n{"a":333}',
    "one": b"{}",
    "CRLF": b'{"a":1}\r\n{"a":22}\r\n\r\n{"a":3}\r\n',
    "blank": b'\n\n{"a":1}\n\n\n{"a":2}\n\n',
    "only blank": b"\n\r\n\n",
    "mark": b'\xef\xbb\xbf{"a":1}\n{"a":2}\n',
    "spaces": b' \n{"a":1}\n\t\n  \n',
    "short": b"a\nb\n\nc\r\r\nd\re",
    "CR": b"\r",
    "long": b"x" * 40 + b"\n" + b"y\n" + b"z" * 30,
}


@pytest.mark.parametrize("name", BODIES)
def test_every_cut_gives_every_line_once(name, tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_bytes(BODIES[name])
    for read in (1, 2, 7, 1 << 20):
        monkeypatch.setattr(lines, "READ_BYTES", read)
        for split in range(1, len(BODIES[name]) + 2):
            monkeypatch.setattr(files, "SPLIT_BYTES", split)
            assert records(path) == expected(BODIES[name]), (read, split)


CSV_BODIES = {
    "plain": b"a,b\n1,2\n3,4\n",
    "no end": b"a,b\n1,2",
    "CRLF": b"a,b\r\n1,2\r\n\r\n3,4\r\n",
    "mark": b"\xef\xbb\xbfa,b\n1,2\n",
    "header only": b"a,b\n",
    "header without end": b"a,b",
    "quotes": b'"a","b"\n"1","2,3"\n',
}


@pytest.mark.parametrize("name", CSV_BODIES)
def test_every_cut_gives_every_line_of_csv_once(name, tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    path.write_bytes(CSV_BODIES[name])
    for read in (1, 3, 1 << 20):
        monkeypatch.setattr(lines, "READ_BYTES", read)
        for split in range(1, len(CSV_BODIES[name]) + 2):
            monkeypatch.setattr(files, "SPLIT_BYTES", split)
            assert records(path) == expected(CSV_BODIES[name], True, "csv"), (read, split)
            assert {batch.schema.metadata[COLUMNS] for batch in batches(path)} <= {b'["a", "b"]'}


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b"c" * 9, b"\r"]), max_size=12).map(b"".join),
    st.integers(1, 12),
    st.integers(1, 9),
    st.booleans(),
)
def test_any_text_in_any_cut(tmp_path_factory, data, split, read, header):
    path = tmp_path_factory.mktemp("any") / ("x.csv" if header else "x.json")
    data = b"h\n" + data if header else data
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "SPLIT_BYTES", split)
        patch.setattr(lines, "READ_BYTES", read)
        assert records(path) == expected(data, header, "csv" if header else "json")


def test_blocks_stay_below_the_rows_that_a_reader_takes(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"{}\n" * 40_000 + b"\n" + b"{}\n" * 40_000)
    sizes = [batch.num_rows for batch in batches(path)]
    assert sum(sizes) == 80_000
    assert max(sizes) <= 32_768


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_line_that_is_too_large_is_one_dead_letter(at, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 30)
    body = [b"{}\n", b'{"a":1}\n']
    body.insert(at, b"x" * 200 + b"\n")
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(body))
    place = len(b"".join(body[:at]))
    for read in (1, 7, 40, 1000):
        monkeypatch.setattr(lines, "READ_BYTES", read)
        for split in (1, 5, 30, 199, 200, 201, 1000):
            monkeypatch.setattr(files, "SPLIT_BYTES", split)
            found = records(path)
            good = [record for record in found if record[0] == "json"]
            assert good == [r for r in expected(b"".join(body)) if len(r[2]) < 30] or (
                read == 1000 and good == expected(b"".join(body))
            )
            if read < 1000:
                ((why, position, kept),) = faults(path)
                assert (why, position) == ("a line of more than 30 bytes", place)
                assert set(kept) == {ord("x")}


# ---- compressed text

DATA = b"".join(b'{"a": %d, "b": "%s"}\n' % (n, os.urandom(8).hex().encode()) for n in range(3000))
COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.CSV"])
def test_compressed_text(name, ending, tmp_path, monkeypatch):
    data = b'"h"\n' + DATA if name == "x.CSV" else DATA
    path = tmp_path / (name + ending)
    for compressed in (COMPRESS[ending](data), COMPRESS[ending](data[:999]) + COMPRESS[ending](data[999:])):
        path.write_bytes(compressed)
        for read in (1 << 10, 1 << 22):
            monkeypatch.setattr(lines, "READ_BYTES", read)
            assert records(path) == expected(data, name == "x.CSV", format_of(str(path)))


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_text_that_is_cut_off_is_read_up_to_there(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "READ_BYTES", 1 << 14)
    whole = COMPRESS[ending](DATA)
    path = tmp_path / ("x.jsonl" + ending)
    for length in (1, 10, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:length])
        found = records(path)
        good = [record for record in found if record[0] == "json"]
        assert good == expected(DATA)[: len(good)]
        ((why, position, kept),) = faults(path)
        assert "ends before its end mark" in why
        assert position == sum(len(record[2]) for record in good)
        assert kept == DATA[position : position + len(kept)]
    assert len(good) > 2000 or ending != ".gz"  # the others' blocks are larger than this file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl.gz", gzip.compress(DATA, mtime=0)[:-8] + b"\0" * 8),  # a wrong checksum
        ("x.jsonl.gz", gzip.compress(DATA, mtime=0) + b"garbage"),
        ("x.jsonl.gz", DATA),
        ("x.jsonl.gz", gzip.compress(DATA, mtime=0)[:20000] + b"\xff" * 200 + gzip.compress(DATA, mtime=0)[20200:]),
        ("x.jsonl.bz2", DATA),
        ("x.jsonl.bz2", bz2.compress(DATA)[:5000] + b"\xff" * 200 + bz2.compress(DATA)[5200:]),
        ("x.jsonl.zst", DATA),
        ("x.jsonl.zst", zstandard.ZstdCompressor(write_checksum=True).compress(DATA)[:-1] + b"\0"),
    ],
)
def test_damaged_compressed_text_is_never_silent(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    ((why, position, _),) = faults(path)
    assert why.startswith("broken after ")
    good = b"".join(record[2] for record in records(path) if record[0] == "json")
    assert good == b"".join(line for line in _uncompressed(path)[:position].splitlines(True) if line.strip(b"\r\n"))
    if content.endswith(b"garbage"):
        assert good == DATA
    elif content.endswith(b"\0" * 8):  # a wrong checksum: what came with it is not handed on
        assert DATA.startswith(good)
        assert len(good) > len(DATA) // 2


def _uncompressed(path):
    """What comes of a file before its damage."""
    blocks = []
    with contextlib.suppress(BrokenFile):
        blocks.extend(lines.read_blocks(str(path)))
    return b"".join(blocks)


def test_zeros_behind_compressed_text_are_padding(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(DATA, mtime=0) + b"\0" * 10_000)
    assert records(path) == expected(DATA)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, zstandard.compress])
def test_a_decompression_bomb_is_read_in_pieces(compress, tmp_path):
    ending = {gzip.compress: ".gz", bz2.compress: ".bz2"}.get(compress, ".zst")
    path = tmp_path / ("x.jsonl" + ending)
    path.write_bytes(compress(b"x" * (200 << 20)))
    assert path.stat().st_size < 1 << 20
    largest = max(map(len, lines.read_blocks(str(path))))
    assert largest < 128 << 20
    ((why, position, kept),) = faults(path)
    assert (why, position, len(kept)) == (f"a line of more than {16 << 20} bytes", 0, 65536)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blank_lines_cost_no_arrays(end, tmp_path, monkeypatch):
    record = b'{"a":1}' + end
    blank = end * (24 << 20)
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(record + blank + record))
    edges, sizes = lines._line_edges, []

    def counted(block):
        sizes.append(len(block))
        return edges(block)

    monkeypatch.setattr(lines, "_line_edges", counted)
    found = batches(path)
    assert [p for b in found for p in column(b, PAYLOAD).to_pylist()] == [record, record]
    assert column(found[-1], POSITION).to_pylist()[-1] == len(record + blank)
    assert sum(sizes) < len(blank)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.csv.zst"])
@pytest.mark.parametrize("content", [b"\n", b"\r\n", b"x"])
def test_a_compressed_file_without_an_end_is_read_up_to_a_bound(name, content, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(lines, "MAX_IDLE_BYTES", 1 << 20)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1 << 18)
    compress = gzip.compress if name.endswith(".gz") else zstandard.compress
    path = tmp_path / name
    path.write_bytes(compress(b"a\n" + content * (64 << 20)))
    *_, (why, position, _) = faults(path)
    assert "more than 1048576 bytes of it are empty lines, or one line" in why
    assert position < 3 << 20


# ---- CSV headers and empty files


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a,a\n1,2\n", "its header can't be read: it names a column twice: a"),
        (b"\n1,2\n", "its header can't be read: the first line is empty"),
        (b"\r\n1,2\n", "its header can't be read: the first line is empty"),
        (b"\xffa,b\n1,2\n", "its header can't be read: 'utf-8' codec can't decode"),
        (b'"a,b\n1,2\n', "its header can't be read: not CSV: a quote opens what nothing closes"),
    ],
)
def test_a_csv_file_without_a_good_header_is_one_dead_letter(content, why, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    ((found, position, kept),) = faults(path)
    assert found.startswith(why)
    assert position == 0
    assert len(records(path)) == 1
    assert kept == content
    path.write_bytes(content + b"3,4\n" * 50_000)
    ((_, _, kept),) = faults(path)
    assert kept == path.read_bytes()[:65536]


@pytest.mark.parametrize("content", [gzip.compress(b"a,b\n1,2\n", mtime=0)[:12], b"a,b\n1,2\n"])
def test_a_csv_file_whose_header_can_not_be_uncompressed(content, tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(content)
    ((why, _, kept),) = faults(path)
    assert why.startswith("its header can't be read: ")
    assert kept == content


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.jsonl.gz", "x.csv.gz", "x.csv.bz2", "x.jsonl.zst"])
def test_empty_files_of_text_have_no_records(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"")
    assert batches(path) == []
    if path.suffix in COMPRESS:
        path.write_bytes(COMPRESS[path.suffix](b""))
        assert batches(path) == []


@pytest.mark.parametrize("name", ["x.parquet", "x.avro"])
@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"Obj\x01", DATA, gzip.compress(DATA, mtime=0), b"PAR1" * 100, b"\0" * 1000]
)
def test_a_file_that_is_not_what_its_name_says_is_one_dead_letter(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    ((why, position, _),) = faults(path)
    assert why.startswith("not a")
    assert position == 0


# ---- Parquet


def parquet(path, rows=100, group=10, **options):
    table = pa.table({"id": np.arange(rows), "text": [f"text {n}" for n in range(rows)]})
    pq.write_table(table, path, row_group_size=group, **options)
    return table


def ids(path):
    return [
        (position, number)
        for batch in batches(path)
        if batch.schema.metadata[FORMAT] == b"rows"
        for position, number in zip(column(batch, POSITION).to_pylist(), column(batch, "id").to_pylist(), strict=True)
    ]


def test_parquet_row_groups(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    parquet(path)
    assert len(list(split_file(str(path), "parquet"))) == 10
    for size in (3, 10, 65536):
        monkeypatch.setattr(parquet_source, "BATCH_ROWS", size)
        assert ids(path) == [(n, n) for n in range(100)]
    parquet(path, rows=0)
    assert batches(path) == []


@pytest.mark.parametrize("codec", ["none", "snappy"])
def test_a_broken_row_group_costs_itself_only(codec, tmp_path):
    path = tmp_path / "x.parquet"
    parquet(path, compression=codec)
    content = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(4).column(0).data_page_offset
    content[place : place + 40] = b"\xff" * 40
    path.write_bytes(content)
    assert ids(path) == [(n, n) for n in range(100) if not 40 <= n < 50]
    ((why, position, _),) = faults(path)
    assert why.startswith("row group 4 is broken from row 40 on")
    assert position == 40


def test_a_parquet_file_that_is_cut_off_is_one_dead_letter(tmp_path):
    path = tmp_path / "x.parquet"
    parquet(path)
    content = path.read_bytes()
    for length in (10, len(content) // 2, len(content) - 1, len(content) - 9):
        path.write_bytes(content[:length])
        ((why, _, kept),) = faults(path)
        assert why.startswith("not a Parquet file")
        assert kept == path.read_bytes()[:65536]


def test_parquet_columns_of_headraces_own_names_are_left_out(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": [5], "__position": [77], "__source": ["x"], "__index_level_0__": [3]}), path)
    (batch,) = batches(path)
    assert batch.schema.names == ["id", POSITION]
    assert column(batch, POSITION).to_pylist() == [0]


def test_a_parquet_file_that_names_a_column_twice_is_one_dead_letter(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["id", "id"]), path)
    assert [why for why, _, _ in faults(path)] == ["it names a column twice: id"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_doubled_column_is_an_unknown_field_of_two_names_and_never_a_field(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    names, values = ["x", "id", "x"], [[7, 7], [1, 2], [8, 8]]
    if kind == "parquet":
        pq.write_table(pa.Table.from_arrays([pa.array(column) for column in values], names), path)
    else:
        path.write_text("x,id,x\n7,1,8\n7,2,8\n")
    for fields, second in ((("id",), "x#2"), (("id", "x#2"), "x#3")):
        contract = Contract({name: Field(name, "int") for name in fields}, b"")
        (split,) = split_file(str(path), kind, fields)
        for refuse in (False, True):
            batches = [files._with_origin(batch, str(path), EVENT_FEED, 0, 1) for batch in read_split(split, fields)]
            ((decoded, found),) = [decode_batch(batch, contract, 1000, refuse) for batch in batches]
            assert column(decoded, "id").to_pylist() == [1, 2]
            if "x#2" in fields:
                assert column(decoded, "x#2").null_count == 2
            reasons = [[(r["field"], r["rule"]) for r in json.loads(text)] for text in found.reasons()]
            assert reasons == ([[("x", "unknown field"), (second, "unknown field")]] * 2 if refuse else [])


def test_of_a_block_of_avro_a_value_that_python_cannot_hold_takes_no_neighbour_along(tmp_path):
    path = tmp_path / "x.avro"
    kinds = {"d": {"type": "int", "logicalType": "date"}, "t": {"type": "long", "logicalType": "timestamp-micros"}}
    plain, timed = (
        {"type": "record", "name": "E", "fields": [{"name": "id", "type": "long"}, *others]}
        for others in (
            [{"name": name, "type": [kind["type"], "string"]} for name, kind in kinds.items()],
            [{"name": name, "type": [kind, "string"]} for name, kind in kinds.items()],
        )
    )
    rows = [{"id": n, "d": 2**31 - 1 if n == 5 else n, "t": 2**62 if n == 7 else n} for n in range(10)]
    data = b"".join(datum(row, plain) for row in rows)
    path.write_bytes(container(timed, (len(rows), len(data), data)))
    contract = Contract({"id": Field("id", "int"), "t": Field("t", "time", time_format="%Y-%m-%d")}, b"")
    (batch,) = (
        files._with_origin(each, str(path), EVENT_FEED, 0, 1) for each in read_split(*split_file(str(path), "avro"))
    )
    decoded, found = decode_batch(batch, contract, 1000, False)
    assert column(decoded, "id").to_pylist() == list(range(10))
    assert found.rows.tolist() == [7]
    assert "not a time" in found.reasons()[0]


@pytest.mark.parametrize("fields", [("id", "v"), ("v",), ("id", "none"), ("none",), ()])
def test_names_that_no_field_has_may_be_doubled(fields, tmp_path):
    names = ["x", "id", "x", "v", "x#2", "x", "", ""]
    values = [[10 * place + row for row in range(3)] for place in range(len(names))]
    table = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in values], names), table)
    text = tmp_path / "x.csv"
    text.write_text("\n".join(",".join(map(str, row)) for row in [names, *zip(*values, strict=True)]) + "\n")
    distinct = ["x", "id", "x#3", "v", "x#2", "x#4", "", "#2"]
    (split,) = split_file(str(table), "parquet", fields)
    (batch,) = read_split(split, fields)
    read = {name: column(batch, name).to_pylist() for name in fields if name != "none"}
    assert read == {name: values[names.index(name)] for name in read}
    assert json.loads(batch.schema.metadata[COLUMNS]) == [name for name in distinct if name not in fields]
    (batch,) = read_split(split)
    assert without(batch, POSITION).to_pydict() == dict(zip(distinct, values, strict=True))
    (split,) = split_file(str(text), "csv", fields)
    assert split.header == tuple(distinct)
    (batch,) = read_split(split, fields)
    found = RowFaults(3)
    contract = Contract({name: Field(name, "int") for name in fields}, b"")
    columns = decode_csv(column(batch, PAYLOAD), split.header, contract, False, found)
    assert {name: columns[name].to_pylist() for name in read} == read
    assert not found.bad.any()


def test_a_name_that_a_field_has_may_not_be_doubled(tmp_path):
    names = ["v", "id", "v"]
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 3, names), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("v,id,v\n1,1,1\n")
    for kind in ("parquet", "csv"):
        (split,) = split_file(str(tmp_path / f"x.{kind}"), kind, ("id", "v"))
        assert split.format == "unreadable"
        assert split.header[0].endswith("it names a column twice: v")
    with pytest.raises(parquet_source.BrokenFile, match="it names a column twice: v"):
        list(parquet_source.read_row_group(str(tmp_path / "x.parquet"), 0, ["v"]))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 5000), st.binary(min_size=1, max_size=6))
def test_a_parquet_file_with_any_damage_is_read_or_not(tmp_path_factory, place, put):
    path = tmp_path_factory.mktemp("any") / "x.parquet"
    parquet(path, rows=30)
    content = bytearray(path.read_bytes())
    place %= len(content) - 200  # not into the footer, from where Arrow 10 can be led to read where nothing is
    content[place : place + len(put)] = put
    path.write_bytes(content)
    batches(path)


# ---- Avro

SCHEMA = {
    "type": "record",
    "name": "T",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "text", "type": ["null", "string"]},
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
NOW = datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
CODECS = ["null", "deflate", "bzip2", "xz", "snappy", "zstandard", "lz4"]


def datum(row, schema):
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), row)
    return stream.getvalue()


def container(schema, *blocks, codec=b"null"):
    """An Avro container as its parts say, true or not: blocks of (rows, size, data)."""
    stream = io.BytesIO(b"Obj\x01")
    stream.seek(4)
    metadata = {"avro.schema": json.dumps(schema).encode(), "avro.codec": codec}
    fastavro.schemaless_writer(stream, {"type": "map", "values": "bytes"}, metadata)
    stream.write(b"0123456789abcdef")
    for rows, size, data in blocks:
        for number in (rows, size):
            fastavro.schemaless_writer(stream, "long", number)
        stream.write(data + b"0123456789abcdef")
    return stream.getvalue()


# What fastavro can't write without packages of its own.
OWN = {"zstandard": zstandard.compress, "lz4": lambda data: bytes(cramjam.lz4.compress_block(data))}


def own_container(schema, values, codec):
    blocks = []
    for start in range(0, len(values), 40):
        stream = io.BytesIO()
        for value in values[start : start + 40]:
            fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), value)
        data = OWN[codec](stream.getvalue())
        blocks.append((len(values[start : start + 40]), len(data), data))
    return container(schema, *blocks, codec=codec.encode())


def avro(path, codec="null", rows=300, schema=SCHEMA, values=None):
    values = values or [{"id": n, "text": f"text {n}" if n % 3 else None, "t": NOW} for n in range(rows)]
    stream = io.BytesIO()
    if codec in OWN:
        stream.write(own_container(schema, values, codec))
    else:
        fastavro.writer(stream, schema, values, codec=codec, sync_interval=500, sync_marker=b"0123456789abcdef")
    path.write_bytes(stream.getvalue())
    return stream.getvalue()


@pytest.mark.parametrize("codec", CODECS)
def test_avro_of_every_codec(codec, tmp_path, monkeypatch):
    path = tmp_path / "x.avro"
    avro(path, codec)
    for read in (1, 100, 1 << 20):
        monkeypatch.setattr(avro_blocks, "READ_BYTES", read)
        assert ids(path) == [(n, n) for n in range(300)]
        assert faults(path) == []
    first = next(batch for batch in batches(path))
    assert first.num_rows < 100
    assert column(first, "t").cast(pa.timestamp("us", "UTC"))[0].as_py() == NOW


@pytest.mark.parametrize("codec", CODECS)
def test_a_broken_avro_block_costs_itself_only(codec, tmp_path, monkeypatch):
    path = tmp_path / "x.avro"
    content = avro(path, codec)
    blocks = content.split(b"0123456789abcdef")  # the header, each block, nothing
    start = len(b"0123456789abcdef".join(blocks[:3])) + 16
    whole = ids(path)
    for damage in (
        b"",
        b"\xff" * len(blocks[3]),
        b"\0" * len(blocks[3]),
        blocks[3][:-1],
        blocks[3] + b"\0",
        blocks[3][2:],
    ):
        path.write_bytes(content[:start] + damage + content[start + len(blocks[3]) :])
        for read in (1, 1 << 20):
            monkeypatch.setattr(avro_blocks, "READ_BYTES", read)
            found = [number for _, number in ids(path)]
            assert len(faults(path)) == 1
            lost = sorted({number for _, number in whole} - set(found))
            assert found == sorted(found)
            assert 0 < len(lost) < 60
            assert lost == list(range(lost[0], lost[-1] + 1))


def test_an_avro_file_that_is_cut_off_is_read_up_to_there(tmp_path):
    path = tmp_path / "x.avro"
    content = avro(path)
    blocks = content.split(b"0123456789abcdef")
    header, last = len(blocks[0]) + 16, len(content) - len(blocks[-2]) - 16
    for length in range(last - 5, len(content)):
        path.write_bytes(content[:length])
        assert len(faults(path)) == (length != last)
        assert len(ids(path)) > 240
    for length in range(header):
        path.write_bytes(content[:length])
        ((why, _, _),) = faults(path)
        assert why.startswith("not an Avro container: ")
    path.write_bytes(content[:header])
    assert batches(path) == []


NULLS = {"type": "record", "name": "T", "fields": [{"name": "a", "type": "null"}]}
LIST = {"type": "record", "name": "T", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]}
LINKED = {"type": "record", "name": "T", "fields": [{"name": "a", "type": ["null", "T"]}]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (container(SCHEMA, (1, 2**40, b"\x02\x00\x02")), "1 rows in 1099511627776 bytes"),
        (container(SCHEMA, (2**40, 3, b"\x02\x00\x02")), "1099511627776 rows in 3 bytes"),
        (container(SCHEMA, (-1, 3, b"\x02\x00\x02")), "-1 rows in 3 bytes"),
        (container(SCHEMA, (1, -3, b"\x02\x00\x02")), "1 rows in -3 bytes"),
        (container(SCHEMA, (2, 3, b"\x02\x00\x02")), "EOFError"),
        (container(SCHEMA, (1, 4, b"\x02\x00\x02\x02")), "bytes are left over"),
        (container(NULLS, (2**40, 0, b"")), "1099511627776 rows in 0 bytes"),
        (container(LIST, (1, 8, b"\xfe\xff\xff\xff\xff\xff\xff\x01")), "a list of what takes no bytes"),
        (container(LINKED, (1, 100_000, b"\x02" * 100_000)), "T holds itself"),
        (container(SCHEMA, (1, 3, b"\x02\x00\x02"), codec=b"brotli"), "its codec 'brotli' is not one of null, deflate"),
        (container(SCHEMA, (1, 3, b"\x02\x00\x02"), codec=b"snappy"), "DecompressionError"),
        (container(SCHEMA, (1, 8, b"\xff\xff\xff\xff\x0fabc"), codec=b"snappy"), "DecompressionError"),
        (
            container(SCHEMA, (1, 9, b"\xff\xff\xff\xff\x0fabcd"), codec=b"snappy"),
            "more than 67108864 bytes: 4294967295",
        ),
        (container(SCHEMA, (1, 9, b"\xff\xff\xff\x7fabcde"), codec=b"lz4"), "more than 67108864 bytes: 2147483647"),
        (container(SCHEMA, (1, 3, b"\x02\x00\x02"), codec=b"\xff"), "its header is broken"),
        (container({"type": "nope"}, (1, 3, b"\x02\x00\x02")), "not an Avro schema"),
        (container(SCHEMA, (1, 3, b"\x02\x00\x02"), codec=b"deflate"), "data that is cut off"),
    ],
)
def test_avro_that_promises_more_than_it_has(content, why, tmp_path):
    path = tmp_path / "x.avro"
    path.write_bytes(content)
    ((found, _, _),) = faults(path)
    assert why in found
    assert len(batches(path)) == 1


@pytest.mark.parametrize("codec", CODECS[1:])
def test_an_avro_bomb_is_refused(codec, tmp_path, monkeypatch):
    monkeypatch.setattr(avro_blocks, "MAX_BLOCK_BYTES", 1 << 20)
    path = tmp_path / "x.avro"
    values = [{"id": 1, "text": "x" * (8 << 20), "t": NOW}, *({"id": n, "text": "y", "t": NOW} for n in range(2, 50))]
    avro(path, codec, values=values)
    assert "more than 1048576 bytes" in faults(path)[0][0]
    assert len(ids(path)) >= (9 if codec in OWN else 40)


def test_snappy_has_its_checksum_checked(tmp_path):
    path = tmp_path / "x.avro"
    data = b"\x02\x02\x02a\x00"
    for codec, wrong in ((zlib.crc32(data), False), (zlib.crc32(data) ^ 1, True)):
        block = bytes(cramjam.snappy.compress_raw(data)) + codec.to_bytes(4, "big")
        path.write_bytes(container(SCHEMA, (1, len(block), block), codec=b"snappy"))
        assert [("its checksum is not" in why) for why, _, _ in faults(path)] == [True] * wrong
        assert len(ids(path)) == 1 - wrong


# By fastavro 1.13.1 with the package lz4 4.4: the records {"id": n, "text": "lz4 lz4 lz4 lz4 lz4"} for n of 0 to 4.
LZ4_FILE = base64.b64decode(
    "T2JqAQQUYXZyby5jb2RlYwZsejQWYXZyby5zY2hlbWHeAXsidHlwZSI6ICJyZWNvcmQiLCAibmFtZSI6ICJUIiwgImZpZWxkcyI6"
    "IFt7Im5hbWUiOiAiaWQiLCAidHlwZSI6ICJsb25nIn0sIHsibmFtZSI6ICJ0ZXh0IiwgInR5cGUiOiAic3RyaW5nIn1dfQAwMTIz"
    "NDU2Nzg5YWJjZGVmCkxpAAAAawAmbHo0IAQAHwIVAAEfBBUAAR8GFQABGwgVAFA0IGx6NDAxMjM0NTY3ODlhYmNkZWY="
)


def test_lz4_as_fastavro_writes_it(tmp_path):
    path = tmp_path / "x.avro"
    path.write_bytes(LZ4_FILE)
    assert ids(path) == [(n, n) for n in range(5)]
    assert faults(path) == []


FLAGS = {"type": "record", "name": "T", "fields": [{"name": "a", "type": "boolean"}]}
FLAG_LISTS = {"type": "record", "name": "T", "fields": [{"name": "a", "type": {"type": "array", "items": FLAGS}}]}
FLAG_LISTS["fields"][0]["type"]["items"] = {**FLAGS, "name": "F"}


def test_a_block_of_many_rows_comes_in_batches_and_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.avro"
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = deflate.compress(b"\0" * 300_000) + deflate.flush()
    path.write_bytes(container(FLAGS, (300_000, len(data), data), codec=b"deflate"))
    found = [(column(batch, POSITION)[0].as_py(), batch.num_rows) for batch in batches(path)]
    assert found == [(at, min(32_768, 300_000 - at)) for at in range(0, 300_000, 32_768)]
    path.write_bytes(container(FLAGS, (299_999, len(data), data), codec=b"deflate"))
    ((why, position, _),) = faults(path)
    assert (len(batches(path)), position) == (1, 0)
    assert "bytes are left over" in why


def test_a_row_that_few_bytes_make_large_is_refused_before_it_is_made(tmp_path):
    path = tmp_path / "x.avro"
    data = io.BytesIO()
    fastavro.schemaless_writer(data, "long", 30_000_000)
    data = zlib.compressobj(9, zlib.DEFLATED, -15), data.getvalue() + b"\0" * 30_000_001
    data = data[0].compress(data[1]) + data[0].flush()
    path.write_bytes(container(FLAG_LISTS, (1, len(data), data), codec=b"deflate"))
    tracemalloc.start()
    ((why, _, _),) = faults(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "a row of more than 4194304 bytes" in why
    assert peak < 200 << 20


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 3000), st.binary(max_size=6), st.integers(0, 20))
def test_an_avro_file_with_any_damage_is_read_or_not(tmp_path_factory, place, put, gone):
    path = tmp_path_factory.mktemp("any") / "x.avro"
    content = avro(path, rows=100)
    place %= len(content)
    path.write_bytes(content[:place] + put + content[place + gone :])
    batches(path)


def test_avro_values_of_several_types_stay_what_they_are(tmp_path):
    path = tmp_path / "x.avro"
    kinds = ["null", "long", "double", "string", "bytes", "boolean"]
    schema = {"type": "record", "name": "T", "fields": [{"name": "id", "type": "long"}, {"name": "v", "type": kinds}]}
    big = 2**53 + 1
    avro(
        path, schema=schema, values=[{"id": n, "v": v} for n, v in enumerate([big, 0.5, "a", b"\xc3\xa9", True, None])]
    )
    (batch,) = batches(path)
    assert batch.schema.metadata[FORMAT] == b"json"
    found = [json.loads(payload)["v"] for payload in column(batch, PAYLOAD).to_pylist()]
    assert found == [big, 0.5, "a", "é", True, None]


@pytest.mark.parametrize("mixed", [False, True])
def test_an_avro_time_of_the_year_10000_costs_no_neighbour(mixed, tmp_path):
    path = tmp_path / "x.avro"
    fields = [
        {"name": "id", "type": "long"},
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "v", "type": ["long", "string"]},
    ]
    plain = [
        {**field, "type": kind} for field, kind in zip(fields, ["long", "long", "int", fields[3]["type"]], strict=True)
    ]
    stream = io.BytesIO()
    for n in range(3):
        row = {"id": n, "t": [0, 253402300800000000, 1][n], "day": [1, 2, 2932897][n], "v": "a" if mixed and n else 1}
        fastavro.schemaless_writer(stream, {"type": "record", "name": "T", "fields": plain}, row)
    data = stream.getvalue()
    path.write_bytes(container({"type": "record", "name": "T", "fields": fields}, (3, len(data), data)))
    (batch,) = batches(path)
    if mixed:
        found = [json.loads(payload) for payload in column(batch, PAYLOAD).to_pylist()]
        assert [row["t"] for row in found] == [
            "1970-01-01T00:00:00+00:00", "253402300800000000 timestamp[us, tz=UTC]", "1970-01-01T00:00:00.000001+00:00"
        ]  # fmt: skip
        assert [row["day"] for row in found] == ["1970-01-02", "1970-01-03", "2932897 date32[day]"]
        assert [row["v"] for row in found] == [1, "a", "a"]
    else:
        assert batch.schema.metadata[FORMAT] == b"rows"
        assert column(batch, "t").type == pa.timestamp("us", "UTC")
        assert column(batch, "t").view(pa.int64()).to_pylist() == [0, 253402300800000000, 1]
        assert column(batch, "day").view(pa.int32()).to_pylist() == [1, 2, 2932897]


# ---- names


def test_formats_by_name():
    names = {
        "parquet": ["a.parquet"],
        "csv": ["a.csv", "A.CSV.GZ"],
        "json": ["a.json", "a.jsonl.zst"],
        "avro": ["a.avro"],
    }
    for kind, paths in names.items():
        assert {format_of(path) for path in paths} == {kind}
    with pytest.raises(SourceError, match=r"a\.txt: its name does not tell its format"):
        format_of("a.txt")


def test_globs_and_what_is_not_there(tmp_path):
    for name in ("b.csv", "a.csv", ".hidden.csv", "_SUCCESS.csv", "c.json"):
        (tmp_path / name).write_text("h\n1\n")
    (tmp_path / "folder").mkdir()
    assert match_files(f"{tmp_path}/*.csv") == [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"]
    assert match_files(f"{tmp_path}/_SUCCESS.csv") == [f"{tmp_path}/_SUCCESS.csv"]
    for pattern in (
        f"{tmp_path}/none.csv",
        f"{tmp_path}/*.avro",
        f"{tmp_path}/none/*.csv",
        "",
        f"{tmp_path}/folder",
        "nope://x/y",
    ):
        with pytest.raises(SourceError) as error:
            match_files(pattern)
        assert str(error.value).startswith(pattern)
        assert len(str(error.value).splitlines()) == 1


def test_a_file_that_goes_away_is_no_dead_letter(tmp_path):
    path = tmp_path / "x.parquet"
    parquet(path)
    (split, *_) = split_file(str(path), "parquet")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(read_split(split))


# ---- through the graph

_found = []


def _find(batch):
    _found.append(batch)


def test_through_the_transform(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a":1}\n{"a":2}\n')
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"a\n1\n", mtime=0)[:-6])
    _found.clear()
    patterns = (f"{tmp_path}/*.jsonl", f"{tmp_path}/a.jsonl", f"{tmp_path}/b.csv.gz")
    with make_pipeline(FN_API, []) as pipeline:
        (pipeline | read_files(card_fraud(), patterns, slice_us=7000))["events"] | beam.Map(_find)
    rows = sorted((row[SOURCE], row[POSITION], row[PAYLOAD], row[MARKS]) for b in _found for row in b.to_pylist())
    a, b = f"{tmp_path}/a.jsonl", f"{tmp_path}/b.csv.gz"
    assert rows == [(a, 0, b'{"a":1}\n', 0), (a, 8, b'{"a":2}\n', 0), (b, 2, b"1\n", 0), (b, 4, b"", 0)]
    assert {batch.schema.metadata[SLICE] for batch in _found} == {b"7000"}


def test_all_rows_in_come_out_whatever_is_broken(tmp_path):
    good = [transaction(n) for n in range(40)]
    texts = [json.dumps(row).encode() for row in good]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*texts[:5], b"nope", b"", *texts[5:10]]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(texts[10:15]) + b"\n" + texts[39])[:-3])
    rows = [",".join(map(str, row.values())).encode() for row in good]
    header = ",".join(good[0]).encode()
    (tmp_path / "c.csv").write_bytes(b"\r\n".join([header, *rows[15:20], b"1,2", b'"', rows[20]]))
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    table = pa.Table.from_pylist(good[21:31])
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=5, compression="none")
    schema = {"type": "record", "name": "T", "fields": [
        {"name": n, "type": {int: "long", str: "string", float: "double"}[type(v)]} for n, v in good[0].items()]}  # fmt: skip
    content = avro(tmp_path / "f.avro", schema=schema, values=good[31:39])
    (tmp_path / "f.avro").write_bytes(content + b"\x02\xff")
    output = run_graph(tmp_path / "out", [f"{tmp_path}/*.*"])
    assert sorted(output.scores["TRANSACTION_ID"].to_pylist()) == [n for n in range(39) if n != 20]
    assert output.outcomes["read"] == 38 + output.outcomes["dead-lettered"]
    letters = [(os.path.basename(s), json.loads(r)[0]["rule"]) for s, r in zip(
        output.dead_letters["source"].to_pylist(), output.dead_letters["reasons"].to_pylist(), strict=True)]  # fmt: skip
    assert sorted(letters) == [
        ("a.jsonl", "not JSON"),
        ("b.jsonl.gz", "unreadable"),
        ("c.csv", "not a line of 6 fields"),
        ("c.csv", "unreadable"),  # from the quote that nothing closes on, with the record behind it
        ("d.parquet", "unreadable"),
        ("f.avro", "unreadable"),
    ]


def test_parquet_text_that_is_not_utf8_does_not_stop_a_reader(tmp_path):
    path = tmp_path / "x.parquet"
    text = pa.array([b"a", b"\xff", b"c"], pa.binary())
    pq.write_table(pa.table({"s": text}), path)
    content = path.read_bytes()
    good = tmp_path / "good.parquet"
    pq.write_table(pa.table({"s": pa.array(["a", "b", "c"])}), good, compression="none", use_dictionary=False)
    content = good.read_bytes().replace(b"\x01\x00\x00\x00b", b"\x01\x00\x00\x00\xff", 1)
    path.write_bytes(content)
    (batch,) = batches(path)
    found = RowFaults(3)
    contract = Contract.parse(b'feature { name: "s" type: BYTES }')
    assert decode_rows(batch, contract, False, found)["s"].to_pylist() == ["a", None, "c"]
    assert found.rows.tolist() == [1]
