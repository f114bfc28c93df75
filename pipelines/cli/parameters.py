"""Options and arguments that several commands have."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer
import typer.core

from pipelines.runners import DIRECT, IN_PROCESS, RUNNERS

BEAM = {"allow_extra_args": True, "ignore_unknown_options": True}  # what is not headrace's goes to Beam

ProjectFolder = Annotated[pathlib.Path, typer.Argument(metavar="PROJECT", help="Folder of a use case's declarations.")]
Source = Annotated[
    list[str],
    typer.Option("--source", help="Path or glob of event files, or delta:PATH of a table; may stand more than once."),
]
SourceFormat = Annotated[
    str | None, typer.Option(help="parquet, csv, json or avro, where a file's name does not tell.")
]
Runner = Annotated[
    str,
    typer.Option(
        help=f"{IN_PROCESS} (in this process; {DIRECT} is the same), or one of Beam's: {', '.join(list(RUNNERS)[1:])}; "
        "in any case, with or without Runner."
    ),
]
Registry = Annotated[
    str | None,
    typer.Option(
        envvar="HEADRACE_REGISTRY",
        help="Where bundles are kept, an MLflow tracking URI; sqlite:///PROJECT/.headrace/registry.db, if not given.",
    ),
]
Releases = Annotated[
    str | None,
    typer.Option(
        "--releases",
        envvar="HEADRACE_RELEASES",
        help="The release log: sqlite:///FILE or postgresql://USER:$NAME@HOST/DATABASE, or to be read, a file that was "
        "exported; beside an SQLite registry, if not given.",
    ),
]
OneModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Version or alias of the registered bundle that scores all, whatever was released; if not given, releases "
        "say, and where there are none, it is the champion.",
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(help="Labels that come as records of their own: files, or a stream's subscription."),
]
Tables = Annotated[
    list[str] | None,
    typer.Option(
        "--table", help="NAME=URI: where a table's rows come from, files or a stream's subscription; may be repeated."
    ),
]
KafkaConfig = Annotated[
    str | None,
    typer.Option(envvar="HEADRACE_KAFKA_CONFIG", help="Properties file of librdkafka's settings."),
]
_STORE_HELP = (
    "The online store: an SQLite file, or redis://HOST[:PORT], with TLS rediss://, and USER:$NAME@ before HOST, where "
    "$NAME is the variable with the password."
)
StoreUri = Annotated[
    str | None, typer.Option("--store", help=f"{_STORE_HELP} It takes what features need of the past.")
]
TheStore = Annotated[str, typer.Option("--store", help=_STORE_HELP)]
Shards = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Parts that the work is split into; as many as suit the workers if not given."),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Show metrics to Prometheus on this port while it runs (docs/metrics.md)."),
]
MetricsHost = Annotated[
    str, typer.Option(help="Where --metrics-port listens; 0.0.0.0 for all that can reach this machine.")
]
TraceShare = Annotated[
    float | None,
    typer.Option(
        "--traces",
        help="Share of events, such as 0.001, whose way is told to OTEL_EXPORTER_OTLP_ENDPOINT (docs/traces.md).",
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of one model call.")]
ScoreThreads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of one model call; if not given, what processors workers leave."),
]
Replace = Annotated[
    bool, typer.Option("--replace", help="Replace all that other runs left; what no run wrote is never removed.")
]


class DefaultGroup(typer.core.TyperGroup):
    """Commands of which one may be left out: what is no command is its first argument."""

    default: str

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """With the default's name in front where there is none."""
        if args and args[0] not in self.commands and args[0] not in ("--help",):
            args = [self.default, *args]
        return list(super().parse_args(ctx, args))


def own_options(context: typer.Context) -> tuple[str, ...]:
    """All options of a command, as they are written."""
    return tuple(option for each in context.command.params for option in each.opts if option.startswith("--"))
