"""`headrace serve`: score events by request."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from pipelines.brokers import is_broker
from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import OneModel, ProjectFolder, Registry, Releases, TheStore, TraceShare


def serve(
    project: ProjectFolder,
    store: TheStore,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 is a free one.")] = 8080,
    absorb: Annotated[
        bool,
        typer.Option(
            "--absorb",
            help="Add each event to the store before it is answered, where no stream does; a store that is not there "
            "is made.",
        ),
    ] = False,
    publish: Annotated[
        str | None,
        typer.Option(
            help="Topic to publish each absorbed event to before it is answered: pubsub://, kafka:// or pulsar://."
        ),
    ] = None,
    deadline: Annotated[float, typer.Option(min=0.001, max=60, help="Seconds that a request may wait and take.")] = 1.0,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that share the port; one that dies is started again.")
    ] = 1,
    rate: Annotated[
        str | None,
        typer.Option(help="How often each client may ask, by its token or else its address: such as 100/second."),
    ] = None,
    model: OneModel = None,
    releases: Releases = None,
    registry: Registry = None,
    traces: TraceShare = None,
) -> None:
    """Score events by HTTP, with features of what an online store has of their entities."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.prechecks import find_registry, find_version, registry_of, require, require_store, require_traces
        from pipelines.release_store import find_log
        from pipelines.store import open_store

        declared = load_project(project)
        require_store(store, declared, from_state=False, apart=False)
        require(publish is None or absorb, "--publish is of events that are absorbed: say --absorb, too")
        require(publish is None or is_broker(publish), f"--publish is a topic, pubsub://PROJECT/TOPIC, not {publish}")
        if traces is not None:
            require_traces(traces)
        log = None
        if declared.has_model and model is None:
            log = find_log(declared, registry_of(project, registry), releases)
        model = model or "champion"
        if log is not None:
            registry = find_registry(project, registry)
        elif declared.has_model:
            registry = find_version(project, declared.name, model, registry)

        from pipelines.serve.http import Tokens
        from pipelines.serve.rates import Rates
        from pipelines.serve.server import listen
        from pipelines.serve.workers import Seat, serve_by_workers

        logging.getLogger("headrace").setLevel(logging.INFO)
        tokens, rates, seat = Tokens.of_environment(), Rates(rate), Seat.of_environment()
        bound = seat.take() if seat else listen(host, port)
        host, port = bound.getsockname()[:2]

        def say() -> None:
            typer.echo(f"serving {declared.name} on http://{host}:{port}")

        if workers > 1 and seat is None:
            if absorb:  # made once, before all of them open it
                open_store(store, declared.feature_set, create=True).close()
            if not serve_by_workers(sys.argv[1:], workers, bound, say):
                raise typer.Exit(1)
        else:
            from pipelines.jobs.serve import open_service
            from pipelines.monitoring.traces import Traces
            from pipelines.serve.app import make_app
            from pipelines.serve.server import serve as run
            from pipelines.serve.siblings import Lost, Siblings

            lost, siblings = (Lost(seat.folder), Siblings(seat.folder, seat.number)) if seat else (Lost(), Siblings())
            service = open_service(declared, project, store, log, model, str(registry), absorb, deadline, lost, publish)
            told = None if traces is None else Traces.of_environment(traces, declared)
            run(make_app(service, tokens, rates, siblings, told), bound, seat.tell_ready if seat else say)
        if seat is None:
            typer.echo("all that was taken is answered")
