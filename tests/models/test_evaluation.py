"""The figures of models.predictors.evaluation against scikit-learn and against the plainest pandas."""

import json

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from sklearn.metrics import average_precision_score, roc_auc_score

from models.predictors.evaluation import (
    MAX_SLICE_VALUES,
    Evaluator,
    Metrics,
    TopOfDay,
    average_precision,
    evaluate,
    roc_auc,
)
from models.predictors.top_of_day import precision_at_k

scores = st.one_of(
    st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0]), st.floats(-(2.0**99), 2.0**99, width=32)
)  # few values: many ties
labelled_scores = st.lists(st.tuples(st.integers(0, 1), scores), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)
card_days = st.lists(
    st.tuples(st.integers(3, 6), st.integers(0, 7), st.integers(0, 1), scores), min_size=1, max_size=80
)


def columns(rows):
    return [np.array(column) for column in zip(*rows, strict=True)]


def card_precision_by_pandas(day, card, label, score, k):
    """Card precision a day at a time, as the handbook words it; equal scores go by card."""
    rows = pd.DataFrame({"day": day, "card": card, "label": label, "score": score})
    known, precisions = set(), []
    for _, today in rows.groupby("day"):
        unknown = today[[number not in known for number in today.card]]
        cards = unknown.groupby("card")[["score", "label"]].max().reset_index()
        checked = cards.sort_values(["score", "card"], ascending=[False, True]).head(k)
        caught = set(checked[checked.label == 1].card)
        precisions.append(len(caught) / k)
        known |= caught
    return np.mean(precisions)


@settings(deadline=None)
@given(labelled_scores)
def test_roc_auc_is_sklearns(rows):
    label, score = columns(rows)
    assert roc_auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@settings(deadline=None)
@given(labelled_scores)
def test_average_precision_is_sklearns(rows):
    label, score = columns(rows)
    assert average_precision(label, score) == pytest.approx(average_precision_score(label, score), abs=1e-12)


@settings(deadline=None)
@given(card_days, st.integers(1, 5))
def test_precision_at_k_is_the_handbooks_card_precision(rows, k):
    day, card, label, score = columns(rows)
    expected = card_precision_by_pandas(day, card, label, score, k)
    assert precision_at_k(day, card, label, score, k) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(labelled_scores, st.randoms(use_true_random=False))
def test_row_order_changes_no_bit(rows, random):
    label, score = columns(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    card, day = np.arange(len(rows)) % 3, np.arange(len(rows)) % 2
    before = evaluate(label, score, declared={"top": TopOfDay(day, card, 2)})
    top = TopOfDay(day[order], card[order], 2)
    assert before == evaluate(label[order], score[order], declared={"top": top})


@settings(deadline=None)
@given(card_days, st.integers(1, 5), st.data())
def test_a_slice_has_the_figures_of_its_rows_alone_to_the_last_bit(rows, k, data):
    day, card, label, score = columns(rows)
    part = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows))))
    sliced = evaluate(label, score, declared={"top": TopOfDay(day, card, k)}, slices={"part": part}).slices["part"]
    assert list(sliced) == [str(value) for value in np.unique(part)]
    for value, metrics in sliced.items():
        chosen = part == int(value)
        labels, scores = label[chosen], score[chosen]
        figures = {}
        if 0 < labels.sum() < len(labels):
            top = precision_at_k(day[chosen], card[chosen], labels, scores, k)
            figures = {"roc_auc": roc_auc(labels, scores), "average_precision": average_precision(labels, scores)}
            assert metrics.declared == {"top": top}
        assert metrics == Metrics(len(labels), labels.sum(), **figures, declared=metrics.declared)


def test_known_figures():
    label, score = [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]
    assert roc_auc(label, score) == 0.75
    assert average_precision(label, score) == pytest.approx(5 / 6)
    assert roc_auc([0, 1], [0.5, 0.5]) == 0.5


def test_a_found_card_leaves_the_next_days_and_equal_scores_go_by_card():
    day, card = [1, 1, 2, 2], ["b", "a", "a", "b"]
    label, score = [1, 1, 1, 0], [0.5, 0.5, 0.9, 0.1]
    assert precision_at_k(day, card, label, score, k=1) == 0.5  # "a" on day 1; "b", genuine, on day 2


def test_few_cards_are_still_divided_by_k():
    assert precision_at_k([0], [7], [1], [0.9], 100) == 0.01


def test_slices_count_every_row_and_are_none_where_a_class_is_absent():
    label, score = np.array([0, 1, 0, 1, 0]), np.array([0.1, 0.9, 0.2, 0.3, 0.8], dtype=np.float32)
    result = evaluate(
        label,
        score,
        declared={"top": TopOfDay(np.zeros(5, int), np.arange(5), 1)},
        slices={
            "night": np.array([True, True, False, False, False]),
            "hour": np.array([10, 10, 2, 2, 3], dtype=np.int8),
            "weekend": np.array([0, 0, 1, 1, np.nan], dtype=np.float32),
            "country": np.array(["PT", "PT", None, None, "BE"], dtype=object),
        },
    )
    assert result.overall == Metrics(5, 2, 5 / 6, average_precision(label, score), {"top": 1.0})
    assert list(result.slices["night"]) == ["false", "true"]
    assert result.slices["night"]["true"] == Metrics(2, 1, 1.0, 1.0, {"top": 1.0})
    assert list(result.slices["hour"]) == ["2", "3", "10"]
    assert result.slices["hour"]["3"] == Metrics(1, 0, declared={"top": None})
    assert list(result.slices["weekend"]) == ["0", "1", "null"]
    assert result.slices["country"]["null"] == Metrics(2, 1, 1.0, 1.0, {"top": 1.0})
    for values in result.slices.values():
        assert sum(metrics.rows for metrics in values.values()) == 5
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False)) == result.as_dict()


def test_what_is_not_declared_is_not_measured_and_without_rows_there_is_no_figure():
    assert evaluate([0, 1], [0.1, 0.9]).overall == Metrics(2, 1, 1.0, 1.0)
    assert evaluate([], [], slices={"a": np.array([], dtype=int)}).as_dict()["overall"]["rows"] == 0


def test_faults_are_named():
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        evaluate([0, 1], [0.5, np.nan])
    with pytest.raises(ValueError, match="0 or 1"):
        roc_auc([0, -1], [0.5, 0.5])
    with pytest.raises(ValueError, match="same length"):
        average_precision([0, 1, 1], [0.5, 0.5])
    with pytest.raises(ValueError, match="both classes"):
        roc_auc([1, 1], [0.5, 0.5])
    with pytest.raises(ValueError, match="needs a positive"):
        average_precision([0], [0.5])
    with pytest.raises(ValueError, match="at least one row"):
        precision_at_k([], [], [], [], 1)
    with pytest.raises(ValueError, match="k is 0"):
        precision_at_k([1], [1], [1], [0.5], k=0)
    with pytest.raises(ValueError, match="top: days have shape"):
        evaluate([0, 1], [0.5, 0.5], declared={"top": TopOfDay(np.array([1, 1]), np.array([1]), 1)})
    with pytest.raises(ValueError, match="slice amount is float64"):
        evaluate([0, 1], [0.5, 0.5], slices={"amount": [1.5, 2.0]})
    with pytest.raises(ValueError, match="slice mixed"):
        evaluate([0, 1], [0.5, 0.5], slices={"mixed": np.array(["a", 1], dtype=object)})
    many = np.arange(MAX_SLICE_VALUES + 1)
    with pytest.raises(ValueError, match="1001 values"):
        evaluate(many % 2, many, slices={"id": many})


@settings(deadline=None)
@given(card_days, st.integers(1, 4))
def test_parts_add_up_to_the_whole(rows, size):
    rows = sorted(rows, key=lambda row: row[0])
    whole, in_parts = Evaluator(), Evaluator()
    for evaluator, step in ((whole, len(rows)), (in_parts, size)):
        for start in range(0, len(rows), step):
            day, card, label, score = columns(rows[start : start + step])
            tops = {"top": TopOfDay(day, card.astype(str).astype(object), 2)}
            evaluator.add(label, score.astype(np.float32), declared=tops, slices={"card": card, "odd": card % 2 == 1})
    assert in_parts.evaluation() == whole.evaluation()


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_distinct_scores_are_merged_as_they_come(monkeypatch, chunk):
    monkeypatch.setattr("models.predictors.score_counts._MERGE_AFTER", 3)
    monkeypatch.setattr("models.predictors.score_counts._CHUNK", chunk)
    chosen = np.random.default_rng(1)
    label, score = chosen.integers(0, 2, 500), (chosen.integers(0, 90, 500) / 90).astype(np.float32)
    parts = Evaluator()
    for start in range(0, 500, 7):
        parts.add(label[start : start + 7], score[start : start + 7])
    assert parts.evaluation() == evaluate(label, score)


def test_a_day_that_is_over_takes_no_more_rows():
    parts, top = Evaluator(), {"top": TopOfDay(np.array([3, 5]), np.array([1, 2]), 1)}
    parts.add([0, 1], [0.1, 0.9], declared=top)
    parts.add([0, 1], [0.1, 0.9], declared={"top": TopOfDay(np.array([5, 6]), np.array([1, 2]), 1)})
    with pytest.raises(ValueError, match="rows of the day 3 come after day 3 was over"):
        parts.add([0, 1], [0.1, 0.9], declared=top)
