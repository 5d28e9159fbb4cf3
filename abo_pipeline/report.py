"""The report: the same queries at every size, as grids, a page and numbers.

A row of a grid is a size and a column a rank, so that one sees what a larger set brings: a picture that the next
smaller size does not hold has a green frame. Finding hits is for ``search``.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abo_pipeline.errors import SettingsError
from abo_pipeline.pictures import Pictures
from abo_pipeline.search import Hit, Hits, ImageSearch, LikeQuery, parse_query
from abo_pipeline.store.nearest import first_image, scope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NEW = "#2a9d55"
_INK, _FAINT = "#222222", "#8a8a8a"
_CELL_INCHES = 1.75
_THUMBNAIL_PIXELS = 640


@dataclass(frozen=True)
class Coverage:
    """How much of a size there is to search.

    Attributes:
        size: MAX_IMAGES.
        kept: images of the catalogue that belong to it: fewer than ``size`` if the catalogue is smaller.
        embedded: of these, with a vector.
    """

    size: int
    kept: int
    embedded: int

    @property
    def complete(self) -> bool:
        """Whether the size has all its images."""
        return self.embedded == self.size

    def __str__(self) -> str:
        if self.complete:
            return f"all {self.size:,} embedded"
        text = f"{self.embedded:,} of {self.kept:,} embedded"
        return text if self.kept == self.size else f"{text}; the catalogue has no more"


@dataclass(frozen=True)
class Comparison:
    """One query at every size, smallest first."""

    query: str
    by_size: tuple[tuple[Coverage, Hits], ...]

    def newcomers(self, row: int) -> set[str]:
        """The hits of a row that the row before does not have."""
        if row == 0:
            return set()
        before = {hit.image_id for hit in self.by_size[row - 1][1]}
        return {hit.image_id for hit in self.by_size[row][1]} - before

    def numbers(self) -> list[dict[str, Any]]:
        """A row a size: how similar the hits are, and how many are new."""
        return [
            {
                "query": self.query,
                "size": coverage.size,
                "kept": coverage.kept,
                "embedded": coverage.embedded,
                "hits": len(hits),
                "best_similarity": round(max((hit.similarity for hit in hits), default=0.0), 4),
                "mean_similarity": round(sum(hit.similarity for hit in hits) / max(len(hits), 1), 4),
                "new_hits": len(self.newcomers(row)),
            }
            for row, (coverage, hits) in enumerate(self.by_size)
        ]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: the HTML page that shows all of it.
        grids: one PNG a query, in the queries' order.
        numbers: the rows of ``numbers.json``: see ``Comparison.numbers``.
        coverage: of each size.
    """

    page: Path
    grids: dict[str, Path]
    numbers: list[dict[str, Any]]
    coverage: tuple[Coverage, ...]


def compare(search: ImageSearch, query: str, sizes: Sequence[int], k: int) -> Comparison:
    """Ask the same at every size.

    Args:
        search: of the space to report on.
        query: as ``search.parse_query`` reads it; ``like:`` is made ``like:ID`` of an image that every size holds.
        sizes: ascending.
        k: hits a size.

    Raises:
        QueryError: the query cannot be answered.
    """
    parsed = parse_query(query)
    if parsed == LikeQuery():
        parsed = LikeQuery(first_image(search.space) or "")
    rows = tuple((coverage_of(search, size), search(parsed, k, size=size)) for size in sizes)
    return Comparison(str(parsed), rows)


def coverage_of(search: ImageSearch, size: int) -> Coverage:
    """How much of a size is embedded."""
    embedded, kept = search.space.coverage(scope(search.space, size).cutoff)
    return Coverage(size, kept, embedded)


def write_report(search: ImageSearch, queries: Sequence[str], sizes: Sequence[int], k: int, folder: Path) -> Report:
    """Write a PNG a query, ``index.html`` with all of them and ``numbers.json`` into a folder.

    Args:
        search: of the space to report on.
        queries: as ``compare`` takes them.
        sizes: ascending.
        k: hits a size.
        folder: exists; what an earlier report left in it is replaced.

    Raises:
        QueryError: a query cannot be answered.
        SettingsError: the folder cannot be written to.
    """
    comparisons = [compare(search, query, sizes, k) for query in queries]
    numbers = [row for comparison in comparisons for row in comparison.numbers()]
    coverage = tuple(coverage for coverage, _ in comparisons[0].by_size)
    try:
        for old in folder.glob("*.png"):
            old.unlink()
        grids = {}
        for number, comparison in enumerate(comparisons, start=1):
            path = folder / f"{number:02}-{_slug(comparison.query)}.png"
            grid_figure(comparison, search.pictures, k).savefig(path, dpi=110)
            grids[comparison.query] = path
        (folder / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        page = folder / "index.html"
        page.write_text(_page(search, coverage, grids, numbers), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"The report cannot be written to {folder}: {error.strerror}.") from None
    return Report(page, grids, numbers, coverage)


def grid_figure(comparison: Comparison, pictures: Pictures, k: int) -> Figure:
    """A row of k pictures a size."""
    from matplotlib.figure import Figure

    rows = len(comparison.by_size)
    figure = Figure(figsize=(_CELL_INCHES * (k + 0.8), (_CELL_INCHES + 0.62) * rows + 0.6), layout="constrained")
    figure.suptitle(_title(comparison.query), x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    grid = figure.subplots(rows, k + 1, squeeze=False, width_ratios=[0.8, *[1] * k])
    for row, (coverage, hits) in enumerate(comparison.by_size):
        _label(grid[row][0], coverage)
        fresh = comparison.newcomers(row)
        for column in range(k):
            hit = hits[column] if column < len(hits) else None
            _cell(grid[row][column + 1], hit, pictures, new=hit is not None and hit.image_id in fresh)
    return figure


def row_figure(hits: Hits, pictures: Pictures) -> Figure:
    """The hits as one row of pictures."""
    from matplotlib.figure import Figure

    count = max(len(hits), 1)
    figure = Figure(figsize=(_CELL_INCHES * count, _CELL_INCHES + 1.0), layout="constrained")
    figure.suptitle(_title(str(hits.query)), x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    cells = figure.subplots(1, count, squeeze=False)[0]
    for column, cell in enumerate(cells):
        _cell(cell, hits[column] if column < len(hits) else None, pictures, new=False)
    return figure


def thumbnail(figure_or_png: Figure | Path) -> str:
    """A small PNG as a ``data:`` URL, for a place that keeps what it shows, such as Dagster's event log."""
    from PIL import Image

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


def _label(axes: Axes, coverage: Coverage) -> None:
    axes.set_axis_off()
    axes.text(0, 0.62, f"{coverage.size:,} images", fontsize=11, fontweight="bold", color=_INK, va="center")
    words = "\n".join(textwrap.wrap(str(coverage), 16))
    color = _FAINT if coverage.complete else "#b4541a"
    axes.text(0, 0.5, words, fontsize=8, color=color, va="top")


def _cell(axes: Axes, hit: Hit | None, pictures: Pictures, *, new: bool) -> None:
    """One picture with its similarity and caption; blank where there is no hit."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(new)
        spine.set_color(_NEW)
        spine.set_linewidth(2.5)
    if hit is None:
        axes.set_box_aspect(1)
        return
    picture = pictures.get(hit.path)
    if picture is None:
        axes.text(0.5, 0.5, "no picture", ha="center", va="center", color=_FAINT, fontsize=8)
        axes.set_box_aspect(1)
    else:
        axes.imshow(picture.resize(_fitted(picture.size)), aspect="equal")
        _square(axes, *_fitted(picture.size))
    caption = "\n".join(textwrap.wrap(_drawable(hit.caption), 26, max_lines=2, placeholder=" …"))
    axes.set_xlabel(f"{hit.similarity:.3f}\n{caption}", fontsize=7, color=_INK, labelpad=3)


def _fitted(size: tuple[int, int], pixels: int = 256) -> tuple[int, int]:
    scale = pixels / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _square(axes: Axes, width: int, height: int) -> None:
    """Centre a picture in a square cell, so that all cells are alike."""
    side = max(width, height)
    axes.set_xlim((width - side) / 2 - 0.5, (width + side) / 2 - 0.5)
    axes.set_ylim((height + side) / 2 - 0.5, (height - side) / 2 - 0.5)


def _drawable(text: str) -> str:
    """Text as matplotlib draws it literally: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _title(query: str) -> str:
    return _drawable(f"“{query}”" if not query.startswith("like:") else f"more like {query.removeprefix('like:')}")


def _slug(query: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", query.lower()).strip("-")[:60] or "query"


def _page(
    search: ImageSearch,
    coverage: Sequence[Coverage],
    grids: dict[str, Path],
    numbers: Sequence[dict[str, Any]],
) -> str:
    sizes = "".join(f"<li><b>{row.size:,} images</b>: {html.escape(str(row))}</li>" for row in coverage)
    sections = "".join(
        f"<section><h2>{html.escape(query)}</h2>{_table(query, numbers)}"
        f'<img src="{html.escape(path.name)}" alt="the nearest pictures to {html.escape(query, quote=True)}"></section>'
        for query, path in grids.items()
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Search report: {html.escape(search.space.name)}</title>
<style>
 body {{ font: 15px/1.5 system-ui, sans-serif; color: {_INK}; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }}
 img {{ max-width: 100%; height: auto }}
 section {{ margin: 2.5rem 0; border-top: 1px solid #ddd }}
 table {{ border-collapse: collapse; font-size: 13px }}
 td, th {{ padding: .15rem .8rem .15rem 0; text-align: right }}
</style>
<h1>What a larger set brings</h1>
<p>Model {html.escape(search.space.model)}, space {html.escape(search.space.name)}, {search.space.dimension} dimensions.
Sizes are nested: each holds all images of the smaller ones. A green frame marks a picture that the next smaller
size did not find. Numbers under a picture are cosine similarities.</p>
<ul>{sizes}</ul>
{sections}
</html>
"""


def _table(query: str, numbers: Sequence[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{row['size']:,}</td><td>{row['embedded']:,}</td><td>{row['hits']}</td>"
        f"<td>{row['best_similarity']:.3f}</td><td>{row['mean_similarity']:.3f}</td><td>{row['new_hits']}</td></tr>"
        for row in numbers
        if row["query"] == query
    )
    head = "<th>size</th><th>embedded</th><th>hits</th><th>best</th><th>mean</th><th>new</th>"
    return f"<table><tr>{head}</tr>{rows}</table>"
