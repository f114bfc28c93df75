"""`headrace dashboard`: a page that shows how runs do, and keeps itself up to date."""

from __future__ import annotations

import logging
import pathlib
from typing import Annotated

import typer

from pipelines.brokers import is_broker
from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import ProjectFolder, Registry, Releases


def dashboard(
    project: ProjectFolder,
    run: Annotated[
        list[str] | None, typer.Option(help="Folder that runs' scores go to, also in s3:// or gs://; may be repeated.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Where a run that goes on shows its metrics: http://HOST:PORT/metrics.")
    ] = None,
    stream: Annotated[
        str | None, typer.Option(help="Topic that a stream's scores go to: what it says of quality is followed.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Where an endpoint shows its metrics: http://HOST:PORT/metrics.")
    ] = None,
    releases: Releases = None,
    registry: Registry = None,
    host: Annotated[str, typer.Option(help="The address to listen on; it asks nobody who they are.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 is a free one.")] = 8050,
) -> None:
    """Show scores, drift, performance, objectives, incidents and releases on a page that keeps itself up to date."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.lean import import_arrow
        from pipelines.prechecks import registry_of, require, require_file_system, require_package
        from pipelines.release_store import find_log

        declared = load_project(project)
        require_package("plotly", "headrace dashboard")
        require(
            bool(run or metrics or stream or endpoint),
            "name what to show: --run of a folder, --metrics of a run that goes on, --stream of its topic, --endpoint",
        )
        if stream is not None:
            require(is_broker(stream), f"--stream is a broker's topic that scores go to, not {stream}")
            require(
                declared.quality is not None, f"--stream: {declared.name} declares no quality: there is none to follow"
            )
        for folder in run or ():
            require(
                not is_broker(folder), f"--run is a folder, not {folder}: what a stream says is followed by --stream"
            )
            require_file_system(folder)
            require("://" in folder or pathlib.Path(folder).is_dir(), f"{folder}: no such folder")
        log = find_log(declared, registry_of(project, registry), releases) if declared.has_model else None

        import_arrow()

        from pipelines.dashboard.app import make_app
        from pipelines.dashboard.board import Board
        from pipelines.dashboard.followed import Followed
        from pipelines.serve.server import listen, serve

        logging.getLogger("headrace").setLevel(logging.INFO)
        bound = listen(host, port)
        followed = None if stream is None else Followed(declared, stream)
        app = make_app(Board(declared, list(dict.fromkeys(run or ())), metrics, log, followed, endpoint), host)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{bound.getsockname()[1]}"
        serve(app, bound, lambda: typer.echo(f"dashboard of {declared.name} on {url}"))
