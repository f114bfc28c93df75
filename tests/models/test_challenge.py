"""A challenger passes the gate only if it is better, by the margin, and on no slice worse than declared."""

import pytest

from models.predictors.challenge import compare, has_fallen
from models.predictors.evaluation import Evaluation, Metrics
from models.predictors.measures import Figures
from models.project.retraining import Gate


def evaluation(overall, **shops):
    return Evaluation(
        Metrics(100, 10, roc_auc=overall), {"shop": {name: Metrics(50, 5, roc_auc=auc) for name, auc in shops.items()}}
    )


def passed(gate, champion, challenger):
    return [each.passed for each in compare(Gate(metric="roc_auc", **gate), champion, challenger)]


@pytest.mark.parametrize(
    ("margin", "champion", "challenger", "better"),
    [
        (0.0, 0.8, 0.81, True),
        (0.0, 0.8, 0.8, False),
        (0.0, 0.8, 0.79, False),
        (0.25, 0.5, 0.75, True),
        (0.25, 0.5, 0.7, False),
        (0.0, None, 0.9, False),
        (0.0, 0.9, None, False),
    ],
)
def test_it_must_be_better_by_the_margin(margin, champion, challenger, better):
    assert passed({"margin": margin}, evaluation(champion), evaluation(challenger)) == [better]


def test_a_slice_may_be_worse_by_what_is_declared():
    champion, challenger = evaluation(0.5, a=0.75, b=0.5, c=None), evaluation(0.75, a=0.5, b=1.0, c=None)
    assert passed({}, champion, challenger) == [True]
    assert passed({"loss": 0.25}, champion, challenger) == [True, True, True, True]
    assert passed({"loss": 0.125}, champion, challenger) == [True, False, True, True]
    assert passed({"loss": 0.125, "slices": {"shop": 0.25}}, champion, challenger) == [True, True, True, True]
    assert passed({"slices": {"shop": 0.0}}, champion, challenger) == [True, False, True, True]


def test_of_losses_less_is_better():
    champion, challenger = (Evaluation(Figures(9, {"rmse": value}), {}) for value in (3.0, 2.0))
    assert [each.gain for each in compare(Gate(metric="rmse"), champion, challenger)] == [1.0]
    assert [each.passed for each in compare(Gate(metric="rmse"), challenger, champion)] == [False]
    assert has_fallen("rmse", 2.0, 3.0, 0.5)
    assert not has_fallen("rmse", 3.0, 2.0, 0.5)
    assert has_fallen("roc_auc", 0.75, 0.5, 0.125)
    assert not has_fallen("roc_auc", 0.75, 0.5, 0.25)
