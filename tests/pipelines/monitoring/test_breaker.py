"""The circuit breaker by the clock: with a clock and metrics at hand, what it writes to a release log."""

import functools
import shutil

import pytest

from models.metrics import LABELLED, LATENCY
from models.project.project import load_project
from models.rollout.records import Canary
from pipelines.jobs.releasing import Desk, changes, release, told_by
from pipelines.monitoring.breaker import AUTHOR, ClockBreaker
from pipelines.prechecks import registry_of
from pipelines.release_store import read_log
from tests.kit import released_shop
from tests.kit.releases import register_bundles

pytestmark = pytest.mark.slow

SECOND = 1_000_000
BREAKER = """
breaker:
  wait: 2
  good: 2
  probe: 0.05
  clock:
    every: 10s
    latency: {within: 1s, target: 0.9, minimum: 10}
    valid: {target: 0.9, minimum: 10}
    labels: [{decision: block, label: '1', target: 0.5, minimum: 50}]
label: {field: fraud, delay: 1d, events: {time: seen}}
"""
LABEL = 'feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }\n'


class Stream:
    """A clock and the metrics of a stream, both set by hand, and a breaker that looks at them."""

    def __init__(self, folder, bundles):
        self.project, self.bundles = load_project(folder), bundles
        self.now_us, self.found = 1_800_000_000 * SECOND, {}
        self.desk = Handed(self.project, folder, registry_of(folder, None), f"sqlite:///{folder}/releases.db")
        object.__setattr__(self.desk, "clock", self)
        self.champion("1")
        self.champion("2")
        self.now_us += 10 * SECOND
        self.start()
        self.window()

    def start(self):
        self.breaker = ClockBreaker(self.desk, lambda: self.found, lambda: self.now_us)
        self.breaker.look()  # begins a window

    def champion(self, version, **options):
        release(self.desk, changes(self.desk, version, **options), told_by("by hand", "ann"))
        self.now_us += 7 * SECOND

    @property
    def log(self):
        return read_log(self.desk.place, self.project).records

    def window(self, fast=100, slow=0, dead=0):
        """Ten seconds more with so many rows; the newest record's number."""
        self.now_us += 10 * SECOND
        for le, number in (("0.1", fast), ("6.0", slow)):
            series = (f"{LATENCY.name}_bucket", (("stage", "written"), ("le", le)))
            self.found = {**self.found, series: self.found.get(series, 0) + number}
        for series, number in (
            (("headrace_dead_letters_total", (("step", "Decode"),)), dead),
            (("headrace_events_total", (("outcome", "read"),)), fast + slow + dead),
        ):
            self.found = {**self.found, series: self.found.get(series, 0) + number}
        self.breaker.look()
        return self.log[-1].seq

    def labels(self, release, bundle, good, bad):
        """So many labels come for blocks of a release by a bundle, of which the good ones are frauds."""
        for label, number in (("1", good), ("0", bad)):
            told = zip(LABELLED.labels, (str(release), bundle, "block", label), strict=True)
            series = LABELLED.name, tuple(told)
            self.found = {**self.found, series: self.found.get(series, 0) + number}


class Handed(Desk):
    """A desk whose clock is the stream's."""

    def now_us(self):
        return self.clock.now_us


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A project's folder with three bundles, and their ids."""
    folder = tmp_path_factory.mktemp("clocked") / "shops"
    folder.mkdir()
    text = released_shop.TEXT.replace("CLOCK", "wall").replace("LEAD", "5s") + BREAKER
    (folder / "project.yaml").write_text(text)
    (folder / "schema.pbtxt").write_text(released_shop.SCHEMA + LABEL)
    return folder, register_bundles(folder, load_project(folder), registry_of(folder, None), range(3))


@pytest.fixture
def stream(registered, tmp_path):
    folder, bundles = registered
    shutil.copytree(folder, tmp_path / "shops")
    return Stream(tmp_path / "shops", bundles)


BAD = ({"slow": 50}, {"dead": 50})


@pytest.mark.parametrize("bad", BAD)
def test_it_rolls_back_tries_a_share_and_restores(stream, bad):
    one, two, _ = stream.bundles
    before = stream.log[-1]
    assert (before.champion, before.seq) == (two, 1)
    assert stream.window() == 1
    assert stream.window(**bad) == 2
    opened = stream.log[-1]
    assert (opened.champion, opened.author) == (one, AUTHOR)
    assert opened.effective_from_us == opened.made_at_us + 6 * SECOND
    assert ("written within 1 s: 100 of 150" if "slow" in bad else "no dead letters: 100 of 150") in opened.why
    # The first one began before that was in effect; a bad one begins anew; then two that are not bad.
    assert [stream.window(**said) for said in (bad, {}, bad, {})] == [2, 2, 2, 2]
    assert stream.window() == 3
    probe = stream.log[-1]
    assert (probe.champion, probe.challenger, probe.canary) == (one, two, Canary("card", 500, two))
    assert [stream.window() for _ in range(2)] == [3, 3]
    assert stream.window() == 4
    restored = stream.log[-1]
    assert (restored.champion, restored.challenger, restored.canary) == (two, None, None)
    assert "it has held" in restored.why
    assert stream.window() == 4


def test_what_is_tried_and_is_bad_again_is_taken_back(stream):
    one, two, _ = stream.bundles
    stream.window(slow=50)
    assert [stream.window() for _ in range(3)] == [2, 2, 3]
    stream.window()
    assert stream.window(slow=50) == 4
    back = stream.log[-1]
    assert (back.champion, back.challenger) == (one, None)
    assert [stream.window() for _ in range(3)] == [4, 4, 5]
    assert stream.log[-1].challenger == two


def test_a_canary_is_ended_tried_and_has_its_share_again(stream):
    _, two, three = stream.bundles
    stream.champion("3", canary="10%")
    stream.now_us += 10 * SECOND
    stream.window()
    stream.window(slow=50)
    assert (stream.log[-1].champion, stream.log[-1].challenger) == (two, None)
    for _ in range(3):
        stream.window()
    assert stream.log[-1].canary == Canary("card", 500, three)
    for _ in range(3):
        stream.window()
    assert (stream.log[-1].champion, stream.log[-1].canary) == (two, Canary("card", 1000, three))
    assert "held" in stream.log[-1].why


def test_a_release_by_others_begins_with_a_closed_circuit(stream):
    *_, three = stream.bundles
    stream.window(slow=50)
    stream.champion("3")
    assert stream.log[-1].champion == three
    assert [stream.window(**said) for said in ({"slow": 50}, {}, {}, {})] == [3, 3, 3, 3]
    assert stream.window(slow=50) == 4  # a window that is all of it
    assert stream.log[-1].champion == stream.bundles[0]


def test_what_a_stream_has_to_catch_up_with_is_no_fault_of_its_model(stream):
    stream.start()
    assert [stream.window(slow=500) for _ in range(3)] == [1, 1, 1]
    assert stream.window() == 1
    assert stream.window(slow=500) == 2


def test_what_another_release_replaces_is_let_be(stream, caplog):
    three = stream.bundles[2]
    stream.window()
    before = stream.now_us
    stream.now_us += 5 * SECOND
    stream.champion("3")
    stream.now_us = before  # it is not in effect when the window ends, and is when a rollback would be
    assert stream.window(slow=50) == 2
    assert stream.log[-1].champion == three
    assert "release 2 takes the place of release 1" in caplog.text


def test_of_few_rows_or_none_nothing_is_said(stream):
    assert [stream.window(fast=0, slow=9), stream.window(fast=0), stream.window(fast=4, slow=5)] == [1, 1, 1]
    stream.now_us += SECOND
    stream.breaker.look()
    assert stream.window(fast=0, slow=10) == 2


def test_what_can_not_be_done_is_said_and_tried_again(stream, caplog, monkeypatch):
    monkeypatch.setattr(stream.desk.__class__, "read", functools.partialmethod(_fail))
    stream.window(slow=50)
    assert "circuit breaker: the log is away" in caplog.text
    monkeypatch.undo()
    assert stream.window() == 1
    assert stream.window(slow=50) == 2
    # Back at the first one, and nothing is before that.
    stream.champion("1", shadows=("3",))
    stream.now_us += 10 * SECOND
    stream.window()
    assert stream.window(slow=50) == 3
    assert "nothing was before what is in effect" in caplog.text


def _fail(self):
    from pipelines.databases import DatabaseError

    raise DatabaseError("the log is away")


def test_labels_of_its_own_scores_trip_a_release_and_tell_when_it_is_good(stream):
    one, two, _ = stream.bundles
    stream.labels(1, two, 5, 35)
    assert stream.window() == 1  # too few yet
    stream.labels(1, two, 5, 5)
    assert stream.window() == 2
    opened = stream.log[-1]
    assert (opened.champion, opened.author) == (one, AUTHOR)
    assert "scores block with label 1: 10 of 50, and 0.5 is the target" in opened.why
    # Fast rows do not tell that it is over, nor do labels of what was rolled back: those of what scores now do.
    stream.labels(1, two, 100, 0)
    assert [stream.window() for _ in range(4)] == [2] * 4
    stream.labels(0, one, 50, 0)
    assert stream.window() == 2
    stream.labels(2, one, 50, 0)
    assert stream.window() == 3
    assert stream.log[-1].challenger == two
    # Its canary is judged by its own, also those of before.
    stream.labels(3, one, 0, 500)
    assert [stream.window() for _ in range(3)] == [3] * 3
    stream.labels(3, two, 30, 20)
    assert stream.window() == 4
    assert (stream.log[-1].champion, stream.log[-1].challenger) == (two, None)


def test_labels_of_scores_before_do_not_trip_the_release_in_effect(stream):
    one, two, three = stream.bundles
    stream.labels(0, one, 0, 500)
    assert [stream.window(), stream.window()] == [1, 1]
    stream.champion("3", canary="10%")
    stream.labels(1, two, 0, 500)
    stream.labels(2, two, 0, 500)  # a canary is judged, and not the champion beside it
    assert [stream.window() for _ in range(3)] == [2] * 3
    stream.labels(2, three, 0, 50)
    assert stream.window() == 3
    assert (stream.log[-1].author, stream.log[-1].champion, stream.log[-1].canary) == (AUTHOR, two, None)


def test_other_thresholds_are_judged_by_their_own_scores_and_are_not_tried(stream, caplog):
    _, two, _ = stream.bundles
    stream.champion("2", thresholds=("block=0.9",))
    stream.labels(1, two, 0, 500)
    assert [stream.window() for _ in range(3)] == [2] * 3
    stream.labels(2, two, 0, 50)
    assert stream.window() == 3
    assert (stream.log[-1].champion, stream.log[-1].thresholds) == (two, None)
    stream.window()
    for _ in range(3):
        stream.labels(3, two, 50, 0)
        assert stream.window() == 3
    assert "which no share of keys can try" in caplog.text
