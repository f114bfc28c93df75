"""Scores and reasons: the same bits however rows are cut, and no model that is not the expected one."""

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import numpy as np
import pytest
import xgboost
from hypothesis import given, settings

from models.predictors.booster import ModelCorrupt, ModelError, ModelMismatch, Scorer
from models.predictors.training import fit, golden, model_bytes

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]

NAMES = ["amount", "weekend", "night", "count", "mean", "risk", "constant", "constant too"]
ROWS = 10_000


@pytest.fixture(scope="module")
def features():
    random = np.random.default_rng(11)
    rows = random.normal(size=(ROWS, len(NAMES))).astype(np.float32)
    rows[:, 1:3] = rows[:, 1:3] > 0
    rows[random.random(rows.shape) < 0.05] = np.nan
    rows[:, 6:] = 1.0
    return rows


@pytest.fixture(scope="module")
def model(features):
    random = np.random.default_rng(12)
    margin = np.nan_to_num(features[:, 0] * 2 + features[:, 5] - features[:, 1]) - 2
    label = random.random(ROWS) < 1 / (1 + np.exp(-margin))
    return model_bytes(fit(features, label, {"n_estimators": 40, "max_depth": 5}, feature_names=NAMES))


@pytest.fixture(scope="module")
def given_model(model, features):
    golden_features, golden_scores = golden(model, features)
    return {
        "sha256": hashlib.sha256(model).hexdigest(),
        "feature_names": NAMES,
        "golden_features": golden_features,
        "golden_scores": golden_scores,
    }


@pytest.fixture(scope="module")
def scorer(model, given_model):
    return Scorer(model, **given_model)


@pytest.fixture(scope="module")
def whole(scorer, features):
    return scorer.score(features), scorer.contributions(features, 3)


def test_scores_are_xgboosts(model, features, whole):
    rows = xgboost.DMatrix(features, feature_names=NAMES)
    expected = xgboost.Booster(model_file=bytearray(model)).predict(rows)
    assert whole[0].dtype == np.float32
    assert whole[0].tobytes() == expected.tobytes()


def test_one_row_scores_as_among_ten_thousand(scorer, features, whole):
    alone = np.concatenate([scorer.score(features[i : i + 1]) for i in range(ROWS)])
    assert alone.tobytes() == whole[0].tobytes()


def test_one_row_is_explained_as_among_ten_thousand(scorer, features, whole):
    some = range(0, ROWS, 23)
    alone = [scorer.contributions(features[i : i + 1], 3) for i in some]
    assert np.concatenate([a.feature for a in alone]).tobytes() == whole[1].feature[some].tobytes()
    assert np.concatenate([a.value for a in alone]).tobytes() == whole[1].value[some].tobytes()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 300), max_size=6))
def test_no_cut_or_order_changes_a_bit(scorer, features, whole, cuts):
    parts = np.split(features[:300], sorted(cuts))
    assert b"".join(scorer.score(part).tobytes() for part in parts) == whole[0][:300].tobytes()
    explained = b"".join(scorer.contributions(part, 3).value.tobytes() for part in parts)
    assert explained == whole[1].value[:300].tobytes()
    backwards = np.ascontiguousarray(features[:300][::-1])
    assert scorer.score(backwards)[::-1].tobytes() == whole[0][:300].tobytes()


def test_threads_change_no_bit(model, given_model, scorer, features, whole):
    two = Scorer(model, **given_model, nthread=2)
    assert two.score(features).tobytes() == whole[0].tobytes()
    assert two.contributions(features[:500], 3).value.tobytes() == whole[1].value[:500].tobytes()
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(scorer.score, np.array_split(features, 100)))
    assert np.concatenate(at_once).tobytes() == whole[0].tobytes()


def test_contributions_are_ranked_and_add_up(model, scorer, features):
    found = scorer.contributions(features[:200], len(NAMES))
    rows = xgboost.DMatrix(features[:200], feature_names=NAMES)
    every = xgboost.Booster(model_file=bytearray(model)).predict(rows, pred_contribs=True)
    for row, (feature, value) in enumerate(zip(*found, strict=True)):
        ranked = sorted(range(len(NAMES)), key=lambda i: (-abs(every[row, i]), i))
        assert feature.tolist() == ranked
        assert value.tolist() == every[row, ranked].tolist()
    assert found.feature[:, -2:].tolist() == [[6, 7]] * 200  # never split on: equal, in feature order
    score = scorer.score(features[:200]).astype(np.float64)
    np.testing.assert_allclose(found.value.sum(axis=1) + every[:, -1], np.log(score / (1 - score)), atol=1e-4)


def test_inputs_are_kept_and_outputs_not_shared(scorer, features):
    rows = features[:50].copy()
    first = scorer.score(rows)
    kept = first.copy()
    scorer.score(features[50:100])
    scorer.contributions(rows, 2)
    np.testing.assert_array_equal(rows, features[:50])
    np.testing.assert_array_equal(first, kept)


def test_no_rows(scorer, features):
    assert scorer.score(features[:0]).shape == (0,)
    found = scorer.contributions(features[:0], 3)
    assert (found.feature.shape, found.feature.dtype) == ((0, 3), np.int32)
    assert (found.value.shape, found.value.dtype) == ((0, 3), np.float32)
    assert scorer.contributions(features[:0], 99).value.shape == (0, len(NAMES))


def test_infinities_compare_as_numbers(scorer, features):
    rows = features[:4].copy()
    rows[:, 0] = np.inf, np.finfo(np.float32).max, -np.inf, np.finfo(np.float32).min
    rows[1:, 1:] = rows[0, 1:]
    score, (feature, value) = scorer.score(rows), scorer.contributions(rows, 3)
    for same, as_same in ((0, 1), (2, 3)):
        assert score[same] == score[as_same]
        assert feature[same].tolist() == feature[as_same].tolist()
        assert value[same].tolist() == value[as_same].tolist()
    assert score[0] != score[2]


def test_rows_of_another_shape_are_refused(scorer, features):
    for call in (scorer.score, lambda rows: scorer.contributions(rows, 1)):
        with pytest.raises(ValueError, match="float64"):
            call(features.astype(np.float64))
        with pytest.raises(ValueError, match=r"float32 \[n, 8\] is needed"):
            call(np.ascontiguousarray(features[:, :7]))
        with pytest.raises(ValueError, match="is needed"):
            call(features[0])
        with pytest.raises(ValueError, match="C-contiguous"):
            call(np.asfortranarray(features))
    with pytest.raises(ValueError, match="top_k is 0"):
        scorer.contributions(features, 0)


def test_pickles_as_its_bytes_and_is_proven_again(model, scorer, features, whole):
    pickled = pickle.dumps(scorer)
    assert len(pickled) < len(model) + 5000
    assert pickle.loads(pickled).score(features).tobytes() == whole[0].tobytes()
    damaged = pickled.replace(model[1000:1020], model[1000:1019] + bytes([model[1019] ^ 1]))
    assert damaged != pickled
    with pytest.raises(ModelCorrupt):
        pickle.loads(damaged)


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_damaged_bytes_never_reach_xgboost(model, given_model, monkeypatch, place):
    damaged = bytearray(model)
    damaged[place] ^= 1
    monkeypatch.setattr(xgboost, "Booster", lambda *_, **__: pytest.fail("xgboost saw the bytes"))
    with pytest.raises(ModelCorrupt, match="sha256 is"):
        Scorer(bytes(damaged), **given_model)


def test_bytes_that_are_no_model_are_refused(given_model):
    text = b"{not a model}"
    with pytest.raises(ModelCorrupt, match="cannot read it"):
        Scorer(text, **{**given_model, "sha256": hashlib.sha256(text).hexdigest()})


def test_other_features_are_refused(model, given_model):
    swapped = [NAMES[1], NAMES[0], *NAMES[2:]]
    with pytest.raises(ModelMismatch, match=r"difference is at 0: \('amount',\) for \('weekend',\)"):
        Scorer(model, **{**given_model, "feature_names": swapped})
    with pytest.raises(ModelMismatch, match=r"8 features, 7 are expected.* at 7"):
        Scorer(model, **{**given_model, "feature_names": NAMES[:7]})


def test_other_scores_are_refused(model, given_model):
    scores = given_model["golden_scores"].copy()
    scores[3] = np.nextafter(scores[3], np.float32(1))
    with pytest.raises(ModelMismatch, match=r"1 of 33 golden scores differ; row 3 scores 0\.\d+, 0\.\d+ is"):
        Scorer(model, **{**given_model, "golden_scores": scores})
    with pytest.raises(ModelMismatch, match="at least one golden row"):
        Scorer(model, **{**given_model, "golden_scores": scores[:0], "golden_features": np.empty((0, 8))})
    with pytest.raises(ModelMismatch, match="golden features are float64"):
        Scorer(model, **{**given_model, "golden_features": given_model["golden_features"].astype(np.float64)})


def test_errors_are_one_family(model, given_model):
    assert issubclass(ModelCorrupt, ModelError)
    assert issubclass(ModelMismatch, ModelError)
    with pytest.raises(ValueError, match="nthread is 0"):
        Scorer(model, **given_model, nthread=0)
