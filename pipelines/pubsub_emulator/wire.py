"""The raw protobuf classes of google.pubsub.v1: its proto-plus wrappers cost several times the work per message."""

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from google.pubsub_v1 import types

AcknowledgeRequest = types.AcknowledgeRequest.pb()
CreateSnapshotRequest = types.CreateSnapshotRequest.pb()
DeleteSnapshotRequest = types.DeleteSnapshotRequest.pb()
DeleteSubscriptionRequest = types.DeleteSubscriptionRequest.pb()
DeleteTopicRequest = types.DeleteTopicRequest.pb()
DetachSubscriptionRequest = types.DetachSubscriptionRequest.pb()
DetachSubscriptionResponse = types.DetachSubscriptionResponse.pb()
GetSnapshotRequest = types.GetSnapshotRequest.pb()
GetSubscriptionRequest = types.GetSubscriptionRequest.pb()
GetTopicRequest = types.GetTopicRequest.pb()
ListSnapshotsRequest = types.ListSnapshotsRequest.pb()
ListSnapshotsResponse = types.ListSnapshotsResponse.pb()
ListSubscriptionsRequest = types.ListSubscriptionsRequest.pb()
ListSubscriptionsResponse = types.ListSubscriptionsResponse.pb()
ListTopicSnapshotsRequest = types.ListTopicSnapshotsRequest.pb()
ListTopicSnapshotsResponse = types.ListTopicSnapshotsResponse.pb()
ListTopicSubscriptionsRequest = types.ListTopicSubscriptionsRequest.pb()
ListTopicSubscriptionsResponse = types.ListTopicSubscriptionsResponse.pb()
ListTopicsRequest = types.ListTopicsRequest.pb()
ListTopicsResponse = types.ListTopicsResponse.pb()
ModifyAckDeadlineRequest = types.ModifyAckDeadlineRequest.pb()
PublishRequest = types.PublishRequest.pb()
PublishResponse = types.PublishResponse.pb()
PubsubMessage = types.PubsubMessage.pb()
PullRequest = types.PullRequest.pb()
PullResponse = types.PullResponse.pb()
SeekRequest = types.SeekRequest.pb()
SeekResponse = types.SeekResponse.pb()
Snapshot = types.Snapshot.pb()
StreamingPullRequest = types.StreamingPullRequest.pb()
StreamingPullResponse = types.StreamingPullResponse.pb()
Subscription = types.Subscription.pb()
Topic = types.Topic.pb()
UpdateSubscriptionRequest = types.UpdateSubscriptionRequest.pb()
UpdateTopicRequest = types.UpdateTopicRequest.pb()

__all__ = ["Empty", "Timestamp", *(name for name in dir(types) if name in globals())]
