"""Benchmark peer: the card-fraud features and scores in Quix Streams, event by event, from Kafka to Kafka.

    python quix_fraud.py HOST:PORT MODEL.ubj STATE_FOLDER

It reads `events`, keyed by customer and of one partition, and writes `scores`, until it is told to stop. The windows
of a key are one value in Quix's RocksDB state: times and values in order, and for each window where it starts and
its sum, in whole cents. With one partition, Quix regroups by terminal in place, so events stay in their order.
It processes at least once. Changelog topics are off, which spares it work: the Kafka mock would not keep them.
It trusts its input: no validation, no deduplication, no late events.
"""

import sys
from datetime import datetime, timedelta

import numpy as np
import xgboost
from quixstreams import Application
from quixstreams.models.topics import TopicAdmin, TopicConfig, TopicManager

DAY = 86_400_000_000  # microseconds
WINDOWS = {"1DAY": DAY, "7DAY": 7 * DAY, "30DAY": 30 * DAY}
DELAY = 7 * DAY
EPOCH, MICROSECOND = datetime(1970, 1, 1), timedelta(microseconds=1)  # noqa: DTZ001
GROUP = "quix"


def roll(state, now, value, delay):
    """Add an event to a key's windows; returns the count and the sum of each that ends `delay` before now."""
    kept = state.get("windows") or {"times": [], "values": [], "end": 0, "starts": [0, 0, 0], "sums": [0, 0, 0]}
    times, values, starts, sums = kept["times"], kept["values"], kept["starts"], kept["sums"]
    times.append(now)
    values.append(value)
    end, known = kept["end"], now - delay
    while end < len(times) and times[end] <= known:
        sums = [each + values[end] for each in sums]
        end += 1
    for place, length in enumerate(WINDOWS.values()):
        start, oldest = starts[place], known - length
        while start < end and times[start] <= oldest:
            sums[place] -= values[start]
            start += 1
        starts[place] = start
    found = [(name, end - start, total) for name, start, total in zip(WINDOWS, starts, sums, strict=True)]
    gone = min(starts)
    del times[:gone], values[:gone]
    starts = [start - gone for start in starts]
    state.set("windows", {"times": times, "values": values, "end": end - gone, "starts": starts, "sums": sums})
    return found


def decode(event):
    moment = datetime.fromisoformat(event["TX_DATETIME"])
    event["time"] = (moment - EPOCH) // MICROSECOND
    event["TX_DURING_WEEKEND"] = int(moment.weekday() >= 5)
    event["TX_DURING_NIGHT"] = int(moment.hour <= 6)
    return event


def add_customer(event, state):
    for name, count, cents in roll(state, event["time"], round(event["TX_AMOUNT"] * 100), 0):
        event[f"CUSTOMER_ID_NB_TX_{name}_WINDOW"] = count
        event[f"CUSTOMER_ID_AVG_AMOUNT_{name}_WINDOW"] = cents / (100 * count)
    return event


def add_terminal(event, state):
    for name, count, frauds in roll(state, event.pop("time"), event["TX_FRAUD"], DELAY):
        event[f"TERMINAL_ID_NB_TX_{name}_WINDOW"] = count
        event[f"TERMINAL_ID_RISK_{name}_WINDOW"] = frauds / count if count else 0.0
    return event


def scorer(path):
    booster = xgboost.Booster({"nthread": 1}, model_file=path)
    inputs = booster.feature_names

    def add_score(event):
        matrix = np.array([[event[name] for name in inputs]], np.float32)
        score = float(booster.inplace_predict(matrix, validate_features=False)[0])
        event["score"] = score
        event["decision"] = "block" if score >= 0.8 else "review" if score >= 0.3 else "approve"
        return event

    return add_score


class MockAdmin(TopicAdmin):
    """For topics that are there: the Kafka mock doesn't describe configurations."""

    def inspect_topics(self, topic_names, timeout=30):
        there = self.list_topics(timeout=timeout)
        usual = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
        sizes = {name: len(there[name].partitions) for name in topic_names if name in there}
        return {name: TopicConfig(sizes[name], 1, usual) if name in sizes else None for name in topic_names}


def main():
    address, model, state_folder = sys.argv[1:4]
    admin = MockAdmin(broker_address=address)
    app = Application(
        broker_address=address,
        consumer_group=GROUP,
        auto_offset_reset="earliest",
        state_dir=state_folder,
        use_changelog_topics=False,
        auto_create_topics=False,
        topic_manager=TopicManager(topic_admin=admin, consumer_group=GROUP, auto_create_topics=False),
        loglevel="WARNING",
    )
    events = app.topic("events", key_deserializer="str", value_deserializer="json")
    scores = app.topic("scores", key_serializer="int", value_serializer="json")
    frame = app.dataframe(events).apply(decode)
    frame = frame.apply(add_customer, stateful=True)
    frame = frame.group_by("TERMINAL_ID").apply(add_terminal, stateful=True)
    frame.apply(scorer(model)).to_topic(scores)
    app.run()


if __name__ == "__main__":
    main()
