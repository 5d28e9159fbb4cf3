"""Pictures of hits, drawn with matplotlib: one row of them, or a row a size.

What to compare and where to write it is for ``report``.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from abo_pipeline.hits import Hit, Hits
from abo_pipeline.pictures import Pictures
from abo_pipeline.queries import (
    ImageQuery,
    LikeQuery,
    MixQuery,
    Query,
    TextQuery,
    UrlQuery,
    shortened,
    shown,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NEW = "#2a9d55"
_INK, _FAINT, _WARN = "#222222", "#8a8a8a", "#b4541a"
_CELL_INCHES, _CELL_PIXELS = 1.75, 256
_THUMBNAIL_PIXELS = 640
_MOST_IN_A_ROW = 10
_BOX = "□"


@dataclass(frozen=True)
class GridRow:
    """A row of a grid.

    Attributes:
        label: what the row is, such as ``1,000 images``.
        note: what to know about it.
        complete: whether the note is no warning.
        hits: from left to right.
        fresh: image_ids that get a frame.
    """

    label: str
    note: str
    complete: bool
    hits: Hits
    fresh: frozenset[str]


def grid_figure(title: str, rows: Sequence[GridRow], pictures: Pictures, k: int, asked: str | None = None) -> Figure:
    """A row of k pictures for each of several answers to the same query.

    Args:
        title: the query, as ``title_of`` has it.
        rows: from top to bottom.
        pictures: where the photographs are.
        k: pictures a row; cells for which there is no hit stay blank.
        asked: the path of the picture that was searched by, which is shown beside the first row.
    """
    from matplotlib.figure import Figure

    size = (_CELL_INCHES * (k + 0.8), (_CELL_INCHES + 0.62) * len(rows) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    _head(figure, title, fontsize=13)
    cells = figure.subplots(len(rows), k + 1, squeeze=False, width_ratios=[0.8, *[1] * k])
    for (label, *line), row in zip(cells, rows, strict=True):
        _label(label, row)
        for column, cell in enumerate(line):
            hit = row.hits[column] if column < len(row.hits) else None
            _cell(cell, hit, pictures, new=hit is not None and hit.image_id in row.fresh)
    if asked is not None and (picture := pictures.get(asked)):
        _show(cells[0][0].inset_axes((0, 0, 0.5, 0.32)), picture)
    return figure


def row_figure(hits: Hits, pictures: Pictures) -> Figure:
    """The hits as one row of pictures; of more than ten, ten a row."""
    from matplotlib.figure import Figure

    columns = min(max(len(hits), 1), _MOST_IN_A_ROW)
    rows = max(math.ceil(len(hits) / columns), 1)
    figure = Figure(figsize=(_CELL_INCHES * columns, (_CELL_INCHES + 0.62) * rows + 0.4), layout="constrained")
    _head(figure, title_of(hits.query), fontsize=12)
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for cell, hit in zip_longest(cells, hits):
        _cell(cell, hit, pictures, new=False)
    return figure


def title_of(query: Query) -> str:
    """What pictures are shown for, in words and short."""
    match query:
        case TextQuery():
            return f"“{shown(query)}”"
        case LikeQuery(image_id):
            return f"more like {shortened(image_id)}"
        case ImageQuery():
            return f"like the picture {shortened(Path(query.shown_path).name)}"
        case UrlQuery():
            return f"like the picture {shortened(query.shown_url)}"
        case MixQuery():
            return shown(query)


def thumbnail(figure_or_png: Figure | Path) -> str:
    """A small PNG as a ``data:`` URL, for a place that keeps what it shows, such as Dagster's event log."""
    source: Path | io.BytesIO
    if isinstance(figure_or_png, Path):
        source = figure_or_png
    else:
        source = io.BytesIO()
        figure_or_png.savefig(source, format="png", dpi=80)
    image = Image.open(source).convert("RGB")
    image.thumbnail((_THUMBNAIL_PIXELS, 4 * _THUMBNAIL_PIXELS))
    small = io.BytesIO()
    image.quantize(128).save(small, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"


def _label(axes: Axes, row: GridRow) -> None:
    axes.set_axis_off()
    axes.text(0, 0.62, row.label, fontsize=11, fontweight="bold", color=_INK, va="center")
    note = "\n".join(textwrap.wrap(row.note, 16))
    axes.text(0, 0.53, note, fontsize=8, color=_FAINT if row.complete else _WARN, va="top")


def _cell(axes: Axes, hit: Hit | None, pictures: Pictures, *, new: bool) -> None:
    """One picture with its similarity and caption; blank where there is no hit."""
    picture = pictures.get(hit.path) if hit else None
    _show(axes, picture, frame=_NEW if new else None)
    if hit is None:
        return
    if picture is None:
        axes.text(0.5, 0.5, "no picture", ha="center", va="center", color=_FAINT, fontsize=8)
    caption = "\n".join(textwrap.wrap(_drawable(hit.caption), 26, max_lines=2, placeholder=" …"))
    axes.set_xlabel(f"{hit.similarity:.3f}\n{caption}", fontsize=7, color=_INK, labelpad=3)


def _show(axes: Axes, picture: Image.Image | None, frame: str | None = None) -> None:
    """A picture in the middle of a square cell, so that all cells are alike."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame or "none")
        spine.set_linewidth(2.5)
    if picture is None:
        axes.set_box_aspect(1)
        return
    scale = _CELL_PIXELS / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    axes.imshow(picture.resize((width, height)), aspect="equal")
    axes.set_xlim((width - _CELL_PIXELS) / 2 - 0.5, (width + _CELL_PIXELS) / 2 - 0.5)
    axes.set_ylim((height + _CELL_PIXELS) / 2 - 0.5, (height - _CELL_PIXELS) / 2 - 0.5)


def _drawable(text: str) -> str:
    """Text as matplotlib draws it literally: a dollar sign would begin a formula.

    A letter that its font lacks, such as those of Chinese titles, is drawn as a box, which matplotlib warns of each
    time. So it is given the box.
    """
    known = _letters_of_the_font()
    return "".join(letter if ord(letter) in known or letter.isspace() else _BOX for letter in text).replace("$", r"\$")


@cache
def _letters_of_the_font() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _head(figure: Figure, title: str, fontsize: int) -> None:
    """The title above the pictures, on two lines at most."""
    # A bold letter is some 0.7 times as wide as the font is high, which is given in 72nds of an inch.
    letters = max(int(figure.get_figwidth() * 72 / (0.7 * fontsize)), 10)
    lines = textwrap.wrap(title, letters, max_lines=2, placeholder=" …")
    figure.suptitle(_drawable("\n".join(lines)), x=0.01, ha="left", fontsize=fontsize, fontweight="bold", color=_INK)
