"""`headrace rollout`: a run's rows, what is said of them, the exit code, and what is released."""

import dataclasses
import json
import re
import shlex
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from models.codecs import encode_json_lines
from models.predictors.registry import list_versions, load, register
from models.project.project import load_project
from models.rollout.assign import parts_of
from pipelines.cli.main import app
from pipelines.prechecks import registry_of
from pipelines.release_store import read_log
from tests.kit.browser import browse, find_misfits, needs_chromium
from tests.kit.releases import register_bundles
from tests.kit.rollouts import DAY, NEW, OLD, RULES, SCHEMA, TEXT, make_rows, shadowed, table
from tests.kit.support import ROOT

pytestmark = pytest.mark.slow

AT = ["--at", "2018-12-20"]


def headrace(*args, code=0):
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollout") / "shops"
    folder.mkdir()
    (folder / "schema.pbtxt").write_text(SCHEMA)
    (folder / "project.yaml").write_text(TEXT.replace("RULES", RULES))
    register_bundles(folder, load_project(folder), registry_of(folder, None), range(3))
    return folder


@pytest.fixture
def folder(registered, tmp_path):
    shutil.copytree(registered, tmp_path / "shops")
    return tmp_path / "shops"


def log_of(folder):
    return read_log(f"sqlite:///{folder}/.headrace/releases.db", load_project(folder))


def bundles_of(folder):
    return [version.bundle_id for version in list_versions("shops", registry_of(folder, None))]


def begin(folder, *options):
    headrace("release", folder, *options, "--at", "2018-11-30T23:59:55", "--reason", "try it")


def write(folder, scores, shadows=None, ids=None):
    """Rows as a run leaves them, with the ids of bundles that are registered."""
    old, new, *_ = ids or bundles_of(folder)
    for kind, rows in (("scores", scores), ("shadows/new", shadows)):
        if rows is not None:
            named = [{OLD: old, NEW: new}[each] for each in rows["bundle_id"].to_pylist()]
            rows = rows.set_column(rows.schema.get_field_index("bundle_id"), "bundle_id", pa.array(named))
            (folder / "out" / kind).mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, folder / "out" / kind / "part.parquet")
    return folder / "out"


def test_a_good_shadow_is_promoted(folder, tmp_path):
    begin(folder, "champion", "--shadow", 2)
    run = write(folder, *shadowed(make_rows(4000)))
    told = ["--json", tmp_path / "a.json", "--html", tmp_path / "a.html"]
    said = headrace("rollout", folder, "--run", run, *told)
    assert "verdict: promote" in said
    assert "challenger, as shadow" in said
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["verdict"], found["way"], found["releases"]) == ("promote", "shadow", [1])
    assert [found["champion"], found["challenger"]] == bundles_of(folder)[:2]
    assert found["overall"]["events"] == [4000, 4000]
    said = headrace("rollout", folder, "--run", run, "--apply", *AT, "--author", "ann", "--approver", "bo")
    assert re.search(r"shops: release 2 from 2018-12-20T00:00:05Z: champion 2 .*\nshops: version 2 is champion", said)
    new = log_of(folder).records[-1]
    assert (new.champion, new.shadows, new.author, new.approver) == (bundles_of(folder)[1], (), "ann", "bo")
    assert new.why.startswith("rollout says promote: roc_auc: AUC ")
    assert "any more, which were compared: nothing is released" in headrace(
        "rollout", folder, "--run", run, "--apply", "--at", "2018-12-21", code=1
    )
    assert len(log_of(folder).records) == 3


def test_a_bad_shadow_is_taken_out_and_a_bad_canary_ended(folder):
    begin(folder, "champion", "--shadow", 2, "--shadow", 3)
    run = write(folder, *shadowed(make_rows(4000, worse=0.4)))
    assert "several shadows" in headrace("rollout", folder, "--run", run, code=1)
    headrace("rollout", folder, "--run", run, "--challenger", 2, code=4)
    headrace("rollout", folder, "--run", run, "--challenger", 2, "--apply", *AT, code=4)
    new = log_of(folder).records[-1]
    assert (new.champion, new.shadows) == (bundles_of(folder)[0], (bundles_of(folder)[2],))

    headrace("release", folder, 2, "--canary", "20%", "--entity", "card", "--at", "2018-12-21", "--reason", "more")
    rows = make_rows(4000, worse=0.4)
    rows["at"] += 30 * DAY
    old, new = bundles_of(folder)[:2]
    inside = parts_of(pa.array(rows["card"]), new) < 2000
    scores = table(
        rows,
        np.where(inside, rows[NEW], rows[OLD]),
        np.where(inside, NEW, OLD).tolist(),
        np.where(inside, "canary", "champion").tolist(),
        release=3,
    )
    run = write(folder, scores)
    assert "challenger, as canary" in headrace("rollout", folder, "--run", run, "--apply", "--at", "2019-01-10", code=4)
    new = log_of(folder).records[-1]
    assert (new.champion, new.challenger, new.canary) == (old, None, None)


def test_what_is_held_is_not_released(folder):
    begin(folder, "champion", "--shadow", 2)
    run = write(folder, *shadowed(make_rows(100)))
    said = headrace("rollout", folder, "--run", run, "--apply", *AT, code=3)
    assert "shops: nothing is released" in said
    told = re.sub(r"[\s│]+", " ", said)  # of a terminal of any width
    assert "champion 100 and challenger 100 events, and 200 of each are needed" in told
    assert len(log_of(folder).records) == 2


def test_rows_of_a_topic_are_those_of_a_run(folder, tmp_path):
    """As `headrace tail --json` has them: JSON lines, in whatever order, some twice."""
    begin(folder, "champion", "--shadow", 2)
    rows = make_rows(2000)
    rows[NEW][::50] = np.nan
    run = write(folder, *shadowed(rows))
    chosen = np.random.default_rng(0)
    for kind in ("scores", "shadows"):
        written = pq.read_table(next((run / kind).rglob("*.parquet")))
        again = pa.concat_tables([written, written.slice(0, 300)])
        again = again.take(chosen.permutation(len(again))).combine_chunks()
        for n, part in enumerate((again.slice(0, 700), again.slice(700))):
            lines = b"".join(map(encode_json_lines, part.to_batches()))
            (tmp_path / f"{kind}-{n}.jsonl").write_bytes(lines)
    headrace("rollout", folder, "--run", run, "--json", tmp_path / "a.json", code=4)
    files = [f"--scores={tmp_path}/scores-1.jsonl", f"--scores={tmp_path}/scores-*", f"--shadows={tmp_path}/sha*.jsonl"]
    headrace("rollout", folder, *files, "--json", tmp_path / "b.json", code=4)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_log_that_was_exported_is_enough(folder, tmp_path):
    begin(folder, "champion", "--shadow", 2)
    run = write(folder, *shadowed(make_rows(2000)))
    headrace("releases", folder, "--export", tmp_path / "log.jsonl")
    headrace("rollout", folder, "--run", run, "--json", tmp_path / "a.json")
    shutil.rmtree(folder / ".headrace")
    headrace("rollout", folder, "--run", run, "--json", tmp_path / "b.json", "--releases", tmp_path / "log.jsonl")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_report_replaces_reports_alone(folder, tmp_path):
    begin(folder, "champion", "--shadow", 2)
    run = write(folder, *shadowed(make_rows(2000)))
    for option in ("--json", "--html"):
        mine = tmp_path / f"mine{option}"
        mine.write_text("precious")
        said = headrace("rollout", folder, "--run", run, option, mine, code=1)
        assert "is there already and is no report: name another file" in said
        assert mine.read_text() == "precious"
        for _ in range(2):
            headrace("rollout", folder, "--run", run, option, tmp_path / f"new{option}")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "say --run FOLDER, or --scores FILE"),
        (["--run", "out", "--scores", "x"], "say --run FOLDER, or --scores FILE"),
        (["--run", "nowhere"], "nowhere: no such folder"),
        (["--scores", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--run", ".", "--at", "2018-12-20"], "--at, --author, --approver and --change-id are of --apply"),
        (["--run", ".", "--apply"], "say --at TIME"),
        (["--run", ".", "--labels", "x"], "--labels are for a project that declares label.events"),
        (["--run", "."], "has no score rows: not the folder of a run"),
        (["--run", ".", "--challenger", "9"], "--challenger 9: no version or alias of the registry"),
    ],
)
def test_what_can_not_be_is_said(folder, args, told, monkeypatch, tmp_path):
    begin(folder, "champion", "--shadow", 2)
    monkeypatch.chdir(tmp_path)
    said = headrace("rollout", folder, *args, code=1)
    assert told in said
    assert "Traceback" not in said


def test_without_a_release_there_is_nothing_to_compare(folder, tmp_path):
    assert "has no release of shops: `headrace release` makes one" in headrace(
        "rollout", folder, "--run", tmp_path, code=1
    )


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.parquet", b"PAR1 broken", "can't be read as score rows"),
        ("a.parquet", b"", "can't be read as score rows"),
        ("a.jsonl", b'{"id": 1, "at": "2018-12-01T00:00:00Z"}\n{"id": ', "can't be read as score rows"),
        ("a.jsonl", b'{"id": "one"}\n', "can't be read as score rows"),
        ("a.jsonl", b"[1, 2]\n", "can't be read as score rows"),
        ("a.jsonl", b'{"id": 1, "at": "2018-12-01T00:00:00Z"}\n', "has no column 'card'"),
        ("a.jsonl", b"\n", "no score rows"),
        ("a.jsonl", b"\xff\xfe\x00", "can't be read as score rows"),
    ],
)
def test_files_that_are_no_score_rows_are_an_error(folder, tmp_path, name, content, told):
    begin(folder, "champion", "--shadow", 2)
    (tmp_path / name).write_bytes(content)
    said = headrace("rollout", folder, "--scores", tmp_path / name, code=1)
    assert told in said
    assert "Traceback" not in said


def test_texts_of_the_data_are_texts_on_the_page(folder, tmp_path):
    evil = '<script>document.title="taken"</script>[/bold]'  # which would end a style that is not begun
    begin(folder, "champion", "--shadow", 2)
    rows = make_rows(2000)
    rows["shop"] = np.where(rows["shop"] == "a", evil, rows["shop"])
    run = write(folder, *shadowed(rows))
    headrace("rollout", folder, "--run", run, "--html", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "[/bold]" in page


def test_the_walk_of_the_page_runs_as_printed(folder):
    """In a small project, of the days of the page, where a bundle of the same model is the challenger."""
    page = (ROOT / "docs" / "releases.md").read_text()
    page = page[page.index("## Promote, hold or roll back") :]
    walk, declared = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("sh", "yaml"))
    text = (folder / "project.yaml").read_text()
    (folder / "project.yaml").write_text(text[: text.index("rollout:")] + declared)
    shutil.rmtree(folder / ".headrace")
    project, uri = load_project(folder), registry_of(folder, None)
    register_bundles(folder, project, uri, [0])
    first = load("shops", 1, uri)
    register(dataclasses.replace(first, schema=first.schema + b"# again\n"), "shops", uri)
    chosen = np.random.default_rng(0)
    amounts = chosen.normal(-2, 1, 4000)
    (folder / "data").mkdir()
    pq.write_table(
        pa.table(
            {
                "id": np.arange(4000),
                "at": 1_528_416_000 + chosen.integers(0, 5 * 86_400, 4000),  # from 8 June 2018 on
                "card": np.arange(4000),
                "shop": chosen.choice(["a", "b"], 4000),
                "amount": amounts,
                "fraud": (amounts + chosen.normal(0, 0.5, 4000) > -1.5).astype(int),
            }
        ),
        folder / "data" / "events.parquet",
    )
    said, codes = [], []
    for line in walk.replace("my_project", shlex.quote(str(folder))).splitlines():
        name, *args = shlex.split(line, comments=True)
        assert name == "headrace"
        done = CliRunner().invoke(app, args, env={"COLUMNS": "200"})
        said.append(done.output)
        codes.append(done.exit_code)
    assert codes == [0] * 5, said
    assert "verdict: promote" in said[2]
    assert (folder / "rollout.html").exists()
    assert re.findall(r"^release (\d)", said[-1], re.MULTILINE) == ["0", "1", "2"]
    assert [record.champion for record in log_of(folder).records] == [
        *bundles_of(folder)[:1] * 2,
        bundles_of(folder)[1],
    ]


@pytest.fixture(scope="module")
def page(registered, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "shops"
    shutil.copytree(registered, folder)
    begin(folder, "champion", "--shadow", 2)
    run = write(folder, *shadowed(make_rows(4000, days=20)))
    headrace("rollout", folder, "--run", run, "--html", folder / "rollout.html")
    return folder / "rollout.html"


@needs_chromium
def test_a_browser_shows_the_page_without_a_complaint(page, tmp_path):
    dom, console = browse(page, tmp_path / "profile", "--dump-dom")
    assert console == []
    assert "<title>shops: rollout report</title>" in dom
    assert dom.count("<svg") == page.read_text().count("<svg") == 8
    assert not re.search(r"<script|<img", dom)


@needs_chromium
def test_no_text_of_the_page_is_cut_or_wider_than_it(page, tmp_path):
    for width in (1280, 500):
        assert find_misfits(page, tmp_path, width) == "wrong: []"
