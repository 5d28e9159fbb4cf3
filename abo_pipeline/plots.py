"""Plots of numbers: what an index finds, and how long it takes. Pictures of hits are for ``grids``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from abo_pipeline.evaluation import IMAGE, KS, TEXT, SizeMeasures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#2f6db3", "#c8641e", "#2a9d55", "#8a4fb0", "#777777")
_MARKERS = {KS[0]: "o", KS[1]: "s"}


def recall_figure(measures: Sequence[SizeMeasures]) -> Figure:
    """Recall against the median milliseconds of a query: a panel a kind of query, a line a size and number of hits.

    Each point is an effort; a ring marks the one that searches go by, and a cross the exact search.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(panels, (IMAGE, TEXT), strict=True):
        for colour, found in zip(cycle(_COLOURS), measures, strict=False):
            for k in KS:
                _line(axes, found, kind, k, colour)
        axes.axhline(measures[0].target, color="#b4541a", linewidth=1, linestyle="--")
        axes.text(
            0.01,
            measures[0].target,
            f" target {measures[0].target:g}",
            transform=axes.get_yaxis_transform(),
            fontsize=8,
            color="#b4541a",
            va="bottom",
        )
        axes.set_xscale("log")
        axes.set_xlabel("median milliseconds a query")
        axes.set_title(f"{kind} queries", loc="left", fontsize=11, fontweight="bold")
        axes.grid(visible=True, which="both", linewidth=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("recall")
    panels[1].legend(fontsize=8, loc="lower right", frameon=False)
    return figure


def _line(axes: Axes, found: SizeMeasures, kind: str, k: int, colour: str) -> None:
    points = [point for point in found.points if (point.kind, point.k) == (kind, k)]
    by_index = sorted((point for point in points if point.effort), key=lambda point: point.effort)
    label = f"{found.size:,} by {found.strategy}, {k} hits"
    style: Any = {"color": colour, "alpha": 1.0 if k == KS[0] else 0.55}
    for point in points:
        if not point.effort:
            axes.plot(point.p50_ms, point.recall, marker="x", linestyle="", label=None if by_index else label, **style)
    if by_index:
        times, recalls = [point.p50_ms for point in by_index], [point.recall for point in by_index]
        axes.plot(times, recalls, marker=_MARKERS[k], markersize=4, linewidth=1.2, label=label, **style)
    for point in by_index:
        if point.effort == found.efforts.get(k):
            axes.plot(point.p50_ms, point.recall, marker="o", markersize=11, fillstyle="none", **style)
