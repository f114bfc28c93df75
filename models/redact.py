"""Keep secrets out of what people read: one function over a text, and streams that pass all text through it."""

from __future__ import annotations

import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

HIDDEN = "***"
_LEAST = 4  # characters of a secret that is hidden wherever it stands; shorter ones would hide ordinary words

# Lengths are bounded, so that no text takes long.
_NAME = (
    r"[\w.\-]{0,60}(?:passw|pwd|secret|token|api[_.\-]?key|access[_.\-]?key|signature|credential|sasl[_.]jaas)"
    r"[\w.\-]{0,60}"
)
_VALUE = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^\s"',;&}\])]+)"""
_PATTERNS = (
    # A key in PEM.
    (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", HIDDEN),
    # USER:PASSWORD@ of a URL, whose password may hold any of : / ? # @; and a token alone before the @ of a host.
    (r"(\b[a-z][a-z0-9+.\-]{0,30}://)[^\s\"'<>@/?#:]{0,500}:[^\s\"'<>]{0,2000}@", rf"\1{HIDDEN}@"),
    (r"(\b[a-z][a-z0-9+.\-]{0,30}://)[^\s\"'<>@/?#]{1,2000}@", rf"\1{HIDDEN}@"),
    # Of a query: names that mean a secret there, and those that mean one anywhere.
    (rf"([?&;](?:{_NAME}|sig|key|auth|code)=)[^\s\"'<>&#]+", rf"\1{HIDDEN}"),
    (r"(\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:basic|bearer|digest|token|apikey)\s+)?[^\s\"',;]+",
     rf"\1{HIDDEN}"),
    (r"\b(basic|bearer)\s+(?=[^\s\"',;]*[0-9=]|[^\s\"',;]{16})[\w.~+/=\-]+", rf"\1 {HIDDEN}"),
    # A setting, such as sasl.password=…, or a member of JSON. `token: …` alone is what parsers say of syntax.
    (rf"(\b{_NAME}(?:[\"']\s*:|\s*=)\s*){_VALUE}", rf"\1{HIDDEN}"),
    (rf"(\b[\w.\-]{{0,60}}(?:passw|secret)[\w.\-]{{0,60}}\s*:\s+){_VALUE}", rf"\1{HIDDEN}"),
    # Tokens that tell by themselves what they are: AWS, Google, GitHub, Slack, JWT.
    (r"\b(?:AKIA[0-9A-Z]{16}|AIza[\w\-]{35}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abeprs]-[\w\-]{10,}"
     r"|eyJ[\w\-]{8,}\.[\w\-]+\.[\w\-]*)", HIDDEN),
)  # fmt: skip
_RULES = [(re.compile(pattern, re.IGNORECASE), put) for pattern, put in _PATTERNS]
_HINT = re.compile(
    r"://|[?&;][\w.\-]+=|passw|pwd|secret|token|key|signature|credential|jaas|authorization|basic|bearer"
    r"|akia|aiza|gh[pousr]_|github_pat|xox|eyj",
    re.IGNORECASE,
)
_VARIABLE = re.compile("(?:PASSWORD|PASSWD|PASS|SECRET|TOKEN|LOGIN|(?:API|ACCESS|SECRET)_KEY|WEBHOOK|CREDENTIALS)$")
_known: set[str] = set()


def redact(text: str) -> str:
    """The text with `***` for whatever in it looks like a secret, or is one that `hide` was told of."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    if _HINT.search(text):
        for pattern, put in _RULES:
            text = pattern.sub(put, text)
    return text


def hide(arguments: Iterable[str], environment: Mapping[str, str]) -> None:
    """Learn the secrets that a command was given: in URLs among its arguments, and in variables that are for such.

    From then on `redact` finds them in any form that a library may show them in.
    """
    for text in arguments:
        _known.update(_secrets_of(text))
    for name, value in environment.items():
        if _VARIABLE.search(name) and not os.path.exists(value):
            _known.update(part for part in (value, *_secrets_of(value)) if len(part) >= 2 * _LEAST)
        elif "://" in value and (name.startswith(("HEADRACE_", "MLFLOW_")) or name.lower().endswith("_proxy")):
            _known.update(_secrets_of(value))


def _secrets_of(text: str) -> set[str]:
    """The password of a URL, or all before the @ of its host where that is a token, as written and decoded."""
    found = set()
    before, at, _ = text.partition("://")[2].rpartition("@")
    if at:
        user, colon, password = before.partition(":")
        found.add(password if colon else user)
    if text.startswith(("http://", "https://")) and not at:
        path = urllib.parse.urlsplit(text).path if _is_url(text) else ""
        found.update(part for part in path.split("/") if re.fullmatch(r"(?=.*[0-9])(?=.*[A-Za-z])[\w\-]{20,}", part))
    return {each for secret in found for each in (secret, urllib.parse.unquote(secret)) if len(each) >= _LEAST}


def _is_url(text: str) -> bool:
    try:
        urllib.parse.urlsplit(text)
    except ValueError:
        return False
    return True


class RedactedStream:
    """A text stream that writes everything redacted; in all else it is the stream that it was made of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or have the stream refuse what is none."""
        self._stream.write(redact(text) if isinstance(text, str) else text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output(arguments: Iterable[str]) -> None:
    """From now on, have all that this process prints, logs or says in tracebacks go out redacted."""
    hide(arguments, os.environ)
    sys.stdout = RedactedStream(sys.stdout)
    sys.stderr = RedactedStream(sys.stderr)
