"""Online stores in tests: what they hold, as one digest, and the features that they give events."""

import contextlib
import hashlib

import pyarrow as pa

from models.record import EVENT_TIME, TIMESTAMP
from models.store.kinds import kinds_of
from models.store.past import PastFeatures
from pipelines.store import open_store


def digest(uri, project):
    """Of all tiles, and of how far they go."""
    found = hashlib.sha256()
    with contextlib.closing(open_store(uri, project.feature_set)) as store:
        for kind in kinds_of(project).values():
            for place, tile in store.scan(kind.name):
                found.update(repr((place, tile)).encode())
        found.update(repr(store.progress()).encode())
    return found.hexdigest()


def events_of(project, rows):
    """Valid events as a batch; their times are seconds since 1970 or microseconds, as they stand in `rows`."""
    time = project.event.time
    names = [name for name in project.event_type.carried if name != time]
    fields = {name: project.contract.fields[name].arrow_type for name in names}
    arrays = [pa.array([row.get(name) for row in rows], kind) for name, kind in fields.items()]
    times = pa.array([row[time] * 1_000_000 for row in rows]).cast(TIMESTAMP)
    return pa.RecordBatch.from_arrays([*arrays, times], names=[*names, EVENT_TIME])


def features_from(uri, project, events):
    """The events with the features that a store's tiles give them."""
    past = PastFeatures(project)
    with contextlib.closing(open_store(uri, project.feature_set)) as store:
        events = past.join(events, store.read(past.places_of_tables(events)))
        return past.compute(events, store.read(past.places(events)))


def same_features(project, ours, theirs):
    """Whether two tables of events in one order have the same bits in each feature."""
    for name in project.feature_names:
        one, other = (
            table[name].combine_chunks() if isinstance(table, pa.Table) else table[name] for table in (ours, theirs)
        )
        assert one.type == other.type, name
        assert one.is_null().equals(other.is_null()), name
        bits = [values.fill_null(0).to_numpy(zero_copy_only=False).tobytes() for values in (one, other)]
        if bits[0] != bits[1]:
            return False
    return True
