"""The topics, subscriptions and snapshots by name: create, get, list, update, delete."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.pubsub_emulator import settings, wire
from pipelines.pubsub_emulator.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from pipelines.pubsub_emulator.messages import Message, PbMessage
from pipelines.pubsub_emulator.subscription import Subscription

DELETED_TOPIC = "_deleted-topic_"
_MAX_PAGE = 1000


@dataclass(eq=False)
class Snapshot:
    """What was unacked when it was made, and what was published to the topic since."""

    settings: PbMessage
    messages: list[Message]
    bytes: int


@dataclass(eq=False)
class Topic:
    settings: PbMessage
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)

    def holders(self) -> list[Subscription | Snapshot]:
        return [*self.subscriptions.values(), *self.snapshots.values()]


class Registry:
    """All there is, by full name. Its methods take and return what the calls of the same names do."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.snapshots: dict[str, Snapshot] = {}

    @property
    def held_bytes(self) -> int:
        """What all subscriptions and snapshots hold."""
        subscriptions = sum(subscription.bytes for subscription in self.subscriptions.values())
        return subscriptions + sum(snapshot.bytes for snapshot in self.snapshots.values())

    def topic(self, name: str) -> Topic:
        settings.check_name(name, "topics")
        if name not in self.topics:
            raise NotFound(f"There is no topic {name}.")
        return self.topics[name]

    def subscription(self, name: str) -> Subscription:
        settings.check_name(name, "subscriptions")
        if name not in self.subscriptions:
            raise NotFound(f"There is no subscription {name}.")
        return self.subscriptions[name]

    def attached(self, name: str) -> Subscription:
        """The subscription, if it can still be read."""
        subscription = self.subscription(name)
        if subscription.settings.detached:
            raise FailedPrecondition(f"The subscription {name} is detached from its topic.")
        return subscription

    def snapshot(self, name: str) -> Snapshot:
        settings.check_name(name, "snapshots")
        if name not in self.snapshots:
            raise NotFound(f"There is no snapshot {name}.")
        return self.snapshots[name]

    def create_topic(self, request: PbMessage) -> PbMessage:
        settings.check_topic(request)
        if request.name in self.topics:
            raise AlreadyExists(f"The topic {request.name} exists.")
        request.state = wire.Topic.State.Value("ACTIVE")
        self.topics[request.name] = Topic(request)
        return request

    def get_topic(self, request: PbMessage) -> PbMessage:
        return self.topic(request.topic).settings

    def update_topic(self, request: PbMessage) -> PbMessage:
        topic = self.topic(request.topic.name)
        topic.settings = settings.update_topic(topic.settings, request)
        return topic.settings

    def list_topics(self, request: PbMessage) -> PbMessage:
        names, token = _page(_of_project(self.topics, request.project), request)
        topics = [self.topics[name].settings for name in names]
        return wire.ListTopicsResponse(topics=topics, next_page_token=token)

    def delete_topic(self, request: PbMessage) -> PbMessage:
        """Its subscriptions and snapshots stay, with what they hold and no topic."""
        topic = self.topic(request.topic)
        for orphan in topic.holders():
            orphan.settings.topic = DELETED_TOPIC
        del self.topics[request.topic]
        return wire.Empty()

    def list_topic_subscriptions(self, request: PbMessage) -> PbMessage:
        names, token = _page(self.topic(request.topic).subscriptions, request)
        return wire.ListTopicSubscriptionsResponse(subscriptions=names, next_page_token=token)

    def list_topic_snapshots(self, request: PbMessage) -> PbMessage:
        names, token = _page(self.topic(request.topic).snapshots, request)
        return wire.ListTopicSnapshotsResponse(snapshots=names, next_page_token=token)

    def add_subscription(self, subscription: Subscription) -> None:
        name = subscription.settings.name
        if name in self.subscriptions:
            raise AlreadyExists(f"The subscription {name} exists.")
        topic = self.topic(subscription.settings.topic)
        self._check_dead_letter_topic(subscription.settings)
        self.subscriptions[name] = topic.subscriptions[name] = subscription

    def get_subscription(self, request: PbMessage) -> PbMessage:
        return self.subscription(request.subscription).settings

    def update_subscription(self, request: PbMessage) -> PbMessage:
        subscription = self.subscription(request.subscription.name)
        updated = settings.update_subscription(subscription.settings, request)
        self._check_dead_letter_topic(updated)
        subscription.settings = updated
        return updated

    def list_subscriptions(self, request: PbMessage) -> PbMessage:
        names, token = _page(_of_project(self.subscriptions, request.project), request)
        found = [self.subscriptions[name].settings for name in names]
        return wire.ListSubscriptionsResponse(subscriptions=found, next_page_token=token)

    def delete_subscription(self, request: PbMessage) -> PbMessage:
        subscription = self.subscription(request.subscription)
        self._detach(subscription)
        subscription.deleted = True
        subscription.changed.notify_all()
        del self.subscriptions[request.subscription]
        return wire.Empty()

    def detach_subscription(self, request: PbMessage) -> PbMessage:
        """It stays, cannot be read any more and holds nothing."""
        subscription = self.subscription(request.subscription)
        self._detach(subscription)
        subscription.settings.detached = True
        subscription.clear()
        return wire.DetachSubscriptionResponse()

    def add_snapshot(self, snapshot: Snapshot) -> None:
        name = snapshot.settings.name
        settings.check_name(name, "snapshots")
        if name in self.snapshots:
            raise AlreadyExists(f"The snapshot {name} exists.")
        topic = self.topic(snapshot.settings.topic)
        self.snapshots[name] = topic.snapshots[name] = snapshot

    def get_snapshot(self, request: PbMessage) -> PbMessage:
        return self.snapshot(request.snapshot).settings

    def list_snapshots(self, request: PbMessage) -> PbMessage:
        names, token = _page(_of_project(self.snapshots, request.project), request)
        snapshots = [self.snapshots[name].settings for name in names]
        return wire.ListSnapshotsResponse(snapshots=snapshots, next_page_token=token)

    def delete_snapshot(self, request: PbMessage) -> PbMessage:
        snapshot = self.snapshot(request.snapshot)
        if topic := self.topics.get(snapshot.settings.topic):
            del topic.snapshots[request.snapshot]
        del self.snapshots[request.snapshot]
        return wire.Empty()

    def _detach(self, subscription: Subscription) -> None:
        if topic := self.topics.get(subscription.settings.topic):
            topic.subscriptions.pop(subscription.settings.name, None)

    def _check_dead_letter_topic(self, wanted: PbMessage) -> None:
        if wanted.HasField("dead_letter_policy"):
            self.topic(wanted.dead_letter_policy.dead_letter_topic)


def _of_project(names: Iterable[str], project: str) -> list[str]:
    settings.check_project(project)
    return [name for name in names if name.startswith(f"{project}/")]


def _page(names: Iterable[str], request: PbMessage) -> tuple[list[str], str]:
    """The names after the request's page token (the last name of the page before), and the next token."""
    if request.page_size < 0:
        raise InvalidArgument(f"page_size is not negative; got {request.page_size}.")
    size = min(request.page_size or _MAX_PAGE, _MAX_PAGE)
    rest = sorted(name for name in names if name > request.page_token)
    return rest[:size], rest[size - 1] if len(rest) > size else ""
