"""The dashboard's routes: a page, what it is made of, and the two documents that it asks for again and again."""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from pipelines.dashboard.board import Board, Document

PLOTLY = "plotly"  # the package whose JavaScript draws
_STATIC = pathlib.Path(__file__).parent / "static"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
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


def make_app(board: Board, host: str) -> FastAPI:
    """The app of a board, which is kept up to date while the app runs.

    On a loopback address, requests that name another host are refused: a page from elsewhere can't read it by a name
    that it has led here.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        board.start()
        yield
        board.stop()

    app = FastAPI(title=f"headrace: {board.project.name}", lifespan=lifespan, docs_url=None, redoc_url=None)
    files = {"": "index.html", "page.css": "page.css", "page.js": "page.js", "charts.js": "charts.js"}
    for name, file in files.items():
        app.add_api_route(f"/{name}", _file(_STATIC / file), response_model=None, include_in_schema=False)
    app.add_api_route("/plotly.js", _file(_plotly()), response_model=None, include_in_schema=False)
    app.add_api_route("/v1/state", _document(lambda: board.state), response_model=None, name="state")
    app.add_api_route("/v1/live", _document(lambda: board.live), response_model=None, name="live")
    app.middleware("http")(_with_headers)
    if host in _LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[", "testserver"])
    return app


def _plotly() -> pathlib.Path:
    """The file of plotly's JavaScript; its Python is not imported."""
    spec = importlib.util.find_spec(PLOTLY)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {PLOTLY!r}", name=PLOTLY)
    return pathlib.Path(spec.origin).parent / "package_data" / "plotly.min.js"


def _file(path: pathlib.Path) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return answer


def _document(read: Callable[[], Document]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        document = read()
        headers = {"ETag": document.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == document.etag:
            return Response(status_code=304, headers=headers)
        return Response(document.body, headers=headers, media_type="application/json")

    return answer


async def _with_headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call(request)
    response.headers.update(_HEADERS)
    return response
