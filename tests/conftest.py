"""Fixtures of several folders of tests."""

import contextlib

import pytest

from pipelines.runners import DIRECT, FN_API


@pytest.fixture(params=[DIRECT, FN_API])
def engine(request):
    """The engines of this process, each in its turn."""
    return request.param


@pytest.fixture(params=["batch", "stream"])
def mode(request):
    """Over files, and over messages."""
    return request.param


@pytest.fixture(scope="module", params=["mock", "real"])
def cluster(request):
    """A mock of Kafka, and a real one where it can be started."""
    from tests.kit.kafka import Cluster, real_kafka

    if request.param == "real":
        yield real_kafka()
        return
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def pulsar(tmp_path_factory):
    """A Pulsar broker; one that was killed and launched again may take a whole processor, so none outlives its file."""
    from deploy.pulsar.broker import running

    with running(tmp_path_factory.mktemp("pulsar") / "run", brief=True) as pulsar:
        yield pulsar


@pytest.fixture
def opened():
    """Opens connections, which are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda connection: stack.enter_context(contextlib.closing(connection))


@pytest.fixture
def haste(monkeypatch):
    """Kafka clients that commit and look around often."""
    from pipelines.brokers import kafka_subscription

    monkeypatch.setattr("pipelines.brokers.kafka_subscription._TICK_SECONDS", 0.2)
    monkeypatch.setitem(kafka_subscription.CONSUMER, "auto.commit.interval.ms", 200)
