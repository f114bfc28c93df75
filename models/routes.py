"""Where rows go by their decision: to topics by their URIs, or to what a name says beside the run's sink."""

from __future__ import annotations

import re

SCHEMES = ("pubsub://", "kafka://", "pulsar://", "pulsar+ssl://")
# The folders of a run's kinds of files, which no decision's rows can go to.
FOLDERS = (
    *("scores", "dead_letters", "quarantine", "quality", "aggregates", "retraining"),
    *("label_metrics", "fallback", "shadows"),
)
LABEL_METRICS, FALLBACK, SHADOWS = FOLDERS[-3:]
DUE, ROUTED = "due in ", "routed to "  # what counts of such a folder begin with: rows among the scores, and there
UNSCORED = "not scored, decided "  # what the count of a fallback decision begins with
_TOPIC = re.compile(r"(pubsub://[^/?#]+|kafka://[^/?#]+|pulsar(\+ssl)?://[^/?#]+/[^/?#]+/[^/?#]+)/[^/?#]+(\?[^#]+)?")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,199}")


def is_topic(place: str) -> bool:
    """Whether a place is a broker's, by its scheme."""
    return place.startswith(SCHEMES)


def is_name(place: str) -> bool:
    """Whether a place is a name, which a topic and a folder may have alike."""
    return _NAME.fullmatch(place) is not None


def fault_of(place: str) -> str | None:
    """What is wrong with a place of project.yaml, None if nothing is."""
    if is_topic(place):
        return None if _TOPIC.fullmatch(place) else f"{place!r} is not a topic's URI: {_FORMS}"
    if "://" in place:
        return f"{place!r} has a scheme that no broker has: {_FORMS}, or a name of a topic beside the run's --sink"
    if not is_name(place):
        return f"{place!r} is not a name: letters, digits, _, - and dots, a letter first; or a topic's URI: {_FORMS}"
    if place in FOLDERS:
        return f"{place} is a folder of a run's own in its --sink: give another name"
    return None


def topic_of(sink: str, kind: str) -> str:
    """The URI of the topic of what is of a kind, such as `quality`, beside those of the scores of a stream."""
    place, mark, query = sink.partition("?")
    return f"{place}-{kind}{mark}{query}"


def topic_beside(sink: str, place: str) -> str:
    """The URI of the topic that `place` means in a run whose sink is the topic `sink`, with whose query a name goes."""
    if is_topic(place):
        return place
    uri, mark, query = sink.partition("?")
    return f"{uri.rpartition('/')[0]}/{place}{mark}{query}"


_FORMS = "write pubsub://PROJECT/TOPIC, kafka://HOST:PORT/TOPIC or pulsar://HOST:PORT/TENANT/NAMESPACE/TOPIC"
