"""What trips as labels come: of the scores that what is in effect is judged by, how many turn out to be right.

A label comes long after its score, so it says something of the release that made the score, and not of the one that is
in effect by then. And labels come in their own time, so they are waited for until they are enough.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from models.metrics import LABELLED, Series
from models.objectives import Ratio
from models.project.breakers import Labelled
from models.rollout.records import Release, ReleaseLog

Made = tuple[str, str]  # a release's number and a bundle's id, as the metric's labels have them


def made_alike(log: ReleaseLog, now: Release) -> frozenset[Made]:
    """By whom the scores were made that a release is judged by: its challenger if it has one, else its champion.

    It is judged by those of all releases with the same thresholds: it goes on with the same bundle, and decides alike.
    """
    bundle, thresholds = now.challenger or now.champion, now.thresholds or {}
    return frozenset((str(each.seq), bundle) for each in log.records if (each.thresholds or {}) == thresholds)


class LabelWindows:
    """Counts labels by what is declared of them, each until there are `minimum`, and then anew."""

    def __init__(self, declared: Sequence[Labelled]) -> None:
        self._told: list[tuple[Labelled, dict[Series, int]]] = [(each, {}) for each in declared]

    def look(self, found: Mapping[Series, int], made: Collection[Made]) -> dict[str, Ratio | None]:
        """By name what labels tell, by the metrics so far, that have come since it told something; None of too few."""
        return {declared.name: _look(declared, told, found, made) for declared, told in self._told}


def _look(
    declared: Labelled, told: dict[Series, int], found: Mapping[Series, int], made: Collection[Made]
) -> Ratio | None:
    counted: dict[Series, int] = {}
    total = bad = 0
    for series, number in found.items():
        said = dict(series[1])
        if series[0] != LABELLED.name or said["decision"] != declared.decision:
            continue
        if (said["release"], said["bundle"]) in made:
            counted[series] = number
            new = number - told.get(series, 0)
            total += new
            bad += new if said["label"] != declared.label else 0
    if total < declared.minimum:
        return None
    told.update(counted)
    return Ratio(declared.name, f"scores {declared.decision} with label {declared.label}", declared.target, bad, total)
