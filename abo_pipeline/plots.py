"""Plots of numbers: what an index finds, and how long it takes. Pictures of hits are for ``grids``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from abo_pipeline.evaluation import IMAGE, KS, TEXT, SizeMeasures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    from abo_pipeline.ladder import Ladder

_COLOURS = ("#2f6db3", "#c8641e", "#2a9d55", "#8a4fb0", "#777777")
_USED, _EXACTLY = "effort that searches go by", "exact search"
_LEAST_RECALL, _LEAST_RECALL_SHOWN = 0.8, 0.95
"""What a plot of recall shows at most, and at least: with less, what matters would be a thin strip at its top."""
_RECOMMENDED, _FAINT = "#2a9d55", "#777777"
_TARGET: Any = {"color": "#b4541a", "linewidth": 1, "linestyle": "--"}
_LARGEST_BUBBLE = 900.0
"""Area in square points."""
_ALONG = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Parts of the line from a bubble to its label that are looked at, lest it be written over."""


def recall_figure(measures: Sequence[SizeMeasures]) -> Figure:
    """Recall against the median milliseconds of a query: a column a kind of query, a row a number of hits.

    A line is a size, and a point of it an effort; a ring marks the one that searches go by, and a cross the exact
    search. Efforts that found less than ``_LEAST_RECALL`` are below the lower edge.

    Args:
        measures: of at least one size.
    """
    from matplotlib.figure import Figure

    # Just as wide as the place where Dagster shows it.
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    panels = figure.subplots(len(KS), 2, sharex=True, sharey=True, squeeze=False)
    for row, k in zip(panels, KS, strict=True):
        row[0].set_ylabel(f"recall@{k}")
        for axes, kind in zip(row, (IMAGE, TEXT), strict=True):
            for colour, found in zip(cycle(_COLOURS), measures, strict=False):
                _line(axes, found, kind, k, colour)
            axes.axhline(measures[0].target, label=f"target {measures[0].target:g}", **_TARGET)
            axes.set_title(f"{kind} queries, {k} hits", loc="left", fontsize=10, fontweight="bold")
            axes.grid(visible=True, which="both", linewidth=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("median milliseconds a query")
    points = [point for found in measures for point in found.points]
    for axes in panels.flat:
        _time_axis(axes, [point.p50_ms for point in points])
    lowest = min(_LEAST_RECALL_SHOWN, measures[0].target, *(point.recall for point in points))
    # A ring at 1 has its upper half above.
    lowest, room = max(lowest, _LEAST_RECALL), 0.06
    panels[0, 0].set_ylim(lowest - room * (1 - lowest), 1 + room * (1 - lowest))
    _explain_marks(figure, panels[0, 0])
    return figure


def _line(axes: Axes, found: SizeMeasures, kind: str, k: int, colour: str) -> None:
    points = [point for point in found.points if (point.kind, point.k) == (kind, k)]
    by_index = sorted((point for point in points if point.effort), key=lambda point: point.effort)
    times, recalls = [point.p50_ms for point in by_index], [point.recall for point in by_index]
    label = f"{found.size:,} by {found.strategy}" if by_index else f"{found.size:,}, exactly"
    if by_index:
        axes.plot(times, recalls, color=colour, marker="o", markersize=4, linewidth=1.2, label=label, zorder=3)
    for point in points:
        if not point.effort:
            own = None if by_index else label
            axes.plot(point.p50_ms, point.recall, color=colour, marker="x", linestyle="", label=own, zorder=3)
        elif point.effort == found.efforts.get(k):
            axes.plot(point.p50_ms, point.recall, color=colour, marker="o", markersize=11, fillstyle="none", zorder=3)


def _explain_marks(figure: Figure, axes: Axes) -> None:
    """One legend below all panels: the lines by their labels, and what ring and cross stand for."""
    from matplotlib.lines import Line2D

    ring = Line2D([], [], color=_FAINT, marker="o", markersize=11, fillstyle="none", linestyle="", label=_USED)
    cross = Line2D([], [], color=_FAINT, marker="x", linestyle="", label=_EXACTLY)
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    figure.legend(handles=[*lines, ring, cross], loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def ladder_figure(ladder: Ladder) -> Figure:
    """Recall against the median milliseconds of a query: a panel a kind of query, a bubble a rung.

    A bubble's area is its bytes a vector. Those that meet the target for both kinds are filled; the recommended one is
    green.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Below one another, and just as wide as the place where Dagster shows them.
    figure = Figure(figsize=(8, 9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{ladder.rows:,} vectors of {ladder.dimension:,} dimensions; area: bytes a vector, index included",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    panels = figure.subplots(2, 1, sharex=True)
    bubbles = [_ladder_panel(axes, ladder, kind) for axes, kind in zip(panels, (IMAGE, TEXT), strict=True)]
    panels[1].set_xlabel("median milliseconds a query")
    # Labels look for places once everything else has its own.
    figure.draw_without_rendering()
    for axes, several in zip(panels, bubbles, strict=True):
        _label(figure, axes, several)
    return figure


@dataclass(frozen=True)
class _Bubble:
    """A labelled point of a plot; its radius is in points."""

    x: float
    y: float
    radius: float
    label: str
    weight: str


def _ladder_panel(axes: Axes, ladder: Ladder, kind: str) -> list[_Bubble]:
    from matplotlib.ticker import FuncFormatter

    advised = ladder.advice.rung
    largest = max(rung.bytes_a_vector for rung in ladder.rungs)
    bubbles = []
    for rung in sorted(ladder.rungs, key=lambda rung: -rung.bytes):
        found = rung.image if kind == IMAGE else rung.text
        area = _LARGEST_BUBBLE * rung.bytes_a_vector / largest
        colour = _RECOMMENDED if rung.name == advised else _COLOURS[0]
        face = colour if rung.recall >= ladder.target else "none"
        axes.scatter(found.p50_ms, found.recall, s=area, facecolor=face, edgecolor=colour, alpha=0.6, zorder=3)
        label = f"{rung.name}, {rung.bytes_a_vector:,} B"
        weight = "bold" if rung.name == advised else "normal"
        bubbles.append(_Bubble(found.p50_ms, found.recall, math.sqrt(area / math.pi), label, weight))
    lowest = min(ladder.target, *(bubble.y for bubble in bubbles))
    # As much above 1 as a large bubble needs.
    room = max(0.25 * (1 - lowest), 0.002)
    axes.set_ylim(lowest - room, 1 + room)
    _time_axis(axes, [found.p50_ms for rung in ladder.rungs for found in (rung.image, rung.text)])
    # There is room above 1 for the bubbles, but no recall.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1 + 1e-9 else ""))
    axes.set_ylabel(f"recall@{KS[0]}")
    axes.set_title(f"{kind} queries", loc="left", fontsize=11, fontweight="bold")
    _target_line(axes, ladder.target)
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return bubbles


def _time_axis(axes: Axes, times: Sequence[float]) -> None:
    """From the least to the greatest time, in milliseconds as people write them."""
    from matplotlib.ticker import FuncFormatter

    digits = "23456789" if max(times) < 5 * min(times) else "25"
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.6, max(times) * 1.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in digits else ""))
    axes.tick_params(which="both", labelsize=8)


def _target_line(axes: Axes, target: float) -> None:
    axes.axhline(target, **_TARGET)
    axes.text(
        0.01,
        target,
        f" target {target:g}",
        transform=axes.get_yaxis_transform(),
        fontsize=8,
        color="#b4541a",
        va="bottom",
    )


def _label(figure: Figure, axes: Axes, bubbles: Sequence[_Bubble]) -> None:
    """Write beside each bubble what it is, where nothing is yet, and as near to it as there is room."""
    pixels = figure.dpi / 72
    centres = [axes.transData.transform((bubble.x, bubble.y)) for bubble in bubbles]
    inside = axes.get_window_extent()
    labels = [text.get_window_extent() for text in axes.texts]
    taken = labels + [
        _box(x, y, 2 * pixels * bubble.radius, 2 * pixels * bubble.radius)
        for bubble, (x, y) in zip(bubbles, centres, strict=True)
    ]
    for bubble, (x, y) in zip(bubbles, centres, strict=True):
        style: Any = {"fontsize": 8, "fontweight": bubble.weight, "ha": "center", "va": "center", "zorder": 4}
        probe = axes.text(bubble.x, bubble.y, bubble.label, **style)
        width, height = probe.get_window_extent().size
        probe.remove()
        for right, up in _places(pixels * bubble.radius, width, height):
            box = _box(x + right, y + up, width + 4, height + 2)
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            line = [_box(x + part * right, y + part * up, 2, 2) for part in _ALONG]
            if fits and not box.count_overlaps(taken) and not any(each.count_overlaps(labels) for each in line):
                break
        labels.append(box)
        taken += [box, *line]
        axes.annotate(
            bubble.label,
            (bubble.x, bubble.y),
            xytext=(right / pixels, up / pixels),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": _FAINT, "shrinkA": 1, "shrinkB": bubble.radius},
            **style,
        )


def _places(radius: float, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Where the middle of a label may be, seen from the middle of its bubble: beside it first, then farther away."""
    for away in range(4, 400, 12):
        for angle in range(0, 360, 20):
            right, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            yield right * (radius + away + width / 2), up * (radius + away + height / 2)


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
