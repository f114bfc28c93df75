"""A project with every kind of window that an endpoint answers by, its events, and how answers are compared with rows."""

import json
import random

import numpy as np

from models.batches import as_float64
from models.store.kinds import tiles_of
from models.store.tiles import merge_tiles

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "shop" type: INT }
feature { name: "amount" type: FLOAT float_domain { min: -1000 max: 100000 } }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
derive: {large: amount > 50}
entities: {card: card, shop: shop}
fixed_point: {amount: 2}
label: {field: fraud, delay: 2d}
features:
  row: {night: hour(at) < 6, half: amount / 2, usual: amount / mean_D}
  rolling:
    - entity: card
      windows: {D: 1d, M: month}
      features:
        "number_{window}": count
        "mean_{window}": mean(amount)
        "most_{window}": max(half)
        "second_{window}": last(amount, 2)
        "large_{window}": count where large
        "shops_{window}": distinct(shop)
        "pause_{window}": since_last
    - {entity: card, windows: {D: 1d}, include_current: false, features: {"before_{window}": count}}
    - {entity: card, windows: {W: 7d}, gap: 6h, features: {in_session: count}}
    - {entity: shop, missing: skip, delay: 2d, windows: {W: 14d}, features: {risk: rate(fraud), frauds: sum(fraud)}}
    - {entity: [card, shop], missing: skip, windows: {Q: quarter}, features: {there: count}}
    - {entity: all, windows: {D: 1d}, features: {everyone: distinct(card)}}
expect:
  mean_D: {max: 80, otherwise: fallback, fallback: 80}
  number_D: {max: 6, otherwise: mark}
  large_D: {max: 3, otherwise: dead_letter}
model: {inputs: [amount, night, usual, number_D, mean_M, second_D, shops_M, in_session, risk, there, everyone]}
decisions:
  - {action: block, at_least: 0.6}
  - {action: approve, at_least: 0.0}
fallback: {action: review}
output: [amount]
"""
EVERYONE = "    - {entity: all, windows: {D: 1d}, features: {everyone: distinct(card)}}\n"
# Without what any two events have in common.
APART = TEXT.replace(EVERYONE, "").replace(", everyone]", "]")
START = 1_543_622_400


class PastsInMemory:
    """Tiles in a dictionary."""

    def __init__(self):
        self.tiles = {}

    def read(self, places):
        return {place: self.tiles[place] for place in places if place in self.tiles}, {}

    def append(self, kind, rows, keys):
        for place, tile in tiles_of(kind.name, kind.tile_us, rows, keys).items():
            (self.tiles[place],) = merge_tiles(kind.kinds, [self.tiles.get(place)], [tile])


def make_events(number=600, seed=1):
    """Records, some without shop or amount, many of one time; some are refused."""
    chosen = random.Random(seed)
    return [
        {
            "id": n,
            "at": START + chosen.randrange(0, 40 * 86_400, 1800),
            "card": chosen.choice(["anna", "ben", "cleo", "zoë"]),
            "shop": chosen.choice([None, 1, 2, 3]),
            "amount": chosen.choice([None, 0.0, round(chosen.uniform(-9, 99), 2), 1e9 if n % 50 == 0 else 12.5]),
            "fraud": chosen.choice([None, 0, 1]),
        }
        for n in range(number)
    ]


def in_order(events):
    return sorted(events, key=lambda event: (event["at"], event["id"]))


def assert_same_bits(answers, scores, names, event_id="id"):
    """Answers as a client reads them, against score rows: each float32 and float64, bit for bit."""
    rows = {row[event_id]: place for place, row in enumerate(scores.select([event_id]).to_pylist())}
    assert {answer["event"][event_id] for answer in answers} == rows.keys()
    places = [rows[answer["event"][event_id]] for answer in answers]
    for name in names:
        ours = [answer.get(name, answer.get("features", {}).get(name)) for answer in answers]
        theirs = scores[name].combine_chunks().take(places)
        assert differing(ours, theirs) == 0, name


def differing(ours, theirs):
    """In how many places values of JSON are not those of a column."""
    kind = theirs.type
    if str(kind).startswith(("float", "double")):
        bits = np.int32 if kind.bit_width == 32 else np.int64
        one = np.array([np.nan if value is None else value for value in ours], kind.to_pandas_dtype())
        other = as_float64(theirs).astype(one.dtype)
        one, other = (np.where(np.isnan(values), np.nan, values).astype(one.dtype) for values in (one, other))
        return int((one.view(bits) != other.view(bits)).sum())
    return sum(one != other for one, other in zip(ours, theirs.to_pylist(), strict=True))


def as_lines(events):
    return [json.dumps(event).encode() for event in events]
