"""`headrace demo`: all of it once, on a sample."""

from __future__ import annotations

import pathlib
import tempfile
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.errors import clear_errors

if TYPE_CHECKING:
    from models.predictors.bundle import Bundle
    from models.project.declarations import Project
    from pipelines.jobs.train import Trained

STREAMED = 20_000  # events, as many as take some seconds
NIGHTS = 2


def demo(
    output: Annotated[pathlib.Path, typer.Option(help="Folder for everything that is made.")] = pathlib.Path(
        "demo-output"
    ),
    data: Annotated[str | None, typer.Option(help="Card transactions to take instead of a sample.")] = None,
    rows: Annotated[int, typer.Option(min=20_000, help="Size of the sample.")] = 300_000,
    project: Annotated[pathlib.Path, typer.Option(help="Project to run.")] = pathlib.Path("examples/card_fraud"),
) -> None:
    """Make a sample, train and register a model, score the days that follow, two by nights, and stream the last."""
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
        score_nights(declared, trained, data, pathlib.Path(sink))
        prove(declared, trained.bundle, data)


def score_nights(declared: Project, trained: Trained, data: str, run: pathlib.Path) -> None:
    """Score the run's first days once more, night by night, as `headrace nightly` does, and compare; or fail."""
    from models.predictors.booster import Scorer
    from pipelines.cli.nightly import describe
    from pipelines.config import RunSpec
    from pipelines.jobs.nightly import find_missing, run_nights
    from pipelines.terminal import console

    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        nights = pathlib.Path(scratch, "nights")
        spec = RunSpec(declared, (data,), str(nights), score_to="2100-01-01", state=f"{scratch}/state")
        days = declared.partitions
        first_us = until_us = days.next_us(days.start_us(trained.test_from_us - 1))
        for _ in range(NIGHTS):
            until_us = days.next_us(until_us)
        missing = find_missing(spec, first_us, until_us)
        for night in run_nights(spec, missing, trained.bundle, Scorer.from_bundle(trained.bundle)):
            console.print(describe(night))
        found = sorted(path.relative_to(nights) for path in (nights / "scores").rglob("*.parquet"))
        if any((nights / each).read_bytes() != (run / each).read_bytes() for each in found):
            console.print("the nights are not what the run left")
            raise typer.Exit(1)
        console.print(
            f"{len(missing)} nights, each from the state of the one before: their scores are the bytes of the run",
            soft_wrap=True,
        )


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
