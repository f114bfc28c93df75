"""The `headrace` command. What takes long to import is imported by the command that needs it."""

from __future__ import annotations

import datetime
import json
import logging
import math
import pathlib
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from models.predictors.registry_store import database_of
from models.project.project import PROJECT_FILE, Project, check_project, load_project, parse_duration
from models.redact import guard_output, redact
from pipelines.cli import journal as journal_cli
from pipelines.cli import schema as schema_cli
from pipelines.cli.errors import clear_errors
from pipelines.cli.prechecks import (
    UsageError,
    find_registry,
    require_file_system,
    require_files,
    require_port,
    require_values,
)
from pipelines.cli.prechecks import require as _require
from pipelines.runners import DATAFLOW, DIRECT, FLINK, FN_API, RUNNERS, RunnerError, runner_named

app = typer.Typer(
    help="One Apache Beam graph for features, validation and scoring, over files or streams.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(schema_cli.app, name="schema")
app.add_typer(journal_cli.app, name="journal")
_BEAM = {"allow_extra_args": True, "ignore_unknown_options": True}

ProjectFolder = Annotated[pathlib.Path, typer.Argument(metavar="PROJECT", help="Folder of a use case's declarations.")]
Source = Annotated[list[str], typer.Option("--source", help="Path or glob of event files; may stand more than once.")]
SourceFormat = Annotated[
    str | None, typer.Option(help="parquet, csv, json or avro, where a file's name does not tell.")
]
Runner = Annotated[
    str, typer.Option(help=f"{DIRECT} (in this process), or one of Beam's: {', '.join(RUNNERS[1:])}; in any case.")
]
Registry = Annotated[
    str | None,
    typer.Option(
        envvar="HEADRACE_REGISTRY",
        help="Where bundles are kept, an MLflow tracking URI; sqlite:///PROJECT/.headrace/registry.db, if not given.",
    ),
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


@app.command(context_settings=_BEAM)
def run(
    context: typer.Context,
    project: ProjectFolder,
    source: Source,
    sink: Annotated[
        str,
        typer.Option(
            help="Folder, or broker's topic, that the scores go to. A topic needs others beside it: "
            "SINK-dead-letters; SINK-quality, if the project declares quality; SINK-quarantine, if its gate is that."
        ),
    ],
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
    runner: Runner = DIRECT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make and check the job for DataflowRunner, offline; run nothing.")
    ] = False,
    registry: Registry = None,
    shards: Shards = 1,
    threads: Threads = 2,
) -> None:
    """Score the events of a source. Options that are not listed go to Beam."""
    with clear_errors():
        from pipelines.brokers import is_broker
        from pipelines.sinks.publish import look_at

        declared = load_project(project)
        _require(sink_format in ("parquet", "jsonl"), f"--sink-format is parquet or jsonl, not {sink_format}")
        _check_source_format(source_format)
        runner = runner_named(runner)
        _require(not dry_run or runner == DATAFLOW, "--dry-run is for --runner DataflowRunner")
        _require(order in ("event_time", "arrival"), f"--order is event_time or arrival, not {order}")
        allowance_us, lateness_us = _duration("--allowance", allowance), _duration("--lateness", lateness)
        _require_labels(declared, labels)
        _require(declared.quality is not None or not alert_to, "--alert-to is for a project that declares quality")
        streamed = [uri for uri in [*source, sink] if is_broker(uri)]
        if streamed:
            _require(len(streamed) == len(source) + 1 == 2, "a stream has one broker's --source and a broker's --sink")
            of_files = score_from is None and files == 1 and sink_format == "parquet" and not replace
            _require(of_files, "--score-from, --sink-format, --files and --replace are for files, not for a stream")
            _require(
                not (journal and runner == FLINK), "on Flink, checkpoints take the place of --journal: leave it out"
            )
            _require(len(labels or ()) < 2, "a stream has one subscription of --labels")
        else:
            _require(not history, "--history is for streams: give a batch all files as --source, and --score-from")
            if runner == FLINK and "LOOPBACK" not in str(context.args):
                for uri in [*source, *(labels or ()), sink]:
                    there = "://" in uri or uri.startswith("/")
                    _require(
                        there,
                        f"{uri}: Flink's workers run in a folder of their own: name it from / on, as in $PWD/{uri}",
                    )
        require_values(values)
        _require(bool(sink), "--sink is empty: name a folder or a topic")
        require_file_system(sink)
        if not is_broker(sink):
            look_at(sink, replace)
        _require(
            kafka_config is None or pathlib.Path(kafka_config).is_file(), f"--kafka-config {kafka_config}: no file"
        )
        require_files([*(() if dry_run else (*source, *(labels or ()))), *(history or ())])
        registry = find_registry(project, registry)

        from models.codecs.times import micros_of
        from pipelines.cli.display import console, outcome_table
        from pipelines.jobs import score as running

        beam_args = _beam_args(context, runner)
        if dry_run:
            from pipelines.runners.dataflow import dry_run_options

            beam_args = dry_run_options(beam_args)
        _check_quality(declared, alert_to)
        if streamed:
            bundle = running.load_bundle(declared, project, model, registry)
            _run_stream(
                declared,
                bundle,
                (source[0], sink, dead_letters or f"{sink}-dead-letters"),
                allowance_us=allowance_us,
                lateness_us=lateness_us,
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
            _print_scores(sink, declared, bundle, labels or ())
        console.print(f"bundle {bundle.bundle_id}, output in {sink}", soft_wrap=True)


@app.command(context_settings=_BEAM)
def train(
    context: typer.Context,
    project: ProjectFolder,
    source: Source,
    labels: Labels = None,
    source_format: SourceFormat = None,
    start: Annotated[datetime.datetime | None, typer.Option(help="First day of training (UTC).")] = None,
    examples: Annotated[
        str | None,
        typer.Option(help="Folder to keep the examples and dead letters in; else dead letters are in .headrace."),
    ] = None,
    replace: Replace = False,
    promote: Annotated[bool, typer.Option(help="Make the new bundle champion.")] = False,
    runner: Runner = DIRECT,
    registry: Registry = None,
    shards: Shards = 1,
    threads: Threads = 2,
) -> None:
    """Compute features, train and test a model, and register it. Options that are not listed go to Beam."""
    with clear_errors():
        declared = load_project(project)
        runner = runner_named(runner)
        _check_source_format(source_format)
        _require_labels(declared, labels)
        require_files([*source, *(labels or ())])
        _require(bool(examples) or not replace, "--replace is for the output of another run in --examples")
        from pipelines.sinks.publish import look_at

        look_at(*((examples, replace) if examples else (str(_training_sink(project)), True)))
        registry = find_registry(project, registry, create=True)
        if database_of(registry) is None:  # of a server, that it is there is worth knowing before the training
            from models.predictors.registry import reach

            reach(registry)

        from pipelines.jobs import train as training
        from pipelines.jobs.score import open_source

        beam_args = _beam_args(context, runner)
        trained = training.train(
            declared,
            project,
            open_source(source, source_format, labels or ()),
            start=start,
            examples=examples,
            dead_letters=_training_sink(project),
            runner=runner,
            shards=shards,
            threads=threads,
            replace=replace,
            beam_args=beam_args,
        )
        registered = training.register(trained, declared, registry, promote)
        _print_training(trained, declared, registered, registry, project)


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
    with clear_errors():
        name = re.sub(r"\W+", "_", directory.resolve().name.lower()).strip("_")
        _require(
            re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None,
            f"{directory}: a project's name starts with a letter",
        )
        _require(not directory.exists() or not any(directory.iterdir()), f"{directory}: is there and not empty")
        template = pathlib.Path(__file__).parent / "template"
        directory.mkdir(parents=True, exist_ok=True)
        for file in sorted(path for path in template.iterdir() if path.is_file()):
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
    with clear_errors():
        _require(
            format in ("parquet", "csv", "jsonl", "avro"),
            f"--format is parquet, csv, jsonl or avro, not {format}",
        )
        _write_sample(directory, rows, seed, days, format)


@app.command()
def models(project: ProjectFolder, registry: Registry = None) -> None:
    """List the registered bundles of a project: aliases, date, metrics of the test, spans of the data."""
    with clear_errors():
        name = load_project(project).name
        registry = find_registry(project, registry)

        from models.predictors.registry import list_versions
        from pipelines.cli.display import version_lines

        for version in list_versions(name, registry):
            typer.echo("\n".join(version_lines(version)))


@app.command()
def promote(
    project: ProjectFolder,
    version: Annotated[str, typer.Argument(help="Version or alias of the bundle.")] = "challenger",
    registry: Registry = None,
) -> None:
    """Make a bundle champion; promoting an earlier version rolls back."""
    with clear_errors():
        name = load_project(project).name
        registry = find_registry(project, registry)

        from models.predictors.registry import CHAMPION, set_alias

        number = set_alias(name, CHAMPION, version, registry)
        typer.echo(f"{name}: version {number} is champion")


@app.command()
def parity(
    project: ProjectFolder,
    source: Source,
    allowance: Annotated[str, typer.Option(help="How far events may be out of order, such as 10m.")] = "10m",
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of the events that comes twice.")] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another order of arrival.")] = 0,
    model: Annotated[str, typer.Option(help="Version or alias of the registered bundle.")] = "champion",
    registry: Registry = None,
    threads: Threads = 2,
) -> None:
    """Stream the events of files through an embedded Pub/Sub, score them in batch too, and compare every bit."""
    with clear_errors():
        declared = load_project(project)
        allowance_us = _duration("--allowance", allowance)
        require_files(source)
        registry = find_registry(project, registry)

        from models.predictors.booster import Scorer
        from pipelines.jobs import parity as comparing
        from pipelines.jobs import score as running

        running.open_source(source, None)
        bundle = running.load_bundle(declared, project, model, registry)
        scorer = Scorer.from_bundle(bundle, nthread=threads)
        found = comparing.check_parity(declared, bundle, scorer, source, allowance_us, seed, duplicates)
        comparing.show(found)
        if found.blind:
            typer.echo("the events arrived in their order, so this proves nothing: give more, or a longer --allowance")
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
    with clear_errors():
        matches = [re.fullmatch(r"([^/:]+)/([^/:]+)(?::([^/:]+))?", name) for name in topic]
        for name, match in zip(topic, matches, strict=True):
            _require(match is not None, f"--topic is PROJECT/TOPIC or PROJECT/TOPIC:SUBSCRIPTION, not {name}")
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
    with clear_errors():
        from pipelines.brokers import is_broker

        declared = load_project(project)
        _require(key is None or key in declared.contract.fields, f"--key {key} is no field of the schema")
        _require(is_broker(to), f"--to is pubsub://PROJECT/TOPIC or kafka://HOST:PORT/TOPIC, not {to}")
        _require(speed_up is None or math.isfinite(speed_up), f"--speed-up is a number of times, not {speed_up}")
        require_files(source)

        from pipelines.jobs.stream import publish as publish_files

        logging.getLogger("headrace").setLevel(logging.INFO)
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
    with clear_errors():
        require_files(source)

        from pipelines.jobs.dead_letters import Repair, replay

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
    with clear_errors():
        from pipelines.brokers import is_broker

        _require(release != drop, "say --release or --drop")
        _require(is_broker(source) or to is None, "--to is for rows of a stream")
        _require(not (is_broker(source) and release and to is None), "say with --to where the rows are to go")
        require_file_system(source)

        from pipelines.jobs.quarantine import settle_run, settle_topic

        rows = settle_topic(source, to if release else None) if is_broker(source) else settle_run(source, release)
        typer.echo(f"{rows:,} rows {'released' if release else 'dropped'}")


@app.command()
def baseline(
    project: ProjectFolder,
    source: Source,
    labels: Labels = None,
    source_format: SourceFormat = None,
    start: Annotated[
        datetime.datetime | None,
        typer.Option(help="Take events from this time (UTC) on; from the end of the model's training, if not given."),
    ] = None,
    end: Annotated[datetime.datetime | None, typer.Option(help="Take events before this time (UTC).")] = None,
    model: Annotated[str, typer.Option(help="Version or alias of the registered bundle.")] = "champion",
    registry: Registry = None,
    threads: Threads = 2,
) -> None:
    """Write statistics of the source's features and scores into a bundle: what windows are compared with.

    Take events that no run is to score: else they are compared with themselves.
    """
    with clear_errors():
        declared = load_project(project)
        _require(declared.quality is not None, "the project declares no quality: there is nothing to compare")
        _require_labels(declared, labels)
        _check_source_format(source_format)
        require_files([*source, *(labels or ())])
        registry = find_registry(project, registry)

        from models.codecs.times import micros_of
        from models.predictors.registry import set_baseline
        from pipelines.jobs import score as running

        events = running.open_source(source, source_format, labels or ())
        bundle = running.load_bundle(declared, project, model, registry)
        from_us, to_us = (None if time is None else micros_of(time) for time in (start, end))
        content, rows = running.compute_baseline(declared, bundle, events, from_us, to_us, threads)
        set_baseline(declared.name, model, content, registry)
        typer.echo(f"baseline of {rows:,} scored events in bundle {bundle.bundle_id}")


@app.command()
def report(
    project: ProjectFolder,
    run: Annotated[str, typer.Option(help="Folder that a run's scores went to.")],
    labels: Labels = None,
    output: Annotated[
        pathlib.Path | None, typer.Option(help="HTML file to write; report.html in the run's folder, if not given.")
    ] = None,
) -> None:
    """Write what a run was like as one HTML file: outcomes, decisions, performance, drift, distributions, latency."""
    with clear_errors():
        declared = load_project(project)
        require_file_system(run)
        _require("://" in run or pathlib.Path(run).is_dir(), f"{run}: no such folder")

        from pipelines.cli.display import working
        from pipelines.report import report as write_report

        _require(
            declared.label_records is not None or not labels, "--labels are for a project that declares label.events"
        )
        with working("writing the report"):
            written = write_report(declared, run, output, labels or ())
        typer.echo(f"report in {written}")


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
    with clear_errors():
        declared = load_project(project)
        require_files([data] if data is not None else [])

        from pipelines.cli.display import console, outcome_table
        from pipelines.jobs import score as running
        from pipelines.jobs import train as training

        if data is None:
            _write_sample(output / "events", rows, 0, 75, "parquet")
            data = f"{output}/events/*.parquet"
        registry = f"sqlite:///{output}/registry.db"
        trained = training.train(declared, project, running.open_source([data], None), dead_letters=output / "training")
        registered = training.register(trained, declared, registry, promote=True)
        _print_training(trained, declared, registered, registry, project)
        result = running.score(
            declared,
            trained.bundle,
            running.open_source([data], None),
            f"{output}/run",
            score_from_us=trained.test_from_us,
            replace=True,
        )
        assert result is not None
        console.print(outcome_table(result.outcomes, result.seconds))
        _print_scores(f"{output}/run", declared, trained.bundle)
        from pipelines.report import report as write_report

        console.print(f"scores in {output}/run/scores, dead letters in {output}/run/dead_letters", soft_wrap=True)
        console.print(f"report in {write_report(declared, f'{output}/run')}", soft_wrap=True)


def main() -> None:
    """The console script."""
    guard_output(sys.argv[1:])
    # Google's libraries say at import that this Python will not be supported for ever, Beam that it would
    # like another checksum library.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\..*")
    logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)  # warns of each start and end
    logging.getLogger().addFilter(lambda record: "crcmod package not found" not in record.getMessage())
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    app()


def _run_stream(declared: Project, bundle: Any, uris: tuple[str, str, str], *, threads: int, **options: Any) -> None:
    from models.predictors.booster import Scorer
    from pipelines.jobs.stream import score_stream

    logging.getLogger("headrace").setLevel(logging.INFO)
    score_stream(declared, bundle, Scorer.from_bundle(bundle, nthread=threads), *uris, **options)


def _write_sample(directory: pathlib.Path, rows: int, seed: int, days: int, format: Any) -> None:
    from models import progress
    from models.sample import write_sample
    from pipelines.cli.display import console, working

    with working(f"writing {rows:,} transactions"):
        paths = write_sample(
            directory, rows, seed, days, format=format, on_rows=lambda n: progress.advance("written", n)
        )
    console.print(f"{rows:,} transactions of {days} days in {directory} ({len(paths)} files)")


def _training_sink(project: pathlib.Path) -> pathlib.Path:
    """Where a training without --examples keeps its dead letters."""
    return project / ".headrace" / "training"


def _print_training(trained: Any, project: Project, registered: Any, registry: str, folder: pathlib.Path) -> None:
    from pipelines.cli.display import console, evaluation_table, outcome_table, split_table
    from pipelines.jobs.train import to_iso

    outcomes = {"examples" if name == "scored" else name: n for name, n in trained.examples.outcomes.items()}
    console.print(outcome_table(outcomes, trained.examples.seconds))
    if trained.dead_letters:
        console.print(f"dead letters in {trained.dead_letters}")
    console.print(split_table([(s.name, to_iso(s.from_us)[:10], to_iso(s.to_us)[:10], s) for s in trained.splits]))
    if project.quality and trained.bundle.baseline is None:
        console.print("no baseline: no event is between training and test; `headrace baseline` makes one")
    title = f"{project.name} {registered.version}, tested from {to_iso(trained.test_from_us)[:10]}"
    console.print(evaluation_table(trained.evaluation, title))
    first = trained.splits[0]
    bundle = f"bundle {trained.bundle.bundle_id} in {redact(registry)}"
    console.print(f"trained on {first.rows:,} events from {to_iso(first.from_us)[:10]}; {bundle}", soft_wrap=True)
    if not registered.is_new:
        console.print(f"the same bundle as version {registered.version}, which it stays: nothing new is registered")
    if registered.champion != registered.version:
        promote = f"headrace promote {shlex.quote(str(folder))} {registered.version}"
        console.print(f"version {registered.champion} stays champion; to change that: {promote}", soft_wrap=True)


def _print_scores(directory: str, project: Project, bundle: Any, labels: Sequence[str] = ()) -> None:
    from models.predictors.evaluation import EvaluationError
    from pipelines.cli.display import console, decision_table, evaluation_table, quality_line
    from pipelines.jobs import score as running

    decisions = running.count_decisions(directory, project)
    if sum(decisions.values()):
        console.print(decision_table(decisions))
    if project.quality:
        console.print(quality_line(running.read_verdicts(directory)))
    for sentence in running.find_seen(directory, project, bundle):
        console.print(sentence)
    try:
        evaluation = running.evaluate_scores(directory, project, labels)
    except EvaluationError as error:  # the scores are there nonetheless
        console.print(f"not evaluated: {error}")
        return
    if evaluation is not None:
        console.print(evaluation_table(evaluation, "Scores against labels"))
    elif project.label and not labels and project.label.field not in project.output:
        console.print(f"not measured against labels: {project.label.field} is not among the output fields")


def _check_source_format(kind: str | None) -> None:
    _require(
        kind in (None, "parquet", "csv", "json", "avro"),
        f"--source-format is parquet, csv, json or avro, not {kind}",
    )


def _beam_args(context: typer.Context, runner: str) -> list[str]:
    """What is left over for Beam; for the in-process runner, only what some option of Beam's names."""
    from pipelines.config import unknown_options

    if any(re.match(r"--runner(=|$)", arg) for arg in context.args):
        raise RunnerError("--runner stands before a --, as headrace's own option")
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
    from pipelines.monitoring.alerts import open_sink

    for uri in alert_to or ():
        open_sink(uri).close()
    if declared.quality is not None and (reason := why_off()) is not None:
        typer.echo(f"windows are not checked against the schema: {reason}", err=True)


if __name__ == "__main__":
    main()
