"""Score rows of a champion, a shadow and a canary, as a run by a release log leaves them."""

import numpy as np
import pyarrow as pa

from models.record import TIMESTAMP
from models.rollout.assign import parts_of
from models.rollout.records import Canary, Holdout
from models.score import decide
from tests.kit.declared import declared
from tests.kit.releases import make_log

SECOND, DAY = 1_000_000, 86_400_000_000
START = 1_543_622_400 * SECOND  # 1 December 2018
SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT }
feature { name: "shop" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card, shop: shop}
label: {field: fraud, delay: 1d}
features: {rolling: [{entity: card, missing: skip, windows: {D: 1d}, features: {n: count}}]}
model: {inputs: [amount, n]}
training: {slices: [shop]}
metrics: {top5: "precision_at_k(shop, 5)"}
output: [shop, fraud]
decisions: [{action: block, at_least: 0.7}, {action: review, at_least: 0.4}, {action: approve, at_least: 0.0}]
rollout:
  clock: event
  RULES
"""
RULES = """rules:
    metric: roc_auc
    minimum: {events: 200, labels: 50}
    margins: {metric: 0.05, slices: 0.2, decisions: 0.05, psi: 0.2, errors: 0.01, latency: 2}
"""
OLD, NEW = "old0", "new0"


def project_of(rules=RULES, blocks=()):
    """The project, with rules, and decisions that block."""
    return declared(TEXT.replace("RULES", f"blocks: [{', '.join(blocks)}]\n  {rules}"), SCHEMA)


PROJECT = project_of()


def shadow_log(**fields):
    return make_log(OLD, {"at": START, "shadows": (NEW,), **fields})


def canary_log(per_10000=2000, **fields):
    return make_log(OLD, {"at": START, "challenger": NEW, "canary": Canary("card", per_10000, NEW), **fields})


def holdout(per_10000):
    return Holdout("card", per_10000, "holdout")


def make_rows(number=4000, noise=0.15, other=0.15, seed=0, worse=0.0, cards=400, days=5):
    """Columns of events: what a champion and a challenger say of them, and the truth.

    Scores are noisy views of how likely fraud is; `worse` shifts the challenger's.
    """
    chosen = np.random.default_rng(seed)
    truth = chosen.beta(0.7, 2.0, number)

    def say(spread, shift=0.0):
        return np.clip(truth + chosen.normal(0, spread, number) + shift, 0, 1).astype(np.float32)

    return {
        "id": np.arange(number),
        "at": START + chosen.integers(0, days * DAY // SECOND, number) * SECOND,
        "card": chosen.integers(0, cards, number),
        "shop": chosen.choice(["a", "b", "c"], number),
        "fraud": (chosen.random(number) < truth).astype(np.int64),
        OLD: say(noise),
        NEW: say(other, worse),
    }


def table(rows, score, bundle, role, release=1, decisions=None, **more):
    """Score rows as Parquet has them."""
    bundles = bundle if isinstance(bundle, list) else [bundle] * len(rows["id"])
    roles = role if isinstance(role, list) else [role] * len(rows["id"])
    said = decide(score, PROJECT.decisions).cast(pa.string()) if decisions is None else pa.array(decisions)
    return pa.table(
        {
            "id": pa.array(rows["id"]),
            "at": pa.array(rows["at"]).cast(TIMESTAMP),
            "card": pa.array(rows["card"]),
            "shop": pa.array(rows["shop"]),
            "fraud": pa.array(rows["fraud"]),
            "score": pa.array(score),
            "decision": said,
            "bundle_id": pa.array(bundles, pa.string()),
            "role": pa.array(roles, pa.string()),
            "release": pa.array(np.full(len(rows["id"]), release, np.int32)),
            **more,
        }
    )


def shadowed(rows, **options):
    """The champion's rows, and those of its shadow."""
    return table(rows, rows[OLD], OLD, "champion", **options), table(rows, rows[NEW], NEW, "shadow", **options)


def canaried(rows, per_10000=2000, **options):
    """The rows of a run with a canary of cards."""
    inside = parts_of(pa.array(rows["card"]), NEW) < per_10000
    score = np.where(inside, rows[NEW], rows[OLD])
    bundles, roles = np.where(inside, NEW, OLD).tolist(), np.where(inside, "canary", "champion").tolist()
    return table(rows, score, bundles, roles, **options)
