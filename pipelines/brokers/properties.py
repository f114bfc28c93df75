"""Settings of a broker's client: from a properties file or from code, with secrets from the environment."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pipelines.brokers import BrokerError, BrokerOptionError

_MAX_FILE_BYTES = 1 << 20

Settings = Mapping[str, str | int | float | bool]


def read_properties(file: str) -> dict[str, str]:
    """The settings of lines NAME=VALUE, with `#` or `!` before a comment; BrokerOptionError or OSError if it can't."""
    path = pathlib.Path(file)
    with path.open("rb") as opened:
        content = opened.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise BrokerOptionError(f"{file}: more than {_MAX_FILE_BYTES} bytes are no properties file")
    settings: dict[str, str] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        line = line.strip()
        if not line or line[0] in "#!":
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name or name in settings:  # the line is not shown: it may be a secret
            raise BrokerOptionError(f"{file}, line {number}: not NAME=VALUE, or a name that stands twice")
        settings[name] = value
    return settings


def resolve(settings: Settings) -> dict[str, Any]:
    """Settings with `$NAME` read from the environment, and `$$` as a dollar sign; BrokerError if one is not there.

    The error does not show NAME: it may be a secret that starts with a dollar sign.
    """
    resolved = dict(settings)
    for name, value in settings.items():
        if isinstance(value, str) and value.startswith("$$"):
            resolved[name] = value[1:]
        elif isinstance(value, str) and value.startswith("$"):
            if value[1:] not in os.environ:
                raise BrokerError(f"{name} needs the environment variable after its $, which is not set ($$ is a $)")
            resolved[name] = os.environ[value[1:]]
    return resolved
