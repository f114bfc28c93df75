"""How a report shows names, times and plots."""

from __future__ import annotations

from typing import Any

import markupsafe
import numpy as np

MAX_ROWS = 100  # of a table
MAX_PLOTS = 24  # of one kind of comparison, and of distributions
MAX_CHARS = 300  # of a text that comes from the data


def figure_of(name: str, note: str, svg: str, bad: bool = False) -> dict[str, Any]:
    """A plot with its name, a note, and whether it is marked."""
    label = markupsafe.escape(cut(name))
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return {"name": breakable(name), "note": note, "svg": markupsafe.Markup(svg), "bad": bad}


def breakable(name: str) -> markupsafe.Markup:
    """A name, escaped and not too long, that may break behind an underscore."""
    return markupsafe.Markup(str(markupsafe.escape(cut(name))).replace("_", "_<wbr>"))


def time_text(time_us: int) -> str:
    """A time to the minute, or to the second if it is none."""
    text = str(np.datetime64(time_us, "us").astype("M8[s]")).replace("T", " ")
    return text.removesuffix(":00")


def cut(text: str) -> str:
    """A text that comes from the data, not too long."""
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"
