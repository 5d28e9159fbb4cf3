"""The picture of recall against time: a panel for each kind of query, a line for each index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_INK, _GRID = "#333333", "#dddddd"
# Okabe and Ito's colours, which people tell apart who do not see all of them.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#999999")
_RING = {"marker": "o", "markersize": 12, "fillstyle": "none"}


@dataclass(frozen=True)
class Line:
    """An index at its efforts.

    Attributes:
        name: whose line it is.
        points: milliseconds and recall, by effort.
        chosen: which of them has the effort that was tuned to, if one was.
    """

    name: str
    points: Sequence[tuple[float, float]]
    chosen: int | None = None


def plot_recall(path: Path, title: str, panels: Mapping[str, Sequence[Line]], target: float) -> None:
    """Write the picture.

    Args:
        path: a PNG.
        title: of the whole.
        panels: lines by kind of query; an index has the same colour in all of them.
        target: a recall to draw a line at.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator

    names = list(dict.fromkeys(line.name for lines in panels.values() for line in lines))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(title, color=_INK)
    lowest = min((recall for lines in panels.values() for line in lines for _, recall in line.points), default=0.0)
    all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (kind, lines) in zip(all_axes, panels.items(), strict=True):
        axes.axhline(target, color=_INK, linewidth=0.8, linestyle=":")
        axes.text(0.99, target, f"{target:g}", transform=axes.get_yaxis_transform(), ha="right", va="top", fontsize=8)
        for line in lines:
            milliseconds, recalls = zip(*line.points, strict=True)
            is_ours = line.name.startswith("ours")
            axes.plot(
                milliseconds,
                recalls,
                marker="o" if len(recalls) > 1 else "D",
                markersize=4 if len(recalls) > 1 else 6,
                linewidth=2 if is_ours else 1.2,
                color=colours[line.name],
                label=line.name,
            )
            if line.chosen is not None:
                axes.plot(*line.points[line.chosen], color=colours[line.name], **_RING)
        axes.set_title(f"{kind} queries", fontsize=10, color=_INK)
        axes.set_xscale("log")
        axes.set_ylim(max(0.0, lowest - 0.02), 1.004)
        axes.set_xlabel("p50, ms")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter("")
        axes.grid(color=_GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("recall")
    handles, labels = all_axes[0].get_legend_handles_labels()
    if any(line.chosen is not None for lines in panels.values() for line in lines):
        handles.append(Line2D([], [], color=_INK, linestyle="none", **_RING))
        labels.append("the tuned effort")
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
