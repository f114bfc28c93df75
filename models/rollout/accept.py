"""What becomes of a release of which a bundle can't score where it lands: it falls back as declared, or is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from models.project.declarations import Project
from models.project.learned import Decision
from models.rollout.apply import decide_by
from models.rollout.assign import thresholds_text
from models.rollout.records import HOLDOUT, Release, ReleaseError


@dataclasses.dataclass(frozen=True)
class Accepted:
    """A release as it is in effect, None if it is refused and the one before it goes on; and what is wrong with it.

    `wrong` has why a bundle can't score, by its id.
    """

    release: Release | None
    faults: tuple[str, ...] = ()
    wrong: Mapping[str, str] = dataclasses.field(default_factory=dict)


def accept(
    release: Release,
    project: Project,
    fault_of: Callable[[str], str | None],
    decisions_of: Callable[[str], Sequence[Decision] | None] = lambda _: None,
) -> Accepted:
    """A release with the bundles that can score; `fault_of` tells why a bundle can't.

    A champion or challenger that can't is replaced by the fallback; without one that can, the release is refused. A
    shadow that can't is left out. A release whose thresholds or holdout do not go with the project's decisions is
    refused, too; `decisions_of` gives those of a bundle of other features, None of others, so that each run that
    follows a log accepts the same releases.
    """
    wrong = {bundle: fault for bundle in release.bundles if (fault := fault_of(bundle)) is not None}
    deciding = [bundle for bundle in (release.champion, release.challenger) if bundle and bundle not in wrong]
    told = [decisions_of(bundle) for bundle in deciding] or [None]
    for decisions in [project.decisions if found is None else found for found in told if found is None or found]:
        if release.holdout is not None and HOLDOUT in [band.action for band in decisions]:
            return Accepted(None, (f"its holdout decides {HOLDOUT}, as one of the project's own decisions is called",))
        try:
            decide_by(project.model_copy(update={"decisions": list(decisions)}), thresholds_text(release))
        except ReleaseError as error:
            return Accepted(None, (str(error),))
    faults = tuple(f"bundle {bundle}: {fault}" for bundle, fault in wrong.items())
    if not wrong:
        return Accepted(release)
    scoring = [release.champion, release.challenger]
    if any(bundle in wrong for bundle in scoring):
        if release.fallback is None or release.fallback in wrong:
            return Accepted(None, faults, wrong)
        scoring = [release.fallback if bundle in wrong else bundle for bundle in scoring]
    champion, challenger = scoring
    assert champion is not None
    if challenger == champion:
        challenger = None
    shadows = tuple(each for each in release.shadows if each not in wrong and each not in (champion, challenger))
    fallback = None if release.fallback in wrong else release.fallback
    settled = dataclasses.replace(
        release,
        champion=champion,
        challenger=challenger,
        canary=release.canary if challenger else None,
        shadows=shadows,
        fallback=fallback,
    )
    return Accepted(settled, faults, wrong)
