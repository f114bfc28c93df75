"""A Pub/Sub server for a laptop: Google's gRPC API on localhost, so that no cloud is needed.

It is for development and tests. It persists nothing, authenticates nobody and keeps all in memory, up to a
bound. The unmodified google-cloud-pubsub client works against it through PUBSUB_EMULATOR_HOST:

    with PubsubEmulator() as emulator:
        os.environ["PUBSUB_EMULATOR_HOST"] = emulator.address
        topic, subscription = emulator.create("project", "orders", "orders-reader")

It does topics, publishing, subscriptions, Pull, StreamingPull with flow control, acks, deadlines, ordering
keys, dead-letter and retry policies, Seek, snapshots, and filters of attributes' equality, presence and
prefix. It answers UNIMPLEMENTED to exactly-once delivery, push and export subscriptions, schemas, message
transforms, a topic's own retention and other filters. Unacked messages, idle subscriptions and snapshots
never expire.
"""

from pipelines.pubsub_emulator.broker import Broker, Clock
from pipelines.pubsub_emulator.server import DEFAULT_MAX_BACKLOG_BYTES, PubsubEmulator, serve
from pipelines.pubsub_emulator.subscription import Backlog

__all__ = ["DEFAULT_MAX_BACKLOG_BYTES", "Backlog", "Broker", "Clock", "PubsubEmulator", "serve"]
