"""What a run is told, as one frozen spec."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from models.errors import HeadraceError
from models.partitions import STATE_NAME, Span, time_of
from models.project.declarations import Project
from models.redact import redact
from pipelines.brokers import is_broker
from pipelines.databases import check_database
from pipelines.prechecks import (
    BOUNDS,
    UsageError,
    check_duration,
    option_of,
    require,
    require_file_system,
    require_files,
    require_one_cluster,
    require_package,
    require_span,
    require_store,
    require_traces,
    require_transactional,
    require_values,
    require_whole,
    span_of,
)
from pipelines.runners import IN_PROCESS, Job, Profile, Reading, profile_of
from pipelines.runners.options import check_options
from pipelines.runners.profile import cores
from pipelines.sources.delta import place_of

if TYPE_CHECKING:
    pass

SOURCE_FORMATS = ("parquet", "csv", "json", "avro")
SINK_FORMATS = ("parquet", "jsonl", "delta")
ORDERS = ("event_time", "arrival")
_OF_FILES = (*BOUNDS, "state", "sink_format", "files", "replace")  # fields that a stream has no use for


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What a run over files or a stream is told, in the words of the command line; URIs say which of both it is.

    `check` finds all that can't be, before anything is imported or opened that takes long.
    """

    project: Project
    sources: tuple[str, ...]
    sink: str
    databases: tuple[str, ...] = ()  # whose tables take score rows, too
    labels: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()  # NAME=URI
    source_format: str | None = None
    sink_format: Literal["parquet", "jsonl", "delta"] = "parquet"
    files: int = 1
    replace: bool = False
    score_from: str | None = None  # ISO 8601
    score_to: str | None = None  # ISO 8601, exclusive
    day: str | None = None  # in place of both
    hour: str | None = None  # the same
    state: str | None = None  # folder of states
    dead_letters: str | None = None
    allowance: str = "10s"
    lateness: str = "1d"
    order: str = "event_time"
    journal: str | None = None
    transactional: bool = False
    history: tuple[str, ...] = ()
    values: str = "json"
    kafka_config: str | None = None
    alert_to: tuple[str, ...] = ()
    reason_codes: int = 0
    shards: int | None = None  # as many as workers
    threads: int | None = None  # of a model call; what processors the workers leave
    runner: str = IN_PROCESS
    beam_args: tuple[str, ...] = ()
    dry_run: bool = False
    releases: str | None = None  # a database with a log of releases, or a file that one was exported to
    store: str | None = None  # an online store that takes what windows read
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None  # where metrics are shown while it runs; None: nowhere
    traces: float | None = None  # the share of a stream's events whose way is told; None: of none
    until_idle: str | None = None  # a stream ends after so long without a message
    ours: tuple[str, ...] = dataclasses.field(default=(), compare=False)  # options of headrace's, to know a typo by

    @property
    def streams(self) -> bool:
        """Whether events come from a broker."""
        return any(map(is_broker, self.sources))

    @property
    def history_state(self) -> tuple[str, int] | None:
        """The folder of states and the time of the one that a stream's history names; None if it names files."""
        return state_of(self.history)

    @property
    def table_uris(self) -> dict[str, tuple[str, ...]]:
        """Where the rows of each table come from, by its name; one without a name has an empty one."""
        pairs = [
            (name, uri) if mark else ("", name) for name, mark, uri in (each.partition("=") for each in self.tables)
        ]
        return {name: tuple(uri for other, uri in pairs if other == name) for name, _ in pairs}

    @property
    def folders(self) -> dict[str, tuple[str, ...]]:
        """The decisions whose rows have a folder of their own in a sink of files, by its name."""
        sinks = self.project.sinks
        names = dict.fromkeys(place for place in sinks.values() if not is_broker(place))
        return {name: tuple(decision for decision, place in sinks.items() if place == name) for name in names}

    @property
    def profile(self) -> Profile:
        """The engine."""
        return profile_of(self.runner)

    @property
    def job(self) -> Job:
        """What the engine's options depend on."""
        return Job(self.streams, self.shard_count)

    @property
    def workers(self) -> int:
        """Threads of this process that work side by side."""
        return self.profile.workers(self.beam_args, self.streams)

    @property
    def shard_count(self) -> int:
        """Parts that the work is split into; it changes no result."""
        return self.shards or self.profile.shards(self.workers)

    @property
    def threads_of_call(self) -> int:
        """Threads of one model call, of which there may be as many at once as there are workers."""
        return self.threads or max(1, cores() // self.workers)

    @property
    def local(self) -> bool:
        """Whether all that takes part is on this machine: the engine, files and alerts."""
        named = (*self.sources, *self.labels, *self.tables, *self.history, *self.alert_to, *self.beam_args)
        uris = (*named, self.sink, self.dead_letters or "", self.journal or "")
        return self.profile.ends_here and not any("://" in uri for uri in uris)

    @property
    def at_arrival(self) -> bool:
        """Whether a stream's events are scored when they come."""
        return self.order == "arrival"

    @property
    def span(self) -> Span:
        """The event time that is scored; UsageError if it can't be told."""
        return span_of(self._bounds, self.project.partitions)

    @property
    def _bounds(self) -> dict[str, str]:
        return {name: text for name in BOUNDS if (text := getattr(self, name)) is not None}

    def options(self) -> dict[str, Any]:
        """What was told and is no default, without secrets; `replace` leaves no trace in what is written."""
        left_out = ("project", "replace", "runner", "beam_args", "metrics_host", "metrics_port", "traces", "ours")
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
            self._check_span,
            self._check_state,
            self._check_allowance,
            self._check_lateness,
            self._check_labels,
            self.check_tables,
            self._check_engine,
        ]
        checks += [self._check_model, self._check_alerts, self._check_values, self._check_kafka, self._check_stream]
        checks += [self._check_transactional, self._check_databases, self._check_store, self._check_traces]
        for check in [*checks, *([self._check_whole_partitions, self._check_sink] if keeps else ())]:
            yield from _fault_of(check)
        for path in self._paths():
            yield from _fault_of(lambda path=path: require_files([path]))

    def _paths(self) -> list[str]:
        """Where files must be, or at least could be."""
        tables = [uri for uris in self.table_uris.values() for uri in uris]
        here = () if self.dry_run else (*self.sources, *self.labels, *tables)
        return [*here, *([] if self.history_state else self.history)]

    def _check_formats(self) -> None:
        require(
            self.source_format in (None, *SOURCE_FORMATS),
            f"--source-format is parquet, csv, json or avro, not {self.source_format}",
        )
        require(self.sink_format in SINK_FORMATS, f"--sink-format is parquet, jsonl or delta, not {self.sink_format}")
        if self.sink_format == "delta":
            require_package("deltalake", "--sink-format delta")

    def _check_databases(self) -> None:
        for uri in self.databases:
            check_database(uri)
        require(not self.databases or not self.streams, "a database is for the rows of files: name a topic as --sink")
        require(
            not self.databases or not self.profile.apart(self.beam_args),
            f"a database is for engines of this process, not for {self.profile.name}: name a folder as --sink",
        )
        quality, tables = self.project.quality, self.databases or self.sink_format == "delta"
        require(
            not tables or quality is None or quality.gate != "quarantine",
            "rows that the gate quarantine releases would not be in a table: name a folder as --sink, of Parquet or "
            "JSON lines",
        )

    def _check_order(self) -> None:
        require(self.order in ORDERS, f"--order is event_time or arrival, not {self.order}")

    def _check_span(self) -> None:
        require_span(self._bounds, self.project.partitions)

    def _check_whole_partitions(self) -> None:
        require_whole({} if self.streams else self._bounds, self.project.partitions)

    def _check_state(self) -> None:
        if self.state is None or self.streams:
            return
        quality, end, engine = self.project.quality, self.span.stop_us, self.profile
        require(
            engine.resumes,
            f"--state: on a busy machine a run on {engine.name} that starts from a state may be wrong, and nothing "
            "shows it (docs/prism.md): leave --runner out",
        )
        require(end is not None, "--state is kept of a definite time: name it with --day, --hour or --score-to")
        longest = 3_600_000_000 if self.project.partitions.by == "hour" else 86_400_000_000
        require(
            quality is None or quality.gate != "quarantine" or longest % quality.window == 0,
            "--state: the gate quarantine holds rows for the length of a window, which must fit into a "
            f"{self.project.partitions.by}: declare a quality.window that divides it",
        )

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

    def check_tables(self) -> None:
        """UsageError unless it is said where the rows of each declared table come from, and of no other."""
        if faults := list(self._faults_of_tables()):
            raise UsageError("\n".join(faults))

    def _faults_of_tables(self) -> Iterator[str]:
        given, declared = self.table_uris, self.project.tables
        native = self.streams and self.profile.reading is Reading.NATIVE
        known = ", ".join(declared) or "none"
        for name, uris in given.items():
            topics = [uri for uri in uris if is_broker(uri)]
            if name not in declared:
                yield f"--table is NAME=URI, of a table that the project declares ({known}), not {name or uris[0]}"
            elif topics and (not self.streams or len(uris) > 1):
                yield f"--table {name}: a topic is for a stream, and one alone: name files"
            elif topics and native:
                yield f"--table {name}: {self.profile.name} reads events alone from a topic: name files"
        for name in declared:
            if name not in given:
                yield f"the project declares the table {name}: say with --table {name}=URI where its rows come from"

    def _check_model(self) -> None:
        require(
            self.project.has_model or not self.reason_codes, "--reason-codes is for a project that declares a model"
        )
        require(self.project.has_model or not self.releases, "--releases is for a project that declares a model")

    def _check_alerts(self) -> None:
        require(
            self.project.quality is not None or not self.alert_to, "--alert-to is for a project that declares quality"
        )

    def _check_values(self) -> None:
        require_values(self.values)
        require(
            self.values != "pulsar" or all(uri.startswith("pulsar") for uri in self.sources),
            "--values pulsar reads by the schemas that Pulsar keeps with a topic: --source is pulsar://…",
        )

    def _check_kafka(self) -> None:
        path = self.kafka_config
        require(path is None or os.path.isfile(path), f"--kafka-config {path}: no file")

    def _check_stream(self) -> None:
        brokers = [uri for uri in (*self.sources, self.sink) if is_broker(uri)]
        if not brokers:
            require(not self.history, "--history is for streams: give a batch all files as --source, and --score-from")
            return
        require(self.history_state is None or len(self.history) == 1, "--history is files, or one state, not both")
        require(len(brokers) == len(self.sources) + 1 == 2, "a stream has one broker's --source and a broker's --sink")
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        require(
            all(getattr(self, name) == defaults[name] for name in _OF_FILES),
            f"{', '.join(map(option_of, _OF_FILES[:-1]))} and --replace are for files, not for a stream",
        )
        require(len(self.labels) < 2, "a stream has one subscription of --labels")

    def _check_store(self) -> None:
        if self.store is not None:
            from_state = self.state is not None or self.history_state is not None
            require_store(self.store, self.project, from_state, self.profile.apart(self.beam_args))

    def _check_traces(self) -> None:
        if self.traces is not None:
            require(self.streams, "--traces is of a stream's events, and of an endpoint's")
            require_traces(self.traces)

    def _check_transactional(self) -> None:
        if self.transactional:
            require(self.streams, "--transactional is for a stream")
            require_transactional(self.sink, self.dead_letters, self.journal, self.at_arrival)
            require_one_cluster(self.sink, self.project.sinks)

    def _check_engine(self) -> None:
        profile = self.profile
        require(
            self.metrics_port is None or profile.ours,
            f"--metrics-port is for headrace's own engine; {profile.name} has its way of its own (docs/metrics.md)",
        )
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
        if profile.apart(self.beam_args):
            tables = [uri for uris in self.table_uris.values() for uri in uris]
            given = (*self.sources, *self.labels, *tables, *self.history, self.sink, self.state or "/")
            inside = [uri for uri in map(place_of, given) if "://" not in uri and uri[:1] != "/"]
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
            look_at(self.sink, self.replace or not self.span.is_all, tuple(self.folders))


def state_of(history: Sequence[str]) -> tuple[str, int] | None:
    """The folder of states and the time of the one that a --history names; None if it names files."""
    found = [each for each in history if STATE_NAME.fullmatch(each.rstrip("/").rpartition("/")[2])]
    if not found:
        return None
    folder, _, name = found[0].rstrip("/").rpartition("/")
    return folder or ".", time_of(name.removeprefix("until="))


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
