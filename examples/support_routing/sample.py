"""Make support tickets from chat, mail and calls, as JSON lines.

    python examples/support_routing/sample.py tickets.jsonl --rows 16000

The same rows come for the same seed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

START, DAYS = np.datetime64("2026-01-05T00:00:00"), 70
TOPICS = {"login": 0.85, "delivery": 0.6, "invoice": 0.35, "refund": 0.2, "outage": 0.1}  # how often a bot can help
WORDS = {
    "login": "I can't sign in any more",
    "delivery": "Where is my parcel?",
    "invoice": "The invoice has a wrong address",
    "refund": "I want a refund, please",
    "outage": "Nothing works",
}
LANGUAGES = ["en", "de", "fr", "it", None]


def make(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """The tickets, in the order of their times."""
    random = np.random.default_rng(seed)
    seconds = np.sort(random.integers(0, DAYS * 86_400, rows))
    for number, second in enumerate(seconds.tolist()):
        topic = str(random.choice(list(TOPICS), p=[0.3, 0.3, 0.15, 0.15, 0.1]))
        channel = str(random.choice(["chat", "mail", "call"], p=[0.5, 0.35, 0.15]))
        language = LANGUAGES[int(random.choice(5, p=[0.5, 0.25, 0.12, 0.08, 0.05]))]
        text = ("Re: " if random.random() < 0.15 else "") + WORDS[topic] + " " + "word " * int(random.gamma(2, 10))
        chance = TOPICS[topic] - 0.25 * (channel == "call") - 0.002 * len(text) + 0.1 * (language == "en")
        yield {
            "ticket_id": f"T{number:07d}",
            "opened": str(START + np.timedelta64(second, "s")),
            "customer_id": _customer(number, int(random.zipf(1.3) % 3000)),
            "channel": channel,
            "language": language,
            "topic": topic,
            "text": text.strip(),
            "solved_by_bot": int(random.random() < chance),
        }


def _customer(number: int, customer: int) -> int | None:
    """Of some tickets, such as calls without a number, nobody knows whose they are."""
    return None if number % 500 == 499 else customer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    with flags.file.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in make(flags.rows, flags.seed))


if __name__ == "__main__":
    main()
