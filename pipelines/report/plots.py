"""Plots as inline SVG that takes its colours from the page: matplotlib's, without its ids, dates and excess digits."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from models.quality.records import Distribution
from pipelines.report.quality import Comparison, Floats, Times

SMALL = (2.7, 1.4)  # inches of 96 pixels
WIDE = (5.7, 1.8)
PIXELS_PER_INCH = 96
ID = "headrace-plot-"

# Colours that stand for the page's own, which differ by light and dark.
TEXT, GRID, LINE, ALARM, BASELINE = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {"#000000": "text", TEXT: "text", GRID: "grid", LINE: "line", ALARM: "alarm", BASELINE: "baseline"}
_DAY = 86_400
_TICK_SECONDS = (
    *(1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 4 * 3600, 6 * 3600, 12 * 3600),
    *(days * _DAY for days in (1, 2, 4, 7, 14, 28, 56, 91, 182, 365, 730, 1461, 3652)),
)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, found, and is small
    "svg.hashsalt": "headrace",
    "font.size": 8.25,  # 11 pixels
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": TEXT,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "text.color": TEXT,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.02,
    "figure.constrained_layout.h_pad": 0.02,
    "timezone": "UTC",
}


def plot_comparison(comparison: Comparison) -> str:
    """Values over the windows as a line, thresholds as dashes, and the values above them as dots."""
    with _plot(SMALL) as (axes, drawn):
        times, values, thresholds = comparison.times, comparison.values, comparison.thresholds
        axes.plot(times, values, color=LINE, marker="o" if len(times) == 1 else None, markersize=3)
        axes.plot(times, thresholds, color=TEXT, linewidth=0.9, linestyle=(0, (3, 2)))
        above = values > thresholds
        axes.plot(times[above], values[above], "o", color=ALARM, markersize=3.5, clip_on=False)
        _linear_axis(axes, 0, max(values.max(), thresholds.max()))
        _time_axis(axes, times, 4)
    return drawn[0]


def plot_lines(
    times: Times,
    lines: Mapping[str, Floats],
    *,
    log: bool = False,
    fit: bool = False,
    band: tuple[Floats, Floats] | None = None,
) -> str:
    """Lines over time; their names in a legend where there are several. With `fit`, the axis need not start at 0.

    A `band`, from low to high, is an area behind them.
    """
    with _plot(WIDE) as (axes, drawn):
        shades = {1: [1.0], 2: [0.5, 1.0], 3: [0.45, 0.7, 1.0]}.get(len(lines), [1.0] * len(lines))
        for (name, values), alpha in zip(lines.items(), shades, strict=True):
            known = np.count_nonzero(~np.isnan(values))
            marker = "o" if known < 3 else None
            axes.plot(times, values, color=LINE, alpha=alpha, label=name, marker=marker, markersize=3)
        if band is not None:
            axes.fill_between(times, *band, color=BASELINE, alpha=0.25, linewidth=0)
        drawn_values = [values for values in (*lines.values(), *(band or ())) if not np.isnan(values).all()]
        highest = max((float(np.nanmax(values)) for values in drawn_values), default=0.0)
        lowest = min((float(np.nanmin(values)) for values in drawn_values), default=0.0)
        if log and lowest > 0:
            _log_axis(axes, lowest / 1.5, highest * 1.5)
        else:
            _linear_axis(axes, lowest if fit and lowest > highest / 2 else min(0, lowest), highest)
        if len(lines) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(lines), borderaxespad=0, handlelength=1.4)
        _time_axis(axes, times, 8)
    return drawn[0]


def plot_spread(run: Distribution, baseline: Distribution | None) -> str:
    """Shares of the bins as bars, and those of the baseline as an outline; bins are of one width in the plot."""
    texts = _bin_texts(run, baseline)
    with _plot(SMALL) as (axes, drawn):
        shares = _shares(run, texts)
        outline = shares if baseline is None else _shares(baseline, texts)
        axes.bar(np.arange(len(shares)), shares, width=0.86, color=LINE, alpha=0.75)
        if baseline is not None:
            axes.stairs(outline, np.arange(len(outline) + 1) - 0.5, color=BASELINE, linewidth=1.6, baseline=None)
        _linear_axis(axes, 0, max(shares.max(initial=0), outline.max(initial=0)))
        if is_steep(run):
            _log_axis(axes, min(shares[shares > 0].min(), outline[outline > 0].min(initial=1)) / 2, 1.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{short_number(100 * value)}%"))
        axes.set_xlim(-0.6, len(shares) - 0.4)
        if run.kind == "text":
            _text_axis(axes, texts)
        else:
            _cut_axis(axes, run.cuts)
    return drawn[0]


def is_steep(run: Distribution) -> bool:
    """Whether one bin of many holds so much that the others can be seen on a logarithmic scale alone."""
    counts = np.array(run.counts)
    return run.kind == "number" and np.count_nonzero(counts) > 3 and counts.max() > 0.8 * counts.sum()


def _shares(distribution: Distribution, texts: Sequence[str]) -> Floats:
    counts = np.array(distribution.counts, float)
    if distribution.kind == "text":
        known = dict(zip(distribution.values, distribution.counts, strict=True))
        shown = [known.get(text, 0) for text in texts]
        counts = np.array([*shown, distribution.rows - sum(shown)], float)
    total = counts.sum()
    return counts / total if total else counts


def _bin_texts(run: Distribution, baseline: Distribution | None, most: int = 8) -> list[str]:
    """The most frequent texts of both; what else there is goes into one more bar."""
    counts: dict[str, float] = {}
    for distribution in (run, baseline):
        if distribution is not None and distribution.kind == "text":
            for value, count in zip(distribution.values, distribution.counts, strict=True):
                share = count / max(distribution.rows, 1)
                counts[value] = max(counts.get(value, 0.0), share)
    return sorted(sorted(counts), key=lambda value: -counts[value])[:most]


def _text_axis(axes: Axes, texts: Sequence[str]) -> None:
    names = [*(text if len(text) <= 10 else text[:9] + "…" for text in texts), "other"]
    turned = sum(len(name) for name in names) > 28
    plain = ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name) for name in names]
    axes.set_xticks(np.arange(len(names)), plain, rotation=45 if turned else 0, ha="right" if turned else "center")
    for label in axes.get_xticklabels():
        label.set_parse_math(False)


def _cut_axis(axes: Axes, cuts: Sequence[float]) -> None:
    """Bounds between bins: the first, the middle and the last, which is all there is room for."""
    if cuts:
        shown = sorted({0, (len(cuts) - 1) // 2, len(cuts) - 1})
        texts = [short_number(cuts[i]) for i in shown]
        axes.set_xticks([i + 0.5 for i in shown], texts)


def short_number(value: float) -> str:
    """A number in few characters: three digits, and k, M or G behind large ones."""
    if abs(value) < 1e-300:  # a bound just below 0
        return "0"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.4g}" if 1000 <= abs(value) < 1e4 else f"{value:.3g}"


def _linear_axis(axes: Axes, low: float, high: float) -> None:
    margin = 0.08 * (high - low)
    axes.set_ylim(low - margin if low else 0, high + margin if margin > 0 else high + (abs(high) or 1))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _log_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _time_axis(axes: Axes, times: Times, most: int) -> None:
    """At most `most` ticks at round times, which are dates where they are midnights."""
    seconds = times.astype("M8[s]").astype(np.int64)
    low, high = int(seconds.min()), int(seconds.max())
    step = next((s for s in _TICK_SECONDS if high // s - -(-low // s) < most), _TICK_SECONDS[-1])
    ticks = np.arange(-(-low // step), high // step + 1) * step
    texts = []
    for tick in ticks.astype("M8[s]").tolist():
        form = "%b %Y" if step > 200 * _DAY else "%-d %b" if tick.hour == tick.minute == tick.second == 0 else "%H:%M"
        texts.append(tick.strftime(form if step >= 60 else "%H:%M:%S"))
    axes.set_xticks(ticks.astype("M8[s]"), texts)
    if low == high:
        axes.set_xlim(times[0] - np.timedelta64(12, "h"), times[0] + np.timedelta64(12, "h"))


@contextlib.contextmanager
def _plot(inches: tuple[float, float]) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on, and a list that holds the SVG afterwards. A user's own settings of matplotlib play no part."""
    drawn: list[str] = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=inches)
        yield figure.add_subplot(), drawn
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        drawn.append(clean_svg(file.getvalue(), inches))


def clean_svg(svg: str, inches: tuple[float, float]) -> str:
    """The <svg> element alone, with the page's colours and font; its ids start with ID, to be made unique later."""
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub("<[^>]*>", lambda tag: _clean_tag(tag[0]), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    svg = re.sub(r'\s+id="([^"]+)"', lambda m: f' id="{ID}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{ID}", svg)
    width, height = (round(side * PIXELS_PER_INCH) for side in inches)
    return re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 width="{width}" height="{height}">', svg, count=1)


def _clean_tag(tag: str) -> str:
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var(--{_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], tag)
    tag = re.sub(r"font-family: [^;\"]*; ?", "", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
