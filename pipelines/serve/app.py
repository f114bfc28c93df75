"""The endpoint's routes; what they say when something is wrong is JSON, `{"error": TEXT}`."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any

from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from models.errors import HeadraceError
from models.objectives import REFUSED, UNANSWERED
from models.partitions import Partitions
from models.serving.requests import RequestError, split_events
from models.serving.tensors import describe, infer, read_rows
from pipelines.monitoring.traces import Tracer, Traces
from pipelines.serve.documents import INFER, Documents, describe_score
from pipelines.serve.http import MOST_EVENTS, HttpError, Tokens, json_response, read_body
from pipelines.serve.line import ServiceDown
from pipelines.serve.metrics import CONTENT_TYPE_LATEST, Counts
from pipelines.serve.models import Champion
from pipelines.serve.rates import Rates, client_of
from pipelines.serve.service import Service
from pipelines.serve.siblings import Siblings
from pipelines.serve.traces import Asked

_LOG = logging.getLogger("headrace")
MOST_REASONS = 20
AGAIN = {"Retry-After": "1"}
_UNBOUNDED = Rates()
Handler = Callable[[Request], Awaitable[Response]]


def make_app(
    service: Service,
    tokens: Tokens,
    rates: Rates | None = None,
    siblings: Siblings | None = None,
    traces: Traces | None = None,
) -> Starlette:
    """The endpoint of a service, which it closes at its end."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.watch())
        async with routes.siblings.told(routes.own_metrics):
            yield
        watching.cancel()
        service.close()
        if traces is not None:
            traces.tracer().flush()

    project, counts = service.project, Counts(service.project.serving)

    def guard(role: str) -> Callable[[Request], None]:
        def check(request: Request) -> None:
            asking = request.client.host if request.client else ""
            (rates or _UNBOUNDED).check(tokens.name_of(request) or client_of(asking))
            tokens.check(request, role)

        return check

    register_url_convertor("key", _Key())
    routes = _Routes(service, counts, siblings or Siblings(), traces.tracer() if traces else None)
    documents = Documents(f"headrace: {project.name}")
    served = []
    for method, path, role, handler, told in (
        ("POST", "/v1/score", "score", routes.score, describe_score(project)),
        ("GET", "/v1/features/{entity}/{key:key}", "read", routes.features, None),
        ("GET", "/v2", None, routes.server, None),
        ("GET", "/v2/health/live", None, routes.live, None),
        ("GET", "/v2/health/ready", None, routes.ready, None),
        ("GET", "/v2/models/{model}", "read", routes.model, None),
        ("GET", "/v2/models/{model}/ready", None, routes.model_ready, None),
        ("POST", "/v2/models/{model}/infer", "score", routes.infer, INFER),
        ("GET", "/metrics", "read", routes.metrics, None),
    ):
        shown = path.replace(":key", "")
        documents.add(method, shown, handler, told)
        answer = _told(handler, shown, guard(role) if role else None, counts)
        served.append(Route(path, answer, methods=[method], name=handler.__name__))
    app = Starlette(
        routes=[*served, *documents.routes], lifespan=lifespan, exception_handlers={HTTPException: _say_http}
    )
    app.router.redirect_slashes = False
    return app


class _Key(PathConvertor):
    """A key of an entity, which may have any character."""

    regex = "(?s:.*)"


class _Routes:
    """What is done for each route."""

    def __init__(self, service: Service, counts: Counts, siblings: Siblings, tracer: Tracer | None = None) -> None:
        self._service, self._counts, self.siblings, self._tracer = service, counts, siblings, tracer

    async def score(self, request: Request) -> Response:
        """Score an event, or a list of events."""
        asked = Asked(self._tracer, request) if self._tracer else None
        with_features, reasons = _score_options(request)
        payloads, is_list = split_events(await read_body(request), MOST_EVENTS)
        try:
            reply = await self._service.score(payloads, with_features, reasons, asked.traceparent if asked else None)
        except Exception as error:
            if asked:
                asked.failed(error)
            if not isinstance(error, RequestError):
                self._counts.events(UNANSWERED, len(payloads))
            raise
        if asked:
            asked.answered(reply)
        for outcome, number in collections.Counter(reply.outcomes).items():
            self._counts.events(outcome, number)
        self._counts.ages(reply.ages_us)
        if is_list:
            return json_response(b"[" + b",".join(reply.answers) + b"]")
        (outcome,) = reply.outcomes
        if outcome == UNANSWERED:
            return json_response(reply.answers[0], 503, AGAIN)
        return json_response(reply.answers[0], 422 if outcome == REFUSED else 200)

    async def features(self, request: Request) -> Response:
        """The rolling features of an entity as of now, or as of `at`."""
        entity, key = request.path_params["entity"], request.path_params["key"]
        at_us = _time_of(request.query_params.get("at"))
        return json_response(await self._service.features(entity, key, at_us))

    async def server(self, request: Request) -> Response:
        """What serves."""
        return json_response({"name": "headrace", "version": version("headrace"), "extensions": []})

    async def live(self, request: Request) -> Response:
        """Whether the process answers."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether events can be scored."""
        why = self._service.broken
        return json_response(
            {"ready": why is None, **({} if why is None else {"why": why})}, 200 if why is None else 503
        )

    async def model(self, request: Request) -> Response:
        """The metadata of the champion: a tensor of each feature in, scores and decisions out."""
        name = request.path_params["model"]
        champion = await self._service.do(lambda: self._champion(name))
        return json_response(describe(name, champion.bundle_id, champion.scorer, champion.project))

    async def model_ready(self, request: Request) -> Response:
        """Whether the champion can score."""
        name = request.path_params["model"]
        await self._service.do(lambda: self._champion(name))
        return json_response({"name": name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Score rows of features by the champion."""
        name, body = request.path_params["model"], await read_body(request)

        def work() -> bytes:
            champion = self._champion(name)
            rows, told = read_rows(body, champion.scorer.feature_names, MOST_EVENTS)
            return infer(name, champion.bundle_id, rows, champion.scorer, champion.project, told)

        return json_response(await self._service.do(work))

    async def metrics(self, request: Request) -> Response:
        """What Prometheus reads."""
        text = await self.siblings.gather(self.own_metrics())
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def own_metrics(self) -> bytes:
        """Those of this process."""
        return self._counts.text(self._service.broken is None, self._service.waiting)

    def _champion(self, name: str) -> Champion:
        champion = self._service.models.champion()
        if champion is None or name != self._service.project.name:
            raise HttpError(404, f"the model is {self._service.project.name}" if champion else "there is no model")
        return champion


def _told(handler: Handler, path: str, guard: Callable[[Request], None] | None, counts: Counts) -> Handler:
    """A route that is counted, and that says what is wrong."""

    async def answer(request: Request) -> Response:
        started = time.perf_counter()
        try:
            if guard is not None:
                guard(request)
            response = await handler(request)
        except HttpError as error:
            response = json_response({"error": error.message}, error.status, error.headers)
        except RequestError as error:
            response = json_response({"error": _printable(str(error))}, 422)
        except ServiceDown as error:
            response = json_response({"error": str(error)}, 503, AGAIN)
        except HeadraceError as error:
            _LOG.error("%s: %s", path, error)
            response = json_response({"error": "the endpoint can't answer; its log says why"}, 503)
        except Exception:  # noqa: BLE001  it is logged, and other requests are answered
            _LOG.exception("%s failed", path)
            response = json_response({"error": "the endpoint failed; its log says why"}, 500)
        counts.request(path, response.status_code, time.perf_counter() - started)
        return response

    return answer


async def _say_http(request: Request, error: Any) -> Response:
    return json_response({"error": str(error.detail)}, error.status_code, error.headers)


def _score_options(request: Request) -> tuple[bool, int]:
    known = {"features", "reasons"}
    if unknown := sorted(set(request.query_params) - known):
        raise HttpError(422, f"no option {_printable(unknown[0])[:100]!r}; there are: {', '.join(sorted(known))}")
    features, reasons = request.query_params.get("features", "false"), request.query_params.get("reasons", "0")
    if features not in ("true", "false"):
        raise HttpError(422, "features is true or false")
    if not (reasons.isascii() and reasons.isdigit() and len(reasons) < 3 and int(reasons) <= MOST_REASONS):
        raise HttpError(422, f"reasons is a number of features up to {MOST_REASONS}")
    return features == "true", int(reasons)


def _time_of(text: str | None) -> int:
    """A time as ISO 8601 writes it, UTC where it says no other, in microseconds; that of now if none is given."""
    if text is None:
        return time.time_ns() // 1000
    try:
        return Partitions().parse(text)
    except ValueError:
        raise HttpError(422, "at is a time such as 2018-06-08T12:00:00Z") from None


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
