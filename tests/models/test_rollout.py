"""Challenger against champion: the same report whatever order rows come in, right figures, and the declared verdict."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from models.predictors.evaluation import roc_auc
from models.record import TIMESTAMP
from models.rollout.assign import parts_of
from models.rollout.comparison import compare
from models.rollout.duel import ComparisonError, find_duel
from models.rollout.figures import GROUPS, compare_means, compare_shares, groups_of
from models.rollout.rules import Verdict, judge
from models.rollout.sides import make_sides
from models.score import decide
from tests.kit.release_logs import ENTITIES
from tests.kit.releases import make_log
from tests.kit.rollouts import (
    DAY,
    NEW,
    OLD,
    PROJECT,
    RULES,
    START,
    canaried,
    canary_log,
    holdout,
    make_rows,
    project_of,
    shadow_log,
    shadowed,
    table,
)

pytestmark = pytest.mark.slow

END = START + 100 * DAY
NONE = pa.table({})


def decided(scores, shadows=NONE, log=None, project=PROJECT, challenger=None):
    duel = find_duel(log or shadow_log(), challenger, END)
    return judge(
        project.name, compare(make_sides(scores, shadows, duel, project), duel, project), project.rollout.rules
    )


def as_bytes(found):
    return json.dumps(found.as_dict(), allow_nan=False)


def says(found, rule):
    return next(each.verdict for each in found.rulings if each.rule == rule)


def mixed(rows, seed):
    """The rows in another order, in other parts, and a third of them twice."""
    chosen = np.random.default_rng(seed)
    again = rows.take(chosen.choice(len(rows), len(rows) // 3, replace=False))
    every = pa.concat_tables([rows, again])
    every = every.take(chosen.permutation(len(every)))
    cuts = sorted(chosen.integers(0, len(every), 5).tolist())
    return pa.concat_tables([every.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(every)], strict=True)])


@pytest.mark.parametrize("seed", range(3))
def test_order_parts_and_repeats_change_no_byte(seed):
    rows = make_rows(1500, seed=7)
    scores, shadows = shadowed(rows)
    wanted = as_bytes(decided(scores, shadows))
    assert as_bytes(decided(mixed(scores, seed), mixed(shadows, seed + 9))) == wanted
    scores = canaried(rows)
    wanted = as_bytes(decided(scores, log=canary_log()))
    assert as_bytes(decided(mixed(scores, seed), log=canary_log())) == wanted
    assert as_bytes(decided(canaried(make_rows(1500, seed=8)), log=canary_log())) != wanted


def test_a_shadow_is_compared_event_by_event():
    rows = make_rows(3000)
    scores, shadows = shadowed(rows)
    found = decided(scores, shadows).comparison
    mine, theirs = (each["decision"].to_pylist() for each in (scores, shadows))
    agreed = sum(a == b for a, b in zip(mine, theirs, strict=True))
    assert found.overall.agreement == agreed / 3000
    assert sum(count for *_, count in found.changes) == 3000 - agreed > 0
    for before, after, count in found.changes:
        assert count == sum((a, b) == (before, after) for a, b in zip(mine, theirs, strict=True))
    farthest = max(
        abs(float(a) - float(b)) for a, b, x, y in zip(rows[OLD], rows[NEW], mine, theirs, strict=True) if x != y
    )
    first = found.examples[0]
    assert abs(first.champion_score - first.challenger_score) == farthest
    assert mine[int(first.id)] == first.before != first.after == theirs[int(first.id)]
    for action, share in found.overall.decisions.items():
        assert (share.champion, share.challenger) == (mine.count(action) / 3000, theirs.count(action) / 3000)
        assert share.low < share.change < share.high
    auc = found.overall.figures["roc_auc"]
    assert (auc.champion, auc.challenger) == tuple(roc_auc(rows["fraud"], rows[name]) for name in (OLD, NEW))
    assert auc.low < auc.change < auc.high
    assert [each.events for each in found.windows] == [(n, n) for n in np.bincount((rows["at"] - START) // DAY)]
    assert {each.value for each in found.slices} == {"a", "b", "c"}
    assert sum(each.events[0] for each in found.slices) == sum(each.labels[1] for each in found.slices) == 3000


def test_a_canary_is_compared_with_the_other_entities_of_its_releases():
    rows = make_rows(6000)
    scores = canaried(rows)
    before = table(make_rows(500, seed=3), np.ones(500, np.float32), OLD, "champion", release=0)
    found = decided(pa.concat_tables([before, scores]), log=canary_log()).comparison
    inside = parts_of(pa.array(rows["card"]), NEW) < 2000
    assert found.overall.events == ((~inside).sum(), inside.sum())
    assert found.overall.agreement is None
    assert (found.changes, found.examples) == ((), ())
    auc = found.overall.figures["roc_auc"]
    assert auc.champion == roc_auc(rows["fraud"][~inside], rows[OLD][~inside])
    assert auc.challenger == roc_auc(rows["fraud"][inside], rows[NEW][inside])
    # A larger share is another release: both count.
    log = make_log(
        OLD,
        *(
            {"at": START + n, "challenger": NEW, "canary": canary_log(s).records[1].canary}
            for n, s in ((0, 2000), (1, 5000))
        ),
    )
    later = canaried({**make_rows(2000, seed=4), "id": np.arange(10_000, 12_000)}, 5000, release=2)
    both = decided(pa.concat_tables([scores, later]), log=log).comparison
    assert sum(both.overall.events) == 8000
    assert both.releases == (1, 2)


def test_events_without_the_canarys_entity_are_left_out():
    rows = make_rows(2000)
    scores = canaried(rows)
    cards = pa.array(rows["card"], mask=(rows["id"] % 7 == 0))
    none = pc.and_(cards.is_null(), pc.equal(scores["role"].combine_chunks(), "champion"))
    scores = scores.set_column(2, "card", pc.if_else(none, None, pa.array(rows["card"])))
    found = decided(scores, log=canary_log()).comparison
    assert found.apart == pc.sum(none).as_py() > 0
    assert sum(found.overall.events) == 2000 - found.apart


def test_a_correction_counts_and_what_it_corrects_does_not():
    rows = make_rows(1000)
    scores, shadows = shadowed(rows)
    wanted = as_bytes(decided(scores, shadows))
    said = scores.append_column("correction", pa.array(np.zeros(1000, bool)))
    wrong = said.slice(0, 300).set_column(5, "score", pa.array(np.full(300, 0.99, np.float32)))
    right = scores.slice(0, 300).append_column("correction", pa.array(np.ones(300, bool)))
    assert as_bytes(decided(pa.concat_tables([right, said.slice(300), wrong]), shadows)) == wanted


def test_what_a_shadow_did_not_score_is_an_error_of_it_unless_it_is_still_to_come():
    rows = make_rows(2000)
    scores, shadows = shadowed(rows)
    last_us = int(np.sort(rows["at"])[-200])
    there = (rows["at"] <= last_us) & (rows["id"] % 10 != 0)
    found = decided(scores, shadows.filter(pa.array(there))).comparison
    expected = rows["at"] <= rows["at"][there].max()
    assert found.overall.events[0] == expected.sum()
    assert found.without_pair == (expected & ~there).sum() > 100
    assert found.overall.errors.challenger == found.without_pair / found.overall.events[0]
    assert found.overall.labels[0] == there.sum()


def test_scores_that_are_not_finite_are_errors_and_measured_nowhere():
    rows = make_rows(2000)
    rows[NEW][::4] = np.nan
    found = decided(*shadowed(rows))
    assert found.comparison.overall.errors.challenger == 0.25
    assert found.comparison.overall.labels == (1500, 1500)
    assert says(found, "errors") is found.verdict is Verdict.ROLL_BACK
    rows[NEW][:] = np.nan
    found = decided(*shadowed(rows))
    assert (found.comparison.overall.psi, found.comparison.overall.figures) == (None, {})
    assert found.verdict is Verdict.ROLL_BACK
    assert as_bytes(found)


def test_an_equal_challenger_is_promoted_a_worse_one_rolled_back_and_few_events_are_waited_for():
    assert decided(*shadowed(make_rows(4000, other=0.15))).verdict is Verdict.PROMOTE
    assert decided(canaried(make_rows(9000, other=0.15)), log=canary_log(5000)).verdict is Verdict.PROMOTE
    random = decided(*shadowed(make_rows(4000, other=3.0)))
    assert says(random, "roc_auc") is random.verdict is Verdict.ROLL_BACK
    shifted = decided(*shadowed(make_rows(4000, worse=0.3)))
    assert says(shifted, "scores") is says(shifted, "share of block") is shifted.verdict is Verdict.ROLL_BACK
    few = decided(*shadowed(make_rows(150, other=3.0)))
    assert (few.verdict, few.rulings[0].rule) == (Verdict.HOLD, "events")
    rows = make_rows(4000)
    scores, shadows = shadowed(rows)
    unknown = pa.array(rows["fraud"], mask=rows["id"] >= 30)
    early = decided(scores.set_column(4, "fraud", unknown), shadows)
    assert early.verdict is says(early, "roc_auc") is Verdict.HOLD
    assert "30 labels" in decided(scores.set_column(4, "fraud", unknown), shadows).rulings[0].text


def test_a_figure_that_is_better_by_being_less_is_judged_the_other_way_round():
    project = project_of(RULES.replace("metric: roc_auc", "metric: log_loss").replace("{metric: 0.05", "{metric: 0.2"))
    assert (
        says(decided(*shadowed(make_rows(4000, noise=0.15, other=3.0)), project=project), "log_loss")
        is Verdict.ROLL_BACK
    )
    assert (
        says(decided(*shadowed(make_rows(4000, noise=3.0, other=0.15)), project=project), "log_loss") is Verdict.PROMOTE
    )


def test_a_slice_that_is_surely_worse_rolls_back():
    rows = make_rows(9000)
    bad = rows["shop"] == "b"
    rows[NEW][bad] = 1 - rows[NEW][bad]
    project = project_of("rules: {metric: roc_auc, margins: {slices: 0.1}}")
    found = decided(*shadowed(rows), project=project)
    assert found.verdict is Verdict.ROLL_BACK
    assert [each.rule for each in found.rulings] == ["slices"]
    assert "shop = b" in found.rulings[0].text
    assert "shop = a" not in found.rulings[0].text
    assert "shop = b" in found.reason()
    assert decided(*shadowed(make_rows(9000)), project=project).verdict is Verdict.PROMOTE


def test_a_slow_canary_is_rolled_back_and_without_times_there_is_no_objection():
    rows = make_rows(6000)
    scores = canaried(rows)
    ingested = rows["at"] + 100
    slow = np.where(np.array(scores["role"].to_pylist()) == "canary", 9_000_000, 1_000_000)
    for name, micros in (("ingested", ingested), ("scored", ingested + slow)):
        scores = scores.append_column(name, pa.array(micros).cast(TIMESTAMP))
    found = decided(scores, log=canary_log())
    assert found.comparison.latency_ms["99%"] == (1000.0, 9000.0)
    assert says(found, "latency") is Verdict.ROLL_BACK
    assert says(decided(canaried(rows), log=canary_log()), "latency") is Verdict.PROMOTE


def test_without_rules_the_verdict_is_hold():
    found = decided(*shadowed(make_rows(1000)), project=project_of("lead: 5s"))
    assert (found.verdict, found.rulings[0].rule) == (Verdict.HOLD, "rules")
    assert found.metric == "roc_auc"


@pytest.mark.parametrize(
    ("log", "challenger", "told"),
    [
        (make_log(OLD), None, "release 0 has neither canary nor shadow"),
        (
            make_log(OLD, {"at": START, "shadows": (NEW, "third")}),
            None,
            "has several shadows, new0, third: say --challenger",
        ),
        (shadow_log(), "third", "bundle third is neither canary nor shadow in release 1"),
        (canary_log(), None, "no row that bundle new0 scored as canary in the releases 1"),
    ],
)
def test_what_can_not_be_compared_is_said(log, challenger, told):
    log.check([*ENTITIES, "card"])
    with pytest.raises(ComparisonError, match=told):
        decided(*shadowed(make_rows(300)), log=log, challenger=challenger)


def test_too_many_windows_are_refused():
    project = project_of("rules: {window: 1s, margins: {psi: 0.2}}")
    with pytest.raises(ComparisonError, match=r"at most 1,000 are allowed: declare a longer rollout.rules.window"):
        decided(*shadowed(make_rows(3000)), project=project)


def test_of_several_shadows_the_named_one_is_compared():
    rows = make_rows(1000)
    scores, shadows = shadowed(rows)
    log = make_log(OLD, {"at": START, "shadows": (NEW, "third")})
    other = table(rows, np.zeros(1000, np.float32), "third", "shadow")
    found = decided(scores, pa.concat_tables([other, shadows]), log, challenger=NEW)
    assert found.comparison.overall == decided(scores, shadows).comparison.overall


def test_the_decision_of_those_held_out_is_what_the_model_would_decide():
    rows = make_rows(2000)
    scores, shadows = shadowed(rows)
    held = parts_of(pa.array(rows["card"]), "holdout") < 1000
    marked = scores.set_column(6, "decision", pc.if_else(pa.array(held), "holdout", scores["decision"]))
    log = shadow_log(holdout=holdout(1000))
    found, wanted = decided(marked, shadows, log), decided(scores, shadows, log)
    assert found.comparison.held_out == held.sum() > 0
    assert found.comparison.overall == wanted.comparison.overall
    assert found.comparison.changes == wanted.comparison.changes
    # By the release's own thresholds, and whatever a gate decided in its place.
    log = shadow_log(holdout=holdout(1000), thresholds={"block": 0.5})
    project = PROJECT.model_copy(
        update={
            "decisions": [
                b.model_copy(update={"at_least": 0.5}) if b.action == "block" else b for b in PROJECT.decisions
            ]
        }
    )
    said = decide(rows[OLD], project.decisions).cast(pa.string())
    stopped = marked.set_column(6, "decision", pa.array(["review"] * 2000)).append_column(
        "shadow_decision", pc.if_else(pa.array(held), "holdout", said)
    )
    shares = decided(stopped, shadows, log).comparison.overall.decisions
    assert shares["block"].champion == said.to_pylist().count("block") / 2000


def test_an_interval_is_the_jackknife_by_its_definition():
    chosen = np.random.default_rng(5)
    groups = [groups_of(pa.array(chosen.integers(0, 900, n))) for n in (500, 300)]
    hits = [chosen.random(n) < 0.3 for n in (500, 300)]
    counts = [np.bincount(g[h], minlength=GROUPS) for g, h in zip(groups, hits, strict=True)]
    found = compare_shares(counts, [np.bincount(g, minlength=GROUPS) for g in groups])
    changes = [hits[1][groups[1] != g].mean() - hits[0][groups[0] != g].mean() for g in range(GROUPS)]
    error = math.sqrt((GROUPS - 1) / GROUPS * sum((c - np.mean(changes)) ** 2 for c in changes))
    wide = 2.0639 * error  # Student's t of 24 degrees, as tables have it
    assert found.change == pytest.approx(hits[1].mean() - hits[0].mean())
    assert (found.low, found.high) == pytest.approx((found.change - wide, found.change + wide), rel=1e-4)
    means = compare_means([each.astype(np.float32) for each in hits], groups)
    assert (means.change, means.low, means.high) == pytest.approx((found.change, found.low, found.high))


def test_intervals_hold_what_is_true_about_as_often_as_they_say():
    """Of cards whose events are alike, in 300 trials: those over cards do, those over single events would not."""
    inside = {"cards": 0, "events": 0}
    for trial in range(300):
        chosen = np.random.default_rng(trial)
        cards = [chosen.integers(0, 200, 1000) + side * 1000 for side in (0, 1)]
        levels = [dict(zip(np.unique(c), chosen.beta(0.5, 1.5, len(np.unique(c))), strict=True)) for c in cards]
        hits = [np.array([chosen.random() < level[k] for k in card]) for level, card in zip(levels, cards, strict=True)]
        for name in inside:
            keys = (
                cards
                if name == "cards"
                else [np.arange(1000) + 10_000 * trial, np.arange(1000) + 5000 + 10_000 * trial]
            )
            groups = [groups_of(pa.array(key)) for key in keys]
            counts = [np.bincount(g[h], minlength=GROUPS) for g, h in zip(groups, hits, strict=True)]
            found = compare_shares(counts, [np.bincount(g, minlength=GROUPS) for g in groups])
            inside[name] += found.low <= 0 <= found.high
    assert 0.91 <= inside["cards"] / 300 <= 0.985
    assert inside["events"] / 300 < 0.9
