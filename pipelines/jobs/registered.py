"""The bundles of a registry that a run scores by: loaded, proven, and kept once a process."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from models.errors import HeadraceError
from models.predictors import registry
from models.predictors.booster import Scorer
from models.predictors.bundle import Bundle
from models.project.declarations import Project
from models.project.learned import Decision
from pipelines.databases import DatabaseError
from pipelines.feature_notes import features_id, read_features
from pipelines.jobs.fitting import find_misfit

MOST_LOADED = 8  # models that a process keeps; of more, those that were used last


class Bundles(Protocol):
    """What gives the scorers of bundles."""

    def __call__(self, bundle_id: str) -> Scorer | None:
        """A loaded and proven model, None of one with other features; HeadraceError if there is none."""

    def find_own(self, bundle_id: str) -> Bundle | None:
        """A bundle that can be loaded and has this run's features; None of another one."""

    def is_other(self, bundle_id: str) -> bool:
        """Whether a bundle is known to have other features."""

    def decisions_of(self, bundle_id: str) -> Sequence[Decision] | None:
        """What a bundle of other features decides, which another run scores by; None of a bundle of this run's."""

    def fault_of(self, bundle_id: str) -> str | None:
        """Why a bundle can't score, by this run or another one; None if it can."""

    def load(self, bundle_id: str) -> Bundle:
        """The bundle, each digest checked."""


class _Loaded:
    """The scorers of this process by their bundles; the one that was longest not used is dropped."""

    def __init__(self) -> None:
        self._scorers: collections.OrderedDict[tuple[str, ...], Scorer | None] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, ...], load: Callable[[], Scorer | None]) -> Scorer | None:
        """A scorer; one that is not there is loaded, while others wait for theirs."""
        with self._lock:
            if key not in self._scorers:
                self._scorers[key] = load()
            self._scorers.move_to_end(key)
            while len(self._scorers) > MOST_LOADED:
                self._scorers.popitem(last=False)
            return self._scorers[key]


_LOADED = _Loaded()


@dataclasses.dataclass(frozen=True, eq=False)
class RegisteredBundles:
    """The bundles of a registry, by their ids; with `explained`, only those whose models explain their scores.

    `log` is the place of the release log that names them, whose database tells what features they have.
    """

    project: Project
    folder: pathlib.Path
    registry: str
    threads: int = 1
    explained: bool = False
    log: str | None = None

    def __call__(self, bundle_id: str) -> Scorer | None:
        """The scorer of a bundle, each digest checked and its golden scores given; None of one with other features."""
        return _LOADED.get(self._key(bundle_id), lambda: self._own_scorer(bundle_id))

    def find_own(self, bundle_id: str) -> Bundle | None:
        """By its definitions, each digest checked."""
        try:
            return self._own(bundle_id)
        except HeadraceError:
            return None

    def is_other(self, bundle_id: str) -> bool:
        """By what the log's database tells, or else its definitions."""
        try:
            return self._own(bundle_id) is None
        except HeadraceError:
            return False

    def decisions_of(self, bundle_id: str) -> Sequence[Decision] | None:
        """As the bundle's own project declared them; none of one that can't be loaded any more."""
        if self(bundle_id) is not None:  # which `fault_of` has proven
            return None
        try:
            declared = json.loads(self.load(bundle_id).feature_definitions)["decisions"]
        except HeadraceError:
            return ()
        return [Decision.model_validate(band) for band in declared]

    def fault_of(self, bundle_id: str) -> str | None:
        """What has other features is proven by the run that has them. It is proven anew, loaded or not."""
        try:
            bundle = self._own(bundle_id)
            if bundle is None:
                return None
            if fault := find_misfit(self.project, self.folder, bundle):
                return fault
            scorer = self._prove(bundle)
        except DatabaseError:  # it can't be told now
            raise
        except HeadraceError as error:
            return str(error)
        if self.explained and not scorer.explains:
            return "--reason-codes are of trees, and its model is none of xgboost's"
        _LOADED.get(self._key(bundle_id), lambda: scorer)
        return None

    def _own(self, bundle_id: str) -> Bundle | None:
        """The bundle, if it has this run's features."""
        noted = read_features(self.log, self.project.name).get(bundle_id) if self.log else None
        if noted not in (None, self._features):
            return None
        bundle = self.load(bundle_id)
        return bundle if features_id(bundle.feature_definitions) == self._features else None

    def _own_scorer(self, bundle_id: str) -> Scorer | None:
        bundle = self._own(bundle_id)
        return None if bundle is None else self._prove(bundle)

    def load(self, bundle_id: str) -> Bundle:
        """The registered bundle of that id."""
        return registry.load_by_id(self.project.name, bundle_id, self.registry)

    def _prove(self, bundle: Bundle) -> Scorer:
        return Scorer.from_bundle(bundle, nthread=self.threads)

    def _key(self, bundle_id: str) -> tuple[str, ...]:
        return (self.registry, self.project.name, bundle_id, str(self.threads), self._features)

    @functools.cached_property
    def _features(self) -> str:
        return features_id(self.project.feature_definitions())
