"""A project with rolling features of every kind, and events for it."""

import random

from tests.kit.declared import declared

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "shop" type: INT }
feature { name: "amount" type: FLOAT }
feature { name: "kind" type: BYTES }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card, shop: shop}
fixed_point: {amount: 2, per_unit: 3}
features:
  row: {night: hour(at) < 6, per_unit: amount / 3}
  rolling:
    - entity: card
      windows: {6H: 6h, M: month}
      features:
        "online_{window}": count where kind == 'online'
        "spent_{window}": sum(amount) where kind == 'online' and amount > 5
        "kinds_{window}": distinct(kind)
        "shops_{window}": distinct(shop) where amount > 5
        "first_{window}": first(amount)
        "third_{window}": last(amount, 3)
        "spread_{window}": std(amount)
        "nights_{window}": sum(night)
        "units_{window}": mean(per_unit)
        "night_share_{window}": rate(night)
    - entity: card
      windows: {W: week}
      include_current: false
      features: {pause: since_last, online_pause: since_last where kind == 'online', before: last(amount)}
    - {entity: card, windows: {D: 1d}, gap: 30m, features: {in_session: count, session_sum: sum(amount)}}
    - {entity: [card, shop], missing: skip, windows: {Q: quarter}, features: {there: count, most: max(amount)}}
    - {entity: shop, missing: skip, delay: 1h, windows: {W: week}, features: {sold: sum(amount), buyers: distinct(card)}}
    - {entity: all, windows: {2H: 2h}, features: {everyone: distinct(card), newest: "last(amount, 2)"}}
model: {inputs: [amount, pause, there]}
"""
START = 1_543_600_000  # the evening of Friday, 30 November 2018


def project_of(text=TEXT):
    return declared(text, SCHEMA)


PROJECT = project_of()


def make_rows(number=500):
    chosen = random.Random(5)
    rows, at = [], START
    for n in range(number):
        at += chosen.choice([0, 0, 60, 600, 1200, 7200])
        rows.append(
            {
                "id": n,
                "at": at,
                "card": chosen.choice(["anna", "ben", "cleo"]),
                "shop": chosen.choice([None, 1, 2]),
                "amount": chosen.choice([None, 0.0, round(chosen.uniform(-9, 90), 2)]),
                "kind": chosen.choice([None, "online", "till"]),
            }
        )
    return rows
