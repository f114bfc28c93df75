"""Fixtures of several folders of tests."""

import pytest


@pytest.fixture(scope="module")
def cluster():
    """A mock of Kafka."""
    from tests.kit.kafka import Cluster

    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def haste(monkeypatch):
    """Kafka clients that commit and look around often."""
    from pipelines.brokers import kafka

    monkeypatch.setattr("pipelines.brokers.kafka._TICK_SECONDS", 0.2)
    monkeypatch.setitem(kafka._CONSUMER, "auto.commit.interval.ms", 200)
