"""Holdout: rows that pass whatever their score stand for what is blocked, by exact weights."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.predictors.evaluation import average_precision, roc_auc
from models.predictors.weighted import weighted_figures
from models.rollout.assign import parts_of
from models.rollout.comparison import compare
from models.rollout.duel import find_duel
from models.rollout.holdout import UNIT, weigh, weights_of
from models.rollout.sides import make_sides
from models.rollout.tables import notes_of
from tests.kit.rollouts import DAY, START, holdout, make_rows, project_of, shadow_log, shadowed

BLOCKS = project_of(blocks=["block"])
ROWS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(0, 4)), max_size=40)


@settings(deadline=None)
@given(ROWS)
def test_a_row_of_a_weight_counts_as_so_many_rows(rows):
    label, score, weight = (
        np.array([row[i] for row in rows], kind) for i, kind in enumerate((np.int64, np.float32, np.int64))
    )
    found = weighted_figures(label, score, weight)
    labels, scores = np.repeat(label, weight), np.repeat(score, weight)
    if len(set(labels.tolist())) < 2:
        assert found == {"roc_auc": None, "average_precision": None}
        return
    wanted = {"roc_auc": roc_auc(labels, scores), "average_precision": average_precision(labels, scores)}
    assert found == pytest.approx(wanted, rel=1e-12)
    order = np.random.default_rng(0).permutation(len(rows))
    assert weighted_figures(label[order], score[order], weight[order]) == found
    # In any unit, beyond what 64 bits hold of their products.
    assert weighted_figures(label, score, weight * 10**12) == pytest.approx(wanted, rel=1e-12)


def held(rows, per_10000):
    return parts_of(pa.array(rows["card"]), "holdout") < per_10000


def blocked_world(rows, per_10000):
    """What a run leaves where blocks are real: no label of what was blocked, but for those held out."""
    scores, shadows = shadowed(rows)
    inside = held(rows, per_10000)
    decided = np.array(scores["decision"].to_pylist())
    gone = (decided == "block") & ~inside
    share = np.full(len(decided), per_10000)
    weight = weigh(pa.array(decided), pa.array(inside), pa.array(share), ["block"])
    scores = scores.set_column(4, "fraud", pa.array(rows["fraud"], mask=gone)).append_column("weight", weight)
    return scores.set_column(6, "decision", pa.array(np.where(inside, "holdout", decided).tolist())), shadows, gone


def compared(scores, shadows, per_10000, project=BLOCKS):
    log = shadow_log(holdout=holdout(per_10000)) if per_10000 else shadow_log()
    duel = find_duel(log, None, START + 99 * DAY)
    return compare(make_sides(scores, shadows, duel, project), duel, project)


def test_weights_are_one_in_the_share_of_those_who_would_be_blocked():
    decided = pa.array(["block", "block", "approve", "approve"]).dictionary_encode()
    inside = pa.array([True, False, True, False])

    def weights(*shares):
        return weigh(decided, inside, pa.array(shares, pa.int32()), ["block"]).to_pylist()

    assert weights(500, 500, 500, 500) == [20, 0, 1, 1]
    assert weights(300, 10_000, 1, 1) == [33.3333, 0, 1, 1]
    assert weights(1, 0, 0, 5) == [10_000, None, None, 1]
    rows = pa.table({"weight": pa.array([33.3333, None, 0, 1e4, 1])})
    assert weights_of(rows, BLOCKS).tolist() == [333_333, 0, 0, UNIT * UNIT, UNIT]
    assert weights_of(rows, project_of()) is None
    assert weights_of(pa.table({"weight": pa.nulls(3, pa.float64())}), BLOCKS) is None
    assert weights_of(pa.table({"score": [1.0]}), BLOCKS) is None


def test_weighted_figures_are_those_of_all_and_unweighted_ones_are_not():
    """Over 40 worlds, as of one world the few that are held out tell but roughly."""
    weighted, selected = [], []
    for seed in range(40):
        rows = make_rows(10_000, seed=seed, cards=4000)
        wanted = roc_auc(rows["fraud"], rows["old0"])
        scores, _, gone = blocked_world(rows, 1000)
        found = weighted_figures(np.where(gone, 0, rows["fraud"]), rows["old0"], weights_of(scores, BLOCKS))
        weighted.append(found["roc_auc"] - wanted)
        selected.append(roc_auc(rows["fraud"][~gone], rows["old0"][~gone]) - wanted)
    assert abs(np.mean(weighted)) < 0.003
    assert np.mean(selected) < -0.02


def test_a_comparison_weighs_what_blocked_events_left_and_nothing_else():
    rows = make_rows(4000)
    scores, shadows, gone = blocked_world(rows, 1000)
    found = compared(scores, shadows, 1000)
    auc = found.overall.figures["roc_auc"]
    assert found.weighted
    assert set(found.overall.figures) == {"roc_auc", "average_precision"}
    assert auc.low < auc.change < auc.high
    assert found.overall.labels[0] == (~gone).sum()
    # A label of a blocked event, which there should be none of, changes nothing.
    names = scores.schema.names
    known = scores.set_column(names.index("fraud"), "fraud", pa.array(rows["fraud"]))
    assert compared(known, shadows, 1000).overall == found.overall
    found = compared(*blocked_world(rows, 0)[:2], 0)
    assert found.selected
    assert not found.weighted
    assert "log_loss" in found.overall.figures


def test_the_report_says_how_its_labels_came():
    rows = make_rows(1000)
    for per_10000, project, told in (
        (0, BLOCKS, ["Labels are selected by the models' own decisions"]),
        (1000, BLOCKS, ["Figures by labels are weighted", " events were held out"]),
        (0, project_of(), []),
    ):
        scores, shadows, _ = blocked_world(rows, per_10000)
        notes = list(notes_of(compared(scores, shadows, per_10000, project)))
        assert len(notes) == len(told)
        for note, part in itertools.zip_longest(notes, told):
            assert part in note
