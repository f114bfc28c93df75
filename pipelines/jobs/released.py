"""The releases of a run: the log that is followed, and what of it is in effect."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

from models.partitions import Span
from models.predictors.booster import Scorer
from models.predictors.bundle import Bundle
from models.predictors.registry_store import absolute_uri
from models.project.declarations import Project
from models.quality.circuit import Circuit
from models.record import RELEASE, ROLE, WEIGHT
from models.redact import redact
from models.rollout.accept import accept
from models.rollout.instead import needs_instead
from models.rollout.records import Release, ReleaseError, ReleaseLog, order
from pipelines.circuits import read_circuits
from pipelines.config import RunSpec
from pipelines.databases import is_database
from pipelines.jobs.registered import Bundles, RegisteredBundles
from pipelines.refusals import note_refusals, read_refusals
from pipelines.release_store import need_log, newest_digest
from pipelines.results import RunError

_LOG = logging.getLogger("headrace")


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
            if (found := self.bundles.find_own(bundle)) is not None:
                return found
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
