"""One model gives the same score bits under every set of libraries that is locked.

The model was trained by xgboost 3.2; `python -m tests.end_to_end.test_golden_scores` makes it and its scores anew.
"""

import pathlib

import numpy as np
import pytest
import xgboost as xgb

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

FOLDER = pathlib.Path(__file__).parent / "golden_scores"


def make_rows():
    """2,000 rows of 7 features from integers alone, so that they are the same under every numpy; some are missing."""
    numbers = np.arange(2000 * 7, dtype=np.uint64).reshape(2000, 7)
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)
    rows = (mixed.astype(np.float64) / 2**20).astype(np.float32)
    rows[mixed % 11 == 0] = np.nan
    return rows


def read_scores():
    return np.array([int(line, 16) for line in (FOLDER / "scores.txt").read_text().split()], np.uint32)


def score(rows, model):
    booster = xgb.Booster({"nthread": 1}, model_file=str(model))
    return booster.inplace_predict(rows, missing=np.nan).astype(np.float32).view(np.uint32)


def test_the_model_scores_as_where_it_was_trained():
    assert (score(make_rows(), FOLDER / "model.ubj") == read_scores()).all()


def test_the_scores_tell_rows_apart():
    assert len(np.unique(read_scores())) > 500


def test_a_model_without_its_last_tree_has_other_scores(tmp_path):
    xgb.Booster(model_file=str(FOLDER / "model.ubj"))[:19].save_model(tmp_path / "less.ubj")
    assert (score(make_rows(), tmp_path / "less.ubj") != read_scores()).mean() > 0.9


def main():
    rows = make_rows()
    label = (
        np.nan_to_num(rows[:, 0]) * 3 + np.nan_to_num(rows[:, 1])
        > np.nan_to_num(rows[:, 2]) * 2 + np.nan_to_num(rows[:, 3])
    ) * 1.0
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 4, "base_score": 0.5, "seed": 1, "nthread": 1},
        xgb.DMatrix(rows, label),
        20,
    )
    FOLDER.mkdir(exist_ok=True)
    booster.save_model(FOLDER / "model.ubj")
    scores = score(rows, FOLDER / "model.ubj")
    (FOLDER / "scores.txt").write_text("".join(f"{s:08x}\n" for s in scores))


if __name__ == "__main__":
    main()
