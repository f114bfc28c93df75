"""CSV as RFC 4180 says: records over lines, in any cut; what can't be told apart is a dead letter, never an event."""

import bz2
import csv
import gzip
import io
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batches import column
from models.codecs import decode_csv, rfc4180
from models.codecs.rfc4180 import NotCsv, find_records, split_fields
from models.faults import RowFaults
from models.project.contract import Contract, Field
from models.project.project import load_project
from models.record import COLUMNS, FORMAT, PAYLOAD, POSITION
from pipelines.runners import FN_API
from pipelines.sources import files, lines
from pipelines.sources.files import read_split, split_file
from tests.kit.support import DATA, run_graph

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]

MINI = DATA.parent / "cases" / "mini"
needs_mini = pytest.mark.skipif(not MINI.exists(), reason=f"no project in {MINI}; set HEADRACE_DATA")


def read(path):
    """(position, fields, or None if it is a dead letter, bytes) of each record of a file."""
    found = []
    for split in split_file(str(path), "csv"):
        for batch in read_split(split):
            positions, payloads = column(batch, POSITION).to_pylist(), column(batch, PAYLOAD).to_pylist()
            fields = [None] * batch.num_rows
            if batch.schema.metadata[FORMAT] == b"csv":
                header = json.loads(batch.schema.metadata[COLUMNS])
                faults = RowFaults(batch.num_rows)
                contract = Contract({name: Field(name, "string") for name in header}, b"")
                columns = decode_csv(column(batch, PAYLOAD), header, contract, False, faults)
                rows = zip(*(columns[name].to_pylist() for name in header), strict=True)
                fields = [None if bad else row for row, bad in zip(rows, faults.bad.tolist(), strict=True)]
            found += zip(positions, fields, payloads, strict=True)
    return found


def good(path):
    return [fields for _, fields, _ in read(path) if fields is not None]


def dead(path):
    return [payload for _, fields, payload in read(path) if fields is None]


def ids(content, tmp_path):
    """The first fields of good records of a file with a header of three columns, and the dead letters' bytes."""
    path = tmp_path / "x.csv"
    path.write_bytes(b"id,t,note\n" + content)
    return [fields[0] for fields in good(path)], dead(path)


A, B, C, D = b"e1,1,plain\n", b"e2,2,plain\n", b"e3,3,plain\n", b'e4,4,"in ""quotes"""\n'
FORGED = b"e9,9,900000\n"

CASES = {
    "a line break in quotes": (A + b'e2,2,"first\n' + FORGED[:-1] + b'"\n' + C, "e1 e2 e3", []),
    "CRLF in quotes": (A + b'e2,2,"first\r\n' + FORGED[:-1] + b'\r\n"\r\n' + C, "e1 e2 e3", []),
    "a lone CR in quotes": (A + b'e2,2,"a\rb"\n' + C, "e1 e2 e3", []),
    "a lone CR outside quotes": (A + b"e2,2,a\rb\n" + C, "e1 e3", [b"e2,2,a\rb\n"]),
    "a NUL": (A + b"e2,2,a\0b\n" + C, "e1 e2 e3", []),
    "a NUL in quotes": (A + b'e2,2,"a\0\nb"\n' + C, "e1 e2 e3", []),
    "quotes doubled": (b'e1,1,"""a"""\ne2,2,""""\ne3,3,"a""\n' + FORGED[:-1] + b'"\n' + D, "e1 e2 e3 e4", []),
    "empty ones": (b'e1,"",""\ne2,2,""\n' + C, "e1 e2 e3", []),
    "no end": (A + b'e2,2,"a\nb"', "e1 e2", []),
    "a CR at the end": (A + b'e2,2,"a\nb"\r', "e1 e2", []),
    "byte order marks of files put together": (A + b'\xef\xbb\xbf"e2",2,"a\nb"\n' + C, "e1 e2 e3", []),
    "a backslash is no escape": (A + b'e2,2,"C:\\"\n' + C, "e1 e2 e3", []),
    "a quote in a field without": (A + b'e2,2,5" pipe\n' + C + b'e5,5,TV 55"\n' + D, "e1 e3 e4", [
        b'e2,2,5" pipe\n', b'e5,5,TV 55"\n']),
    "and a good field over lines behind it": (b'5" pipe,2,"a\n' + FORGED[:-1] + b'"\n' + C, "e3", [
        b'5" pipe,2,"a\n' + FORGED[:-1] + b'"\n']),
    "text behind a closing quote": (A + b'e2,2,"abc"def\n' + C + D, "e1 e3 e4", [b'e2,2,"abc"def\n']),
    "and nothing behind": (A + b'e2,2,"abc"def\n' + C, "e1 e3", [b'e2,2,"abc"def\n']),
    "quotes that are not doubled": (A + b'e2,2,"he said "hi""\n' + C + D, "e1 e3 e4", [b'e2,2,"he said "hi""\n']),
    "and a line break": (A + b'e2,2,"first "line\n' + FORGED + b'last"\n' + C, "e1 e3", [
        b'e2,2,"first "line\n' + FORGED + b'last"\n']),
    "escaped by backslash": (A + b'e2,2,"say \\"hi\\" x"\n' + C, "e1 e3", [b'e2,2,"say \\"hi\\" x"\n']),
    "and a line break behind": (A + b'e2,2,"say \\"hi\n' + FORGED + b'\\" x"\n' + C, "e1 e3", [
        b'e2,2,"say \\"hi\n' + FORGED + b'\\" x"\n']),
    "blanks before a quote": (A + b'e2,2, "a"\n' + C + b'e5,5, "b"\n' + D, "e1 e3 e4", [
        b'e2,2, "a"\n', b'e5,5, "b"\n']),
    "blanks before a quote and a line break": (A + b'e2,2, "a\n' + FORGED + b'b"\n' + C, "e1 e3", [
        b'e2,2, "a\n' + FORGED + b'b"\n']),
    "never closed": (A + b'e2,2,"a\n' + C + FORGED, "e1", [b'e2,2,"a\n' + C + FORGED]),
    "closed by another's": (A + b'e2,2,"a\n' + C + D + FORGED, "e1 e9", [b'e2,2,"a\n' + C + D]),
    "closed by another's that goes over lines": (A + b'e2,2,"a\n' + b'e3,3,"x\n' + FORGED + b'y"\n' + D, "e1 e4", [
        b'e2,2,"a\ne3,3,"x\n' + FORGED + b'y"\n']),
    "only a quote": (b'"', "", [b'"']),
    "two quotes": (b'""\n' + A, "e1", [b'""\n']),
    "blank lines": (b"\n\r\n" + A + b"\n\n" + D, "e1 e4", []),
    "too few and too many": (b'"a\nb"\n' + A + b'"a\nb",2,3,4\n', "e1", [b'"a\nb"\n', b'"a\nb",2,3,4\n']),
    "not UTF-8 in quotes": (A + b'e2,2,"\xff\n' + FORGED[:-1] + b'"\n' + C, "e1 e3", [
        b'e2,2,"\xff\n' + FORGED[:-1] + b'"\n']),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_records_are_right_or_dead_letters_in_every_cut(name, tmp_path, monkeypatch):
    content, expected, refused = CASES[name]
    assert ids(content, tmp_path) == (expected.split(), refused)
    whole = read(tmp_path / "x.csv")
    assert b"".join(payload for _, _, payload in whole) == content or name == "blank lines"
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(lines, "READ_BYTES", size)
        monkeypatch.setattr(files, "SPLIT_BYTES", size)
        assert read(tmp_path / "x.csv") == whole
    compressed = tmp_path / "x.csv.gz"
    compressed.write_bytes(gzip.compress((tmp_path / "x.csv").read_bytes()))
    assert read(compressed) == whole


texts = st.text(st.sampled_from('ab,"\n\r \0é\\;1'), max_size=8)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(texts, texts, texts), max_size=8),
    st.integers(1, 30),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["", ".gz", ".bz2", ".zst"]),
)
def test_what_a_writer_writes_is_read_back(tmp_path_factory, rows, size, line_end, quoting, ending):
    if quoting == csv.QUOTE_MINIMAL:  # with which Python's writer leaves a lone CR without quotes
        rows = [tuple(value.replace("\r", "") for value in row) for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=line_end, quoting=quoting)
    writer.writerow(["a", "b,\nc", 'd"'])
    writer.writerows(rows)
    data = text.getvalue().encode()
    path = tmp_path_factory.mktemp("any") / f"x.csv{ending}"
    compress = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}[ending]
    path.write_bytes(compress(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "READ_BYTES", size)
        patch.setattr(files, "SPLIT_BYTES", size)
        found = read(path)
    assert [fields for _, fields, _ in found] == [tuple(value or None for value in row) for row in rows]
    assert all(data[at : at + len(payload)] == payload for at, _, payload in found)


pieces = st.lists(
    st.sampled_from([b'"', b'"', b",", b"\n", b"\r\n", b"a", b" ", b"\r", b'""', b'"\n"', b"\xef\xbb\xbf"])
)
any_bytes = pieces.map(b"".join)


@settings(deadline=None, max_examples=300)
@given(any_bytes, st.integers(1, 9), st.sampled_from([3, 1000]))
def test_any_bytes_are_records_once_and_the_same_fast_and_slow(data, size, limit):
    stops, torn = find_records(data, True, limit)
    line_ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    slow = rfc4180._search(data, line_ends, True, limit)
    assert (slow.stops.tolist(), slow.torn) == (stops.tolist(), torn)
    edges = [0, *stops.tolist()]
    assert edges[-1] == len(data)
    assert edges == sorted(set(edges))
    for record in torn:
        with pytest.raises(NotCsv):
            split_fields(data[edges[record] : edges[record + 1]].decode("utf-8-sig").removesuffix("\n"))
    if limit > len(data):
        buffer, at, found, found_torn = b"", 0, [], {}
        for place in range(0, len(data) + size, size):
            buffer += data[place : place + size]
            part = find_records(buffer, place >= len(data), limit)
            found_torn |= {len(found) + record: why for record, why in part.torn.items()}
            found += [at + stop for stop in part.stops.tolist()]
            at, buffer = [0, *found][-1], data[[0, *found][-1] : place + size]
        assert (found, found_torn) == (stops.tolist(), torn)


def test_what_may_go_on_is_looked_after_for_so_many_bytes_only():
    data = b'"a"b\n' + b"x\n" * 50 + b'y"\n'
    assert find_records(data, True, 1000).torn.keys() == {0}
    stops, torn = find_records(data, True, 50)
    assert (len(stops), torn) == (52, {})


@needs_mini
def test_a_quoted_line_break_makes_no_event(tmp_path):
    project = load_project(MINI)
    assert run_and_sum(project, tmp_path / "a", MINI.parent / "quoted_newline.csv") == {"e1": 1.0, "e2": 3.0, "e3": 6.0}
    header, *records = CASES_LINES
    for number, order in enumerate(([2, 0, 1], [1, 2, 0])):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(header + b"".join(records[place] for place in order))
        assert run_and_sum(project, tmp_path / f"out{number}", path) == {"e1": 1.0, "e2": 3.0, "e3": 6.0}


CASES_LINES = [
    b"id,t,k,v,n,b,note\n",
    b"e1,2024-01-01 00:00:00,k1,1.0,1,0,plain\n",
    b'e2,2024-01-01 00:00:01,k1,2.0,1,0,"first line\ne999,2024-01-01 00:00:02,k1,900000.0,1,0,second line"\n',
    b"e3,2024-01-01 00:00:03,k1,3.0,1,0,plain\n",
]


def run_and_sum(project, directory, path):
    output = run_graph(directory, [str(path)], project)
    assert output.outcomes == {"read": 3, "scored": 3}
    return dict(zip(output.scores["id"].to_pylist(), output.scores["SUM_V_1D"].to_pylist(), strict=True))


@needs_mini
@pytest.mark.parametrize("runner", [FN_API, None])
def test_a_dead_letter_of_csv_keeps_its_record_with_its_line_breaks(runner, tmp_path):
    bad = b'e2,never,k1,2.0,1,0,"first line\r\nsecond, line"'
    path = tmp_path / "x.csv"
    path.write_bytes(CASES_LINES[0] + CASES_LINES[1] + bad + b"\n" + CASES_LINES[3] + b'e4,"\n' + CASES_LINES[1])
    output = run_graph(tmp_path / "out", [str(path)], load_project(MINI), **({"runner": runner} if runner else {}))
    assert output.scores["id"].to_pylist() == ["e1", "e3"]
    letters = output.dead_letters.sort_by("position")
    assert letters["payload"].to_pylist() == [bad, b'e4,"\n' + CASES_LINES[1]]
    assert letters["position"].to_pylist() == [58, 58 + len(bad) + 1 + len(CASES_LINES[3])]
    (reason,) = json.loads(letters["reasons"][1].as_py())
    assert (reason["rule"], reason["value"]) == ("unreadable", "45 bytes: a quote opens what nothing closes")


@pytest.mark.parametrize("behind", [b"e,1,2\n", b'e,1,"2"\n', b'"', b'"a"b\n', b"\n"])
def test_hostile_quotes_cost_no_memory_for_what_lies_behind(behind, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "READ_BYTES", 1 << 14)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1 << 16)
    monkeypatch.setattr(lines, "HELD_BYTES", 1 << 14)
    path = tmp_path / "x.csv"
    path.write_bytes(b'id,t,note\n"' + behind * ((1 << 18) // len(behind)))
    rows = 0
    tracemalloc.start()
    for split in split_file(str(path), "csv"):
        for batch in read_split(split):
            rows += batch.num_rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert rows >= 1


def test_a_quote_that_nothing_closes_is_one_dead_letter_however_large_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(lines, "READ_BYTES", 100)
    found, (payload,) = ids(A + b'e2,2,"a\n' + C * 1000, tmp_path)
    assert found == ["e1"]
    assert payload.startswith(b'e2,2,"a\n' + C)
    assert len(payload) <= 1100


def test_a_line_that_is_too_large_costs_itself_only_unless_it_has_quotes(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(lines, "READ_BYTES", 100)
    found, (payload,) = ids(D + b"x" * 5000 + b"\n" + C, tmp_path)
    assert (found, set(payload)) == (["e4", "e3"], {ord("x")})
    found, payloads = ids(D + b"x" * 5000 + b',"\n' + FORGED + b'"\n' + C, tmp_path)
    assert (found, len(payloads)) == (["e4"], 2)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (b'"a","b\nc","d""e"\r\n', ["a", "b\nc", 'd"e']),
        (b'\xef\xbb\xbf"a",b,c\n', ["a", "b", "c"]),
        (b'a,b," c"\n', ["a", "b", " c"]),
        (b'a,b,c"\n', "not CSV: a quote in a field without quotes"),
        (b'a,b, "c"\n', "not CSV: a quote in a field without quotes"),
        (b'"a"x,b,c\n', "not CSV: text behind a closing quote"),
        (b'a,"b,c\n', "not CSV: a quote opens what nothing closes"),
        (b"a,b,c\r1,2,3\r", "not CSV: a line break outside quotes"),
    ],
)
def test_headers(header, names, tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    path.write_bytes(header + b"1,2,3\n")
    for size in (1, 5, 1 << 20):
        monkeypatch.setattr(lines, "READ_BYTES", size)
        (batch,) = [batch for split in split_file(str(path), "csv") for batch in read_split(split)]
        about = batch.schema.metadata[COLUMNS]
        if isinstance(names, str):
            assert about.decode() == f"its header can't be read: {names}"
        else:
            assert json.loads(about) == names
            assert column(batch, PAYLOAD).to_pylist() == [b"1,2,3\n"]
            assert column(batch, POSITION).to_pylist() == [len(header)]


def test_a_large_file_without_quotes_is_read_in_parts_and_one_with_quotes_in_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SPLIT_BYTES", 20)
    path = tmp_path / "x.csv"
    path.write_bytes(b'"id",t,note\n' + A * 10)
    assert len(list(split_file(str(path), "csv"))) == 6
    assert good(path) == [("e1", "1", "plain")] * 10
    path.write_bytes(b'"id",t,note\n' + A * 10 + D)
    assert len(list(split_file(str(path), "csv"))) == 1
    assert [fields[0] for fields in good(path)] == ["e1"] * 10 + ["e4"]


def test_a_field_of_any_length_is_the_same_alone_and_among_others():
    header, long = ["a", "b"], b'1,"' + b"x" * 200_000 + b'"\n'
    contract = Contract({name: Field(name, "string") for name in header}, b"")
    for payloads in ([long], [b"1,2\n", long], [b'1,"2\n"x\n', long]):
        faults = RowFaults(len(payloads))
        found = decode_csv(pa.array(payloads, pa.binary()), header, contract, False, faults)
        assert found["b"].to_pylist()[-1] == "x" * 200_000
