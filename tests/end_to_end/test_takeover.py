"""Two runs of other features over one topic and one release log: each event is scored by exactly one of them."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from models import metrics
from models.project.declarations import Project
from models.record import BUNDLE, DECISION, SCORE, THRESHOLDS
from models.rollout.apply import score_released
from models.rollout.assign import parts_of
from models.rollout.records import Holdout, ReleaseError
from pipelines.graph import GraphConfig, build
from pipelines.runners import FN_API, make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources.feeds import Topic, feeds_of
from pipelines.sources.files import ReadFiles
from pipelines.sources.listing import Files
from pipelines.sources.release_feed import WithReleases
from pipelines.sources.stream import ReadStream
from tests.kit.declared import declared
from tests.kit.given import Given
from tests.kit.released_events import DAY, SCHEMA, SECOND, TEXT, at, make, same, shadows_of, shuffled
from tests.kit.releases import GivenBundles, canary, given_log, make_log
from tests.kit.support import read_output, tiny_scorer, write_rows
from transforms.metrics import read
from transforms.score import Score

pytestmark = pytest.mark.slow

OLD, NEW = "0ld" * 5, "new" * 5


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two runs: its project, and the bundle with its features."""

    name: str
    project: Project
    bundle: str
    seed: int

    @property
    def bundles(self):
        scorer = tiny_scorer(self.project.model.inputs, self.seed)
        return GivenBundles({OLD: None, NEW: None, self.bundle: scorer})


GREEN_TEXT = (
    TEXT.replace("D: 1d}, features: {n: count, mean: mean(amount)}", "D: 2d}, features: {n: count, most: max(amount)}")
    .replace("[amount, large, n, mean]", "[amount, n, most]")
    .replace("block", "stop")
)
BLUE = Side("blue", declared(TEXT, SCHEMA), OLD, 0)
GREEN = Side("green", declared(GREEN_TEXT, SCHEMA), NEW, 1)
SIDES = (BLUE, GREEN)
TAKEOVER = (
    {"at": at(1), "shadows": (NEW,)},
    {"at": at(2), "champion": NEW, "shadows": (OLD,)},
    {"at": at(3.5), "champion": OLD, "shadows": ()},
    {"at": at(4), "champion": NEW},
    {"at": at(5), "challenger": OLD, "canary": canary("card", 3000)},
)
LOG = make_log(OLD, *TAKEOVER)


def run(side, folder, source, followed, runner="DirectRunner", shards=2):
    score = Score(side.project, None, "", bundles=followed.bundles)
    sink = WriteFiles(str(folder), side.project.event.id, side.project.event.time)
    pipeline = make_pipeline(runner, [])
    build(pipeline, GraphConfig(side.project, source, score, sink, shards, lateness_us=DAY * SECOND))
    result = pipeline.run()
    result.wait_until_finish()
    return read_output(folder), read(result.metrics())


def batch(side, folder, events, log=LOG, **options):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [write_rows(folder / f"{n}.jsonl", part) for n, part in enumerate((events[::2], events[1::2]))]
    followed = given_log(side.project, log, side.bundles)
    source = ReadFiles(feeds_of(side.project, {"events": Files(tuple(paths))}))
    releases = tuple(followed.accept(log.records))
    return run(side, folder / "out", WithReleases(source, releases), followed, **options)


def stream(side, folder, events, log=LOG, seed=0, **options):
    followed = given_log(side.project, log, side.bundles)
    topics = {"events": Topic(Given([json.dumps(row).encode() for row in events], seed))}
    source = ReadStream(feeds_of(side.project, topics), 3600 * SECOND, 300_000, True, releases=followed)
    return run(side, folder, source, followed, **options)


def owner(event, log=LOG):
    """The bundle that scores an event, by definition."""
    release, card = log.in_effect(event["at"] * SECOND), event["card"]
    share = release.canary
    inside = share and card is not None and parts_of(pa.array([card]), share.salt)[0] < share.per_10000
    return release.challenger if inside else release.champion


@pytest.mark.parametrize("seed", [0, 1])
def test_each_event_is_scored_by_exactly_one_alike_in_batch_and_stream(tmp_path, seed):
    events = make(seed)
    wanted = {event["id"]: owner(event) for event in events}
    found = {}
    for side in SIDES:
        one, _ = batch(side, tmp_path / side.name, events)
        other, counted = stream(
            side, tmp_path / f"{side.name} stream", shuffled(events, seed), seed=seed, shards=1 + seed
        )
        same(one.scores, other.scores)
        same(shadows_of(tmp_path / side.name / "out"), shadows_of(tmp_path / f"{side.name} stream"))
        ids = one.scores["id"].to_pylist()
        assert not found.keys() & set(ids)
        found |= dict.fromkeys(ids, side.bundle)
        outcomes = json.loads((tmp_path / side.name / "out" / "_SUCCESS.json").read_text())["events"]
        assert outcomes["scored"] == len(ids)
        assert outcomes["standby"] == len(events) - len(ids)
        assert metrics.by_label(counted, metrics.EVENTS)["standby"] == len(events) - len(ids)
        assert not metrics.value_of(counted, metrics.MISSING)
        # What it says is what it would say as the only run.
        alone, _ = batch(side, tmp_path / f"{side.name} alone", events, make_log(side.bundle))
        mine = alone.scores.filter(pc.is_in(alone.scores["id"], pa.array(ids)))
        names = ["id", *side.project.feature_names, SCORE, DECISION]
        same(mine.select(names), one.scores.select(names))
    assert found == wanted


def test_who_does_not_score_is_a_shadow_of_its_own_features_alone(tmp_path):
    events = make(2)
    for side, spans in ((BLUE, [(2, 3.5)]), (GREEN, [(1, 2)])):
        batch(side, tmp_path / side.name, events)
        shadows = shadows_of(tmp_path / side.name / "out")
        between = {e["id"] for e in events for begin, end in spans if at(begin) <= e["at"] * SECOND < at(end)}
        assert set(shadows["id"].to_pylist()) == between
        assert shadows["bundle_id"].unique().to_pylist() == [side.bundle]


def test_the_engines_of_this_process_agree(tmp_path):
    for side in SIDES:
        one, _ = batch(side, tmp_path / side.name, make(3))
        other, _ = batch(side, tmp_path / f"{side.name} other", make(3), runner=FN_API, shards=1)
        assert one.digest == other.digest


def test_a_log_learnt_late_differs(tmp_path):
    """So the comparison can see: the same records forty minutes later, for one of the two, lose or double events."""
    events = make(4, number=3000)
    late = make_log(OLD, *({**change, "at": change["at"] + 2400 * SECOND} for change in TAKEOVER))
    blue, _ = batch(BLUE, tmp_path / "blue", events)
    green, _ = batch(GREEN, tmp_path / "green", events, late)
    ids = [*blue.scores["id"].to_pylist(), *green.scores["id"].to_pylist()]
    assert len(set(ids)) < len(ids)
    assert len(set(ids)) < len(events)


def test_late_events_belong_to_the_run_of_their_own_time(tmp_path):
    events = make(5)
    late = [event for event in events if at(1.9) <= event["at"] * SECOND < at(2)]
    assert late
    rest = [event for event in sorted(events, key=lambda e: e["at"]) if event not in late]
    place = next(n for n, event in enumerate(rest) if event["at"] * SECOND > at(2.4))
    order = [*rest[:place], *late, *rest[place:]]
    found = {}
    for side in SIDES:
        rows = stream(side, tmp_path / side.name, order, seed=5)[0].scores.to_pylist()
        assert not found.keys() & {row["id"] for row in rows}
        found |= {row["id"]: (side.bundle, row["late"]) for row in rows}
    assert {n: bundle for n, (bundle, _) in found.items()} == {event["id"]: owner(event) for event in events}
    assert {found[event["id"]] for event in late} == {(OLD, True)}


def test_who_is_asked_for_a_score_that_another_run_gives_says_so():
    batch = pa.record_batch({BUNDLE: pa.array([OLD]), THRESHOLDS: pa.array([""])})
    with pytest.raises(ReleaseError, match=f"bundle {OLD}, which is to score by the release log, has other features"):
        score_released(batch, GREEN.project, GREEN.bundles, 0)


def test_at_arrival_no_row_is_said_of_what_another_run_scores(tmp_path):
    from tests.kit.streams import Collect, _found

    events = make(6)
    followed = given_log(GREEN.project, LOG, GREEN.bundles)
    topics = {"events": Topic(Given([json.dumps(row).encode() for row in shuffled(events, 6)], 6))}
    feeds = feeds_of(GREEN.project, topics)
    source = ReadStream(feeds, 3600 * SECOND, 300_000, True, releases=followed, at_arrival=True)
    score = Score(GREEN.project, None, "", keep_marks=True, bundles=followed.bundles)
    _found.update(scores=[], dead_letters=[], fallback=[])
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, GraphConfig(GREEN.project, source, score, Collect(), 2, lateness_us=DAY * SECOND, at_arrival=True))
    pipeline.run().wait_until_finish()
    said = {row["id"]: (row[SCORE], row[DECISION]) for batch in _found["scores"] for row in batch.to_pylist()}
    scores = batch(GREEN, tmp_path, events)[0].scores.to_pylist()
    assert said == {row["id"]: (row[SCORE], row[DECISION]) for row in scores}


def test_both_runs_accept_the_same_releases(tmp_path):
    """Thresholds and a holdout are held against the decisions of the bundle that scores, whichever run looks."""
    log = make_log(
        OLD,
        {"at": at(1), "champion": NEW, "thresholds": {"stop": 0.5}},
        {"at": at(2), "champion": OLD},  # which has no decision `stop`
        {"at": at(3), "champion": OLD, "thresholds": {"block": 0.4}, "holdout": Holdout("card", 1000, "held")},
    )
    decisions = {OLD: BLUE.project.decisions, NEW: GREEN.project.decisions}

    class Knowing(GivenBundles):
        def decisions_of(self, bundle_id):
            return None if self.scorers[bundle_id] is not None else decisions[bundle_id]

    for side in SIDES:
        bundles = Knowing(side.bundles.scorers)
        followed = given_log(side.project, log, bundles)
        assert [release.seq for release in followed.accept(log.records)] == [0, 1, 3]
