"""What Google's rules and limits say about topics, subscriptions and messages: checks and defaults."""

import re
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from pipelines.pubsub_emulator.errors import InvalidArgument, Unimplemented
from pipelines.pubsub_emulator.filters import parse_filter
from pipelines.pubsub_emulator.messages import PbMessage

_PROJECT = re.compile(r"projects/[A-Za-z0-9:.\-]+")
_NAME = re.compile(
    r"projects/[A-Za-z0-9:.\-]+/(?P<kind>topics|subscriptions|snapshots)/(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}"
)

MAX_REQUEST_BYTES = 10_000_000
MAX_REQUEST_MESSAGES = 1000
MAX_ATTRIBUTES = 100
MAX_ATTRIBUTE_KEY_BYTES = 256
MAX_ATTRIBUTE_VALUE_BYTES = 1024
MAX_ORDERING_KEY_BYTES = 1024

_MUTABLE_OF_TOPIC = {"labels", "message_storage_policy"}
_MUTABLE_OF_SUBSCRIPTION = {
    "ack_deadline_seconds",
    "dead_letter_policy",
    "expiration_policy",
    "labels",
    "message_retention_duration",
    "retain_acked_messages",
    "retry_policy",
}


def check_name(name: str, kind: str) -> None:
    """Refuse what is not projects/P/`kind`/N."""
    match = _NAME.fullmatch(name)
    if match is None or match["kind"] != kind:
        raise InvalidArgument(
            f"{name!r} is not projects/PROJECT/{kind}/ID, where ID has 3 to 255 letters, digits or any of "
            "-_.~+%, starts with a letter and not with 'goog'."
        )


def check_project(name: str) -> None:
    if _PROJECT.fullmatch(name) is None:
        raise InvalidArgument(f"{name!r} is not projects/PROJECT.")


def check_topic(topic: PbMessage) -> None:
    """Refuse a topic that asks for what the emulator does not do."""
    check_name(topic.name, "topics")
    for field in ("ingestion_data_source_settings", "message_retention_duration", "schema_settings"):
        if topic.HasField(field):
            raise Unimplemented(f"The emulator has no {field} of topics.")
    if topic.message_transforms:
        raise Unimplemented("The emulator has no message_transforms.")


def complete_subscription(subscription: PbMessage) -> None:
    """Refuse a subscription that is wrong or asks for what the emulator does not do; fill in the defaults."""
    check_name(subscription.name, "subscriptions")
    _refuse_unsupported(subscription)
    parse_filter(subscription.filter)
    subscription.ack_deadline_seconds = subscription.ack_deadline_seconds or 10
    if not 10 <= subscription.ack_deadline_seconds <= 600:
        raise InvalidArgument(
            f"ack_deadline_seconds is 10 to 600, or 0 for 10; got {subscription.ack_deadline_seconds}."
        )
    _complete_duration(subscription, "message_retention_duration", default=7 * 86400, least=600, most=31 * 86400)
    if subscription.HasField("retry_policy"):
        _complete_duration(subscription.retry_policy, "minimum_backoff", default=10, least=0, most=600)
        _complete_duration(subscription.retry_policy, "maximum_backoff", default=600, least=0, most=600)
    if subscription.HasField("dead_letter_policy"):
        policy = subscription.dead_letter_policy
        check_name(policy.dead_letter_topic, "topics")
        policy.max_delivery_attempts = policy.max_delivery_attempts or 5
        if not 5 <= policy.max_delivery_attempts <= 100:
            raise InvalidArgument(f"max_delivery_attempts is 5 to 100, or 0 for 5; got {policy.max_delivery_attempts}.")
    subscription.state = type(subscription).State.Value("ACTIVE")


def update_topic(present: PbMessage, request: PbMessage) -> PbMessage:
    """The topic as an UpdateTopicRequest would have it."""
    updated = _merge(present, request.topic, request.update_mask, _MUTABLE_OF_TOPIC)
    check_topic(updated)
    return updated


def update_subscription(present: PbMessage, request: PbMessage) -> PbMessage:
    """The subscription as an UpdateSubscriptionRequest would have it."""
    updated = _merge(present, request.subscription, request.update_mask, _MUTABLE_OF_SUBSCRIPTION)
    complete_subscription(updated)
    return updated


def check_messages(messages: PbMessage, size: int) -> None:
    """Refuse a publish request of `size` bytes with no message, too much, or a message Google refuses."""
    if not messages:
        raise InvalidArgument("The publish request has no messages.")
    if len(messages) > MAX_REQUEST_MESSAGES:
        raise InvalidArgument(
            f"A publish request has at most {MAX_REQUEST_MESSAGES} messages; this one has {len(messages)}."
        )
    if size > MAX_REQUEST_BYTES:
        raise InvalidArgument(f"A publish request has at most {MAX_REQUEST_BYTES} bytes; this one has {size}.")
    for index, message in enumerate(messages):
        attributes = message.attributes
        if not attributes:
            if not message.data:
                raise InvalidArgument(f"Message {index} has neither data nor attributes.")
        elif len(attributes) > MAX_ATTRIBUTES:
            raise InvalidArgument(f"Message {index} has {len(attributes)} attributes; {MAX_ATTRIBUTES} is the most.")
        for key in attributes:
            if not 0 < len(key.encode()) <= MAX_ATTRIBUTE_KEY_BYTES or key.startswith("goog"):
                raise InvalidArgument(
                    f"Message {index}: an attribute's key has 1 to {MAX_ATTRIBUTE_KEY_BYTES} bytes and does "
                    f"not start with 'goog'; got {key!r}."
                )
            if len(attributes[key].encode()) > MAX_ATTRIBUTE_VALUE_BYTES:
                raise InvalidArgument(
                    f"Message {index}: attribute {key!r} has more than {MAX_ATTRIBUTE_VALUE_BYTES} bytes."
                )
        if len(message.ordering_key.encode()) > MAX_ORDERING_KEY_BYTES:
            raise InvalidArgument(f"Message {index}: its ordering key has more than {MAX_ORDERING_KEY_BYTES} bytes.")


def _refuse_unsupported(subscription: PbMessage) -> None:
    fields = ("bigquery_config", "bigtable_config", "cloud_storage_config")
    unsupported = [field for field in fields if subscription.HasField(field)]
    if subscription.push_config.push_endpoint:
        unsupported.append("push_config")
    for field in ("enable_exactly_once_delivery", "message_transforms"):
        if getattr(subscription, field):
            unsupported.append(field)
    if unsupported:
        raise Unimplemented(f"The emulator has no {', '.join(unsupported)} of subscriptions.")


def _complete_duration(settings: PbMessage, field: str, *, default: int, least: int, most: int) -> None:
    if not settings.HasField(field):
        getattr(settings, field).CopyFrom(Duration(seconds=default))
    seconds = getattr(settings, field).ToTimedelta().total_seconds()
    if not least <= seconds <= most:
        raise InvalidArgument(f"{field} is {least} to {most} seconds; got {seconds}.")


def _merge(present: PbMessage, wanted: PbMessage, mask: PbMessage, mutable: Iterable[str]) -> PbMessage:
    if not mask.paths:
        raise InvalidArgument("update_mask names no field.")
    for path in mask.paths:
        if path.partition(".")[0] not in mutable:
            raise InvalidArgument(f"{path} cannot be updated; these can: {', '.join(sorted(mutable))}.")
    updated = type(present)()
    updated.CopyFrom(present)
    try:
        mask.MergeMessage(wanted, updated, True, True)
    except ValueError as error:
        raise InvalidArgument(f"update_mask: {error}") from error
    return updated
