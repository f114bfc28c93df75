"""`headrace demo`: all of it once, on a sample."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.errors import clear_errors

if TYPE_CHECKING:
    from models.predictors.bundle import Bundle
    from models.project.declarations import Project

STREAMED = 20_000  # events, as many as take some seconds


def demo(
    output: Annotated[pathlib.Path, typer.Option(help="Folder for everything that is made.")] = pathlib.Path(
        "demo-output"
    ),
    data: Annotated[str | None, typer.Option(help="Card transactions to take instead of a sample.")] = None,
    rows: Annotated[int, typer.Option(min=20_000, help="Size of the sample.")] = 300_000,
    project: Annotated[pathlib.Path, typer.Option(help="Project to run.")] = pathlib.Path("examples/card_fraud"),
) -> None:
    """Make a sample, train and register a model, score the days that follow, and stream the last events."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.prechecks import require_files, require_model

        declared = load_project(project)
        require_model(declared, "train and to score with: see headrace run and headrace parity")
        require_files([data] if data is not None else [])

        from pipelines.cli.display import outcome_table
        from pipelines.cli.outcome import print_scores, print_training
        from pipelines.cli.project import write_events
        from pipelines.config import RunSpec
        from pipelines.jobs import train as training
        from pipelines.jobs.score import score_files
        from pipelines.report import report
        from pipelines.terminal import console

        if data is None:
            write_events(output / "events", rows, 0, 75, "parquet")
            data = f"{output}/events/*.parquet"
        registry = f"sqlite:///{output}/registry.db"
        trained = training.train(RunSpec(declared, (data,), ""), project, dead_letters=output / "training")
        registered = training.register(trained, declared, registry, promote=True)
        print_training(trained, declared, registered, registry, project)
        sink = f"{output}/run"
        start = training.to_iso(trained.test_from_us)
        result = score_files(RunSpec(declared, (data,), sink, score_from=start, replace=True), trained.bundle)
        console.print(outcome_table(result.outcomes, result.seconds))
        print_scores(sink, declared, trained.bundle)
        console.print(f"scores in {sink}/scores, dead letters in {sink}/dead_letters", soft_wrap=True)
        console.print(f"report in {report(declared, sink)}", soft_wrap=True)
        prove(declared, trained.bundle, data)


def prove(declared: Project, bundle: Bundle, data: str) -> None:
    """Stream the last events through an embedded Pub/Sub, compare every bit with batch, and say so; or fail."""
    import numpy as np

    from models.predictors.booster import Scorer
    from pipelines.cli.parity import show
    from pipelines.jobs.parity import check_payloads
    from pipelines.sources.listing import match_files
    from pipelines.sources.payloads import event_times, read_payloads
    from pipelines.terminal import console

    payloads: list[bytes] = []
    for file in reversed(match_files(data)):
        payloads += read_payloads([file], declared.event_type)
        if len(payloads) >= STREAMED:
            break
    last = np.argsort(event_times(payloads, declared), kind="stable")[-STREAMED:].tolist()
    chosen = [payloads[place] for place in last]
    found = check_payloads(declared, bundle, Scorer.from_bundle(bundle), chosen, "10m", 0, 0.02)
    if not found.equal:
        show(found)
        raise typer.Exit(1)
    console.print(
        f"the last {len(last):,} events once more as a stream through Pub/Sub, out of order by up to 10 minutes and "
        f"{found.stream.outcomes.get('duplicate', 0)} of them twice: every bit of features, scores, decisions and "
        "verdicts equals batch",
        soft_wrap=True,
    )
