"""The `headrace` command. What takes long to import is imported by the command that needs it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

import typer

from models.redact import guard_output
from pipelines.cli import (
    dashboard,
    demo,
    features,
    journal,
    models,
    nightly,
    parity,
    project,
    refused,
    release,
    report,
    rollout,
    run,
    schema,
    serve,
    slo,
    store,
    takeover,
    topics,
    train,
)
from pipelines.cli.parameters import BEAM

app = typer.Typer(
    help="One Apache Beam graph for features, validation and scoring, over files or streams.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_COMMANDS: tuple[Callable[..., None], ...] = (
    run.run,
    nightly.nightly,
    train.train,
    project.check,
    project.init,
    project.sample,
    release.release,
    release.promote,
    release.rollback,
    takeover.takeover,
    release.releases,
    rollout.rollout,
    parity.parity,
    serve.serve,
    topics.pubsub,
    topics.publish,
    topics.topics,
    topics.tail,
    refused.replay_dead_letters,
    refused.quarantine,
    train.baseline,
    report.report,
    slo.slo,
    dashboard.dashboard,
    demo.demo,
)
for _command in _COMMANDS:
    _takes_more = _command in (run.run, nightly.nightly, train.train)
    app.command(context_settings=BEAM if _takes_more else None)(_command)
app.add_typer(features.app, name="features")
app.add_typer(models.app, name="models")
app.add_typer(schema.app, name="schema")
app.add_typer(journal.app, name="journal")
app.add_typer(store.app, name="store")
app.add_typer(slo.monitoring, name="monitoring")


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


if __name__ == "__main__":
    main()
