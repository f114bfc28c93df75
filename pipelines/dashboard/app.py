"""The dashboard's routes: a page, what it is made of, and the two documents that it asks for again and again."""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.dashboard.board import Board

PLOTLY = "plotly"  # the package whose JavaScript draws
_STATIC = pathlib.Path(__file__).parent / "static"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOSTS = ["127.0.0.1", "localhost", "[::1]"]  # as requests name them
Handler = Callable[[Request], Awaitable[Response]]
_HEADERS = {
    # plotly gives texts in plots a style of their own; scripts are those of this server alone.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_app(board: Board, host: str) -> Starlette:
    """The app of a board, which is kept up to date while the app runs.

    On a loopback address, requests that name another host are refused: a page from elsewhere can't read it by a name
    that it has led here.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        board.start()
        yield
        board.stop()

    files = {name: _STATIC / name for name in ("page.css", "page.js", "charts.js")}
    files |= {"": _STATIC / "index.html", "plotly.js": _plotly()}
    routes = [Route(f"/{name}", _file(path)) for name, path in files.items()]
    routes += [Route("/v1/state", _document(board, "state")), Route("/v1/live", _document(board, "live"))]
    middleware = [Middleware(_Headers)]
    if host in _LOOPBACK:
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS))
    return Starlette(routes=routes, middleware=middleware, lifespan=lifespan)


class _Headers:
    """Adds what all answers have."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)


def _plotly() -> pathlib.Path:
    """The file of plotly's JavaScript; its Python is not imported."""
    spec = importlib.util.find_spec(PLOTLY)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {PLOTLY!r}", name=PLOTLY)
    return pathlib.Path(spec.origin).parent / "package_data" / "plotly.min.js"


def _file(path: pathlib.Path) -> Handler:
    async def answer(request: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return answer


def _document(board: Board, name: Literal["state", "live"]) -> Handler:
    async def answer(request: Request) -> Response:
        if board.broken:
            return Response("it has failed: its log says why", status_code=503, media_type="text/plain")
        document = board.state if name == "state" else board.live
        headers = {"ETag": document.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == document.etag:
            return Response(status_code=304, headers=headers)
        return Response(document.body, headers=headers, media_type="application/json")

    return answer
