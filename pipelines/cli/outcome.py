"""What a training and a run over files say of themselves at their end."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from models.predictors.evaluation import Evaluation, EvaluationError
from models.project.declarations import Project
from models.quality.calibration import is_estimated
from models.quality.circuit import change_line, noted_of
from models.quality.expectations import ESTIMATED_ROWS
from models.redact import redact
from pipelines import results
from pipelines.cli.display import (
    confusion_table,
    decision_table,
    estimate_table,
    evaluation_table,
    label_line,
    outcome_table,
    quality_line,
    split_table,
)
from pipelines.terminal import console

MAKE_ONE = "`headrace baseline` makes one of events with labels"
MAX_CONFUSED = 12  # classes, of which a terminal shows a table


def print_training(trained: Any, project: Project, registered: Any, registry: str, folder: pathlib.Path) -> None:
    """Print what was learned, from what, and where it is kept."""
    from pipelines.jobs.train import to_iso  # it imports XGBoost, which a training has imported

    outcomes = {"examples" if name == "scored" else name: n for name, n in trained.examples.outcomes.items()}
    console.print(outcome_table(outcomes, trained.examples.seconds))
    if trained.dead_letters:
        console.print(f"dead letters in {trained.dead_letters}")
    console.print(split_table([(s.name, to_iso(s.from_us)[:10], to_iso(s.to_us)[:10], s) for s in trained.splits]))
    if project.quality and trained.bundle.baseline is None:
        console.print("no baseline: no event is between training and test; `headrace baseline` makes one")
    if is_estimated(project) and trained.bundle.calibration is None:
        console.print(f"no calibration: too few labels are known between training and test; {MAKE_ONE}", soft_wrap=True)
    title = f"{project.name} {registered.version}, tested from {to_iso(trained.test_from_us)[:10]}"
    print_evaluation(trained.evaluation, title, project)
    for leak in trained.leaks:
        told = f"{leak.name} alone tells the label ({leak.measure} {leak.figure:.3f})"
        console.print(
            f"{told}: is it known when an event is scored? If not, declare it under available", soft_wrap=True
        )
    first = trained.splits[0]
    bundle = f"bundle {trained.bundle.bundle_id} in {redact(registry)}"
    console.print(f"trained on {first.rows:,} events from {to_iso(first.from_us)[:10]}; {bundle}", soft_wrap=True)
    if not registered.is_new:
        console.print(f"the same bundle as version {registered.version}, which it stays: nothing new is registered")
    if registered.champion != registered.version:
        promote = f"headrace promote {shlex.quote(str(folder))} {registered.version}"
        console.print(f"version {registered.champion} stays champion; to change that: {promote}", soft_wrap=True)


def print_scores(directory: str, project: Project, bundle: Any, labels: Sequence[str] = ()) -> None:
    """Print decisions, verdicts, and how good the scores were where labels are known."""
    decisions = results.count_decisions(directory, project)
    if sum(decisions.values()):
        console.print(decision_table(decisions))
    if project.quality:
        verdicts = results.read_verdicts(directory)
        console.print(quality_line(verdicts))
        for noted in filter(None, map(noted_of, verdicts)):
            console.print(change_line(noted), soft_wrap=True, markup=False)
    if project.label_metrics:
        print_label_metrics(results.read_label_metrics(directory).to_pylist(), project)
    for sentence in results.find_seen(directory, project, bundle):
        console.print(sentence)
    try:
        evaluation = results.evaluate_scores(directory, project, labels)
    except EvaluationError as error:  # the scores are there nonetheless
        console.print(f"not evaluated: {error}")
        return
    if evaluation is not None:
        print_evaluation(evaluation, "Scores against labels", project)
    elif project.label and not labels and project.label.field not in project.output:
        console.print(f"not measured against labels: {project.label.field} is not among the output fields")


def print_label_metrics(records: Sequence[Mapping[str, Any]], project: Project) -> None:
    """Print what is known of labels, and what figures are expected to be, if that is declared."""
    console.print(label_line(records))
    if not is_estimated(project) or not records:
        return
    if any(record[ESTIMATED_ROWS] for record in records):
        console.print(estimate_table(records, project))
    bare = sorted({record["bundle_id"] for record in records if not record["slice"] and not record[ESTIMATED_ROWS]})
    for bundle in bare:
        console.print(
            f"no estimates for bundle {bundle}: it has no calibration of this target; {MAKE_ONE}", soft_wrap=True
        )


def print_evaluation(evaluation: Evaluation, title: str, project: Project) -> None:
    """Print figures, and of a multi-class target which class was taken for which."""
    console.print(evaluation_table(evaluation, title, project.label.field if project.label else "positives"))
    confusion = evaluation.overall.as_dict().get("confusion")
    if confusion and len(confusion) <= MAX_CONFUSED:
        console.print(confusion_table(confusion, project.outputs))
