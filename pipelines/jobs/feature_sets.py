"""What features the bundles of a new release record may have: a run's own, or those of the run that takes over."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING

from models.predictors import registry
from models.predictors.bundle import Bundle, BundleError
from models.rollout.records import Release, ReleaseError
from pipelines.feature_notes import features_id, note_features, read_features

if TYPE_CHECKING:
    from pipelines.jobs.releasing import Desk


class Features(enum.Enum):
    """Whose features what is to score may have."""

    SAME = "those of the champion before"
    OTHER = "those of the desk's project"
    ANY = "those of any bundle of the log"


def require_same(desk: Desk, new: Release, before: Release) -> None:
    """ReleaseError if what is to score has other features than the champion before, where that can still be loaded."""
    if new.champion == before.champion and new.challenger in (None, before.challenger):
        return
    known = bundle_of(desk, before.champion)
    for bundle in filter(None, (new.champion, new.challenger)):
        found = bundle_of(desk, bundle)
        if known and found and found.feature_definitions != known.feature_definitions:
            raise ReleaseError(
                f"bundle {bundle} has other features than the champion {before.champion}, which one run can't both "
                "have: `headrace takeover`, of the folder that declares them, hands over from one run to another"
            )


def note_bundles(desk: Desk, bundles: Iterable[str]) -> None:
    """Keep beside the log which features bundles have, for runs that can't load them."""
    known = read_features(desk.place, desk.project.name)
    found = {name: bundle for name in bundles if name not in known and (bundle := bundle_of(desk, name))}
    if found:
        features = {name: features_id(bundle.feature_definitions) for name, bundle in found.items()}
        note_features(desk.place, desk.project.name, features)


def bundle_of(desk: Desk, bundle: str) -> Bundle | None:
    """A registered bundle; None if it can't be loaded any more."""
    with contextlib.suppress(registry.RegistryError, BundleError):
        return registry.load_by_id(desk.project.name, bundle, desk.registry)
    return None
