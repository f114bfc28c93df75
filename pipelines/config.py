"""What a run is told, as one frozen spec, and what the graph is built from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from models.codecs.times import micros_of
from models.errors import HeadraceError
from models.project.declarations import Project
from models.redact import redact
from pipelines.brokers import is_broker
from pipelines.prechecks import (
    UsageError,
    check_duration,
    parse_time,
    require,
    require_file_system,
    require_files,
    require_values,
)
from pipelines.runners import (
    DATAFLOW,
    DIRECT,
    FLINK,
    FN_API,
    IN_PROCESS,
    Job,
    Profile,
    Reading,
    make_pipeline,
    profile_of,
)
from pipelines.runners.options import check_options

if TYPE_CHECKING:
    import apache_beam as beam

    from transforms.gate import WatchScores

__all__ = [
    "DATAFLOW",
    "DEFAULT_SHARDS",
    "DIRECT",
    "FLINK",
    "FN_API",
    "IN_PROCESS",
    "SOURCE_FORMATS",
    "GraphConfig",
    "RunSpec",
    "make_pipeline",
]

DEFAULT_SHARDS = 1  # more are for engines with more than one worker
SOURCE_FORMATS = ("parquet", "csv", "json", "avro")
SINK_FORMATS = ("parquet", "jsonl")
ORDERS = ("event_time", "arrival")
_OF_FILES = ("score_from", "sink_format", "files", "replace")  # fields that a stream has no use for


@dataclasses.dataclass(frozen=True)
class GraphConfig:
    """All that the graph is built from."""

    project: Project
    source: beam.PTransform
    score: beam.PTransform
    sink: beam.PTransform
    shards: int = DEFAULT_SHARDS
    score_from_us: int | None = None
    lateness_us: int = 0  # a late event still finds all of its windows if it is no more late than this
    at_arrival: bool = False
    check_slices: bool = False  # of a source that timestamps with the slices' ends: look that none is lost of a slice
    watch: WatchScores | None = None  # where the project declares `quality`
    alert_sinks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What a run over files or a stream is told, in the words of the command line; URIs say which of both it is.

    `check` finds all that can't be, before anything is imported or opened that takes long.
    """

    project: Project
    sources: tuple[str, ...]
    sink: str
    labels: tuple[str, ...] = ()
    source_format: str | None = None
    sink_format: Literal["parquet", "jsonl"] = "parquet"
    files: int = 1
    replace: bool = False
    score_from: str | None = None  # ISO 8601
    dead_letters: str | None = None
    allowance: str = "10s"
    lateness: str = "1d"
    order: str = "event_time"
    journal: str | None = None
    history: tuple[str, ...] = ()
    values: str = "json"
    kafka_config: str | None = None
    alert_to: tuple[str, ...] = ()
    reason_codes: int = 0
    shards: int = DEFAULT_SHARDS
    threads: int = 2
    runner: str = IN_PROCESS
    beam_args: tuple[str, ...] = ()
    dry_run: bool = False
    until_idle: str | None = None  # a stream ends after so long without a message
    ours: tuple[str, ...] = dataclasses.field(default=(), compare=False)  # options of headrace's, to know a typo by

    @property
    def streams(self) -> bool:
        """Whether events come from a broker."""
        return any(map(is_broker, self.sources))

    @property
    def profile(self) -> Profile:
        """The engine."""
        return profile_of(self.runner)

    @property
    def job(self) -> Job:
        """What the engine's options depend on."""
        return Job(self.streams, self.shards)

    @property
    def at_arrival(self) -> bool:
        """Whether a stream's events are scored when they come."""
        return self.order == "arrival"

    @property
    def score_from_us(self) -> int | None:
        """When scoring begins, in microseconds of event time."""
        time = parse_time("--score-from", self.score_from)
        return micros_of(time) if time else None

    def options(self) -> dict[str, Any]:
        """What was told and is no default, without secrets; `replace` leaves no trace in what is written."""
        left_out = ("project", "replace", "runner", "beam_args", "ours")
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in told.items() if value != defaults[name]}

    def check(self, *, keeps: bool = True) -> None:
        """UsageError with one fault a line; without `keeps`, nothing is written to the sink for good."""
        if faults := list(self.faults(keeps)):
            raise UsageError("\n".join(dict.fromkeys(faults)))

    def faults(self, keeps: bool = True) -> Iterator[str]:
        """All that can't be."""
        checks = [
            self._check_formats,
            self._check_order,
            self._check_score_from,
            self._check_allowance,
            self._check_lateness,
            self._check_labels,
            self._check_engine,
        ]
        checks += [self._check_alerts, self._check_values, self._check_kafka, self._check_stream]
        for check in [*checks, *([self._check_sink] if keeps else ())]:
            yield from _fault_of(check)
        for path in self._paths():
            yield from _fault_of(lambda path=path: require_files([path]))

    def _paths(self) -> list[str]:
        """Where files must be, or at least could be."""
        here = () if self.dry_run else (*self.sources, *self.labels)
        return [*here, *self.history]

    def _check_formats(self) -> None:
        require(
            self.source_format in (None, *SOURCE_FORMATS),
            f"--source-format is parquet, csv, json or avro, not {self.source_format}",
        )
        require(self.sink_format in SINK_FORMATS, f"--sink-format is parquet or jsonl, not {self.sink_format}")

    def _check_order(self) -> None:
        require(self.order in ORDERS, f"--order is event_time or arrival, not {self.order}")

    def _check_score_from(self) -> None:
        parse_time("--score-from", self.score_from)

    def _check_allowance(self) -> None:
        check_duration("--allowance", self.allowance)

    def _check_lateness(self) -> None:
        check_duration("--lateness", self.lateness)

    def _check_labels(self) -> None:
        declares = self.project.label_type is not None
        require(
            bool(self.labels) or not declares,
            "the project declares label.events: say with --labels where they come from",
        )
        require(declares or not self.labels, "--labels are for a project that declares label.events")

    def _check_alerts(self) -> None:
        require(
            self.project.quality is not None or not self.alert_to, "--alert-to is for a project that declares quality"
        )

    def _check_values(self) -> None:
        require_values(self.values)

    def _check_kafka(self) -> None:
        path = self.kafka_config
        require(path is None or os.path.isfile(path), f"--kafka-config {path}: no file")

    def _check_stream(self) -> None:
        brokers = [uri for uri in (*self.sources, self.sink) if is_broker(uri)]
        if not brokers:
            require(not self.history, "--history is for streams: give a batch all files as --source, and --score-from")
            return
        require(len(brokers) == len(self.sources) + 1 == 2, "a stream has one broker's --source and a broker's --sink")
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        require(
            all(getattr(self, name) == defaults[name] for name in _OF_FILES),
            "--score-from, --sink-format, --files and --replace are for files, not for a stream",
        )
        require(len(self.labels) < 2, "a stream has one subscription of --labels")

    def _check_engine(self) -> None:
        profile = self.profile
        require(not self.dry_run or profile.dry_run is not None, "--dry-run is for --runner DataflowRunner")
        if self.streams:
            defaults = {f.name: f.default for f in dataclasses.fields(self)}
            for name, why in profile.refuses.items():
                require(getattr(self, name) == defaults.get(name, False), why)
            native = profile.reading is Reading.NATIVE
            require(
                not native or self.sources[0].startswith("pubsub://"),
                f"{profile.name} reads streams of pubsub:// alone, not {self.sources[0]}",
            )
        elif profile.apart(self.beam_args):
            inside = [uri for uri in (*self.sources, *self.labels, self.sink) if "://" not in uri and uri[:1] != "/"]
            if inside:
                also = f"; so also {', '.join(inside[1:])}" if inside[1:] else ""
                engine = profile.name.removesuffix("Runner")
                raise UsageError(
                    f"{inside[0]}: {engine}'s workers run in a folder of their own: name it from / on, as in "
                    f"$PWD/{inside[0]}{also}"
                )
        check_options(profile, self.beam_args, self.ours)

    def _check_sink(self) -> None:
        from pipelines.sinks.publish import look_at

        require(bool(self.sink), "--sink is empty: name a folder or a topic")
        require_file_system(self.sink)
        if not is_broker(self.sink):
            look_at(self.sink, self.replace)


def _fault_of(check: Any) -> Sequence[str]:
    try:
        check()
    except HeadraceError as error:
        return str(error).splitlines()
    except OSError as error:
        return [f"{error.filename}: {error.strerror}" if error.filename else str(error)]
    return ()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return redact(value) if isinstance(value, str) else value
