"""The models of an endpoint: one bundle, or those that a release log names, swapped while it serves."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from models.predictors.booster import Scorer
from models.project.declarations import Project
from models.rollout.apply import decide_by
from models.rollout.assign import Releases, thresholds_text
from models.rollout.records import Release, ReleaseError, order
from models.serving.answers import Scoring

if TYPE_CHECKING:
    from pipelines.jobs.released import Released


class Champion(NamedTuple):
    """The model that rows of features are scored by, and the project whose bands decide."""

    bundle_id: str
    scorer: Scorer
    project: Project


class Models(Protocol):
    """What scores."""

    def current(self) -> Scoring:
        """What scores events; ReleaseError if the log that says so can't be followed any more."""

    def champion(self) -> Champion | None:
        """The champion of now; None of a project without a model. ReleaseError if it is of other features."""

    def close(self) -> None:
        """Follow no more."""


@dataclasses.dataclass(frozen=True)
class OneModel:
    """One bundle, or none."""

    project: Project
    scorer: Scorer | None = None
    bundle_id: str = ""

    def current(self) -> Scoring:
        """The bundle."""
        return Scoring(self.scorer, self.bundle_id)

    def champion(self) -> Champion | None:
        """The bundle."""
        return None if self.scorer is None else Champion(self.bundle_id, self.scorer, self.project)

    def close(self) -> None:
        """Nothing is followed."""


class ReleasedModels:
    """Those of a release log, which is looked at once a second; bundles are loaded and proven before they score."""

    def __init__(self, released: Released) -> None:
        """HeadraceError if the log can't be read, or a bundle of record 0 can't score."""
        from pipelines.sources.release_feed import Follower

        self._released = released
        self._known: dict[int, Release] = {}
        self._scoring = Scoring()
        self._is_wall = released.read().clock == "wall"
        self._follower = Follower(released)
        self._follower.start()
        self.current()

    def current(self) -> Scoring:
        """Each event's release."""
        news, _ = self._follower.take(-(1 << 60))
        if news:
            self._known |= {release.seq: release for release in news}
            self._scoring = Scoring(releases=Releases(self._known.values()), bundles=self._released.bundles)
        return self._scoring

    def champion(self) -> Champion | None:
        """The champion of the last release that has taken effect; by a log of event times, of the last."""
        now_us = time.time_ns() // 1000
        self.current()
        told = [r for r in self._known.values() if not self._is_wall or order(r)[0] <= now_us]
        last = max(told, key=order)
        scorer = self._released.bundles(last.champion)
        if scorer is None:
            raise ReleaseError(f"bundle {last.champion}, the champion of release {last.seq}, has other features")
        return Champion(last.champion, scorer, decide_by(self._released.project, thresholds_text(last)))

    def close(self) -> None:
        """Look at the log no more."""
        self._follower.close()
