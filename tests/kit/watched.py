"""card_fraud with a `quality` section, and events of ten days."""

import random

from models.project.project import parse_project
from tests.kit.support import CARD_FRAUD, transaction


def project_with(gate):
    quality = f"\nquality: {{window: 2d, min_rows: 30, gate: {gate}, safe_action: review}}\n"
    text = (CARD_FRAUD / "project.yaml").read_text().split("\nquality:")[0] + quality
    project, faults = parse_project(text.encode(), lambda name: (CARD_FRAUD / name).read_bytes())
    assert not faults
    return project


def rows(bad=()):
    """Ten days of an event an hour; the amounts of bad days are a thousand times as high."""
    chosen = random.Random(0)
    made = [transaction(n, TX_AMOUNT=round(chosen.lognormvariate(3, 1), 2)) for n in range(240)]
    for n, row in enumerate(made):
        row["TX_AMOUNT"] *= 1000 if n // 24 in bad else 1
    return made
