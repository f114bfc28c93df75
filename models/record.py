"""Record types, the names of all columns that are headrace's own, and what may become of a record.

Columns whose names start with `__` go between the steps:

- `__event_time` timestamp[us, UTC]: when the event happened
- `__source` dictionary of string, `__position` int64: where the event came from (a file and a row or byte
  offset in it, a subscription and a message, ...)
- `__payload` binary: the record's original bytes; null where a source has rows. Behind validation only records of
  streams have it, up to the last step that may refuse them, and `__format`, dictionary of string, beside it
- `__marks` int8, bits: `IS_HISTORY`, the event is past already: it fills windows and is not scored;
  `IS_PROVISIONAL`, it is scored at its arrival and comes once more when the watermark has passed it;
  `IS_LATE`, it came when the watermark had passed it already; those of `IS_OPEN`, it is history, and yet adds up to
  a table that was not written
- `__published`, `__ingested` timestamp[us, UTC], of streams only: when the broker took the event, and when the
  source did
- `__faults` string, of records that their source has decoded: null, or what could not be decoded of a record, as JSON
- `__message` string, `__partition` int32, from a stream's source and in its journal only: the broker's id of the
  message, and the part of the topic that it came in
- `__earlier`, `__content` and `__label_time` are of one step each
- `__release` int32, `__held_out` bool, `__holdout_share` int32, `__role`, `__bundle`, `__shadows` and `__thresholds`,
  dictionaries of strings, of events between the step that assigns releases and the score: see models.rollout.assign
- `__since` int64, and `__instead` and `__instead_thresholds`, dictionaries of strings, beside them where a circuit
  breaker is declared; `__since` and `__otherwise_…` of score rows up to the gate: see models.rollout.instead
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:  # the process that reads Parquet files starts without the library of schemas
    from models.project.contract import Contract
    from models.project.expressions import Expression

EVENT_TIME = "__event_time"
SOURCE = "__source"
POSITION = "__position"
PAYLOAD = "__payload"
MARKS = "__marks"
PUBLISHED = "__published"
INGESTED = "__ingested"
MESSAGE = "__message"
PARTITION = "__partition"
FAULTS = "__faults"
PAYLOAD_FORMAT = "__format"
EARLIER = "__earlier"
CONTENT = "__content"
LABEL_TIME = "__label_time"
ASKED = "__asked"  # the number of a row of a spine, which asks for features and is no event
RELEASE_NUMBER, RELEASE_ROLE, BUNDLE = "__release", "__role", "__bundle"
SHADOWS, THRESHOLDS, HELD_OUT, HOLDOUT_SHARE = "__shadows", "__thresholds", "__held_out", "__holdout_share"
SINCE, INSTEAD, INSTEAD_THRESHOLDS = "__since", "__instead", "__instead_thresholds"
OTHERWISE = "__otherwise_"  # before a name: a column of the score row that takes the place of another

IS_HISTORY, IS_PROVISIONAL, IS_LATE = 1, 2, 4
# Of history, that the period of a length in which an event is was not over when the process before ended.
IS_OPEN = {"day": 8, "week": 16, "month": 32, "quarter": 64}

# Columns of score rows; those of a stream have the times by the clock, too.
SCORE = "score"
PREDICTED = "predicted"  # of a multi-class target alone
DECISION = "decision"
REASONS = "reason_codes"
BUNDLE_ID = "bundle_id"
LATE = "late"
PUBLISHED_AT = "published"
INGESTED_AT = "ingested"
SCORED_AT = "scored"
CORRECTION = "correction"
VERDICT_ID = "verdict_id"
SHADOW_DECISION = "shadow_decision"
OUTCOME = "outcome"  # of rows with the fallback decision alone: what became of their event
UNEXPECTED = "unexpected"  # of projects that mark features that are not as expected
ROLE, RELEASE = "role", "release"  # of a run with a log of releases alone
WEIGHT = "weight"  # of projects whose decisions block, see models.rollout.holdout
# What no declaration may be called.
RESERVED = (SCORE, DECISION, REASONS, BUNDLE_ID, VERDICT_ID, SHADOW_DECISION)

# Keys of a batch's schema metadata.
FORMAT = b"headrace.format"
COLUMNS = b"headrace.columns"
# In microseconds: the length of the slices, or `=` and the end of the one slice that all rows belong to.
SLICE = b"headrace.slice_us"
# The number of the record type, as digits; events say nothing.
RECORDS = b"headrace.records"
# Of a step's state that is kept: JSON, see models.state.
STATE = b"headrace.state"

TIMESTAMP = pa.timestamp("us", tz="UTC")
SOURCE_TYPE = pa.dictionary(pa.int32(), pa.string())
SYSTEM_FIELDS = {
    EVENT_TIME: pa.field(EVENT_TIME, TIMESTAMP),
    SOURCE: pa.field(SOURCE, SOURCE_TYPE),
    POSITION: pa.field(POSITION, pa.int64()),
    PAYLOAD: pa.field(PAYLOAD, pa.binary()),
    MARKS: pa.field(MARKS, pa.int8()),
    PUBLISHED: pa.field(PUBLISHED, TIMESTAMP),
    INGESTED: pa.field(INGESTED, TIMESTAMP),
    FAULTS: pa.field(FAULTS, pa.string()),
    PAYLOAD_FORMAT: pa.field(PAYLOAD_FORMAT, SOURCE_TYPE),
}

# What a stream's source has of a message.
RECORD_SCHEMA = pa.schema(
    [
        *(SYSTEM_FIELDS[name] for name in (PAYLOAD, POSITION, SOURCE, PUBLISHED, INGESTED)),
        pa.field(MESSAGE, pa.string()),
        pa.field(PARTITION, pa.int32()),
    ]
)

DEAD_LETTER_SCHEMA = pa.schema(
    [
        pa.field("payload", pa.binary()),  # the record's original bytes, or its row as JSON
        pa.field("format", pa.string()),  # of the payload: json, csv, avro, row, ...
        pa.field("reasons", pa.string()),  # a JSON list of {field, rule, value}
        pa.field("step", pa.string()),
        pa.field("source", pa.string()),
        pa.field("position", pa.int64()),
        pa.field("event_id", pa.string()),
        pa.field("event_time", TIMESTAMP),
    ]
)


# Names of record types that the graph knows.
EVENTS, LABELS = "events", "labels"
# A feed beside them, of release records: they have a log of their own, so no journal keeps them, and no number.
RELEASES = "releases"


@dataclasses.dataclass(frozen=True)
class RecordType:
    """What a step needs to know of a kind of record, such as events or their labels.

    `number` is what a journal knows it by, which never changes; 0 is that of the events. `time` is the field of the
    record's own time, from `earliest_us` until before `latest_us`, microseconds since 1970 UTC. The fields `carried`
    go on past validation; of those that are summed, `fixed_point` has the decimal places, and `exact_places` names
    those of which no value may have more. Of two records with one `id`
    less than `deduplicate_within_us` apart, one is a duplicate. The fields `derived` are computed of the others, and of
    those before them; rows for which `where` is not true are left out. What is `computed` is a feature, of all fields,
    that is checked with them.
    """

    name: str
    number: int
    contract: Contract
    id: str
    time: str
    carried: tuple[str, ...]
    earliest_us: int
    latest_us: int
    max_bytes: int
    fixed_point: Mapping[str, int] = dataclasses.field(default_factory=dict)
    refuses_unknown: bool = False
    deduplicate_within_us: int = 0
    derived: Mapping[str, Expression] = dataclasses.field(default_factory=dict)
    where: Expression | None = None
    computed: Mapping[str, Expression] = dataclasses.field(default_factory=dict)
    exact_places: frozenset[str] = frozenset()

    @functools.cached_property
    def read(self) -> Contract:
        """The fields that stand in a record, and are not derived."""
        fields = {name: field for name, field in self.contract.fields.items() if name not in self.derived}
        return dataclasses.replace(self.contract, fields=fields)

    @property
    def read_time(self) -> str | None:
        """The field of the record's own time, as it stands in a record; None if it is derived."""
        return None if self.time in self.derived else self.time


class Outcome(enum.StrEnum):
    """What became of records, as a run counts them: each that was READ has one of ENDS."""

    READ = "read"
    SCORED = "scored"
    QUARANTINED = "quarantined"
    DEAD_LETTERED = "dead-lettered"
    DUPLICATE = "duplicate"
    HISTORY = "history"
    BEYOND = "beyond"
    FILTERED = "filtered"
    STANDBY = "standby"  # another run scores it, by the release log
    LABELLED = "labelled"
    REFERENCE = "reference"


ENDS = tuple(outcome for outcome in Outcome if outcome is not Outcome.READ)
