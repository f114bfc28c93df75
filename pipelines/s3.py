"""Beam's file system of S3, with one client for all that a process does there.

Beam makes a session of boto3 for each operation, which takes half a second; a client may be used by several threads.
Names of Beam's own modules stand here, as in 2.77.
"""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

_ERRORS = (
    ("apache_beam.io.aws.clients.s3.messages", "S3ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
)


@functools.cache
def share_clients() -> None:
    """Have Beam take the same client each time, if boto3 is there, also before there is a pipeline."""
    from apache_beam.io.aws.clients.s3 import boto3_client
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    if FileSystems._pipeline_options is None:
        FileSystems.set_options(PipelineOptions([]))
    if boto3_client.boto3 is not None:
        session = types.SimpleNamespace(client=_client)
        boto3_client.boto3 = types.SimpleNamespace(session=types.SimpleNamespace(Session=lambda: session))


@functools.cache
def _client(**options: Any) -> Any:
    import boto3

    return boto3.session.Session().client(**options)


@functools.cache
def has_credentials() -> bool:
    """Whether boto3 finds some; without, Beam would ask the store again and again for minutes."""
    import boto3

    return boto3.session.Session().get_credentials() is not None


def store_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What file systems raise: OSError, `others`, and what that of S3 raises beside it once it was used."""
    return OSError, *others, *(getattr(sys.modules[module], name) for module, name in _ERRORS if module in sys.modules)
