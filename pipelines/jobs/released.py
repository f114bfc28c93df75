"""The releases of a run: the log that is followed, and the bundles that it names, loaded and proven once a process."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import logging
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from models.errors import HeadraceError
from models.partitions import Span
from models.predictors import registry
from models.predictors.booster import Scorer
from models.predictors.bundle import Bundle
from models.predictors.registry_store import absolute_uri
from models.project.declarations import Project
from models.project.learned import Decision
from models.quality.circuit import Circuit
from models.record import RELEASE, ROLE, WEIGHT
from models.redact import redact
from models.rollout.accept import accept
from models.rollout.instead import needs_instead
from models.rollout.records import Release, ReleaseError, ReleaseLog, order
from pipelines.circuits import read_circuits
from pipelines.config import RunSpec
from pipelines.databases import DatabaseError, is_database
from pipelines.feature_notes import features_id, read_features
from pipelines.jobs.fitting import find_misfit
from pipelines.refusals import note_refusals, read_refusals
from pipelines.release_store import need_log, newest_digest
from pipelines.results import RunError

_LOG = logging.getLogger("headrace")
MOST_LOADED = 8  # models that a process keeps; of more, those that were used last


class Bundles(Protocol):
    """What gives the scorers of bundles."""

    def __call__(self, bundle_id: str) -> Scorer | None:
        """A loaded and proven model, None of one with other features; HeadraceError if there is none."""

    def is_own(self, bundle_id: str) -> bool:
        """Whether a bundle can be loaded and has this run's features."""

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

    def is_own(self, bundle_id: str) -> bool:
        """By its definitions, each digest checked."""
        try:
            return self._own(bundle_id) is not None
        except HeadraceError:
            return False

    def is_other(self, bundle_id: str) -> bool:
        """By what the log's database tells, or else its definitions."""
        try:
            return self._own(bundle_id) is None
        except HeadraceError:
            return False

    def decisions_of(self, bundle_id: str) -> Sequence[Decision] | None:
        """As the bundle's own project declared them; none of one that can't be loaded any more."""
        if self._own(bundle_id) is not None:
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


@dataclasses.dataclass(frozen=True, eq=False)
class Released:
    """The release log that a run follows, and the bundles that it names.

    `place` is a database, to which records may be added while a stream runs, or an exported file, which is complete.
    What was refused of a database's log stays refused; with `notes`, as in a stream, what is refused now is noted, too.
    """

    place: str
    project: Project
    bundles: Bundles
    notes: bool = False

    @property
    def grows(self) -> bool:
        """Whether records may be added."""
        return is_database(self.place)

    def read(self) -> ReleaseLog:
        """The log as it is now; ReleaseError if there is none, or it is not as it was written."""
        return need_log(self.place, self.project)

    def newest(self) -> str | None:
        """The digest of the last record; None if there is none, or the log does not grow."""
        return newest_digest(self.place, self.project.name) if self.grows else None

    def circuits(self) -> tuple[Circuit, ...]:
        """The changes of the circuit breaker that were noted, if one is declared; DatabaseError if none can be read."""
        if self.project.breaker is None:
            return ()
        return tuple(noted.circuit for noted in read_circuits(self.place, self.project.name))

    def first_bundle(self) -> Bundle:
        """The first one with the run's own features that the log names, whose baseline is looked at.

        RunError if there is none: such a run would score nothing, as where features were changed by mistake.
        """
        for bundle in dict.fromkeys(bundle for record in self.read().records for bundle in record.bundles):
            if self.bundles.is_own(bundle):
                return self.bundles.load(bundle)
        raise RunError(
            f"release log {redact(self.place)}: names no sound bundle with the features, decisions and event "
            f"declarations of {self.project.name} as they are: `headrace release FOLDER champion --shadow VERSION` "
            "lets one with these score beside, and `headrace takeover` hands over to it"
        )

    def in_effect(self, log: ReleaseLog, span: Span) -> tuple[Release, ...]:
        """The releases, accepted, that events of a span may have: the last before it begins, and those in it.

        Where they may fall back to one before, all up to the span's end.
        """
        releases = sorted(log.records, key=order)
        if span.stop_us is not None:
            releases = [release for release in releases if order(release)[0] < span.stop_us]
        if span.start_us is None or needs_instead(self.project):
            return tuple(self.accept(releases))
        before = [release for release in releases if order(release)[0] <= span.start_us]
        first = itertools.islice(self.accept(reversed(before)), 1)
        return (*first, *self.accept(releases[len(before) :]))

    def load_all(self, releases: Iterable[Release]) -> Callable[[str], Scorer | None]:
        """The scorers of all that releases name, to go with a graph to where there is no registry."""
        found = list(releases)
        named = {bundle for release in found for bundle in (release.champion, release.challenger, *release.shadows)}
        named |= {release.fallback for release in found if needs_instead(self.project)}
        return {bundle: self.bundles(bundle) for bundle in sorted(filter(None, named))}.__getitem__

    def accept(self, releases: Iterable[Release]) -> Iterator[Release]:
        """The releases as they are in effect, but for those that are refused; what is wrong is logged.

        Raises:
            ReleaseError: if it is record 0 that is refused, before which there is none, or another run follows the log.
            DatabaseError: if what was refused can't be read or noted.
        """
        known = read_refusals(self.place, self.project.name)
        fault_of, decisions_of = functools.cache(self.bundles.fault_of), functools.cache(self.bundles.decisions_of)
        for release in releases:
            refused = {bundle: known.get((release.seq, bundle)) or fault_of(bundle) for bundle in release.bundles}
            accepted = accept(release, self.project, refused.get, decisions_of)
            news = [bundle for bundle in accepted.wrong if (release.seq, bundle) not in known]
            if {release.champion, release.challenger}.intersection(news) and self._is_shared():
                raise ReleaseError(
                    f"release {release.seq}: {'; '.join(accepted.faults)}; another run follows the log, too, and can't "
                    "know of it: its events wait until that is mended"
                )
            if self.notes and self.grows and news:
                note_refusals(self.place, self.project.name, release.seq, accepted.wrong)
            if accepted.faults:
                what = "goes on without" if accepted.release else "is refused, and the one before it goes on:"
                _LOG.error("release %d %s %s", release.seq, what, "; ".join(accepted.faults))
            if accepted.release is not None:
                if self.bundles(accepted.release.champion) is None:
                    _LOG.info("release %d is of other features: another run scores its events", release.seq)
                yield accepted.release
            elif release.seq == 0:
                raise ReleaseError(f"release 0: {'; '.join(accepted.faults)}")

    def _is_shared(self) -> bool:
        """Whether the log names bundles of other features."""
        return any(map(self.bundles.is_other, {bundle for record in self.read().records for bundle in record.bundles}))


def follow_log(spec: RunSpec, folder: pathlib.Path, tracking_uri: str) -> Released:
    """The log that a run follows, and its registry's bundles, by places that workers in another folder find, too."""
    assert spec.releases is not None
    log = absolute_uri(spec.releases) if is_database(spec.releases) else os.path.abspath(spec.releases)
    threads, explained = spec.threads_of_call, bool(spec.reason_codes)
    bundles = RegisteredBundles(spec.project, folder.absolute(), absolute_uri(tracking_uri), threads, explained, log)
    return Released(log, spec.project, bundles)


def check_columns(project: Project) -> None:
    """RunError if score rows have columns of the names that a run with releases adds."""
    names = {project.event.id, project.event.time, *project.entities.values(), *project.output, *project.feature_names}
    for name in (ROLE, RELEASE, *([WEIGHT] if project.rollout.blocks else [])):
        if name in names:
            raise RunError(
                f"{name!r} is a column of {project.name}'s score rows, and of those that tell of releases: rename it"
            )


def check_unscored(released: Released, log: ReleaseLog) -> None:
    """RunError if several runs follow a log, and each would give what can't be scored the fallback decision."""
    if released.project.fallback is None:
        return
    for champion in dict.fromkeys(record.champion for record in log.records):
        if released.bundles.is_other(champion):
            raise RunError(
                f"{released.project.name} declares a fallback, and the release log names champion {champion}, which is "
                "of other features: both runs would decide so of what can't be scored"
            )
