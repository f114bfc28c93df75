"""The report: what it says is what the run wrote, it asks for nothing from anywhere, and a browser has no complaint."""

import dataclasses
import html.parser
import itertools
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.quality.records import Distribution, Finding, Measure, Verdict, WindowStatistics
from pipelines.report import report
from pipelines.report.gather import gather
from pipelines.report.plots import clean_svg, plot_spread, short_number
from pipelines.report.quality import compare_windows, find_troubles, merge, spread, thin
from pipelines.report.render import list_reasons, render, sum_up
from pipelines.report.scores import bin_numbers, make_series
from pipelines.results import RunError
from tests.kit.browser import browse, find_misfits, needs_chromium
from tests.kit.support import card_fraud, run_graph, transaction, write_rows

pytestmark = pytest.mark.slow

HOUR = 3_600_000_000
DAY = 24 * HOUR
START = 17_700 * DAY
EVIL = '<script>document.title="taken"</script><img src=x onerror="document.title=1">'
PROJECT = card_fraud()


def scores(rows=2000, seed=0, **more):
    random = np.random.default_rng(seed)
    times = START + np.sort(random.integers(0, 4 * DAY, rows))
    names = PROJECT.feature_names
    value = random.random(rows).astype(np.float32) ** 8
    columns = {
        "TRANSACTION_ID": pa.array(np.arange(rows)),
        "TX_DATETIME": pa.array(times).cast(pa.timestamp("us", tz="UTC")),
        **{name: pa.array(random.gamma(2, 10, rows)) for name in names},
        "score": pa.array(value),
        "decision": pa.array(np.where(value > 0.8, "block", np.where(value > 0.3, "review", "approve"))),
        "bundle_id": pa.array(["b1"] * rows),
    }
    return pa.table({**columns, **more})


def write_run(folder, table, events=None, project="card_fraud"):
    (folder / "scores").mkdir(parents=True)
    (folder / "dead_letters").mkdir()
    pq.write_table(table, folder / "scores" / "2018-06-00000-of-00001.parquet")
    said = {
        "project": project,
        "bundle_id": "b1",
        "events": events or {"read": table.num_rows, "scored": table.num_rows},
        "files": [],
    }
    (folder / "_SUCCESS.json").write_text(json.dumps(said))
    return folder


def finding(feature="score", kind="skew", severity="alarm", value=0.5, threshold=0.1, text="moved"):
    return Finding(feature, kind, severity, value, threshold, text)


def verdict(number, *findings, judged=True, measures=()):
    worst = "alarm" if any(f.severity == "alarm" for f in findings) else "warn" if findings else "ok"
    return Verdict.make(
        window_start_us=START + number * DAY,
        window_end_us=START + (number + 1) * DAY,
        rows=500,
        status=worst,
        judged=judged,
        circuit_open=False,
        bundle_id="b1",
        findings=findings,
        measures=measures,
        counters={"rows": 500},
    )


def numbers(counts, cuts=(1.0, 2.0), minimum=0.0, maximum=3.0):
    return Distribution("number", sum(counts), 0, tuple(counts), cuts, minimum=minimum, maximum=maximum)


def statistics(number, **distributions):
    start = START + number * DAY
    return WindowStatistics(start, start + DAY, 500, 500, 0, {}, {}, {}, {"b1": 500}, distributions, b"")


def with_quality(folder):
    """Four windows, of which the last has an alarm of a feature with an evil name; in the order of another run."""
    quality = folder / "quality"
    quality.mkdir()
    verdicts = []
    for number in range(4):
        value = 0.5 if number == 3 else 0.01
        measures = [Measure(f, "skew", "jensen_shannon", value, 0.1, 0.12) for f in ("score", EVIL)]
        measures.append(Measure("CUSTOMER", "unseen", "rate", 0.0, 0.2, 0.2))
        findings = [finding(EVIL, text=EVIL), finding("score", "null_rate", "warn", None, None)] if number == 3 else []
        verdicts.append(verdict(number, *findings, measures=tuple(measures)))
    texts = Distribution("text", 500, 3, (300, 150), values=(EVIL, "$x^2$ & b"), other=50)
    windows = [statistics(n, score=numbers((10, 20, 70)), **{EVIL: texts}) for n in range(4)]
    (quality / "verdicts.jsonl").write_text("".join(v.to_json() + "\n" for v in [*verdicts[::-1], verdicts[0]]))
    (quality / "statistics.json").write_text("".join(s.to_json() + "\n" for s in windows))
    names = {*PROJECT.watched_columns, "score"}
    known = {**dict.fromkeys(names, numbers((30, 40, 30))), EVIL: dataclasses.replace(texts, counts=(150, 300))}
    baseline = {"format": 1, "statistics": statistics(0, **known).to_json()}
    (quality / "baseline.json").write_text(json.dumps(baseline) + "\n")
    return folder


STREAMED = {
    "published": pa.array(START + np.arange(2000) * 1000).cast(pa.timestamp("us", tz="UTC")),
    "ingested": pa.array(START + np.arange(2000) * 1000 + 2500).cast(pa.timestamp("us", tz="UTC")),
    "scored": pa.array(START + np.arange(2000) * 1001 + 4000).cast(pa.timestamp("us", tz="UTC")),
    "late": pa.array([True] * 7 + [False] * 1993),
    "correction": pa.array([False] * 2000),
}
DEAD = {
    "read": 2301,
    "scored": 2000,
    "dead-lettered": 300,
    "duplicate": 1,
    "dead-lettered: Validate: TX_AMOUNT: below 0": 290,
    f"dead-lettered: Decode: {EVIL}: unknown": 10,
}


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.said = [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.said).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = with_quality(write_run(tmp_path_factory.mktemp("run") / "run", scores(**STREAMED), DEAD))
    return report(PROJECT, str(folder))


def test_a_page_says_what_the_run_wrote(page):
    said = Page(page.read_text()).text
    assert page.name == "report.html"
    for text in (
        "card_fraud: run report",
        "bundle b1",
        "events read 2,301",
        "dead letters 300 13.04% of the events read",
        "Alarms in 1 of 4 windows, first in the one from 2018-06-21 00:00.",
        "Validate TX_AMOUNT below 0 290",
        "duplicate 1 0.04%",
        "Skew: against the baseline",
        "At 0 in every window: CUSTOMER.",
        "in the 1 window with alarms",
        "published ingested 2,000 2.5 ms 2.5 ms",
        "7 events came late",
    ):
        assert text in said
    assert said.index("alarm <script>") < said.index("warn score")


def test_a_page_is_small_and_asks_for_nothing(page):
    text = page.read_text()
    assert len(text) < 2 << 20
    read = Page(text)
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "form", "a", "base"}
    for tag, attributes in read.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                assert (tag, value) == ("link", "data:,") or value.startswith("#")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", text))
    assert any("default-src 'none'" in attributes.get("content", "") for _, attributes in read.tags)


def test_ids_stand_once_and_all_that_is_referred_to_is_there(page):
    text = page.read_text()
    ids = re.findall(r'\sid="([^"]+)"', text)
    referred = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    assert ids
    assert len(ids) == len(set(ids))
    assert referred == set(ids)


def test_the_same_run_gives_the_same_bytes_however_its_rows_are_spread(page, tmp_path):
    table = scores(**STREAMED)
    folder = with_quality(write_run(tmp_path / "run", table, DEAD))
    order = np.random.default_rng(1).permutation(table.num_rows)
    (folder / "scores" / "2018-06-00000-of-00001.parquet").unlink()
    for part in range(3):
        pq.write_table(table.take(pa.array(order[part::3])), folder / "scores" / f"part-{part}.parquet")
    assert report(PROJECT, str(folder), tmp_path / "new" / "other.html").read_bytes() == page.read_bytes()


def test_a_users_settings_of_matplotlib_play_no_part(page, tmp_path):
    import matplotlib

    folder = with_quality(write_run(tmp_path / "run", scores(**STREAMED), DEAD))
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "timezone": "Asia/Tokyo"}):
        assert report(PROJECT, str(folder)).read_bytes() == page.read_bytes()


def test_a_run_without_quality_records_has_a_report_that_says_so(tmp_path):
    table = scores()
    said = Page(render(gather(PROJECT, str(write_run(tmp_path / "run", table))))).text
    assert "the project declares no quality section" in said
    assert "None: every event that was read could be used." in said
    assert "there is no baseline to compare with" in said
    assert "Drift over time" not in said
    assert "Latency" not in said


def test_a_run_of_the_graph_has_a_report(tmp_path):
    rows = [transaction(n) for n in range(48)] + [transaction(50, TX_AMOUNT=-1), b"{not json"]
    output = run_graph(tmp_path / "run", [write_rows(tmp_path / "events.jsonl", rows)])
    said = Page(report(PROJECT, str(tmp_path / "run")).read_text()).text
    assert output.outcomes["dead-lettered"] == 2
    assert "events read 50" in said
    assert "events scored 48" in said
    assert "Validate TX_AMOUNT below 0 1" in said
    assert "2018-04-01 to 2018-04-02" in said


@pytest.mark.parametrize("rows", [0, 1])
def test_next_to_nothing_has_a_report(tmp_path, rows):
    assert "events scored" in render(gather(PROJECT, str(write_run(tmp_path / "run", scores(rows)))))


def test_a_column_without_a_value_has_a_plot(tmp_path):
    table = scores(50)
    place = table.schema.get_field_index(PROJECT.model.inputs[3])
    table = table.set_column(place, PROJECT.model.inputs[3], pa.nulls(50, pa.float64()))
    assert "100.0% missing" in render(gather(PROJECT, str(write_run(tmp_path / "run", table))))


def test_a_stream_leaves_quality_records_alone_and_has_a_report(tmp_path):
    (tmp_path / "run").mkdir()
    said = Page(render(gather(PROJECT, str(with_quality(tmp_path / "run"))))).text
    assert "Not counted: the folder has no _SUCCESS.json" in said
    assert "Alarms in 1 of 4 windows" in said


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"has no _SUCCESS\.json, no scores"):
        gather(PROJECT, str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match="a run of the project other, not of card_fraud"):
        gather(PROJECT, str(write_run(tmp_path / "other", scores(5), project="other")))
    folder = write_run(tmp_path / "run", scores(5))
    (folder / "quality").mkdir()
    (folder / "quality" / "verdicts.jsonl").write_text(verdict(0).to_json() + "\n{}\n")
    with pytest.raises(RunError, match=r"verdicts\.jsonl:2 is not a quality record"):
        gather(PROJECT, str(folder))
    (folder / "quality" / "verdicts.jsonl").write_text("no json\n")
    with pytest.raises(RunError, match=r"verdicts\.jsonl:1 is not a quality record"):
        gather(PROJECT, str(folder))
    for text in ("[]", '["ab"]', "{", "[" * 100_000, '{"events": []}', '{"events": {"read": "x"}, "files": []}'):
        (folder / "_SUCCESS.json").write_text(text)
        with pytest.raises(RunError, match=r"_SUCCESS\.json is not what a run writes"):
            gather(PROJECT, str(folder))
    (folder / "_SUCCESS.json").unlink()
    shutil.rmtree(folder / "quality")
    for table, said in (
        (scores(5).drop_columns(["score"]), "has no column score"),
        (
            scores(5).drop_columns(["score"]).append_column("score", pa.array(["x"] * 5)),
            "the column score of the scores can't be read",
        ),
    ):
        for path in (folder / "scores").iterdir():
            pq.write_table(table, path)
        with pytest.raises(RunError, match=said):
            gather(PROJECT, str(folder))
    with pytest.raises(RunError, match="--output"):
        report(PROJECT, "gs://bucket/run")


def test_lines_of_json_for_scores_are_refused(tmp_path):
    folder = write_run(tmp_path / "run", scores(5))
    (folder / "scores" / "2018-06-00000-of-00001.parquet").rename(folder / "scores" / "x.jsonl")
    said = json.loads((folder / "_SUCCESS.json").read_text())
    (folder / "_SUCCESS.json").write_text(
        json.dumps({**said, "files": [{"kind": "scores", "name": "x.jsonl", "rows": 5}]})
    )
    with pytest.raises(RunError, match="--sink-format parquet"):
        gather(PROJECT, str(folder))


def test_series_are_shares_and_quantiles_of_each_step():
    times = START + np.array([0, 1, 2, 3, 2 * DAY, 2 * DAY + 1]) * 1
    values = np.array([0.1, 0.4, 0.2, 0.3, 0.9, 0.5])
    actions = pa.array(["a", "b", "a", "a", "b", None])
    order = np.array([3, 0, 5, 1, 4, 2])
    for rows in (np.arange(6), order):
        series = make_series(times[rows], values[rows], actions.take(pa.array(rows)), ["b", "a", "c"])
        filled = ~np.isnan(series.rows)
        assert (series.rows[filled].tolist(), np.flatnonzero(filled).tolist()) == (
            [4.0, 2.0],
            [0, len(series.rows) - 1],
        )
        assert list(series.decisions) == ["b", "a", "c"]
        assert series.decisions["a"][filled].tolist() == [0.75, 0.0]
        assert series.decisions["b"][filled].tolist() == [0.25, 0.5]
        assert series.scores[0.5][filled].tolist() == [0.2, 0.5]
        assert series.scores[0.99][filled].tolist() == [0.4, 0.9]
        assert series.starts[0] == np.datetime64(START, "us")
        assert np.isnan(series.scores[0.5][~filled]).all()


@pytest.mark.parametrize("length", [1, 59_000_000, 40 * HOUR, 90 * DAY, 3000 * DAY])
def test_series_have_a_bounded_number_of_steps(length):
    times = np.array([START, START + length])
    series = make_series(times, np.array([0.5, 0.5]), None, [])
    assert 1 <= len(series.starts) <= 120
    assert np.nansum(series.rows) == 2


def test_bins_hold_every_value_and_are_upper_inclusive():
    quarters = np.repeat([0.0, 0.25, 0.5, 0.75, 1.0], 200)  # all but the first are bounds
    for values in (np.random.default_rng(0).normal(0, 1, 1000), quarters):
        binned = bin_numbers(np.append(values, [np.nan, np.nan]))
        assert (sum(binned.counts), binned.rows, binned.missing) == (1000, 1000, 2)
        bounds = [-np.inf, *binned.cuts, np.inf]
        expected = [int(((values > low) & (values <= high)).sum()) for low, high in itertools.pairwise(bounds)]
        assert list(binned.counts) == expected
    whole = bin_numbers(np.array([0.0, 1, 1, 3]))
    assert (whole.cuts, whole.counts) == ((0.5, 1.5, 2.5), (1, 2, 0, 1))
    assert bin_numbers(np.array([7.0, 7.0])).counts == (2,)
    assert bin_numbers(np.array([np.nan])).missing == 1


def test_distributions_add_up():
    parts = [numbers((1, 2, 3)), numbers((4, 5, 6), minimum=-1.0), numbers((0, 0, 1), maximum=9.0)]
    whole = merge(merge(parts[0], parts[1]), parts[2])
    assert whole == merge(parts[0], merge(parts[2], parts[1])) == numbers((5, 7, 10), minimum=-1.0, maximum=9.0)
    one = Distribution("text", 10, 1, (4, 5), values=("a", "c"), other=1)
    two = Distribution("text", 6, 0, (2, 4), values=("b", "c"))
    assert merge(one, two) == Distribution("text", 16, 1, (4, 2, 9), values=("a", "b", "c"), other=1)


def test_a_column_with_alarms_shows_the_windows_that_had_them_and_comes_first():
    windows = [statistics(n, score=numbers((n, 0, 0)), amount=numbers((0, 0, n))) for n in range(1, 4)]
    base = statistics(0, amount=numbers((5, 5, 5)), score=numbers((5, 5, 5), cuts=(7.0, 8.0)))
    verdicts = [verdict(1), verdict(2, finding("amount")), verdict(3, finding("score", severity="warn"))]
    amount, score = spread(windows, base, verdicts)
    assert (amount.name, amount.alarms, amount.run.counts) == ("amount", 1, (0, 0, 2))
    assert (score.name, score.alarms, score.run.counts) == ("score", 0, (6, 0, 0))
    assert amount.baseline.counts == (5, 5, 5)
    assert score.baseline is None  # other bins: not comparable


def test_troubles_are_the_worst_of_each_feature_and_kind_alarms_first():
    verdicts = [
        verdict(0, finding("a", value=0.2), finding("b", severity="warn", value=9.0)),
        verdict(1, finding("a", value=0.9), finding("c", "schema", value=None, threshold=None)),
        verdict(2, finding("d", value=0.3)),
    ]
    troubles = find_troubles(verdicts)
    assert [(t.worst.feature, t.windows, t.worst.value) for t in troubles] == [
        ("c", 1, None),
        ("a", 2, 0.9),
        ("d", 1, 0.3),
        ("b", 1, 9.0),
    ]
    assert (troubles[1].first_us, troubles[1].last_us) == (START + DAY, START + 2 * DAY)
    assert find_troubles(verdicts[::-1]) == troubles


def test_comparisons_are_series_by_time_the_worst_first():
    def measures(value):
        return (Measure("a", "drift", "psi", value, 0.1, 0.2), Measure("b", "drift", "psi", 2 * value, 0.1, 0.2))

    verdicts = [verdict(n, measures=measures(n / 10)) for n in range(3)]
    for some in (verdicts, verdicts[::-1]):
        first, second = compare_windows(some)
        assert (first.feature, first.values.tolist(), first.excess) == ("b", [0.0, 0.2, 0.4], 2.0)
        assert second.times.astype(np.int64).tolist() == [v.window_end_us for v in verdicts]


def test_thinning_keeps_what_is_furthest_above_its_threshold():
    values = np.random.default_rng(0).random(1000)
    times = np.arange(1000).astype("M8[us]")
    thinned, kept, thresholds = thin(times, values, np.full(1000, 0.5), 100)
    assert len(thinned) == len(kept) == len(thresholds) == 100
    assert kept.max() == values.max()
    assert kept.tolist() == values.reshape(100, 10).max(axis=1).tolist()


def test_a_headline_sums_up():
    assert sum_up([verdict(0), verdict(1)]) == ("ok", "Nothing found in 2 windows.")
    assert sum_up([verdict(0, judged=False)])[1] == "No window had enough events to be judged."
    assert sum_up([verdict(0, finding(severity="warn"))]) == ("warn", "Warnings in 1 of 1 window, no alarm.")


def test_reasons_by_their_number():
    events = {"read": 9, "dead-lettered": 9, "dead-lettered: A: x: r: s": 2, "dead-lettered: B: : r": 7}
    assert [(r["step"], r["field"], r["rule"], r["count"]) for r in list_reasons(events)] == [
        ("B", "", "r", "7"),
        ("A", "x", "r: s", "2"),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-5e-324, "0"),
        (0.12345, "0.123"),
        (1500, "1500"),
        (12_345, "12.3k"),
        (2.5e6, "2.5M"),
        (3e9, "3G"),
        (1e-5, "1e-05"),
    ],
)
def test_short_numbers(value, text):
    assert short_number(value) == text


def test_an_svg_keeps_texts_as_they_are():
    run = Distribution("text", 10, 0, (6, 4), values=("#010101", 'id="0.125"'))
    svg = plot_spread(run, None)
    assert ">#010101<" in svg
    assert '>id="0.125"<' in svg
    assert "DejaVu" not in svg
    with_digits = clean_svg('<?xml?><svg viewBox="0 0 1 1"><path d="M 0.123456 1"/><text>0.123456</text></svg>', (1, 1))
    assert 'd="M 0.12 1"' in with_digits
    assert ">0.123456<" in with_digits


@needs_chromium
def test_a_browser_shows_the_page_without_a_complaint(page, tmp_path):
    dom, console = browse(page, tmp_path / "profile", "--dump-dom")
    assert console == []
    assert "<title>card_fraud: run report</title>" in dom
    assert dom.count("<svg") == page.read_text().count("<svg") == 9
    assert not re.search(r"<script|<img", dom)


@needs_chromium
def test_the_browser_would_complain(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("</main>", "<img src='https://example.invalid/x.png'></main>"))
    _, console = browse(broken, tmp_path / "profile", "--dump-dom")
    assert any("Content Security Policy" in line for line in console)


@needs_chromium
def test_no_text_of_a_page_is_cut_or_wider_than_it(page, tmp_path):
    for width in (1280, 500):
        assert find_misfits(page, tmp_path, width) == "wrong: []"
