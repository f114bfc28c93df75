"""The numbers of a run by outcome: that they add up, and what of them a file of dead letters has."""

from __future__ import annotations

import collections

import pyarrow as pa

from models.counts import mismatch
from models.dead_letters import by_rules
from models.errors import HeadraceError
from models.features.duplicates import DUPLICATE
from models.record import Outcome
from models.routes import DUE, ROUTED

OTHER_DAYS = "dead letters of other days"  # that are counted as history, and not written


class CountMismatch(HeadraceError, RuntimeError):
    """Not every event that was read came out as one score, dead letter or duplicate, or not where it is to be."""


def check_counts(outcomes: collections.Counter[str]) -> None:
    """Raise CountMismatch unless every event that was read has one outcome, and is in each folder it is due in."""
    if (text := mismatch(outcomes)) is not None:
        raise CountMismatch(text)
    for name in (key.removeprefix(DUE) for key in outcomes if key.startswith(DUE)):
        due, there = outcomes[DUE + name], outcomes[ROUTED + name]
        if due != there:
            raise CountMismatch(f"{due} rows are due in {name}, but {there} are there")


def count_reasons(dead: pa.RecordBatch) -> dict[str, int]:
    """Dead letters by outcome, and the others than duplicates by step, field and rule of each of their reasons.

    A record with two reasons counts for both, so these numbers may add up to more than the dead letters.
    """
    counts: collections.Counter[str] = collections.Counter()
    for (step, rules), letters in by_rules(dead).items():
        if rules[0][1] == DUPLICATE:
            counts[Outcome.DUPLICATE] += letters
            continue
        counts[Outcome.DEAD_LETTERED] += letters
        for field, rule in rules:
            counts[f"{Outcome.DEAD_LETTERED}: {step}: {field}: {rule}"] += letters
    return dict(counts)
