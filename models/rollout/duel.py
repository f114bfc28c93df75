"""Who is compared with whom: the champion of a time, and the canary or shadow that stands beside it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from models.errors import HeadraceError
from models.rollout.records import Release, ReleaseLog, order

Way = Literal["shadow", "canary"]


class ComparisonError(HeadraceError, ValueError):
    """Rows in which no champion and challenger can be compared."""


@dataclasses.dataclass(frozen=True)
class Duel:
    """Who is compared with whom: ids of bundles, how the challenger ran, and the releases in which both did."""

    champion: str
    challenger: str
    way: Way
    releases: dict[int, Release]

    @property
    def entity(self) -> str | None:
        """The entity of a canary's share, in the last of the releases."""
        share = max(self.releases.values(), key=order).canary
        return share.entity if self.way == "canary" and share else None


def find_duel(log: ReleaseLog, challenger: str | None, at_us: int) -> Duel:
    """Who stands against the champion of an event time, microseconds since 1970 UTC: its canary, or else its shadow.

    Raises:
        ComparisonError: if nobody does, several shadows do and none of them is named, or the one named does not.
    """
    now = log.in_effect(at_us)
    if now is None:
        raise ComparisonError("the release log has no record")
    known = [bundle for bundle in (now.challenger, *now.shadows) if bundle is not None]
    if not known:
        raise ComparisonError(
            f"release {now.seq} has neither canary nor shadow: `headrace release PROJECT VERSION --canary 5%`, or "
            "`--shadow VERSION`, sets a challenger beside the champion"
        )
    if challenger is None and now.challenger is None and len(known) > 1:
        raise ComparisonError(f"release {now.seq} has several shadows, {', '.join(known)}: say --challenger VERSION")
    chosen = challenger or known[0]
    if chosen not in known:
        raise ComparisonError(f"bundle {chosen} is neither canary nor shadow in release {now.seq}")
    way: Way = "canary" if chosen == now.challenger else "shadow"
    both = {r.seq: r for r in log.records if r.champion == now.champion and _runs(r, chosen, way)}
    return Duel(now.champion, chosen, way, both)


def _runs(release: Release, bundle: str, way: Way) -> bool:
    return bundle in release.shadows if way == "shadow" else bundle == release.challenger
