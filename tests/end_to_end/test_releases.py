"""Releases in the graph: each event is scored by the model of its time and entity, in batch and stream alike."""

import collections
import dataclasses
import functools
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from models import metrics
from models.record import DECISION, RELEASES, ROLE, SCORE
from models.rollout.assign import parts_of
from models.rollout.records import Holdout
from pipelines.graph import GraphConfig, build
from pipelines.jobs.parity import compare_tables
from pipelines.runners import FN_API, make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources import release_feed as following
from pipelines.sources.feeds import Topic, feeds_of
from pipelines.sources.files import ReadFiles
from pipelines.sources.listing import Files
from pipelines.sources.release_feed import WithReleases
from pipelines.sources.release_reader import FollowReleases
from pipelines.sources.stream import ReadStream
from tests.kit.declared import declared
from tests.kit.given import Given
from tests.kit.released_events import DAY, SCHEMA, SECOND, TEXT, at, make, same, shadows_of, shuffled
from tests.kit.releases import LOOKS, GivenBundles, GivenLog, canary, given_log, grown, make_log
from tests.kit.support import read_output, tiny_scorer, write_rows
from transforms.metrics import read
from transforms.score import Score

pytestmark = pytest.mark.slow

PROJECT = declared(TEXT, SCHEMA)
OLD, NEW, WORSE = IDS = ("0ld" * 5, "new" * 5, "w0rse" * 3)
BUNDLES = GivenBundles({name: tiny_scorer(PROJECT.model.inputs, seed) for seed, name in enumerate(IDS)})


FIVE = (
    {"at": at(1), "challenger": NEW, "canary": canary("card", 1000), "shadows": (WORSE,)},
    {"at": at(2), "canary": canary("card", 5000)},
    {"at": at(3), "champion": NEW, "challenger": None, "canary": None, "shadows": (OLD,)},
    {"at": at(3.5), "champion": WORSE, "shadows": (), "thresholds": {"block": 0.5}},
    {"at": at(4), "champion": NEW, "thresholds": None},
)
LOG = make_log(OLD, *FIVE)


def expected(events, log=LOG):
    """Id → release, role and bundle, by definition."""
    found = {}
    for event in events:
        release = log.in_effect(event["at"] * SECOND)
        share, card = release.canary, event["card"]
        inside = share and card is not None and parts_of(pa.array([card]), share.salt)[0] < share.per_10000
        role, bundle = ("canary", release.challenger) if inside else ("champion", release.champion)
        found[event["id"]] = (release.seq, role, bundle)
    return found


def assigned(scores):
    return {row["id"]: (row["release"], row["role"], row["bundle_id"]) for row in scores.to_pylist()}


def run(folder, source, followed=None, runner="DirectRunner", shards=2, scorer=None):
    """What a run wrote; without a log, by the one scorer."""
    score = Score(PROJECT, scorer, "bundle", bundles=followed.bundles if followed else None)
    sink = WriteFiles(str(folder), PROJECT.event.id, PROJECT.event.time)
    config = GraphConfig(PROJECT, source, score, sink, shards, lateness_us=DAY * SECOND)
    pipeline = make_pipeline(runner, [])
    build(pipeline, config)
    result = pipeline.run()
    result.wait_until_finish()
    return read_output(folder), read(result.metrics())


def batch(folder, events, log=LOG, runner="DirectRunner", bundles=BUNDLES, slice_us=None, **options):
    folder.mkdir(exist_ok=True)
    paths = [write_rows(folder / f"{n}.jsonl", part) for n, part in enumerate((events[::2], events[1::2]))]
    source = ReadFiles(
        feeds_of(PROJECT, {"events": Files(tuple(paths))}), **({"slice_us": slice_us} if slice_us else {})
    )
    followed = given_log(PROJECT, log, bundles)
    with_releases = WithReleases(source, tuple(followed.accept(log.records)))
    return run(folder / "out", with_releases, followed, runner, **options)[0]


def stream(folder, events, log=LOG, seed=0, bundles=BUNDLES, grows=False, at_arrival=False, **options):
    payloads = [json.dumps(row).encode() for row in events]
    followed = given_log(PROJECT, log, bundles, grows=grows)
    topics = {"events": Topic(Given(payloads, seed))}
    source = ReadStream(
        feeds_of(PROJECT, topics), 3600 * SECOND, 300_000, True, releases=followed, at_arrival=at_arrival
    )
    return run(folder, source, followed, **options)


def score_files_in(folder):
    out = folder / "out"
    return {str(path.relative_to(out)): path.read_bytes() for path in (out / "scores").rglob("*.parquet")}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("slice_us", [None, 6 * 3600 * SECOND])
def test_batch_gives_each_event_the_model_of_its_time_and_entity(tmp_path, seed, slice_us):
    events = make(seed)
    output = batch(tmp_path, events, slice_us=slice_us)
    wanted = expected(events)
    assert assigned(output.scores) == wanted
    assert len(set(wanted.values())) == 8  # six releases, two of them with a canary
    scores = output.scores
    for name in IDS:
        rows = scores.filter(pc.equal(scores["bundle_id"], name))
        columns = [rows[each].combine_chunks().cast(pa.float32()).fill_null(np.nan) for each in PROJECT.model.inputs]
        inputs = np.ascontiguousarray(np.stack([each.to_numpy(zero_copy_only=False) for each in columns], axis=1))
        assert rows[SCORE].to_pylist() == BUNDLES(name).score(inputs).tolist()
    for row in scores.to_pylist():
        block = 0.5 if row["release"] == 4 else 0.6
        assert row[DECISION] == (
            "block" if row[SCORE] >= np.float32(block) else "review" if row[SCORE] >= np.float32(0.3) else "approve"
        )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stream_is_batch_however_events_arrive(tmp_path, seed):
    events = make(seed)
    one = batch(tmp_path / "batch", events)
    other, counted = stream(tmp_path / "stream", shuffled(events, seed), seed=seed, shards=1 + seed)
    same(one.scores, other.scores)
    same(shadows_of(tmp_path / "batch" / "out"), shadows_of(tmp_path / "stream"))
    roles = collections.Counter(role for _, role, _ in expected(events).values())
    assert metrics.by_label(counted, metrics.ASSIGNED) == dict(roles)


def test_a_stream_over_a_log_that_grows_is_batch_over_all_of_it(tmp_path, monkeypatch):
    """A record more at each look: events wait until the log is known to be complete at their time."""
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)
    monkeypatch.setitem(LOOKS, "looks", 0)
    events = make(9)
    one = batch(tmp_path / "batch", events)
    followed = functools.partial(grown, LOG)
    other, _ = stream(tmp_path / "stream", shuffled(events, 9), followed, seed=9, grows=True)
    assert LOOKS["looks"] > len(LOG.records)
    same(one.scores, other.scores)
    same(shadows_of(tmp_path / "batch" / "out"), shadows_of(tmp_path / "stream"))


class Followed(FollowReleases):
    """Releases for a file sink, which groups all rows: the log has an end."""

    def expand(self, pbegin):
        found = super().expand(pbegin)
        found[RELEASES].is_bounded = True
        return found


class Growing(GivenLog):
    """A log that grows until all of it was seen."""

    grows = property(lambda self: LOOKS["looks"] <= len(LOG.records), lambda self, value: None)


def test_a_log_beside_a_source_of_the_engines_own_is_followed_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)
    monkeypatch.setitem(LOOKS, "looks", 0)
    events = make(11)
    one = batch(tmp_path / "batch", events)
    followed = Growing("given", PROJECT, BUNDLES, read_log=functools.partial(grown, LOG))
    payloads = [json.dumps(row).encode() for row in shuffled(events, 11)]
    source = ReadStream(feeds_of(PROJECT, {"events": Topic(Given(payloads, 11))}), 3600 * SECOND, 300_000, True)
    other, _ = run(tmp_path / "stream", Followed(source, followed), followed)
    assert LOOKS["looks"] > len(LOG.records)
    same(one.scores, other.scores)
    same(shadows_of(tmp_path / "batch" / "out"), shadows_of(tmp_path / "stream"))


def test_the_engines_of_this_process_agree(tmp_path):
    events = make(3)
    one = batch(tmp_path / "one", events)
    other = batch(tmp_path / "other", events, runner=FN_API, shards=1, slice_us=DAY * SECOND)
    assert one.digest == other.digest
    same(one.scores, other.scores)


def test_releases_learnt_late_differ(tmp_path):
    """So the comparison can see: the same releases forty minutes later."""
    events = make(4, number=3000)
    late = make_log(OLD, *({**change, "at": change["at"] + 2400 * SECOND} for change in FIVE))
    one, other = batch(tmp_path / "one", events), batch(tmp_path / "other", events, late)
    found = compare_tables("bundles", one.scores, other.scores, ["bundle_id", SCORE, DECISION])
    assert 0 < found.different < 1000


def test_shadows_score_every_event_and_change_no_bit(tmp_path):
    events = make(5)
    bare = make_log(OLD, *({**change, "shadows": ()} for change in FIVE))
    with_shadows, without_them = batch(tmp_path / "with", events), batch(tmp_path / "without", events, bare)
    assert len(with_shadows.scores) == len(without_them.scores) == len(events)
    assert score_files_in(tmp_path / "with") == score_files_in(tmp_path / "without")
    assert shadows_of(tmp_path / "without" / "out") is None
    shadows = shadows_of(tmp_path / "with" / "out")
    wanted = {(n, WORSE if seq < 3 else OLD) for n, (seq, *_) in expected(events).items() if seq in (1, 2, 3)}
    assert {(row["id"], row["bundle_id"]) for row in shadows.to_pylist()} == wanted
    assert len(shadows) == len(wanted)
    assert shadows[ROLE].unique().to_pylist() == ["shadow"]
    # A shadow says what it would say as a champion.
    alone = {row["id"]: row for row in batch(tmp_path / "alone", events, make_log(WORSE)).scores.to_pylist()}
    for row in shadows.filter(pc.equal(shadows["bundle_id"], WORSE)).to_pylist():
        assert (row[SCORE], row[DECISION]) == (alone[row["id"]][SCORE], alone[row["id"]][DECISION])


def test_those_held_out_pass_whatever_their_score(tmp_path):
    events = make(10)
    log = make_log(OLD, {"at": at(2), "holdout": Holdout("card", 2000, "held")})
    one = batch(tmp_path / "batch", events, log)
    other, _ = stream(tmp_path / "stream", shuffled(events, 10), log)
    same(one.scores, other.scores)
    bare = batch(tmp_path / "bare", events, make_log(OLD)).scores.to_pylist()
    held = 0
    for row, before in zip(one.scores.to_pylist(), bare, strict=True):
        card = events[row["id"]]["card"]
        inside = row["release"] == 1 and card is not None and parts_of(pa.array([card]), "held")[0] < 2000
        held += inside
        assert row[DECISION] == ("holdout" if inside else before[DECISION])
        assert row[SCORE] == before[SCORE]
    assert held > 20


def test_without_a_log_rows_are_as_they_were(tmp_path):
    events = make(6)
    write_rows(tmp_path / "events.jsonl", events)
    source = ReadFiles(feeds_of(PROJECT, {"events": Files((str(tmp_path / "events.jsonl"),))}))
    bare, _ = run(tmp_path / "bare", source, scorer=BUNDLES(OLD))
    released = batch(tmp_path / "released", events, make_log(OLD))
    assert bare.scores.schema.names == released.scores.schema.names[:-2]
    assert released.scores.schema.names[-2:] == ["role", "release"]
    same(bare.scores.drop_columns(["bundle_id"]), released.scores)
    assert assigned(released.scores) == dict.fromkeys(range(len(events)), (0, "champion", OLD))


def test_scores_at_arrival_end_as_those_in_order(tmp_path):
    events = make(7)
    one = batch(tmp_path / "batch", events)
    payloads = [json.dumps(row).encode() for row in shuffled(events, 7)]
    followed = given_log(PROJECT, LOG, BUNDLES)
    said = {}
    source = ReadStream(
        feeds_of(PROJECT, {"events": Topic(Given(payloads, 7))}),
        3600 * SECOND,
        300_000,
        True,
        releases=followed,
        at_arrival=True,
    )
    from tests.kit.streams import Collect, _found

    _found.update(scores=[], dead_letters=[], fallback=[])
    score = Score(PROJECT, None, "", keep_marks=True, bundles=followed.bundles)
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, GraphConfig(PROJECT, source, score, Collect(), 2, lateness_us=DAY * SECOND, at_arrival=True))
    pipeline.run().wait_until_finish()
    for found in _found["scores"]:
        said |= {row["id"]: row for row in found.to_pylist()}
    for row in one.scores.to_pylist():
        for name in ("release", "role", "bundle_id", SCORE, DECISION):
            assert said[row["id"]][name] == row[name]


def test_a_release_whose_bundle_can_not_score_falls_back_or_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)
    events = make(8)
    broken = dataclasses.replace(BUNDLES, faults={WORSE: "its golden scores differ"})
    for name, change, wanted in (
        ("refused", {}, NEW),
        ("fallback", {"fallback": OLD}, OLD),
    ):
        changes = [dict(change) for change in FIVE]
        changes[3] |= change
        log = make_log(OLD, *changes)
        one = batch(tmp_path / name, events, log, bundles=broken)
        other, _ = stream(tmp_path / f"{name} stream", shuffled(events, 8), log, bundles=broken)
        same(one.scores, other.scores)
        found = {row[2] for n, row in assigned(one.scores).items() if at(3.5) <= events[n]["at"] * SECOND < at(4)}
        assert found == {wanted}
        monkeypatch.setitem(LOOKS, "looks", 0)
        grows = functools.partial(grown, log)
        _, counted = stream(tmp_path / f"{name} grows", shuffled(events, 8), grows, bundles=broken, grows=True)
        assert counted[metrics.REFUSED_RELEASES.name, ()] == 3  # two have it as a shadow, one as the champion
