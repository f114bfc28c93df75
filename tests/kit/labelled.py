"""A small project with label metrics, and events whose labels become known later."""

import random

from tests.kit.declared import declared

DAY, SECOND = 86_400, 1_000_000
START = 1_543_622_400  # 1 December 2018, in seconds
SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
feature { name: "shop" type: BYTES }
feature { name: "amount" type: FLOAT }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card}
label: {field: fraud, delay: 1d, events: {time: seen}}
features: {row: {large: amount > 50}}
model: {inputs: [amount, large]}
training: {slices: [shop, large]}
metrics: {top2: "precision_at_k(card, 2)"}
output: [shop]
decisions: [{action: block, at_least: 0.6}, {action: approve, at_least: 0.0}]
label_metrics: {window: 2d}
"""
PROJECT = declared(TEXT, SCHEMA)


def make_events(number=600, days=6, seed=0):
    """Events over some days."""
    chosen = random.Random(seed)
    return [
        {
            "id": n,
            "at": START + chosen.randrange(days * DAY),
            "card": chosen.randrange(9),
            "shop": chosen.choice("abc"),
            "amount": chosen.randrange(9999) / 100,
        }
        for n in range(number)
    ]


def make_labels(events, seed=0):
    """Labels of two of three events, known up to four days later."""
    chosen = random.Random(seed)
    return [
        {"id": event["id"], "fraud": int(chosen.random() < event["amount"] / 200), "seen": event["at"] + delay}
        for event in events
        if (delay := chosen.randrange(6 * DAY)) < 4 * DAY
    ]
