"""`headrace store`: fill an online store from files, and look whether one has what they say."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from models.project.sections import parse_duration
from models.record import Outcome
from models.store.kinds import Kind, Place, kinds_of
from pipelines.config import RunSpec
from pipelines.graph import GraphConfig, fill
from pipelines.jobs.files import open_files
from pipelines.jobs.score import in_any_order
from pipelines.jobs.status import Status
from pipelines.prechecks import UsageError
from pipelines.runners import IN_PROCESS, make_pipeline
from pipelines.sinks.answers import KeepCounts, read_counts
from pipelines.sinks.store import WriteStore
from pipelines.store import Progress, open_store
from pipelines.store.compare import Difference, Fault, compare
from pipelines.terminal import working

SHOWN = 20  # entities that are named of each fault


def fill_store(spec: RunSpec) -> collections.Counter[str]:
    """Write the past that the spec's files have into its store; events by outcome."""
    assert spec.store is not None
    uri = spec.store
    return in_any_order(lambda sort: _fill(spec, uri, sort))


def _fill(spec: RunSpec, uri: str, sort: bool) -> collections.Counter[str]:
    source = open_files(spec, sort=sort)
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        store = WriteStore(uri, spec.project, parse_duration(spec.lateness))
        config = GraphConfig(spec.project, source, store, KeepCounts(scratch), spec.shard_count)
        pipeline = make_pipeline(IN_PROCESS, [], spec.job)
        fill(pipeline, config)
        with working("filling the store", Status(pipeline.runner).rows), spec.profile.failures():
            pipeline.run().wait_until_finish()
        with contextlib.closing(open_store(uri, spec.project.feature_set, create=True)) as filled:
            filled.settle(whole=True)  # so that who reads finds all in tiles
        return read_counts(scratch)


@dataclasses.dataclass(frozen=True)
class Checked:
    """What was compared, up to when, in microseconds since 1970 UTC, and the tiles that are not as they should be.

    `store` and `files` are how far each of both goes; `left` are tiles that were to be mended and were not, as others
    wrote them meanwhile, or as they are damaged and may have had rows later than those of the files.
    """

    until_us: int
    store: Progress
    files: Progress
    faults: dict[Fault, list[Place]]
    left: list[Place]

    @property
    def is_behind(self) -> bool:
        """Whether files have later events than the store."""
        return (self.store.newest_us or 0) < (self.files.newest_us or 0)


def check_store(spec: RunSpec, mend: bool) -> Checked:
    """Compare the spec's store with what its files say of the time that both know, and put right what is not so.

    UsageError if no event of the files can be used.
    """
    assert spec.store is not None
    project, faults = spec.project, collections.defaultdict[Fault, list[Place]](list)
    left: list[Place] = []
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-"))
        anew = str(pathlib.Path(scratch, "store.db"))
        store = stack.enter_context(contextlib.closing(open_store(spec.store, project.feature_set, create=mend)))
        outcomes = fill_store(dataclasses.replace(spec, store=anew))
        if not outcomes[Outcome.HISTORY]:
            raise UsageError(f"no event of {', '.join(spec.sources)} can be used: {dict(outcomes)}")
        expected = stack.enter_context(contextlib.closing(open_store(anew, project.feature_set)))
        has, should = store.progress(), expected.progress()
        assert should.newest_us is not None
        until_us = min(should.newest_us, should.newest_us if has.watermark_us is None else has.watermark_us - 1)
        newest_us = max(should.newest_us, has.newest_us or should.newest_us)
        # What is later than the files could not be put right.
        store.settle(mend and until_us >= (has.newest_us or 0), whole=True)
        for kind in kinds_of(project).values():
            from_us = kind.passed_us(newest_us, parse_duration(spec.lateness))
            found = list(compare(store, expected, kind, from_us, until_us))
            for difference in found:
                faults[difference.fault].append(difference.place)
            if mend:
                unknown = [
                    d.place for d in found if d.fault is Fault.DAMAGED and _may_have_more(kind, d, has, until_us)
                ]
                left += unknown
                left += store.replace({d.place: (d.found, d.mended) for d in found if d.place not in unknown})
        if mend and has.watermark_us is None and not left:
            store.advance(should)
    return Checked(until_us, has, should, dict(faults), left)


def _may_have_more(kind: Kind, difference: Difference, has: Progress, until_us: int) -> bool:
    """Whether a damaged tile may have had rows later than what is known."""
    is_later = (has.newest_us or 0) > until_us
    return is_later and (kind.is_of_labels or difference.place.start_us + kind.tile_us > until_us + 1)


def name_entities(checked: Checked) -> Iterator[str]:
    """The entities of each fault, a line each, the first SHOWN of them."""
    for fault, places in checked.faults.items():
        tiles = collections.defaultdict(list)
        for place in places:
            tiles[place.kind, place.key].append(place.start_us)
        for (kind, key), starts in list(tiles.items())[:SHOWN]:
            more = f" and {len(starts) - 1} more" if len(starts) > 1 else ""
            yield f"{kind} {key!r}: {fault}: the tile from {time_text(min(starts))}{more}"
        if len(tiles) > SHOWN:
            yield f"and {len(tiles) - SHOWN:,} more entities of which tiles are {fault}"


def time_text(time_us: int | None) -> str:
    """A time in ISO 8601, UTC, or that there is none."""
    return "nothing" if time_us is None else f"{np.datetime64(time_us, 'us')}Z"
