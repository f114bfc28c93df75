"""A flood of rows that can't be used: it goes to disk, leaves the same rows in the same order, and memory stays flat."""

import itertools
import json
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.batches import concat_batches
from pipelines.runners.inprocess import on_disk
from pipelines.sinks import encode
from tests.kit.support import ROOT, run_graph, transaction, write_rows

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(5))
def test_rows_sorted_on_disk_are_those_sorted_in_memory_in_the_same_parts(monkeypatch, seed):
    chosen = random.Random(seed)
    monkeypatch.setattr(encode, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(encode, "SORTED_ROWS", 5)
    pairs = [(chosen.choice([None, 3, *range(20)]), f"file {n}") for n in range(100)]  # some numbers are often there
    chosen.shuffle(pairs)
    schema = pa.schema([("position", pa.int64()), ("source", pa.string())])
    whole = pa.RecordBatch.from_pylist([{"position": p, "source": s} for p, s in pairs], schema)
    cuts = sorted({0, len(pairs), *(chosen.randrange(len(pairs)) for _ in range(12))})
    batches = [whole.slice(start, stop - start) for start, stop in itertools.pairwise(cuts)]
    expected = list(encode.in_order(concat_batches(batches), "position", "source"))
    assert list(encode.in_order_on_disk(batches, "position", "source")) == expected
    assert len(expected) > 14


def flood(folder):
    """Files of each format with rows that are good, broken, of an impossible value, and there twice."""
    rows = [transaction(n, **({"TX_AMOUNT": -5} if n % 3 == 1 else {})) for n in range(60)]
    lines = [b"{oops %d" % n if n % 4 == 3 else rows[n // 2] for n in range(120)]
    good = [transaction(100 + n, **({"CUSTOMER_ID": None} if n % 2 else {})) for n in range(50)]
    pq.write_table(pa.Table.from_pylist(good), folder / "more.parquet", row_group_size=20)
    return [write_rows(folder / "events.jsonl", lines), write_rows(folder / "again.jsonl", lines[::5])]


def test_what_goes_to_disk_leaves_the_same_dead_letters(tmp_path, monkeypatch, engine):
    sources = [*flood(tmp_path), str(tmp_path / "more.parquet")]
    expected = run_graph(tmp_path / "memory", sources)
    assert expected.dead_letters.num_rows > 100
    monkeypatch.setattr(encode, "ROWS_AT_ONCE", 11)
    monkeypatch.setattr(encode, "SORTED_ROWS", 3)
    monkeypatch.setattr(on_disk, "HELD_BYTES", 0)
    found = run_graph(tmp_path / "disk", sources, runner=engine)
    assert found.dead_letters.equals(expected.dead_letters)
    assert found.scores.equals(expected.scores)
    assert found.outcomes == expected.outcomes
    rows = found.dead_letters.filter(pa.compute.equal(found.dead_letters["format"], "row"))
    assert {json.loads(payload).get("CUSTOMER_ID") for payload in rows["payload"].to_pylist()} == {None}


def test_memory_stays_flat_in_a_flood(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "project.yaml").write_text(
        "name: flood\nschema: schema.pbtxt\nevent: {id: id, time: at}\nfeatures: {row: {large: id > 50}}\n"
    )
    (project / "schema.pbtxt").write_text(
        'feature { name: "id" type: INT presence { min_fraction: 1.0 } }\n'
        'feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }\n'
    )
    script = (
        "import re, sys\nfrom pipelines.cli.entry import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('peak', re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    peaks, letters = [], 0
    for rows in (250_000, 600_000):
        with (tmp_path / "events.jsonl").open("w") as file:
            file.writelines(f'{{"id": {n}, "at": 1543622400, broken {n}\n' for n in range(rows))
        command = ["run", str(project), "--source", str(tmp_path / "events.jsonl"), "--sink", str(tmp_path / str(rows))]
        done = subprocess.run(
            [sys.executable, "-c", script, *command], capture_output=True, text=True, cwd=ROOT, check=True
        )
        peaks.append(1024 * int(done.stdout.rsplit("peak", 1)[1]))
        letters = pq.ParquetFile(next((tmp_path / str(rows)).rglob("dead_letters/*/*.parquet"))).read().nbytes
    # What the further letters take is less than themselves; in memory, they are there once and again.
    assert peaks[1] - peaks[0] < letters * (600_000 - 250_000) / 600_000
