"""`headrace demo`: all of it once, on a sample."""

from __future__ import annotations

import collections
import datetime
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
ROWS, LIVE_ROWS = 300_000, 200_000
A_DAY = 2000  # events of --live's sample, which has at least so many days, and from when on it is trained
LEAST_DAYS = 65
FIRST_TRAINED = datetime.datetime(2018, 5, 9, tzinfo=datetime.UTC)


def demo(
    output: Annotated[pathlib.Path, typer.Option(help="Folder for everything that is made.")] = pathlib.Path(
        "demo-output"
    ),
    data: Annotated[str | None, typer.Option(help="Card transactions to take instead of a sample.")] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=20_000, help=f"Size of the sample; {ROWS:,}, if not given, {LIVE_ROWS:,} of --live."),
    ] = None,
    project: Annotated[pathlib.Path, typer.Option(help="Project to run.")] = pathlib.Path("examples/card_fraud"),
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Instead, a broker, a stream, an endpoint and a dashboard, with events of months and an incident.",
        ),
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="End --live after so long; with Ctrl-C, if not given.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --live's dashboard; 0 is a free one.")] = 8050,
) -> None:
    """Make a sample, train and register a model, score the days that follow, two by nights, and stream the last."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.prechecks import require, require_files, require_model

        declared = load_project(project)
        require_model(declared, "train and to score with: see headrace run and headrace parity")
        require_files([data] if data is not None else [])
        if live:
            show_live(declared, project, output, data, rows or LIVE_ROWS, seconds, port)
            return
        require(seconds is None, "--seconds are of --live")

        from pipelines.cli.display import outcome_table
        from pipelines.cli.outcome import print_scores, print_training
        from pipelines.cli.project import write_events
        from pipelines.config import RunSpec
        from pipelines.jobs import train as training
        from pipelines.jobs.score import score_files
        from pipelines.report import report
        from pipelines.terminal import console

        if data is None:
            write_events(output / "events", rows or ROWS, 0, 75, "parquet")
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


def show_live(
    declared: Project,
    project: pathlib.Path,
    output: pathlib.Path,
    data: str | None,
    rows: int,
    seconds: float | None,
    port: int,
) -> None:
    """Train on the first weeks, and show the days after them as they come, until Ctrl-C or for so many seconds."""
    from pipelines.prechecks import require, require_package, require_port, require_store

    require_package("plotly", "headrace demo --live")
    require(declared.quality is not None, f"--live: {declared.name} declares no quality: nothing would be told")
    store = f"{output}/store.db"
    require_store(store, declared, from_state=False, apart=False)
    fields = declared.contract.fields
    numbers = [name for name in declared.model.inputs if name in fields and fields[name].kind == "float"]
    require(bool(numbers), f"--live: {declared.name} has no input that is a number of its events: none can go wrong")
    if port:
        require_port(port)

    from pipelines.cli.outcome import print_training
    from pipelines.cli.project import write_events
    from pipelines.config import RunSpec
    from pipelines.jobs import train as training
    from pipelines.jobs.live_demo import LiveDemo, prepare
    from pipelines.process import told_to_stop
    from pipelines.terminal import console, working

    output.mkdir(parents=True, exist_ok=True)
    start = None
    if data is None:
        write_events(output / "events", rows, 0, max(rows // A_DAY, LEAST_DAYS), "parquet")
        data = f"{output}/events/*.parquet"
        start = FIRST_TRAINED
    registry = f"sqlite:///{output}/registry.db"
    trained = training.train(RunSpec(declared, (data,), ""), project, start=start, dead_letters=output / "training")
    print_training(trained, declared, training.register(trained, declared, registry, promote=True), registry, project)
    with working("reading the events"):
        shown = prepare(declared, data, trained.test_from_us, numbers[0], output / "history.jsonl")
    demo = LiveDemo(declared, project, output, registry, shown, port)
    with told_to_stop() as stopped:
        told = demo.run(lambda text: console.print(text, soft_wrap=True), seconds, stopped)
    counts = collections.Counter(alert.event for alert in told)
    console.print(
        f"alerts: {counts['open']} opened, {counts['reminder']} reminders, {counts['clear']} over", soft_wrap=True
    )


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
