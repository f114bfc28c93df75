"""A Pulsar broker of its own for tests, where Java and its jars are there."""

import itertools
import shutil

import pytest

from deploy.pulsar import broker

_numbers = itertools.count()

needs_pulsar = pytest.mark.skipif(
    shutil.which("java") is None or not (broker.BUILT / "inputs").exists(),
    reason=f"no java, or no Pulsar in {broker.BUILT}: run deploy/pulsar/build.sh",
)


def new_topic(pulsar: broker.Pulsar, partitions: int = 0, *subscriptions: str) -> str:
    """A new topic public/default/NAME, with subscriptions that keep all that is published."""
    name = f"public/default/topic-{next(_numbers)}"
    pulsar.create_topic(name, partitions)
    for each in subscriptions:
        pulsar.ask("PUT", f"persistent/{name}/subscription/{each}")
    return name
