"""Releases: what is asked for becomes a record of the project's log, once its bundles are proven."""

from __future__ import annotations

import dataclasses
import getpass
import pathlib
import shlex
import time
from collections.abc import Callable, Sequence

from models.predictors import registry
from models.predictors.registry import CHAMPION, Version
from models.project.declarations import Project
from models.project.sections import duration_text
from models.redact import redact
from models.rollout.changes import (
    Told,
    begin,
    follow,
    is_same,
    parse_share,
    parse_threshold,
    rolled_back,
    with_canary,
    with_champion,
    with_fallback,
    with_holdout,
    with_shadows,
    with_thresholds,
)
from models.rollout.records import HOLDOUT, Release, ReleaseError, ReleaseLog, time_text
from pipelines.jobs.feature_sets import Features, note_bundles, require_same
from pipelines.release_store import WRITTEN_WITHIN_US, append, check_writable, place_of_log, read_log

NONE = "none"  # in the place of a version or share: there is to be none
Change = Callable[[ReleaseLog, int], Release]  # of a log and an event time: the state from then on


@dataclasses.dataclass(frozen=True)
class Desk:
    """Where releases of a project are made.

    Fields:
        project: the declarations in `folder`.
        registry: its URI.
        place: of the log, a database's URL.
        at_us: event time in microseconds since 1970 UTC, which a log of the clock `event` takes as now; else None.
    """

    project: Project
    folder: pathlib.Path
    registry: str
    place: str
    at_us: int | None = None

    def check(self) -> None:
        """ReleaseError if no release can be written here, or the time of the log's clock is missing."""
        check_writable(self.place)
        clock = self.project.rollout.clock
        if clock == "event" and self.at_us is None:
            raise ReleaseError(
                "the log's clock is event time (rollout.clock), so say --at TIME, the event time at which it is made"
            )
        if clock == "wall" and self.at_us is not None:
            raise ReleaseError("--at is for a log whose clock is event time: declare rollout: {clock: event}")

    def read(self) -> ReleaseLog:
        """The log, without records if it is not begun; ReleaseError if it is kept by other rules than declared."""
        declared = self.project.rollout
        log = read_log(self.place, self.project)
        if log is None:
            return ReleaseLog(declared.clock, declared.lead, ())
        if (log.clock, log.lead_us) != (declared.clock, declared.lead):
            raise ReleaseError(
                f"release log {redact(self.place)}: was begun with {_rules(log.clock, log.lead_us)}, and project.yaml "
                f"declares {_rules(declared.clock, declared.lead)}: its records hold by what they were made with, so "
                "declare that again, or name another log"
            )
        return log

    def now_us(self) -> int:
        """The time of the log's clock."""
        return time.time_ns() // 1000 if self.at_us is None else self.at_us


def told_by(why: str, author: str | None, approver: str | None = None, change_id: str | None = None) -> Told:
    """What people say of a release, by the user of this machine if no author is named.

    Raises:
        ReleaseError: if a text looks like a secret, or there is no user.
    """
    for option, text in (("--reason", why), ("--author", author), ("--approver", approver), ("--change-id", change_id)):
        if text is not None and redact(text) != text:
            raise ReleaseError(f"{option} holds what looks like a secret, and a release log is read by many")
    if author is None:
        try:
            author = getpass.getuser()
        except (OSError, KeyError, ImportError):  # as of its versions
            raise ReleaseError("this machine does not tell who you are: say --author NAME") from None
    return Told(why, author, approver, change_id)


def release(
    desk: Desk, change: Change, told: Told, from_us: int | None = None, features: Features = Features.SAME
) -> ReleaseLog | None:
    """Add a record with a changed state to a log, from an event time on or as soon as can be; None if nothing changes.

    The first one begins the log with the registry's champion. `features` says what bundles may score: those with the
    champion's features, or with others, too.

    Raises:
        ReleaseError: if the record can't be, another command was first, or a bundle is of features that it may not be.
        RegistryError, BundleError, ModelError: if a bundle is not registered, is damaged or does not give its golden
            scores.
    """
    desk.check()
    seen = desk.read()
    champion = None if seen.records else registry.find(desk.project.name, CHAMPION, desk.registry).bundle_id

    def make(now_us: int) -> ReleaseLog:
        log = seen if champion is None else dataclasses.replace(seen, records=(begin(champion, now_us, told.author),))
        effective_us = effective_time(seen, now_us, from_us)
        longer = follow(log, change(log, effective_us), now_us, effective_us, told)
        longer.check(desk.project.entities)
        return longer

    planned = make(desk.now_us())
    new, before = planned.records[-1], _before(planned)
    if is_same(new, before):
        return None
    for bundle in new.bundles:
        if bundle not in before.bundles:
            prove(desk, bundle, fits=features is not Features.ANY)
    if features is Features.SAME:
        require_same(desk, new, before)

    def make_again(now_us: int) -> ReleaseLog:
        longer = make(now_us)
        if not is_same(longer.records[-1], new):
            raise ReleaseError("a planned release took effect meanwhile: say again what is still wanted")
        return longer

    longer = append(desk.place, desk.project.name, seen, desk.now_us, make_again)
    note_bundles(desk, (*before.bundles, *new.bundles))
    return longer


def release_promoted(
    project: Project, folder: pathlib.Path, tracking_uri: str, version: int, why: str, at_us: int | None = None
) -> ReleaseLog | None:
    """Add a version that a training made champion to the project's log, if there is one; None if nothing changes.

    `at_us` is the event time of the training, for a log whose clock that is.

    Raises:
        ReleaseError: as `release`.
    """
    place = place_of_log(tracking_uri, None)
    if place is None or read_log(place, project) is None:
        return None
    is_event = project.rollout.clock == "event"
    if is_event and at_us is None:
        promote = f"headrace promote {shlex.quote(str(folder))} {version} --at TIME"
        raise ReleaseError(
            f"version {version} is not in the release log, whose clock is event time: `{promote}` does it"
        )
    desk = Desk(project, folder, tracking_uri, place, at_us if is_event else None)
    return release(desk, changes(desk, str(version)), told_by(why, None))


def roll_back(desk: Desk, told: Told) -> ReleaseLog:
    """Add a record that ends a canary, or has the champion before; as `release`, and ReleaseError if there is none.

    The champion before may be of other features, whose run then takes over again.
    """
    log = release(desk, rolled_back, told, features=Features.ANY)
    assert log is not None  # what it goes back to is another state
    return log


def changes(
    desk: Desk,
    version: str,
    canary: str | None = None,
    shadows: Sequence[str] = (),
    holdout: str | None = None,
    entity: str | None = None,
    fallback: str | None = None,
    thresholds: Sequence[str] = (),
) -> Change:
    """What the options of a release change: a version is champion, or with a share its challenger.

    What is not said stays; `none` ends shadows, a holdout, a fallback or thresholds.

    Raises:
        ReleaseError: if a share, an entity or a threshold can't be.
        RegistryError: if there is no such version.
    """
    bundle = _bundle_of(desk, version)
    shadow_ids = tuple(_bundle_of(desk, shadow) for shadow in shadows if shadow != NONE)
    if NONE in shadows and shadow_ids:
        raise ReleaseError(f"--shadow {NONE} stands alone")
    if NONE in thresholds and len(thresholds) > 1:
        raise ReleaseError(f"--threshold {NONE} stands alone")
    told = None if NONE in thresholds else dict(map(parse_threshold, thresholds))
    fallback_id = None if fallback in (None, NONE) else _bundle_of(desk, str(fallback))
    per_10000 = None if canary is None else parse_share(canary)
    held_out = None if holdout is None else 0 if holdout == NONE else parse_share(holdout)
    if entity is not None and per_10000 is None and not held_out:
        raise ReleaseError("--entity says by which keys --canary and --holdout take their share")
    if held_out and HOLDOUT in [band.action for band in desk.project.decisions]:
        raise ReleaseError(
            f"--holdout: what is held out is decided {HOLDOUT}, as one of `decisions` is called: rename that"
        )
    by = _entity(desk.project, entity) if per_10000 is not None or held_out else ""

    def change(log: ReleaseLog, effective_us: int) -> Release:
        state = log.in_effect(effective_us)
        assert state is not None  # record 0 is
        state = with_champion(state, bundle) if per_10000 is None else with_canary(state, bundle, by, per_10000)
        if shadows:
            state = with_shadows(state, shadow_ids)
        if fallback is not None:
            state = with_fallback(state, fallback_id)
        if thresholds:
            state = with_thresholds(state, told)
            check_thresholds(desk.project, state)
        return state if held_out is None else with_holdout(state, by, held_out)

    return change


def move_alias(desk: Desk, log: ReleaseLog) -> Version | None:
    """Move the registry's alias to the champion of the newest record, if that takes effect at once; its version.

    A release that is planned for later leaves the alias: None.
    """
    new = log.records[-1]
    assert new.effective_from_us is not None
    assert new.made_at_us is not None
    if new.effective_from_us > effective_time(log, new.made_at_us, None):
        return None
    version = version_of(registry.list_versions(desk.project.name, desk.registry), new.champion)
    if CHAMPION not in version.aliases:
        registry.set_alias(desk.project.name, CHAMPION, version.version, desk.registry)
    return version


def version_of(versions: Sequence[Version], bundle: str) -> Version:
    """The version of a bundle; ReleaseError if it is not registered."""
    for version in versions:
        if version.bundle_id == bundle:
            return version
    raise ReleaseError(f"bundle {bundle} is in the release log, and no version of the registry")


def prove(desk: Desk, bundle_id: str, fits: bool = True) -> None:
    """Load a bundle, with every digest checked, and score its golden rows.

    ReleaseError if it `fits` and is of other features than the desk's project.
    """
    from models.predictors.booster import Scorer
    from pipelines.jobs.fitting import find_misfit

    name = desk.project.name
    version = version_of(registry.list_versions(name, desk.registry), bundle_id).version
    bundle = registry.load(name, version, desk.registry)
    if fits and (fault := find_misfit(desk.project, desk.folder, bundle)):
        train = f"headrace train {shlex.quote(str(desk.folder))}"
        raise ReleaseError(
            f"{name} {version} (bundle {bundle_id}) does not fit {desk.folder}: {fault}; a release changes a run's "
            f"model, not its features: `{train}` makes one for these, and other features need a run of their own"
        )
    Scorer.from_bundle(bundle)


def check_thresholds(project: Project, state: Release) -> None:
    """ReleaseError if a state's thresholds do not go with a project's decisions."""
    from models.rollout.apply import decide_by
    from models.rollout.assign import thresholds_text

    decide_by(project, thresholds_text(state))


def effective_time(log: ReleaseLog, now_us: int, from_us: int | None) -> int:
    """When a release takes effect; ReleaseError for a time before all can know of it."""
    earliest = now_us + log.lead_us + (WRITTEN_WITHIN_US if log.clock == "wall" else 0)
    if from_us is None:
        return earliest
    if from_us < earliest:
        raise ReleaseError(
            f"--from {time_text(from_us)} is too early: what is made now takes effect from {time_text(earliest)} on, "
            f"{duration_text(log.lead_us)} (rollout.lead) after it is written, so that all know of it"
        )
    return from_us


def _rules(clock: str, lead_us: int) -> str:
    return f"clock {clock} and lead {duration_text(lead_us)}"


def _before(log: ReleaseLog) -> Release:
    """What would be in effect without the newest record."""
    new = log.records[-1]
    assert new.effective_from_us is not None
    before = dataclasses.replace(log, records=log.records[:-1]).in_effect(new.effective_from_us)
    assert before is not None  # record 0 is
    return before


def _bundle_of(desk: Desk, version: str) -> str:
    return registry.find(desk.project.name, version, desk.registry).bundle_id


def _entity(project: Project, given: str | None) -> str:
    there = ", ".join(sorted(project.entities)) or "none"
    if given is None and len(project.entities) != 1:
        raise ReleaseError(f"say with --entity by whose keys the share is taken; the project has {there}")
    if given is not None and given not in project.entities:
        raise ReleaseError(f"--entity {given!r:.80} is no entity of the project; there are {there}")
    return given or next(iter(project.entities))
