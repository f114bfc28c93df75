"""Run by test_schema_infer.py. A proposed schema accepts the data it was made from, is the same for the same data, and names what it leaves out."""

import datetime
import json
import subprocess
import sys
import warnings

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from models.project.contract import Contract, SchemaError
from models.project.project import load_project
from models.schemas import diff_schemas, field_needs
from models.schemas.sampled import SampledColumns
from pipelines.cli import schema as schema_cli
from pipelines.cli.schema import read_sample
from tests.kit.support import CARD_FRAUD, DATA, ROOT, card_fraud, needs_data, run_graph, transaction, write_rows


@pytest.fixture(scope="module")
def infer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what TensorFlow and TFDV say at import
        schema_cli.prepare_tfdv()
    from models.schemas.propose import propose_schema

    def propose(*sources, project=None, rows=100_000):
        sample = read_sample(sources, None, rows)
        return propose_schema(sample.columns.columns(), sample.columns.unusable(), project or card_fraud())

    return propose


def transactions(count):
    return [transaction(n) for n in range(count)]


def text_of(proposal):
    return proposal.text("origin").decode()


def test_the_same_rows_of_every_format_give_the_same_contract(tmp_path, infer):
    rows = transactions(60)
    table = pa.Table.from_pylist(rows)
    times = pa.array([datetime.datetime.fromisoformat(row["TX_DATETIME"]) for row in rows], pa.timestamp("us"))
    pq.write_table(table.set_column(1, "TX_DATETIME", times), tmp_path / "a.parquet", row_group_size=7)
    pa.csv.write_csv(table, tmp_path / "a.csv")
    write_rows(tmp_path / "a.jsonl", rows)
    kinds = {int: "long", float: "double", str: "string"}
    fields = [{"name": name, "type": kinds[type(value)]} for name, value in rows[0].items()]
    with (tmp_path / "a.avro").open("wb") as file:
        fastavro.writer(file, {"type": "record", "name": "t", "fields": fields}, rows)
    texts = {text_of(infer(str(tmp_path / f"a.{kind}"))) for kind in ("parquet", "csv", "jsonl", "avro")}
    assert len(texts) == 1
    text = texts.pop()
    assert text.startswith("# origin\n# Review it")
    assert (
        'feature {  # 10.25 to 69.25\n  name: "TX_AMOUNT"\n  type: FLOAT\n  float_domain { min: 0.0 }\n'
        "  presence { min_fraction: 1.0 }\n}" in text
    )
    contract = Contract.parse(text.encode())
    assert list(contract.fields) == list(rows[0])
    assert contract.fields["TX_DATETIME"].kind == "time"
    assert contract.fields["TX_FRAUD"].is_boolean
    assert not contract.fields["TX_FRAUD"].required  # a label is known later
    assert all(field.required for name, field in contract.fields.items() if name != "TX_FRAUD")


def test_a_project_runs_with_the_proposed_schema(tmp_path, infer):
    source = write_rows(tmp_path / "a.jsonl", transactions(40))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "project.yaml").write_bytes((CARD_FRAUD / "project.yaml").read_bytes())
    (folder / "schema.pbtxt").write_text(text_of(infer(source)))
    output = run_graph(tmp_path / "out", [source], load_project(folder))
    assert output.outcomes == {"read": 40, "scored": 40}


def test_types_presence_and_domains(tmp_path, infer):
    rows = []
    for n in range(200):
        extra = {
            "category": ["shop", "web", "atm"][n % 3],
            "free": f"text {n}",
            "few": f"once {n}" if n < 5 else None,
            "rare": "x" if n % 4 == 0 else None,
            "flag": n % 2 == 0,
            "signed": n - 100,
            "mixed": n if n % 2 else n + 0.5,
            "ODD_TYPES": n if n % 2 else "x",
            "LIST": [n],
            "NOTHING": None,
            "HUGE": 1 << 70,
        }
        rows.append(transaction(n, **extra))
    proposal = infer(write_rows(tmp_path / "a.jsonl", [*rows, b"not JSON", b"[1]"]))
    fields = Contract.parse(text_of(proposal).encode()).fields
    assert fields["category"].domain == ("atm", "shop", "web")
    assert fields["free"].domain is None
    assert fields["few"].domain is None
    assert fields["rare"].domain == ("x",)
    assert not fields["rare"].required
    assert fields["flag"].is_boolean
    assert (fields["signed"].kind, fields["signed"].minimum) == ("int", None)
    assert (fields["mixed"].kind, fields["mixed"].minimum) == ("float", 0)
    assert "  # 1 different text, 75.0% missing\n" in text_of(proposal)
    assert proposal.notes == [
        "Left out: ODD_TYPES: has values of several types: numbers, text.",
        "Left out: LIST: has lists or objects; a field has one number, text or truth value a row.",
        "Left out: NOTHING: no row that was read has a value, so its type is not known.",
        "Left out: HUGE: has whole numbers beyond 64 bits.",
        "few has no domain: its 5 values hardly repeat in the rows read.",
    ]
    assert "# Left out: ODD_TYPES: " in text_of(proposal)


def test_csv_codes_keep_their_zeros_and_all_their_digits(tmp_path):
    lines = ["code,long,number,share,signed,empty", "007,12345678901234567890,7,.5,+1,", "100,1,8,1e3,-2,", ",,,,,"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    columns = read_sample([str(tmp_path / "a.csv")], None, 100).columns
    assert {name: column.to_pylist() for name, column in columns.columns().items()} == {
        "code": ["007", "100", None],
        "long": ["12345678901234567890", "1", None],
        "number": [7, 8, None],
        "share": [0.5, 1000.0, None],
        "signed": [1, -2, None],
    }
    assert list(columns.unusable()) == ["empty"]


def test_files_may_differ_in_columns_and_in_numbers_types(tmp_path):
    pq.write_table(pa.table({"a": pa.array([1, 2]), "b": ["x", "y"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": pa.array([0.5]), "c": pa.array([True]), "b": [b"z"]}), tmp_path / "2.parquet")
    (tmp_path / "3.csv").write_text("a,b,d\n7,8,9\n")
    columns = read_sample([str(tmp_path / "*")], None, 100).columns
    assert {name: column.to_pylist() for name, column in columns.columns().items()} == {
        "a": [1.0, 2.0, 0.5, 7.0],
        "c": [True, None, None, None],
        "d": [9, None, None, None],
    }
    assert columns.unusable() == {"b": "has values of several types: text, whole numbers"}


def test_a_sample_is_spread_over_the_parts_and_says_what_it_read(tmp_path):
    for number in range(3):
        table = pa.table({"n": pa.array(range(number * 100, number * 100 + 100))})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=50)
    pattern = str(tmp_path / "*.parquet")
    every = read_sample([pattern, pattern], None, 300)
    assert every.describe() == "all 300 rows of 3 files"
    some = read_sample([pattern], None, 60)
    assert some.columns.columns()["n"].to_pylist() == [first + n for first in range(0, 300, 50) for n in range(10)]
    assert some.describe() == "60 rows, the first ones of 6 parts of 3 files"
    assert read_sample([pattern], None, 2).describe() == "2 rows, the first ones of 2 parts of 3 files"


def test_of_many_files_some_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(schema_cli, "MAX_FILES", 3)
    for number in range(10):
        write_rows(tmp_path / f"{number}.jsonl", [{"n": number}, {"n": number}])
    sample = read_sample([str(tmp_path / "*")], None, 100)
    assert sample.columns.columns()["n"].to_pylist() == [0, 0, 4, 4, 9, 9]
    assert sample.describe() == "6 rows, the first ones of 3 parts of 3 of 10 files"


def test_bytes_and_columns_are_bounded_too(tmp_path, monkeypatch):
    source = write_rows(tmp_path / "a.jsonl", [{f"key {n}": 1} for n in range(2001)])
    with pytest.raises(SchemaError, match="more than 2000 different fields"):
        read_sample([source], None, 5000)
    (tmp_path / "b.jsonl").write_bytes(b'{"a": 1}\n')
    monkeypatch.setattr(schema_cli, "MAX_BYTES", 1000)
    sample = read_sample([str(tmp_path / "b.jsonl"), source], None, 5000)
    assert sample.columns.rows == 0
    assert sample.cut


def test_damaged_rows_are_counted(tmp_path):
    sampled = SampledColumns()
    sampled.add_json([b'{"a": 1}', b"[" * 100_000, b"nonsense", b"\xff", b"1", b'{"a": 2, "\xc3\xbc": "\\ud800"}'])
    assert (sampled.rows, sampled.broken) == (2, 4)
    assert sampled.unusable() == {"ü": "has text that is not Unicode"}
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    write_rows(tmp_path / "b.jsonl", [{"a": 1}])
    assert read_sample([str(tmp_path / "*")], None, 10).describe() == "all 1 rows of 2 files; 1 rows can't be read"


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([1_700_000_000, 1_700_000_060], "UNIX_SECONDS"),
        ([1_700_000_000_000], "UNIX_MILLISECONDS"),
        ([1_700_000_000_000_000], "UNIX_MICROSECONDS"),
        ([1_700_000_000_000_000_000], "UNIX_NANOSECONDS"),
        (["2024-02-29T13:14:15.5Z", "2024-02-29 13:14:15"], "%Y-%m-%d %H:%M:%S"),
        ([12, 13], None),
        (["29.02.2024 13:14"], None),
    ],
)
def test_how_the_event_time_is_written_is_found(tmp_path, infer, times, expected):
    source = write_rows(tmp_path / "a.jsonl", [transaction(n, TX_DATETIME=time) for n, time in enumerate(times)])
    proposal = infer(source)
    fields = Contract.parse(text_of(proposal).encode()).fields
    if expected is None:
        assert "TX_DATETIME" not in fields
        assert any("write its time_domain" in note for note in proposal.notes)
    else:
        assert fields["TX_DATETIME"].time_format == expected


def test_what_the_declarations_need_and_the_data_lack_is_noted(tmp_path, infer):
    rows = [{"TRANSACTION_ID": n + 0.5, "CUSTOMER_ID": None if n else 1, "TX_FRAUD": 2} for n in range(3)]
    proposal = infer(write_rows(tmp_path / "a.jsonl", rows))
    assert proposal.notes == [
        "TRANSACTION_ID, the event id, is a number with a fraction, which no key may be.",
        "Missing: TX_DATETIME, the event time.",
        "CUSTOMER_ID, the entity customer, is missing in some rows: it must be required.",
        "Missing: TERMINAL_ID, the entity terminal.",
        "TX_FRAUD, the label, is not of 0 and 1 in the rows read.",
    ]


@needs_data
def test_the_card_transactions_own_schema_is_close_to_the_examples(infer):
    proposal = infer(str(DATA / "transactions.parquet"), rows=20_000)
    assert proposal.notes == []
    project = card_fraud()
    proposed = Contract.parse(text_of(proposal).encode())
    changes = diff_schemas(project.contract, proposed, field_needs(project))
    assert [(change.field, change.what) for change in changes] == [
        ("TX_AMOUNT", "maximum 1000000.0 -> none"),
        ("TX_TIME_SECONDS", "optional -> required"),
        ("TX_TIME_SECONDS", "minimum none -> 0"),
        ("TX_TIME_DAYS", "optional -> required"),
        ("TX_TIME_DAYS", "minimum none -> 0"),
        ("TX_FRAUD_SCENARIO", "optional -> required"),
        ("TX_FRAUD_SCENARIO", "maximum 3 -> none"),
    ]


def test_the_command_prints_or_writes_and_never_writes_over(tmp_path, infer):
    source = write_rows(tmp_path / "a.jsonl", transactions(20))
    path = tmp_path / "new" / "schema.pbtxt"

    def command(*args, code=0):
        done = CliRunner().invoke(schema_cli.app, ["infer", *args])
        assert done.exit_code == code, done.output
        return done

    printed = command(str(CARD_FRAUD), "--source", source)
    assert printed.stderr.startswith("all 20 rows of 1 file\n")
    command(str(CARD_FRAUD), "--source", source, "--output", str(path))
    assert path.read_text() == printed.stdout
    path.write_text("mine")
    assert "--force" in command(str(CARD_FRAUD), "--source", source, "--output", str(path), code=1).stderr
    assert path.read_text() == "mine"
    command(str(CARD_FRAUD), "--source", source, "--output", str(path), "--force")
    assert path.read_text() == printed.stdout
    assert [p.name for p in path.parent.iterdir()] == ["schema.pbtxt"]
    for args, said in (
        ([str(CARD_FRAUD), "--source", str(tmp_path / "nix")], "no such file"),
        ([str(tmp_path), "--source", source], "project.yaml: cannot be read"),
        ([str(CARD_FRAUD), "--source", source, "--source-format", "xml"], "--source-format is"),
        ([str(CARD_FRAUD), "--source", write_rows(tmp_path / "none.jsonl", [b"?"])], "no event could be read"),
    ):
        assert said in command(*args, code=1).stderr


def test_tfdv_is_imported_by_infer_only():
    code = (
        "import sys, pipelines.cli.schema, models.schemas, models.schemas.propose;"
        "print([m for m in ('tensorflow', 'tensorflow_data_validation', 'apache_beam') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_tfdv_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_data_validation", None)
    source = write_rows(tmp_path / "a.jsonl", transactions(3))
    done = CliRunner().invoke(schema_cli.app, ["infer", str(CARD_FRAUD), "--source", source])
    assert done.exit_code == 1
    assert "needs tensorflow-data-validation" in done.stderr


def test_diff_register_and_list_as_commands(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("project.yaml", "schema.pbtxt"):
        (folder / name).write_bytes((CARD_FRAUD / name).read_bytes())
    schema = folder / "schema.pbtxt"

    def command(*args, code=0):
        done = CliRunner().invoke(schema_cli.app, list(map(str, args)))
        assert done.exit_code == code, done.output
        return done

    assert "not registered" in command("list", folder).stdout
    assert "version 1, b298d3d790df6291, registered" in command("register", folder).stdout
    assert "was registered before" in command("register", folder).stdout
    good = schema.read_text()
    schema.write_text(good.replace("max: 3", "max: 4"))
    assert "maximum 3 -> 4" in command("register", folder).stdout
    assert command("list", folder).stdout.splitlines()[1].endswith("9 fields  schema.pbtxt")
    assert command("diff", 1, 2, "--project", folder).stdout.splitlines()[-1].startswith("compatible: 1 (b298d3d790df")
    assert command("diff", 2, "current", "--project", folder).stdout.startswith("the same: ")

    # The project can't be loaded with this schema, and diff says why nonetheless.
    schema.write_text(good.replace('"TX_AMOUNT"', '"AMOUNT"'))
    report = json.loads(command("diff", 1, "current", "--project", folder, "--format", "json", code=1).stdout)
    assert report["compatible"] is False
    assert [(c["field"], c["what"], c["breaking"]) for c in report["changes"]] == [
        ("TX_AMOUNT", "removed", True),
        ("AMOUNT", "added, required", True),
    ]
    assert "AMOUNT" in command("register", folder, code=1).stderr
    for args in ((1, 2), (9, 1, "--project", folder), (0, 1, "--project", folder), (1, 2, "--format", "xml")):
        command("diff", *args, code=2)
