"""An endpoint's parts: its models, its store, and the service of both."""

from __future__ import annotations

import pathlib

from models.predictors.booster import Scorer
from models.project.declarations import Project
from pipelines.brokers import open_broker
from pipelines.jobs.fitting import load_bundle
from pipelines.serve.models import Models, OneModel, ReleasedModels
from pipelines.serve.publishing import Publishing
from pipelines.serve.service import Service
from pipelines.serve.siblings import Lost
from pipelines.store import open_store


def open_service(
    project: Project,
    folder: pathlib.Path,
    store: str,
    log: str | None,
    model: str,
    registry: str,
    absorb: bool,
    deadline_seconds: float,
    lost: Lost | None = None,
    publish: str | None = None,
) -> Service:
    """The service of a project in a folder, by a store, with a release log's models or one version or alias.

    What it absorbs it publishes to a topic, if one is named.
    """
    models = open_models(project, folder, log, model, registry)
    opened = open_store(store, project.feature_set, create=absorb, wait_seconds=deadline_seconds)
    publishing = None if publish is None else Publishing(open_broker(publish), project)
    return Service(project, models, opened, absorb, deadline_seconds, lost, publishing)


def open_models(project: Project, folder: pathlib.Path, log: str | None, model: str, registry: str) -> Models:
    """What scores; HeadraceError if it can't be loaded, or does not fit."""
    if log is not None:
        from pipelines.jobs.registered import RegisteredBundles
        from pipelines.jobs.released import Released, check_columns

        check_columns(project)
        released = Released(log, project, RegisteredBundles(project, folder, registry, log=log))
        released.first_bundle()
        return ReleasedModels(released)
    if not project.has_model:
        return OneModel(project)
    bundle = load_bundle(project, folder, model, registry)
    return OneModel(project, Scorer.from_bundle(bundle), bundle.bundle_id)
