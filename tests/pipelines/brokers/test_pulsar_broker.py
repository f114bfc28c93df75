"""Pulsar: addresses and settings, and on a real broker readers beside each other, outages, TLS and tokens."""

import base64
import collections
import contextlib
import hashlib
import hmac
import json
import pickle
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pulsar as pulsar_client
import pytest

from deploy.pulsar.broker import running
from pipelines.brokers import PULSAR_CONFIG, BrokerError, open_broker, pulsar_subscription
from pipelines.brokers.pulsar import PulsarBroker
from pipelines.brokers.pulsar_client import read_settings
from tests.kit.pulsar import needs_pulsar, new_topic

pytestmark = pytest.mark.serial

URI = "pulsar://127.0.0.1:6650/public/default/events"
HIDDEN = "eyJhbGciOiJIUzI1NiJ9.hidden.hidden"


@pytest.mark.parametrize(
    "uri",
    [
        URI,
        f"{URI}?subscription=s",
        f"{URI}?subscription=s&type=key_shared&event_time=__event_time__",
        "pulsar+ssl://a.example:6651,b.example:6651/t/n-1/x.y?subscription=a%2Fb",
    ],
)
def test_an_address_is_parsed_and_said_again(uri):
    assert open_broker(uri).uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "pulsar://127.0.0.1/public/default/events",
        "pulsar://127.0.0.1:6650/events",
        "pulsar://user:password@127.0.0.1:6650/public/default/events",
        f"{URI}?subscription=",
        f"{URI}?group=g",
        f"{URI}?token={HIDDEN}",
    ],
)
def test_another_address_is_refused_without_what_may_be_secret(uri):
    with pytest.raises(BrokerError, match="is not pulsar") as refused:
        open_broker(uri)
    assert HIDDEN not in str(refused.value)
    assert "password" not in str(refused.value)


def test_a_kind_of_subscription_that_loses_order_is_refused():
    with pytest.raises(BrokerError, match="failover or key_shared"):
        open_broker(f"{URI}?subscription=s&type=shared")
    with pytest.raises(BrokerError, match="add .subscription="):
        open_broker(URI).subscribe()


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (f"authPlugin=/tmp/library.so\nauthParams=token:{HIDDEN}", "the plugin is of"),
        (f"authParams=token:{HIDDEN}", "stand together"),
        (f"{HIDDEN}", "line 1"),
        ("receiverQueueSize=1", "receiverQueueSize is not a setting"),
        ("tlsAllowInsecureConnection=maybe", "true or false"),
    ],
)
def test_settings_that_can_not_be_are_refused_without_their_values(tmp_path, monkeypatch, lines, why):
    (tmp_path / "client.conf").write_text(lines)
    monkeypatch.setenv(PULSAR_CONFIG, str(tmp_path / "client.conf"))
    with pytest.raises(BrokerError, match=why) as refused:
        open_broker(URI)
    assert HIDDEN not in str(refused.value)


def test_pulsars_own_file_is_taken_and_no_secret_travels(tmp_path, monkeypatch):
    token = "org.apache.pulsar.client.impl.auth.AuthenticationToken"
    (tmp_path / "client.conf").write_text(
        f"# of Pulsar\nbrokerServiceUrl=pulsar://localhost:6650/\nproxyServiceUrl=\nauthPlugin={token}\n"
        "authParams=$PULSAR_TOKEN\nuseKeyStoreTls=false\ntlsTrustCertsFilePath=\n"
    )
    monkeypatch.setenv(PULSAR_CONFIG, str(tmp_path / "client.conf"))
    monkeypatch.setenv("PULSAR_TOKEN", f"token:{HIDDEN}")
    assert read_settings(str(tmp_path / "client.conf")) == {"authPlugin": token, "authParams": f"token:{HIDDEN}"}
    broker = open_broker(URI)
    assert HIDDEN.encode() not in pickle.dumps(broker)
    assert HIDDEN not in repr(broker)
    monkeypatch.delenv("PULSAR_TOKEN")
    with pytest.raises(BrokerError, match="authParams needs the environment variable"):
        open_broker(URI)


@pytest.mark.parametrize("order", ["first", "last"])
def test_the_client_lives_in_one_process_with_the_other_libraries(order):
    others = "import grpc, pyarrow.parquet, confluent_kafka, xgboost"
    parts = ["import pulsar", others] if order == "first" else [others, "import pulsar"]
    use = "confluent_kafka.Producer({'bootstrap.servers': '127.0.0.1:1', 'log_level': 0}); pyarrow.array([1])"
    use += "; pulsar.Client('pulsar://127.0.0.1:1', logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, '/dev/null')).close()"
    done = subprocess.run([sys.executable, "-c", ";".join([*parts, use])], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_service_that_is_not_there_is_an_error_and_not_waited_for_for_ever():
    started = time.monotonic()
    with pytest.raises(BrokerError, match="127.0.0.1:1/"):
        open_broker("pulsar://127.0.0.1:1/a/b/c?subscription=s", connect_seconds=2).subscribe()
    assert time.monotonic() - started < 60


def place(pulsar, partitions, query, **options):
    """A new topic: what to read from, and what to write to."""
    uri = f"pulsar://{pulsar.service}/{new_topic(pulsar, partitions, 's')}"
    return PulsarBroker.parse(f"{uri}?subscription=s&{query}".rstrip("&"), **options), PulsarBroker.parse(uri)


def numbers(start, stop):
    return [b"%d" % number for number in range(start, stop)]


def drain(subscription, seconds=2.0, acknowledge=True, awaited=()):
    """All that comes until nothing does for a while; what is awaited has 90 seconds to come."""
    found = []
    deadline = time.monotonic() + 90
    while (messages := subscription.receive(1000, seconds)) is not None or (
        not set(awaited) <= set(found) and time.monotonic() < deadline
    ):
        if messages is not None:
            found += messages.payloads
            if acknowledge:
                subscription.acknowledge(messages.receipt)
    return found


def read_beside(subscriptions, total):
    """What each of several readers receives, who read at once, until it is all."""
    found = [[] for _ in subscriptions]

    def read(place):
        deadline = time.monotonic() + 60
        while sum(map(len, found)) < total and time.monotonic() < deadline:
            if (messages := subscriptions[place].receive(100, 0.2)) is not None:
                found[place] += messages.payloads
                subscriptions[place].acknowledge(messages.receipt)

    threads = [threading.Thread(target=read, args=(place,)) for place in range(len(subscriptions))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return found


@needs_pulsar
@pytest.mark.parametrize(("partitions", "kind"), [(4, "failover"), (4, "key_shared"), (0, "key_shared")])
def test_two_readers_share_a_subscription_and_one_takes_over_from_the_other(pulsar, opened, partitions, kind):
    source, sink = place(pulsar, partitions, f"type={kind}")
    readers = [source.subscribe(), opened(source.subscribe())]
    time.sleep(1.5)  # until the partitions are given anew
    publisher = opened(sink.publisher())
    keys = [f"key {n % 50}" for n in range(2000)]
    publisher.publish(numbers(0, 2000), keys=keys)
    found = read_beside(readers, 2000)
    assert sorted(found[0] + found[1]) == sorted(numbers(0, 2000))
    assert all(found)
    by_key = [{keys[int(payload)] for payload in each} for each in found]
    assert not by_key[0] & by_key[1]
    for each in found:
        for key in range(50):
            of_key = [n for n in map(int, each) if n % 50 == key]
            assert of_key == sorted(of_key)
    readers[0].close()
    publisher.publish(numbers(2000, 3000), keys=keys[:1000])
    assert sorted(drain(readers[1], awaited=numbers(2000, 3000))) == sorted(numbers(2000, 3000))


@needs_pulsar
def test_no_more_is_held_than_the_bounds_allow(pulsar, opened):
    source, sink = place(pulsar, 2, "", max_outstanding_messages=50, max_outstanding_bytes=10_000)
    opened(sink.publisher()).publish([b"x" * 100] * 80 + [b"y" * 6000] * 4)
    subscription = opened(source.subscribe())
    received = []
    while (messages := subscription.receive(1000, 2.0)) is not None:
        received.append(messages)
    assert sum(map(len, received)) <= 50
    assert sum(len(payload) for each in received for payload in each.payloads) <= 10_000 + 6000
    assert subscription.backlog() != 0 or sum(map(len, received)) < 84
    for each in received:
        subscription.acknowledge(each.receipt)
    assert len(drain(subscription)) + sum(map(len, received)) == 84


@needs_pulsar
def test_event_times_are_of_the_messages_own_timestamp(pulsar, opened):
    source, sink = place(pulsar, 0, "event_time=__event_time__")
    opened(sink.publisher()).publish([b"a", b"b"], [{"__event_time__": "1700000000123", "more": "m"}, {}])
    messages = opened(source.subscribe()).receive(10, 10.0)
    assert dict(zip(messages.payloads, messages.event_times, strict=True)) == {b"a": "1700000000123", b"b": None}


@needs_pulsar
def test_a_part_of_a_batch_that_is_acknowledged_does_not_come_again(pulsar, opened):
    source, sink = place(pulsar, 0, "")
    opened(sink.publisher()).publish(numbers(0, 100))
    first = source.subscribe()
    messages = first.receive(30, 10.0)
    first.acknowledge(messages.receipt)
    first.close()
    assert sorted(drain(opened(source.subscribe()))) == sorted(set(numbers(0, 100)) - set(messages.payloads))


@needs_pulsar
def test_a_topic_that_is_deleted_is_told(pulsar, opened):
    source, _ = place(pulsar, 0, "")
    subscription = opened(source.subscribe())
    pulsar.ask("DELETE", f"persistent/{source.topic}?force=true")
    with pytest.raises(BrokerError, match="TopicNotFound"):
        subscription.receive(10, 60)


@needs_pulsar
@pytest.mark.parametrize("kind", ["failover", "key_shared"])
def test_what_is_held_while_the_broker_dies_is_neither_received_twice_nor_acknowledged_early(pulsar, opened, kind):
    source, sink = place(pulsar, 2, f"type={kind}")
    publisher = opened(sink.publisher())
    publisher.publish(numbers(0, 200), keys=[f"key {n % 9}" for n in range(200)])
    first = source.subscribe()
    held = []
    while sum(map(len, held)) < 200:
        held += [messages] if (messages := first.receive(90, 1.0)) is not None else []
    pulsar.kill()
    first.acknowledge(held[0].receipt)  # while it is down
    pulsar.launch()
    publisher.publish(numbers(200, 210))
    done = set(held[0].payloads)
    again = drain(first, acknowledge=False, awaited=numbers(200, 210))
    # What was acknowledged while it was down may come again, with its id; the rest is held and must not.
    assert collections.Counter(set(again) - done) == collections.Counter(numbers(200, 210))
    assert set(again) <= done | set(numbers(200, 210))
    first.close()
    # The new ones and what was never acknowledged are another reader's now.
    left = set(drain(opened(source.subscribe()), awaited=set(numbers(0, 210)) - done))
    assert set(numbers(0, 210)) - done <= left


@needs_pulsar
@pytest.mark.parametrize("kind", ["failover", "key_shared"])
def test_a_subscription_that_is_joined_anew_goes_on_with_what_is_held(pulsar, opened, monkeypatch, kind):
    monkeypatch.setattr(pulsar_subscription, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(pulsar_subscription, "_STALL_SECONDS", 0.0)
    source, sink = place(pulsar, 2, f"type={kind}")
    publisher = opened(sink.publisher())
    publisher.publish(numbers(0, 100), keys=[f"key {n % 9}" for n in range(100)])
    first = source.subscribe()
    held = []
    while sum(map(len, held)) < 100:
        held += [messages] if (messages := first.receive(40, 1.0)) is not None else []
    former = first._consumer
    first._expect()  # as after an outage, though nothing is given again
    deadline = time.monotonic() + 60
    while first._consumer in (None, former):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    publisher.publish(numbers(100, 110))
    assert sorted(drain(first, awaited=numbers(100, 110))) == sorted(numbers(100, 110))
    for messages in held:
        first.acknowledge(messages.receipt)
    first.close()
    assert opened(source.subscribe()).receive(1, 2.0) is None


class FakeConsumer:
    """As the client's, of what a broker gives it."""

    def __init__(self, *messages):
        self.messages, self.acknowledged = list(messages), []
        self.connected, self.closed = True, False

    def receive(self, milliseconds):
        if self.closed:
            raise pulsar_client.AlreadyClosed
        if not self.messages:
            time.sleep(min(milliseconds, 10) / 1000)
            raise pulsar_client.Timeout
        return self.messages.pop(0)

    def acknowledge(self, name):
        if self.closed:
            raise pulsar_client.AlreadyClosed
        self.acknowledged.append(name.entry_id())

    def is_connected(self):
        return self.connected

    def close(self):
        self.closed = True


def message(entry, partition):
    """A message of that number in that partition."""
    name = SimpleNamespace(
        **{
            field: lambda number=number: number
            for field, number in {"ledger_id": 7, "entry_id": entry, "partition": partition, "batch_index": -1}.items()
        }
    )
    size = SimpleNamespace(length=lambda: 1)
    return SimpleNamespace(
        message_id=lambda: name, data=lambda: b"%d" % entry, publish_timestamp=lambda: 0, _message=size
    )


@pytest.fixture
def after_outage(monkeypatch, opened):
    """A subscription that holds messages 0 and 1 of partitions 0 and 1, and was disconnected meanwhile."""
    monkeypatch.setattr(pulsar_subscription, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(pulsar_subscription, "_STALL_SECONDS", 0.2)
    former, later = FakeConsumer(message(0, 0), message(1, 1)), FakeConsumer()
    joined = []

    def join(*_, **__):
        joined.append(later)
        return later

    client = SimpleNamespace(subscribe=join, close=lambda: None, get_topic_partitions=lambda _: [])
    subscription = opened(
        pulsar_subscription.PulsarSubscription(open_broker(f"{URI}?subscription=s"), client, former, 2)
    )
    held = subscription.receive(10, 5.0)
    former.connected = False
    assert subscription.receive(10, 0.1) is None
    former.connected = True
    return subscription, held, former, later, joined


def test_a_subscription_that_gets_nothing_again_after_an_outage_is_joined_anew(after_outage):
    subscription, held, former, later, joined = after_outage
    former.messages.append(message(0, 0))  # of one partition all is well
    later.messages += [message(0, 0), message(1, 1), message(2, 1)]
    assert subscription.receive(10, 30.0).payloads == [b"2"]
    assert former.closed
    assert joined == [later]
    subscription.acknowledge(held.receipt)
    assert sorted(later.acknowledged) == [0, 1]


def test_a_subscription_that_is_given_again_what_it_holds_stays(after_outage):
    subscription, held, former, _, joined = after_outage
    former.messages += [message(0, 0), message(1, 1)]
    assert subscription.receive(10, 1.0) is None
    subscription.acknowledge(held.receipt)
    assert sorted(former.acknowledged) == [0, 1]
    assert not joined


def test_what_is_acknowledged_meanwhile_is_owed_no_more(after_outage):
    subscription, held, _, _, joined = after_outage
    subscription.acknowledge(held.receipt)
    assert subscription.receive(10, 1.0) is None
    assert not joined


def test_what_is_acknowledged_while_a_subscription_is_joined_anew_is_told_the_broker(after_outage, monkeypatch):
    subscription, held, former, later, _ = after_outage
    join, started, go_on = subscription._broker.__class__.consume, threading.Event(), threading.Event()

    def wait(broker, client):
        started.set()
        assert go_on.wait(30)
        return join(broker, client)

    monkeypatch.setattr(PulsarBroker, "consume", wait)
    assert subscription.receive(10, 0.1) is None
    assert started.wait(30)
    assert subscription.receive(10, 0.1) is None
    subscription.acknowledge(held.receipt)
    assert former.acknowledged == []
    later.messages.append(message(2, 0))
    go_on.set()
    assert subscription.receive(10, 30.0).payloads == [b"2"]
    deadline = time.monotonic() + 30
    while sorted(later.acknowledged) != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(later.acknowledged) == [0, 1]


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """A Pulsar with TLS that asks for tokens; its folder has what clients need."""
    folder = tmp_path_factory.mktemp("secured")
    key, certificate, secret = folder / "key.pem", folder / "certificate.pem", folder / "secret.key"
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key],
            *["-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
        ],
        check=True,
        capture_output=True,
    )
    secret.write_bytes(b"0123456789abcdef" * 4)
    plugin = "org.apache.pulsar.client.impl.auth.AuthenticationToken"
    settings = {
        "tlsCertificateFilePath": str(certificate),
        "tlsKeyFilePath": str(key),
        "tlsTrustCertsFilePath": str(certificate),
        "authenticationEnabled": "true",
        "authorizationEnabled": "true",
        "authenticationProviders": "org.apache.pulsar.broker.authentication.AuthenticationProviderToken",
        "superUserRoles": "admin",
        "tokenSecretKey": f"file://{secret}",
        "brokerClientAuthenticationPlugin": plugin,
        "brokerClientAuthenticationParameters": f"token:{token('admin', secret)}",
    }
    with running(folder / "run", settings=settings, token=token("admin", secret), brief=True, tls=True) as pulsar:
        pulsar.ask("POST", "namespaces/public/default/permissions/stream", ["consume", "produce"])
        (folder / "client.conf").write_text(
            f"tlsTrustCertsFilePath={certificate}\nauthPlugin={plugin}\nauthParams=$STREAM_TOKEN\n"
        )
        yield pulsar, folder


def token(role, secret):
    """A JSON web token, HS256, of a role."""
    parts = [json.dumps({"alg": "HS256"}).encode(), json.dumps({"sub": role}).encode()]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = hmac.new(secret.read_bytes(), text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@needs_pulsar
def test_tls_and_a_token_open_what_is_closed_without_them(secured, opened, monkeypatch):
    pulsar, folder = secured
    uri = f"pulsar+ssl://127.0.0.1:{pulsar.tls_port}/{new_topic(pulsar, 2, 's')}"
    config = str(folder / "client.conf")

    def broker(file=config):
        return PulsarBroker.parse(f"{uri}?subscription=s", config_file=file, connect_seconds=5)

    monkeypatch.setenv("STREAM_TOKEN", f"token:{token('stream', folder / 'secret.key')}")
    opened(broker().publisher()).publish(numbers(0, 50))
    assert sorted(drain(opened(broker().subscribe()))) == sorted(numbers(0, 50))

    (folder / "token").write_text(token("stream", folder / "secret.key"))
    monkeypatch.setenv("STREAM_TOKEN", f"file://{folder / 'token'}")
    opened(broker().publisher()).publish([b"by a file's token"])

    for wrong, why in (("stranger", "Authoriz"), (None, "no answer.* token")):
        (folder / "other.key").write_bytes(b"another secret of 64 bytes or so" * 2)
        made = token(wrong, folder / "secret.key") if wrong else token("stream", folder / "other.key")
        monkeypatch.setenv("STREAM_TOKEN", f"token:{made}")
        with pytest.raises(BrokerError, match=why) as refused:
            broker().subscribe()
        assert made not in str(refused.value)
    (folder / "bare.conf").write_text(f"tlsTrustCertsFilePath={folder / 'certificate.pem'}\n")
    for file in (str(folder / "bare.conf"), None):  # without a token, and without a certificate to trust
        with pytest.raises(BrokerError, match="no answer"):
            broker(file).subscribe()


def test_topics_are_made_and_looked_on_at(pulsar, tmp_path, monkeypatch):
    file = tmp_path / "client.conf"
    file.write_text(f"webServiceUrl={pulsar.admin}\n")
    uri = f"pulsar://{pulsar.service}/public/default/made-by-us"
    with pytest.raises(BrokerError, match="name its URL as webServiceUrl"):
        open_broker(uri).create()
    monkeypatch.setenv("HEADRACE_PULSAR_CONFIG", str(file))
    broker = open_broker(uri)
    assert not broker.exists()
    broker.create()
    broker.create()
    assert broker.exists()
    publisher = broker.publisher()
    publisher.publish([b"before"])
    with contextlib.closing(broker.tail()) as late, contextlib.closing(broker.tail(from_start=True)) as early:
        publisher.publish([b"after"])
        for reader, wanted in ((late, [b"after"]), (early, [b"before", b"after"])):
            found = []
            while len(found) < len(wanted) and (messages := reader.receive(10, 20)) is not None:
                found += messages.payloads
            assert found == wanted
            assert reader.receive(10, 0.1) is None
    publisher.close()
    stats = pulsar.ask("GET", f"persistent/{broker.topic}/partitioned-stats")
    assert stats["subscriptions"] == {}  # nothing is left behind
