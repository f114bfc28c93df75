"""`headrace pubsub`, `publish`, `topics` and `tail`: a Pub/Sub for development, and what is in a broker."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from typing import Annotated, Any

import typer

from pipelines.brokers import is_broker
from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import KafkaConfig, ProjectFolder, Source


def pubsub(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on localhost.")] = 8085,
    topic: Annotated[
        list[str],
        typer.Option(help="PROJECT/TOPIC, or PROJECT/TOPIC:SUBSCRIPTION, to create; may stand more than once."),
    ] = [],  # noqa: B006
) -> None:
    """Serve an embedded Pub/Sub for development; it keeps nothing when it ends."""
    with clear_errors():
        from pipelines.prechecks import require, require_port

        matches = [re.fullmatch(r"([^/:]+)/([^/:]+)(?::([^/:]+))?", name) for name in topic]
        for name, match in zip(topic, matches, strict=True):
            require(match is not None, f"--topic is PROJECT/TOPIC or PROJECT/TOPIC:SUBSCRIPTION, not {name}")
        if port:
            require_port(port)

        from pipelines.pubsub_emulator import serve

        def started(server: Any) -> None:
            for match in filter(None, matches):
                server.create(*match.groups())
            typer.echo(
                f"a Pub/Sub for development at {server.address}, until Ctrl-C; it keeps nothing when it ends. "
                f"In other terminals: export PUBSUB_EMULATOR_HOST={server.address}"
            )

        serve(port=port, on_start=started)


def publish(
    project: ProjectFolder,
    source: Source,
    to: Annotated[str, typer.Option(help="Topic: pubsub://PROJECT/TOPIC or kafka://HOST:PORT/TOPIC.")],
    speed_up: Annotated[
        float | None, typer.Option(min=0.001, help="Times as fast as it happened; as fast as it goes, if not given.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Field whose values keep their order on a topic of several partitions.")
    ] = None,
    kafka_config: KafkaConfig = None,
) -> None:
    """Publish the events of files to a topic, as JSON and in their order."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.prechecks import require, require_files

        declared = load_project(project)
        require(key is None or key in declared.event_type.read.fields, f"--key {key} is no field of the schema")
        require(is_broker(to), f"--to is pubsub://PROJECT/TOPIC or kafka://HOST:PORT/TOPIC, not {to}")
        require(speed_up is None or math.isfinite(speed_up), f"--speed-up is a number of times, not {speed_up}")
        require_files(source)

        from pipelines.jobs.publish import publish as publish_files

        logging.getLogger("headrace").setLevel(logging.INFO)
        sent = publish_files(declared, source, to, speed_up, key, kafka_config)
        typer.echo(f"{sent:,} events published to {to}")


def topics(
    project: ProjectFolder,
    sink: Annotated[str, typer.Option(help="Topic that the scores go to; the others have its name and an ending.")],
    dead_letters: Annotated[
        str | None, typer.Option(help="Topic of the dead letters; the sink's name and -dead-letters, if not given.")
    ] = None,
    shadows: Annotated[
        bool, typer.Option("--shadows", help="That of shadows, too, which a stream needs once a release names one.")
    ] = False,
    create: Annotated[bool, typer.Option("--create", help="Make those that are missing.")] = False,
    kafka_config: KafkaConfig = None,
) -> None:
    """List the topics that a stream's sink needs, or make them; exit code 1 if some are missing."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.prechecks import require

        declared = load_project(project)
        for uri in filter(None, (sink, dead_letters)):
            require(is_broker(uri), f"topics are of a broker, not {uri}")

        from pipelines.brokers import open_broker
        from pipelines.sinks.topics import routed_topics, sink_topics

        missing = 0
        routed = {f"for {decision}": uri for decision, uri in routed_topics(declared, sink).items()}
        for kind, uri in {**sink_topics(declared, sink, dead_letters, shadows), **routed}.items():
            broker = open_broker(uri, kafka_config=kafka_config)
            there = broker.exists()
            if create and not there:
                broker.create()
            missing += not (there or create)
            state = "there" if there else "made" if create else "missing"
            typer.echo(f"{state:<8}{kind:<12} {broker.uri}")
        if missing:
            raise typer.Exit(1)


def tail(
    topic: Annotated[
        str, typer.Argument(metavar="TOPIC", help="pubsub://…, kafka://… or pulsar://…, without a group.")
    ],
    decision: Annotated[
        list[str] | None, typer.Option(help="Only rows of this decision, such as block; may stand more than once.")
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="All that the topic holds, too; not with Pub/Sub, which keeps nothing.")
    ] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Rows as they are, a line of JSON each.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many rows; with Ctrl-C, if not given.")] = None,
    kafka_config: KafkaConfig = None,
) -> None:
    """Show the rows of a topic as they come; no stream or reader misses any of them for that."""
    with clear_errors():
        from pipelines.prechecks import require

        require(is_broker(topic), f"TOPIC is of a broker, not {topic}")

        from pipelines.brokers import open_broker
        from pipelines.jobs.tail import as_text, follow, is_wanted, read_row

        broker = open_broker(topic, kafka_config=kafka_config)
        shown = 0
        with contextlib.closing(follow(broker, from_start)) as payloads:
            for payload in payloads:
                row = read_row(payload)
                if not is_wanted(row, decision or ()):
                    continue
                if json_lines and row is None:
                    typer.echo(f"not JSON: {as_text(payload, row)}", err=True)
                else:
                    typer.echo(payload.decode().strip() if json_lines else as_text(payload, row))
                shown += 1
                if shown == count:
                    return
