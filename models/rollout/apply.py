"""Score rows as releases say: each event by its release's model and thresholds, and by those that run as shadows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_dictionary, column, concat_batches, partition, same_text, take_rows, with_column
from models.dead_letters import split_good
from models.predictors.booster import Scorer
from models.project.declarations import Project
from models.record import (
    BUNDLE,
    DECISION,
    HELD_OUT,
    HOLDOUT_SHARE,
    RELEASE,
    RELEASE_NUMBER,
    RELEASE_ROLE,
    ROLE,
    SHADOWS,
    THRESHOLDS,
    WEIGHT,
)
from models.rollout.assign import SHADOW
from models.rollout.holdout import weigh
from models.rollout.records import HOLDOUT, ReleaseError
from models.score import score_batch, with_columns

# From a bundle's id to what scores with it, loaded and proven; None of one with other features, for another run.
Bundles = Callable[[str], Scorer | None]


def split_own(batch: pa.RecordBatch, bundles: Bundles) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The events that this run scores, and those that another one does, as their bundles have other features.

    The batch has the columns of `models.rollout.assign`.
    """
    encoded = as_dictionary(column(batch, BUNDLE))
    codes = encoded.indices.to_numpy()
    others = [code for code in np.unique(codes).tolist() if bundles(encoded.dictionary[code].as_py()) is None]
    left = np.isin(codes, others)
    return split_good(batch, left), split_good(batch, ~left)


def score_released(batch: pa.RecordBatch, project: Project, bundles: Bundles, reason_codes: int) -> pa.RecordBatch:
    """Score rows as `models.score.score_batch` makes them, in the batch's order, with `role` and `release` at the end.

    The batch has the columns of `models.rollout.assign`. Where the project declares decisions, that of an event that is
    held out is HOLDOUT, so that it passes whatever its score. Where some of them block, `weight` is known,
    if the event's release has a holdout.

    Raises:
        ReleaseError: if a bundle has other features, see `split_own`.
    """
    keys = _codes(batch, BUNDLE, THRESHOLDS)
    parts = []
    for _, part in partition(batch, keys):
        bundle, decided = _first(part, BUNDLE), decide_by(project, _first(part, THRESHOLDS))
        scorer = bundles(bundle)
        if scorer is None:
            raise ReleaseError(f"bundle {bundle}, which is to score by the release log, has other features")
        parts.append(score_batch(part, decided, scorer, bundle, reason_codes))
    rows = concat_batches(parts)
    if len(parts) > 1:
        rows = take_rows(rows, np.argsort(np.argsort(keys, kind="stable"), kind="stable"))
    told = {ROLE: column(batch, RELEASE_ROLE), RELEASE: column(batch, RELEASE_NUMBER)}
    held_out = column(batch, HELD_OUT)
    if project.rollout.blocks:
        weight = weigh(column(rows, DECISION), held_out, column(batch, HOLDOUT_SHARE), project.rollout.blocks)
        rows = with_column(rows, WEIGHT, weight)
    if DECISION in rows.schema.names and pc.any(held_out).as_py():
        decided = column(rows, DECISION).cast(pa.string())
        rows = with_column(rows, DECISION, pc.if_else(held_out, HOLDOUT, decided).dictionary_encode())
    return with_columns(rows, told)


def score_shadows(batch: pa.RecordBatch, project: Project, bundles: Bundles) -> Iterator[pa.RecordBatch]:
    """The rows that each shadow of each event's release makes of it: a batch a bundle, with the role `shadow`.

    A shadow of other features is left to another run. Thresholds are for the features of the bundle that scores.
    """
    for _, part in partition(batch, _codes(batch, SHADOWS, THRESHOLDS, BUNDLE)):
        own = bundles(_first(part, BUNDLE)) is not None
        decided = decide_by(project, _first(part, THRESHOLDS)) if own else project
        for bundle in json.loads(_first(part, SHADOWS)):
            if (scorer := bundles(bundle)) is None:
                continue
            rows = score_batch(part, decided, scorer, bundle, 0)
            told = {ROLE: same_text(SHADOW, part.num_rows), RELEASE: column(part, RELEASE_NUMBER)}
            yield with_columns(rows, told)


def decide_by(project: Project, thresholds: str) -> Project:
    """The project with a release's thresholds, a JSON object of the lowest scores by action, in place of its own.

    Raises:
        ReleaseError: if one is of no decision, or they do not fall from decision to decision.
    """
    if not thresholds:
        return project
    told: dict[str, float] = json.loads(thresholds)
    bands = [band.model_copy(update={"at_least": told.get(band.action, band.at_least)}) for band in project.decisions]
    actions = [band.action for band in bands]
    if unknown := sorted(set(told) - set(actions)):
        raise ReleaseError(f"thresholds: {unknown[0]!r} is no decision of the project; there are: {', '.join(actions)}")
    bounds = [band.at_least for band in bands if band.of is None and band.at_least is not None]
    if any(low >= high for high, low in itertools.pairwise(bounds)):
        raise ReleaseError(f"thresholds: they fall from decision to decision, which {bounds} do not")
    return project.model_copy(update={"decisions": bands})


def _codes(batch: pa.RecordBatch, *names: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A number int64[n] for each row: of rows that have the same texts in all columns, the same."""
    codes = np.zeros(batch.num_rows, np.int64)
    for name in names:
        values = column(batch, name)
        encoded = as_dictionary(values)
        codes = codes * max(len(encoded.dictionary), 1) + encoded.indices.to_numpy()
    return codes


def _first(batch: pa.RecordBatch, name: str) -> str:
    return str(column(batch, name)[0].as_py())
