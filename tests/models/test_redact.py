"""No form of a secret that libraries print comes through, and what is no secret stays as it is."""

import base64
import io

import pytest

from models import redact as redacting
from models.redact import RedactedStream, hide, redact

LOGIN = base64.b64encode(b"user:hunter22").decode()


@pytest.fixture(autouse=True)
def knows_none(monkeypatch):
    monkeypatch.setattr(redacting, "_known", set())


@pytest.mark.parametrize(
    "text",
    [
        "http://user:hunter22@mlflow:5000/api",
        "postgresql://user:hunter22@db/mlflow failed",
        "postgresql+psycopg2://user:hun/ter22@db/mlflow?x=1",
        "http://user:p@hunter22@host/x",
        "'http://user:hunter22@host', \"http://a:hunter22@b\"",
        "https://hunter22@github.example/x",
        "https://host/a?token=hunter22&x=1",
        "https://host/a?x=1&access_token=hunter22",
        "https://host/a?X-Goog-Signature=hunter22",
        "https://chat/v1/spaces/A?key=hunter22",
        "blob?sv=1&sig=hunter22",
        f"Authorization: Basic {LOGIN}",
        f"{{'Authorization': 'Basic {LOGIN}', 'Accept': 'x'}}",
        "authorization=Bearer hunter22",
        "Authorization: hunter22",
        f"sent Basic {LOGIN} to it",
        "sasl.password=hunter22",
        "conf {'sasl.password': 'hunter22', 'client.id': 'x'}",
        'sasl.jaas.config=org.PlainLoginModule required username="u" password="hunter22";',
        "sasl.jaas.config=hunter22",
        "ssl.key.password = hunter22",
        "password: hunter22",
        "MLFLOW_TRACKING_TOKEN=hunter22",
        '{"client_secret": "hunter22"}',
        '{"password": "with \\" quote hunter22"}',
        "aws_secret_access_key=hunter22",
        "-----BEGIN PRIVATE KEY-----\nhunter22\n-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter22",
    ],
)
def test_secrets_are_hidden(text):
    shown = redact(text)
    assert "hunter22" not in shown
    assert "ter22" not in shown
    assert LOGIN not in shown
    assert "***" in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "token",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1" * 18,
        "xoxb-123456789012-abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    ],
)
def test_tokens_are_known_by_their_form(token):
    assert redact(f"refused {token}!") == "refused ***!"


@pytest.mark.parametrize(
    "text",
    [
        "pubsub://demo/scores",
        "kafka://127.0.0.1:9092/topic?group=g&event_time=h",
        "kafka://a:1,b:2/topic?group=g",
        "sqlite:///my_project/.headrace/registry.db",
        "gs://bucket/a@b/c",
        "http://mlflow:5000/api/2.0: connection refused",
        "a schema registry's URL is http(s)://HOST[:PORT][/PATH], with no user or password",
        "project.yaml:3: unexpected token: '}'",
        "Basic authentication is off",
        "300,000 transactions of 75 days in demo-output/events (75 files)",
        "--key CUSTOMER is no field of the schema",
        "mail me@example.com",
        "a schema with key=CUSTOMER_ID",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_known_secrets_are_hidden_in_every_form():
    hide(
        ["--registry", "http://user:hun%40ter2@host", "https://t0ken12@host", "--to=pubsub://a/b", "http://u:pw@h"],
        {"HEADRACE_SCHEMA_REGISTRY_LOGIN": "me:s3cretpw", "HEADRACE_REGISTRY": "http://a:other1@h", "HOME": "/home/x"},
    )
    for secret in ("hun%40ter2", "hun@ter2", "t0ken12", "me:s3cretpw", "other1"):
        assert redact(f"user, {secret}; failed") == "user, ***; failed"
    assert redact("pw is short: an ordinary word") == "pw is short: an ordinary word"
    assert redact("/home/x host a") == "/home/x host a"


def test_a_webhooks_path_is_known():
    hide(["https://hooks.example/services/T024BE7LD/B0123456/aB3dE5gH7jK9mN1pQ3sT5vW7"], {})
    assert "aB3dE5" not in redact("posting to /services/T024BE7LD/B0123456/aB3dE5gH7jK9mN1pQ3sT5vW7")


def test_a_stream_writes_redacted_and_is_otherwise_itself():
    buffer = io.StringIO()
    stream = RedactedStream(buffer)
    print("http://u:hunter22@h", file=stream)
    stream.writelines(["password=hunter22\n"])
    assert buffer.getvalue() == "http://***@h\npassword=***\n"
    assert not stream.isatty()
    with pytest.raises(TypeError):
        stream.write(b"")
