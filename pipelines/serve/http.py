"""HTTP's part of a request: its body and its token, each bounded, and what is said when they can't be."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from models.errors import HeadraceError

MOST_BYTES = 4 << 20
MOST_EVENTS = 1_000
BODY_SECONDS = 10.0
TOKENS = "HEADRACE_SERVE_TOKENS"
ROLES = ("score", "read", "admin")
_MOST_TOKEN_BYTES = 1 << 20


class TokenError(HeadraceError, ValueError):
    """A file of tokens that can't be used."""


class HttpError(Exception):
    """An answer that is an error: the status, and what is said."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


class Tokens:
    """Who may do what: `admin` all, `score` ask for scores, `read` look at features, models and metrics."""

    def __init__(self, roles: Mapping[bytes, str]) -> None:
        """`roles` are by the SHA-256 of each token; without one all are let in."""
        self._roles = roles

    @classmethod
    def of_environment(cls) -> Tokens:
        """The tokens of the file that HEADRACE_SERVE_TOKENS names, a role and a token a line; TokenError."""
        path = os.environ.get(TOKENS)
        if not path:
            return cls({})
        with open(path, encoding="utf-8") as file:
            lines = file.read(_MOST_TOKEN_BYTES).splitlines()
        roles: dict[bytes, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or words[0] not in ROLES or len(words[1]) < 16:
                form = f"a line is a role of {', '.join(ROLES)} and a token of 16 characters at least"
                raise TokenError(f"{path}:{number}: {form}")
            roles[_digest(words[1])] = words[0]
        if not roles:
            raise TokenError(f"{path}: has no token")
        return cls(roles)

    def name_of(self, request: Request) -> str | None:
        """What tells apart whose token a request has: digits of its SHA-256; None if it has none that is known."""
        known = self._known(request)
        return None if known is None else known.hex()[:16]

    def check(self, request: Request, role: str) -> None:
        """HttpError unless the request's bearer token has the role."""
        if not self._roles:
            return
        known = self._known(request)
        if known is None:
            raise HttpError(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        if self._roles[known] not in (role, "admin"):
            raise HttpError(403, f"the token is of the role {self._roles[known]}, and {role} is needed")

    def _known(self, request: Request) -> bytes | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = _digest(token.strip()) if scheme.lower() == "bearer" else b""
        return next((digest for digest in self._roles if hmac.compare_digest(digest, given)), None)


async def read_body(request: Request) -> bytes:
    """The body; HttpError if it is too large, too slow, or not whole."""
    too_large = HttpError(413, f"the body is larger than {MOST_BYTES:,} bytes")
    length = request.headers.get("content-length", "0")
    if length != "0" and "transfer-encoding" in request.headers:  # of which a proxy may take the other
        raise HttpError(400, "the body's length is told in two ways", {"Connection": "close"})
    if len(length) > 12 or (length.isdigit() and int(length) > MOST_BYTES):
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BYTES:
                    raise too_large
                parts.append(part)
    except ClientDisconnect:
        raise HttpError(400, "the body ended before it was whole") from None
    except TimeoutError:
        raise HttpError(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    return b"".join(parts)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Content as JSON; bytes are JSON already."""
    body = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
    return Response(body, status, dict(headers or {}), "application/json")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
