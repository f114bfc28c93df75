"""The `headrace` command. What takes long to import is imported by the command that needs it."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import pathlib
import re
import shutil
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from models.project import PROJECT_FILE, Project, ProjectError, check_project, load_project, parse_duration
from pipelines import schema_cli

app = typer.Typer(
    help="One Apache Beam graph for features, validation and scoring, over files or streams.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(schema_cli.app, name="schema")
_BEAM = {"allow_extra_args": True, "ignore_unknown_options": True}

ProjectFolder = Annotated[pathlib.Path, typer.Argument(metavar="PROJECT", help="Folder of a use case's declarations.")]
Source = Annotated[list[str], typer.Option("--source", help="Path or glob of event files; may stand more than once.")]
SourceFormat = Annotated[
    str | None, typer.Option(help="parquet, csv, json or avro, where a file's name does not tell.")
]
Runner = Annotated[str, typer.Option(help="DirectRunner (in this process), or a Beam runner's name.")]
Registry = Annotated[
    str, typer.Option(envvar="HEADRACE_REGISTRY", help="Where bundles are kept: an MLflow tracking URI.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option(help="Labels that come as records of their own: files, or a stream's subscription."),
]
KafkaConfig = Annotated[
    str | None,
    typer.Option(envvar="HEADRACE_KAFKA_CONFIG", help="Properties file of librdkafka's settings."),
]
Shards = Annotated[int, typer.Option(min=1, max=1024, help="Parts that the work and the output are split into.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of one model call.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Replace another run's output; what no run wrote is never removed.")
]
DEFAULT_REGISTRY = "sqlite:///.headrace/registry.db"


@app.command(context_settings=_BEAM)
def run(
    context: typer.Context,
    project: ProjectFolder,
    source: Source,
    sink: Annotated[str, typer.Option(help="Folder, or broker's topic, that the scores go to.")],
    dead_letters: Annotated[
        str | None, typer.Option(help="Topic of the dead letters; the sink's name and -dead-letters, if not given.")
    ] = None,
    allowance: Annotated[str, typer.Option(help="How far a stream's events may be out of order, such as 10s.")] = "10s",
    lateness: Annotated[
        str, typer.Option(help="How late a stream's event may be and still find all of its windows.")
    ] = "1d",
    order: Annotated[
        str,
        typer.Option(help="event_time: score a stream's event when all before it are there; arrival: at once."),
    ] = "event_time",
    journal: Annotated[
        str | None,
        typer.Option(help="Folder to keep a stream's messages in; a stream that starts anew goes on from there."),
    ] = None,
    history: Annotated[
        list[str] | None, typer.Option(help="Files of earlier events that fill a stream's windows; may be repeated.")
    ] = None,
    labels: Labels = None,
    alert_to: Annotated[
        list[str] | None,
        typer.Option(
            help="Where alerts of the project's quality go: log, file:PATH, webhook, a topic; may be repeated."
        ),
    ] = None,
    values: Annotated[
        str, typer.Option(help="A stream's messages: json, avro:FILE.avsc, or avro:http://REGISTRY[?subject=SUBJECT].")
    ] = "json",
    kafka_config: KafkaConfig = None,
    source_format: SourceFormat = None,
    sink_format: Annotated[str, typer.Option(help="parquet or jsonl.")] = "parquet",
    files: Annotated[int, typer.Option(min=1, max=1024, help="Score files of a month.")] = 1,
    replace: Replace = False,
    model: Annotated[str, typer.Option(help="Version or alias of the registered bundle.")] = "champion",
    score_from: Annotated[
        datetime.datetime | None,
        typer.Option(help="Score events from this time (UTC) on; earlier ones fill windows."),
    ] = None,
    reason_codes: Annotated[int, typer.Option(min=0, help="Features to name with each score; slow.")] = 0,
    runner: Runner = "DirectRunner",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make and check the job for DataflowRunner, offline; run nothing.")
    ] = False,
    registry: Registry = DEFAULT_REGISTRY,
    shards: Shards = 1,
    threads: Threads = 2,
) -> None:
    """Score the events of a source. Options that are not listed go to Beam."""
    with _clear_errors():
        from pipelines.brokers import is_broker
        from pipelines.sinks.publish import look_at

        _require(bool(sink), "--sink names no folder and no topic")
        if not is_broker(sink):
            look_at(sink, replace)
        from models.codecs.times import micros_of
        from pipelines import run as running
        from pipelines.display import console, outcome_table

        declared = load_project(project)
        _require(sink_format in ("parquet", "jsonl"), f"--sink-format is parquet or jsonl, not {sink_format}")
        _check_source_format(source_format)
        beam_args = _beam_args(context, runner)
        if dry_run:
            from pipelines.dataflow import dry_run_options
            from pipelines.options import DATAFLOW

            _require(runner == DATAFLOW, "--dry-run is for --runner DataflowRunner")
            beam_args = dry_run_options(beam_args)
        _require(order in ("event_time", "arrival"), f"--order is event_time or arrival, not {order}")
        _require_labels(declared, labels)
        _check_quality(declared, alert_to)
        on_flink = runner == "FlinkRunner"
        streamed = [uri for uri in [*source, sink] if is_broker(uri)]
        if streamed:
            _require(len(streamed) == len(source) + 1 == 2, "a stream has one broker's --source and a broker's --sink")
            of_files = score_from is None and files == 1 and sink_format == "parquet" and not replace
            _require(of_files, "--score-from, --sink-format, --files and --replace are for files, not for a stream")
            _require(not (journal and on_flink), "on Flink, checkpoints take the place of --journal: leave it out")
            _require(len(labels or ()) < 2, "a stream has one subscription of --labels")
            bundle = running.load_bundle(declared, project, model, registry)
            _run_stream(
                declared,
                bundle,
                (source[0], sink, dead_letters or f"{sink}-dead-letters"),
                allowance_us=_duration("--allowance", allowance),
                lateness_us=_duration("--lateness", lateness),
                journal=journal,
                history=history or (),
                at_arrival=order == "arrival",
                labels=labels[0] if labels else None,
                values=values,
                kafka_config=kafka_config,
                alert_sinks=alert_to or (),
                runner=runner,
                shards=shards,
                reason_codes=reason_codes,
                beam_args=tuple(beam_args),
                threads=threads,
            )
            return
        if on_flink and "LOOPBACK" not in str(beam_args):
            for uri in [*source, *(labels or ()), sink]:
                there = "://" in uri or uri.startswith("/")
                _require(
                    there, f"{uri}: Flink's workers run in a folder of their own: name it from / on, as in $PWD/{uri}"
                )
        _require(not history, "--history is for streams: give a batch all files as --source, and --score-from")
        events = running.open_source(source, source_format, labels or (), look=not dry_run)
        bundle = running.load_bundle(declared, project, model, registry)
        result = running.score(
            declared,
            bundle,
            events,
            sink,
            runner=runner,
            sink_format=sink_format,
            shards=shards,
            files=files,
            reason_codes=reason_codes,
            score_from_us=micros_of(score_from) if score_from else None,
            alert_sinks=alert_to or (),
            threads=threads,
            replace=replace,
            beam_args=beam_args,
        )
        if result is None:
            return
        console.print(outcome_table(result.outcomes, result.seconds))
        if not (result.outcomes.get("scored") or result.outcomes.get("quarantined")):
            console.print("no event was scored")
        if sink_format == "parquet":
            _print_scores(sink, declared)
        console.print(f"bundle {bundle.bundle_id}, output in {sink}")


@app.command(context_settings=_BEAM)
def train(
    context: typer.Context,
    project: ProjectFolder,
    source: Source,
    labels: Labels = None,
    source_format: SourceFormat = None,
    start: Annotated[datetime.datetime | None, typer.Option(help="First day of training (UTC).")] = None,
    examples: Annotated[str | None, typer.Option(help="Folder to keep the computed examples in.")] = None,
    replace: Replace = False,
    promote: Annotated[bool, typer.Option(help="Make the new bundle champion.")] = False,
    runner: Runner = "DirectRunner",
    registry: Registry = DEFAULT_REGISTRY,
    shards: Shards = 1,
    threads: Threads = 2,
) -> None:
    """Compute features, train and test a model, and register it. Options that are not listed go to Beam."""
    with _clear_errors():
        _require(bool(examples) or not replace, "--replace is for the output of another run in --examples")
        if examples:
            from pipelines.sinks.publish import look_at

            look_at(examples, replace)
        from pipelines import train as training
        from pipelines.run import open_source

        declared = load_project(project)
        _check_source_format(source_format)
        _require_labels(declared, labels)
        beam_args = _beam_args(context, runner)
        trained = training.train(
            declared,
            project,
            open_source(source, source_format, labels or ()),
            start=start,
            examples=examples,
            runner=runner,
            shards=shards,
            threads=threads,
            replace=replace,
            beam_args=beam_args,
        )
        version = training.register(trained, declared, registry, promote)
        _print_training(trained, declared, version, registry)


@app.command()
def check(project: ProjectFolder) -> None:
    """List all faults of a project; nothing is run."""
    declared, faults = check_project(project)
    for fault in faults:
        typer.echo(str(fault), err=True)
    if faults or declared is None:
        raise typer.Exit(1)
    features = len(declared.feature_names)
    typer.echo(f"{project / PROJECT_FILE}: no fault; {len(declared.contract.fields)} fields, {features} features")


@app.command()
def init(directory: Annotated[pathlib.Path, typer.Argument(help="Folder to make.")]) -> None:
    """Make a new project that runs: card fraud, to be changed into your own."""
    with _clear_errors():
        name = re.sub(r"\W+", "_", directory.resolve().name.lower()).strip("_")
        _require(
            re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None,
            f"{directory}: a project's name starts with a letter",
        )
        _require(not directory.exists() or not any(directory.iterdir()), f"{directory}: is there and not empty")
        template = pathlib.Path(__file__).parent / "template"
        directory.mkdir(parents=True, exist_ok=True)
        for file in sorted(template.iterdir()):
            shutil.copyfile(file, directory / file.name)
        path = directory / PROJECT_FILE
        path.write_text(
            re.sub(r"(?m)^name: .*$", f"name: {name}", path.read_text()).replace("examples/card_fraud", str(directory))
        )
        typer.echo(f"{directory}: made. Next: headrace sample {directory}/data --rows 100000")


@app.command()
def sample(
    directory: Annotated[pathlib.Path, typer.Argument(help="Folder to write to.")],
    rows: Annotated[int, typer.Option(min=0, help="Transactions to make.")] = 300_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other transactions.")] = 0,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days that they spread over, a file each.")] = 75,
    format: Annotated[str, typer.Option(help="parquet, csv, jsonl or avro.")] = "parquet",
) -> None:
    """Write card transactions with three patterns of fraud, the same for the same seed."""
    with _clear_errors():
        _require(
            format in ("parquet", "csv", "jsonl", "avro"),
            f"--format is parquet, csv, jsonl or avro, not {format}",
        )
        _write_sample(directory, rows, seed, days, format)


@app.command()
def models(project: ProjectFolder, registry: Registry = DEFAULT_REGISTRY) -> None:
    """List the registered bundles of a project."""
    with _clear_errors():
        from models.registry import list_versions
        from pipelines.display import console, facts_table

        versions = list_versions(load_project(project).name, registry)
        console.print(
            facts_table([(f"version {v.version}", f"{v.bundle_id}  {', '.join(v.aliases)}") for v in versions])
        )


@app.command()
def promote(
    project: ProjectFolder,
    version: Annotated[str, typer.Argument(help="Version or alias of the bundle.")] = "challenger",
    registry: Registry = DEFAULT_REGISTRY,
) -> None:
    """Make a bundle champion; promoting an earlier version rolls back."""
    with _clear_errors():
        from models.registry import CHAMPION, set_alias

        name = load_project(project).name
        number = set_alias(name, CHAMPION, int(version) if version.isdigit() else version, registry)
        typer.echo(f"{name}: version {number} is champion")


@app.command()
def parity(
    project: ProjectFolder,
    source: Source,
    allowance: Annotated[str, typer.Option(help="How far events may be out of order, such as 10m.")] = "10m",
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of the events that comes twice.")] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another order of arrival.")] = 0,
    model: Annotated[str, typer.Option(help="Version or alias of the registered bundle.")] = "champion",
    registry: Registry = DEFAULT_REGISTRY,
    threads: Threads = 2,
) -> None:
    """Stream the events of files through an embedded Pub/Sub, score them in batch too, and compare every bit."""
    with _clear_errors():
        from models.booster import Scorer
        from pipelines import parity as comparing
        from pipelines import run as running

        declared = load_project(project)
        running.open_source(source, None)
        bundle = running.load_bundle(declared, project, model, registry)
        scorer = Scorer.from_bundle(bundle, nthread=threads)
        found = comparing.check_parity(
            declared, bundle, scorer, source, _duration("--allowance", allowance), seed, duplicates
        )
        comparing.show(found)
        typer.echo("equal" if found.equal else "NOT EQUAL")
        if not found.equal:
            raise typer.Exit(1)


@app.command()
def pubsub(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on localhost.")] = 8085,
    topic: Annotated[
        list[str],
        typer.Option(help="PROJECT/TOPIC, or PROJECT/TOPIC:SUBSCRIPTION, to create; may stand more than once."),
    ] = [],  # noqa: B006
) -> None:
    """Serve an embedded Pub/Sub for development; it keeps nothing when it ends."""
    with _clear_errors():
        from pipelines.pubsub_emulator import serve

        def started(server: Any) -> None:
            for name in topic:
                match = re.fullmatch(r"([^/:]+)/([^/:]+)(?::([^/:]+))?", name)
                _require(match is not None, f"--topic is PROJECT/TOPIC:SUBSCRIPTION, not {name}")
                assert match is not None
                server.create(match[1], match[2], match[3])
            typer.echo(f"for development only. In other terminals: export PUBSUB_EMULATOR_HOST={server.address}")

        serve(port=port, on_start=started)


@app.command()
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
    with _clear_errors():
        from pipelines.stream import publish as publish_files

        declared = load_project(project)
        _require(key is None or key in declared.contract.fields, f"--key {key} is no field of the schema")
        sent = publish_files(declared, source, to, speed_up, key, kafka_config)
        typer.echo(f"{sent:,} events published to {to}")


@app.command("replay-dead-letters")
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
    with _clear_errors():
        from pipelines.dead_letters import Repair, replay

        values = {}
        for text in set_ or ():
            name, found, value = text.partition("=")
            try:
                values[name] = json.loads(value)
            except ValueError:
                found = ""
            _require(bool(found), f"--set is FIELD=VALUE with a value in JSON, not {text}")
        counts = replay(source, to, Repair(step, field, rule, values))
        typer.echo(
            f"{counts['sent']:,} events sent to {to}, {counts['left']:,} left, {counts['not sent']:,} are not JSON"
        )


@app.command()
def quarantine(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder of a run, or subscription to a stream's quarantined rows.")
    ],
    release: Annotated[bool, typer.Option("--release", help="Let the rows go to the scores.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Delete them.")] = False,
    to: Annotated[str | None, typer.Option(help="Topic of the scores, for rows of a stream.")] = None,
) -> None:
    """Release score rows that the quality gate held back, or drop them."""
    with _clear_errors():
        from pipelines.brokers import is_broker
        from pipelines.quarantine import settle_run, settle_topic

        _require(release != drop, "say --release or --drop")
        _require(is_broker(source) or to is None, "--to is for rows of a stream")
        _require(not (is_broker(source) and release and to is None), "say with --to where the rows are to go")
        rows = settle_topic(source, to if release else None) if is_broker(source) else settle_run(source, release)
        typer.echo(f"{rows:,} rows {'released' if release else 'dropped'}")


@app.command()
def baseline(
    project: ProjectFolder,
    source: Source,
    labels: Labels = None,
    source_format: SourceFormat = None,
    model: Annotated[str, typer.Option(help="Version or alias of the registered bundle.")] = "champion",
    registry: Registry = DEFAULT_REGISTRY,
    threads: Threads = 2,
) -> None:
    """Write statistics of the source's features and scores into a bundle: what windows are compared with."""
    with _clear_errors():
        from models.codecs.times import micros_of
        from models.registry import set_baseline
        from pipelines import run as running

        declared = load_project(project)
        _require(declared.quality is not None, "the project declares no quality: there is nothing to compare")
        _require_labels(declared, labels)
        _check_source_format(source_format)
        events = running.open_source(source, source_format, labels or ())
        bundle = running.load_bundle(declared, project, model, registry)
        start = bundle.metadata.get("test_from")
        content, rows = running.compute_baseline(
            declared, bundle, events, micros_of(datetime.datetime.fromisoformat(start)) if start else None, threads
        )
        set_baseline(declared.name, int(model) if model.isdigit() else model, content, registry)
        typer.echo(f"baseline of {rows:,} scored events in bundle {bundle.bundle_id}")


@app.command()
def report(
    project: ProjectFolder,
    run: Annotated[str, typer.Option(help="Folder that a run's scores went to.")],
    output: Annotated[
        pathlib.Path | None, typer.Option(help="HTML file to write; report.html in the run's folder, if not given.")
    ] = None,
) -> None:
    """Write what a run was like as one HTML file: outcomes, decisions, drift, distributions, latency."""
    with _clear_errors():
        from pipelines.report import report as write_report

        typer.echo(f"report in {write_report(load_project(project), run, output)}")


@app.command()
def demo(
    output: Annotated[pathlib.Path, typer.Option(help="Folder for everything that is made.")] = pathlib.Path(
        "demo-output"
    ),
    data: Annotated[str | None, typer.Option(help="Card transactions to take instead of a sample.")] = None,
    rows: Annotated[int, typer.Option(min=20_000, help="Size of the sample.")] = 300_000,
    project: Annotated[pathlib.Path, typer.Option(help="Project to run.")] = pathlib.Path("examples/card_fraud"),
) -> None:
    """Make a sample, train on its training days, register the model, and score the days that follow."""
    with _clear_errors():
        from pipelines import run as running
        from pipelines import train as training
        from pipelines.display import console, outcome_table

        declared = load_project(project)
        if data is None:
            _write_sample(output / "events", rows, 0, 75, "parquet")
            data = f"{output}/events/*.parquet"
        registry = f"sqlite:///{output}/registry.db"
        trained = training.train(declared, project, running.open_source([data], None))
        version = training.register(trained, declared, registry, promote=True)
        _print_training(trained, declared, version, registry)
        result = running.score(
            declared,
            trained.bundle,
            running.open_source([data], None),
            f"{output}/run",
            score_from_us=trained.test_from_us,
        )
        assert result is not None
        console.print(outcome_table(result.outcomes, result.seconds))
        _print_scores(f"{output}/run", declared)
        from pipelines.report import report as write_report

        console.print(f"scores in {output}/run/scores, dead letters in {output}/run/dead_letters")
        console.print(f"report in {write_report(declared, f'{output}/run')}")


def main() -> None:
    """The console script."""
    # Google's libraries say at import that this Python will not be supported for ever, Beam that it would
    # like another checksum library.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\..*")
    logging.getLogger().addFilter(lambda record: "crcmod package not found" not in record.getMessage())
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    app()


def _run_stream(declared: Project, bundle: Any, uris: tuple[str, str, str], *, threads: int, **options: Any) -> None:
    from models.booster import Scorer
    from pipelines.stream import score_stream

    logging.getLogger("headrace").setLevel(logging.INFO)
    score_stream(declared, bundle, Scorer.from_bundle(bundle, nthread=threads), *uris, **options)


def _write_sample(directory: pathlib.Path, rows: int, seed: int, days: int, format: Any) -> None:
    from models import progress
    from models.sample import write_sample
    from pipelines.display import console, working

    with working(f"writing {rows:,} transactions"):
        paths = write_sample(
            directory, rows, seed, days, format=format, on_rows=lambda n: progress.advance("written", n)
        )
    console.print(f"{rows:,} transactions of {days} days in {directory} ({len(paths)} files)")


def _print_training(trained: Any, project: Project, version: int, registry: str) -> None:
    from pipelines.display import console, evaluation_table
    from pipelines.train import to_iso

    title = f"{project.name} {version}, tested from {to_iso(trained.test_from_us)[:10]}"
    console.print(evaluation_table(trained.evaluation, title))
    start = to_iso(trained.start_us)[:10]
    console.print(
        f"trained on {trained.train_rows:,} events from {start}; bundle {trained.bundle.bundle_id} in {registry}"
    )


def _print_scores(directory: str, project: Project) -> None:
    from pipelines import run as running
    from pipelines.display import console, decision_table, evaluation_table, quality_line

    decisions = running.count_decisions(directory, project)
    if sum(decisions.values()):
        console.print(decision_table(decisions))
    if project.quality:
        console.print(quality_line(running.read_verdicts(directory)))
    evaluation = running.evaluate_scores(directory, project)
    if evaluation is not None:
        console.print(evaluation_table(evaluation, "Scores against labels"))


def _check_source_format(kind: str | None) -> None:
    _require(
        kind in (None, "parquet", "csv", "json", "avro"),
        f"--source-format is parquet, csv, json or avro, not {kind}",
    )


def _beam_args(context: typer.Context, runner: str) -> list[str]:
    """What is left over for Beam; for the in-process runner, only what some option of Beam's names."""
    from pipelines.options import DIRECT, FN_API, check_runner, unknown_options

    check_runner(runner)
    unknown = unknown_options(context.args) if runner in (DIRECT, FN_API) else []
    _require(not unknown, f"unknown: {' '.join(unknown)}; neither headrace nor Beam has it")
    return context.args


def _duration(option: str, text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _require_labels(declared: Project, labels: list[str] | None) -> None:
    """Labels are given where the project declares label.events, and nowhere else."""
    declares = declared.label_records is not None
    _require(bool(labels) or not declares, "the project declares label.events: say with --labels where they come from")
    _require(declares or not labels, "--labels are for a project that declares label.events")


def _check_quality(declared: Project, alert_to: list[str] | None) -> None:
    """Fail early on a sink of alerts that can't be, and say what of quality is off here."""
    from models.quality.backend import why_off
    from pipelines.alerts import open_sink

    _require(declared.quality is not None or not alert_to, "--alert-to is for a project that declares quality")
    for uri in alert_to or ():
        open_sink(uri).close()
    if declared.quality is not None and (reason := why_off()) is not None:
        typer.echo(f"windows are not checked against the schema: {reason}", err=True)


class UsageError(ValueError):
    """Something on the command line that can't be."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one clear line and exit code 1; all others keep their traceback."""
    try:
        yield
    except ProjectError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if not _is_users(error):
            raise
        _fail(f"headrace: {_line_of(error)}")


def _fail(message: str, code: int = 1) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(code) from None


_USERS_ERRORS = (
    "UsageError",
    "RunError",
    "TrainingError",
    "SourceError",
    "RegistryError",
    "BundleError",
    "ModelCorrupt",
    "ModelMismatch",
    "CountMismatch",
    "BrokerError",
    "JournalError",
    "RunnerError",
    "AlertError",
    "ReplayError",
    "DataflowError",
    "QualityStop",
    "BaselineError",
    "QuarantineError",
    "SinkError",
    "SampleError",
)


def _is_users(error: BaseException) -> bool:
    return (
        isinstance(error, OSError)
        or any(c.__name__ in _USERS_ERRORS for c in type(error).__mro__)
        or bool(_in_beam(error))
    )


def _in_beam(error: BaseException) -> re.Match[str] | None:
    """In-process Beam raises RuntimeError with a worker's traceback as its text: the error's own line in it."""
    names = "|".join((*_USERS_ERRORS, "OSError", "PermissionError", "BeamIOError"))
    return re.search(rf"(?m)^(?:[\w.]+\.)?(?:{names}): (.*?)(?: \[while running.*)?$", str(error))


def _line_of(error: BaseException) -> str:
    match = _in_beam(error) if isinstance(error, RuntimeError) else None
    return match[1] if match else str(error)


if __name__ == "__main__":
    main()
