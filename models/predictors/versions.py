"""A version of a registered bundle, as a registry tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

BUNDLE_ID = "bundle_id"  # tag of a run and of a version


@dataclass(frozen=True)
class Version:
    """One registered bundle."""

    version: int
    bundle_id: str
    aliases: tuple[str, ...]  # sorted
    created: datetime  # UTC
    run_id: str
    metrics: Mapping[str, float] = field(default_factory=dict)  # by dotted path; of `list_versions` alone
    facts: Mapping[str, str] = field(default_factory=dict)  # what else metadata tells, likewise
