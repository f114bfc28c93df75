"""`headrace pubsub` and `publish`: a Pub/Sub for development, and events for a topic."""

from __future__ import annotations

import logging
import math
import re
from typing import Annotated, Any

import typer

from models.project.project import load_project
from pipelines.brokers import is_broker
from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import KafkaConfig, ProjectFolder, Source
from pipelines.prechecks import require, require_files, require_port


def pubsub(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on localhost.")] = 8085,
    topic: Annotated[
        list[str],
        typer.Option(help="PROJECT/TOPIC, or PROJECT/TOPIC:SUBSCRIPTION, to create; may stand more than once."),
    ] = [],  # noqa: B006
) -> None:
    """Serve an embedded Pub/Sub for development; it keeps nothing when it ends."""
    with clear_errors():
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
        declared = load_project(project)
        require(key is None or key in declared.contract.fields, f"--key {key} is no field of the schema")
        require(is_broker(to), f"--to is pubsub://PROJECT/TOPIC or kafka://HOST:PORT/TOPIC, not {to}")
        require(speed_up is None or math.isfinite(speed_up), f"--speed-up is a number of times, not {speed_up}")
        require_files(source)

        from pipelines.jobs.publish import publish as publish_files

        logging.getLogger("headrace").setLevel(logging.INFO)
        sent = publish_files(declared, source, to, speed_up, key, kafka_config)
        typer.echo(f"{sent:,} events published to {to}")
