"""`headrace replay-dead-letters` and `quarantine`: what becomes of events that were refused or held back."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipelines.brokers import is_broker
from pipelines.cli.errors import clear_errors


def replay_dead_letters(
    source: Annotated[
        list[str], typer.Option("--source", help="Files of dead letters, or a subscription to their topic.")
    ],
    to: Annotated[str, typer.Option(help="Topic that the stream reads, or a new file of JSON lines.")],
    step: Annotated[str | None, typer.Option(help="Only those of this step, such as Validate.")] = None,
    field: Annotated[str | None, typer.Option(help="Only those with a reason of this field.")] = None,
    rule: Annotated[str | None, typer.Option(help="Only those with this reason, such as 'below 0'.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE to repair them with, the value in JSON.")
    ] = None,
) -> None:
    """Send dead letters through the graph again: their original records, repaired if you say how."""
    with clear_errors():
        from pipelines.prechecks import require, require_files

        require_files(source)

        from pipelines.jobs.dead_letters import Repair, replay

        values = {}
        for text in set_ or ():
            name, found, value = text.partition("=")
            try:
                values[name] = json.loads(value)
            except ValueError:
                found = ""
            require(bool(found), f"--set is FIELD=VALUE with a value in JSON, not {text}")
        counts = replay(source, to, Repair(step, field, rule, values))
        typer.echo(
            f"{counts['sent']:,} events sent to {to}, {counts['left']:,} left, {counts['not sent']:,} are not JSON"
        )


def quarantine(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder of a run, or subscription to a stream's quarantined rows.")
    ],
    release: Annotated[bool, typer.Option("--release", help="Let the rows go to the scores.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Delete them.")] = False,
    to: Annotated[str | None, typer.Option(help="Topic of the scores, for rows of a stream.")] = None,
) -> None:
    """Release score rows that the quality gate held back, or drop them."""
    with clear_errors():
        from pipelines.prechecks import require, require_file_system

        require(release != drop, "say --release or --drop")
        require(is_broker(source) or to is None, "--to is for rows of a stream")
        require(not (is_broker(source) and release and to is None), "say with --to where the rows are to go")
        require_file_system(source)

        from pipelines.jobs.quarantine import settle_run, settle_topic

        rows = settle_topic(source, to if release else None) if is_broker(source) else settle_run(source, release)
        typer.echo(f"{rows:,} rows {'released' if release else 'dropped'}")
