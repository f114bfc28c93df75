"""Endpoints of this process, as clients reach them."""

import contextlib

import httpx

from pipelines.serve.app import make_app
from pipelines.serve.http import Tokens
from pipelines.serve.models import OneModel
from pipelines.serve.server import running
from pipelines.serve.service import Service
from pipelines.store import open_store
from tests.kit.support import tiny_scorer


class FaultyStore:
    """A store that can be made to fail, or to wait."""

    def __init__(self, store):
        self._store = store
        self.before = lambda: None

    def __getattr__(self, name):
        self.before()
        return getattr(self._store, name)


def open_faulty(folder, project):
    return FaultyStore(open_store(str(folder / "store.db"), project.feature_set, create=True))


@contextlib.contextmanager
def serving(
    project, store, *, models=None, absorb=True, deadline=10.0, tokens=None, rates=None, publishing=None, traces=None
):
    """A client of an endpoint."""
    models = models or OneModel(project, tiny_scorer(project.model.inputs), "bundle")
    service = Service(project, models, store, absorb, deadline, publishing=publishing)
    with (
        running(make_app(service, tokens or Tokens({}), rates, traces=traces)) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        client.service = service
        yield client
