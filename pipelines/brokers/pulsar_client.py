"""Clients of Pulsar: their settings, by the names of Pulsar's own client.conf, and what waiting does not mend."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Mapping
from typing import Any

import pulsar

from pipelines.brokers import BrokerError, BrokerOptionError
from pipelines.brokers.properties import read_properties, resolve

log = logging.getLogger("pipelines.brokers.pulsar")
CLOSE_SECONDS = 10.0
# Plugins that the client has built in; any other name is a library that it would load.
_PLUGINS = {
    f"org.apache.pulsar.client.impl.auth.{name}"
    for name in ("AuthenticationToken", "AuthenticationTls", "AuthenticationBasic", "oauth2.AuthenticationOAuth2")
}
_FILES = {"tlsTrustCertsFilePath": "tls_trust_certs_file_path"}
_FILES |= {"tlsCertificateFilePath": "tls_certificate_file_path", "tlsKeyFilePath": "tls_private_key_file_path"}
_FLAGS = {"tlsEnableHostnameVerification": True, "tlsAllowInsecureConnection": False}
_NAMES = {"authPlugin", "authParams", "webServiceUrl", *_FILES, *_FLAGS}
# Of client.conf, but the URI says it, or it is of Java's keystores and left empty there.
_IGNORED = re.compile(r"brokerServiceUrl|memoryLimit|proxy.*|useKeyStoreTls|tls(Trust|Key)Store.*|ws.*")
# Refusals that come of what is asked for; everything else may be over in a while.
REFUSALS = (
    pulsar.TopicNotFound,
    pulsar.SubscriptionNotFound,
    pulsar.AuthenticationError,
    pulsar.AuthorizationError,
    pulsar.InvalidTopicName,
    pulsar.TopicTerminated,
    pulsar.ConsumerBusy,
    pulsar.NotAllowedError,
)


def read_settings(file: str | None) -> dict[str, str]:
    """The settings of a file like Pulsar's client.conf, none if there is no file.

    BrokerOptionError if a name is not known or its value can't be, BrokerError if it names an environment variable
    that is not set, OSError if the file can't be read. No error shows a value.
    """
    if file is None:
        return {}
    found = {name: value for name, value in read_properties(file).items() if value}
    for name in found:
        if name not in _NAMES and not _IGNORED.fullmatch(name):
            raise BrokerOptionError(f"{file}: {name} is not a setting of {', '.join(sorted(_NAMES))}")
    settings = {name: str(value) for name, value in resolve(found).items() if name in _NAMES}
    if not {settings.get(name, "true") for name in _FLAGS} <= {"true", "false"}:
        raise BrokerOptionError(f"{file}: {' and '.join(_FLAGS)} are true or false")
    if ("authPlugin" in settings) != ("authParams" in settings) or settings.get("authPlugin") not in {None, *_PLUGINS}:
        raise BrokerOptionError(
            f"{file}: authPlugin and authParams stand together, and the plugin is of {', '.join(sorted(_PLUGINS))}"
        )
    return settings


def connect(service: str, settings: Mapping[str, str], seconds: float) -> pulsar.Client:
    """A client, which connects when asked something, and gives up after `seconds`; BrokerError if it can't be."""
    how: dict[str, Any] = {argument: settings[name] for name, argument in _FILES.items() if name in settings}
    for path in how.values():
        if not os.access(path, os.R_OK):
            raise BrokerError(f"{path} can't be read")
    try:
        if "authPlugin" in settings:
            how["authentication"] = pulsar.Authentication(settings["authPlugin"], settings["authParams"])
        verify, insecure = (settings.get(name, str(usual).lower()) == "true" for name, usual in _FLAGS.items())
        return pulsar.Client(
            service,
            operation_timeout_seconds=max(int(seconds), 1),
            connection_timeout_ms=max(int(seconds * 500), 500),
            stats_interval_in_seconds=0,
            tls_validate_hostname=verify,
            tls_allow_insecure_connection=insecure,
            # It writes to stdout if not told otherwise, and a logger of Python's waits for the interpreter's lock
            # in the client's own threads.
            logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, os.devnull),
            **how,
        )
    except (pulsar.PulsarException, RuntimeError, ValueError):
        raise BrokerError("Pulsar's client refuses the settings") from None  # its words may hold a secret


def close(client: pulsar.Client) -> None:
    """Disconnect; takes seconds at the most, also if the broker does not answer."""

    def leave() -> None:
        with contextlib.suppress(pulsar.PulsarException):  # was closed, or the broker is down
            client.close()

    leaving = threading.Thread(target=leave, name="pulsar-close", daemon=True)
    leaving.start()
    leaving.join(CLOSE_SECONDS)


def say(error: Exception) -> str:
    """An error of the client in words; one that refuses a token or certificate looks to it like one that is gone."""
    if isinstance(error, pulsar.Timeout | pulsar.ConnectError):
        return "no answer: look whether the broker is there, and takes this client's certificate and token"
    return str(error).removeprefix("Pulsar error: ") or type(error).__name__


class Outage:
    """Whether a client has lost its broker, which is logged when it begins and when it is over."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.down = False

    def tell(self, connected: bool) -> None:
        """Take note of whether there is a connection now."""
        if connected == self.down:
            self.down = not connected
            what = "works again" if connected else "no connection; trying again until it works"
            log.warning("Pulsar, %s: %s", self._uri, what)
