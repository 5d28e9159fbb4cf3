"""The report: the same queries at every size, as grids, a page and numbers.

A row of a grid is a size and a column a rank, so that one sees what a larger set brings: a picture that the next
smaller size does not hold has a frame. Finding hits is for ``search``, drawing them for ``grids``.
"""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from abo_pipeline.download import write_whole
from abo_pipeline.errors import SettingsError
from abo_pipeline.grids import GridRow, grid_figure, title_of
from abo_pipeline.hits import Hits
from abo_pipeline.queries import LikeQuery, Query, parse_query, parts_of, recorded
from abo_pipeline.search import ImageSearch, stands_for
from abo_pipeline.store.nearest import image_path, scope

_DPI = 110


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
    """One query at every size, smallest first.

    Attributes:
        query: as asked, but for a URL's secrets.
        asked: the path of the stored image that was searched by, if one was; of several the first.
        by_size: each size with its hits.
    """

    query: str
    asked: str | None
    by_size: tuple[tuple[Coverage, Hits], ...]

    def newcomers(self, row: int) -> frozenset[str]:
        """The hits of a row that the row before does not have; none in the first."""
        ids = [frozenset(hit.image_id for hit in hits) for _, hits in self.by_size]
        return ids[row] - ids[row - 1] if row else frozenset()

    def rows(self) -> list[GridRow]:
        """The rows of its grid."""
        return [
            GridRow(f"{coverage.size:,} images", str(coverage), coverage.complete, hits, self.newcomers(row))
            for row, (coverage, hits) in enumerate(self.by_size)
        ]

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
        query: as ``parse_query`` reads it; ``like:`` is made ``like:ID`` of an image that every size holds.
        sizes: ascending.
        k: hits a size.

    Raises:
        QueryError: the query cannot be answered.
    """
    parsed = stands_for(search.space, parse_query(query))
    rows = tuple((coverage_of(search, size), search(parsed, k, size=size)) for size in sizes)
    return Comparison(recorded(parsed), _asked(search, parsed), rows)


def _asked(search: ImageSearch, query: Query) -> str | None:
    stored = [part.query for part in parts_of(query) if isinstance(part.query, LikeQuery) and part.weight > 0]
    return image_path(search.space, stored[0].image_id) if stored else None


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
        folder: exists; what an earlier report left in it is replaced, each file as a whole and the page after its
            pictures, so that an interrupted report shows no half picture and no page lacks one.

    Raises:
        QueryError: a query cannot be answered.
        SettingsError: the folder cannot be written to.
    """
    comparisons = [compare(search, query, sizes, k) for query in queries]
    numbers = [row for comparison in comparisons for row in comparison.numbers()]
    coverage = tuple(coverage for coverage, _ in comparisons[0].by_size)
    try:
        before = [path for path in folder.iterdir() if path.suffix == ".png"]
        grids: dict[str, Path] = {}
        for number, comparison in enumerate(comparisons, start=1):
            path = folder / f"{number:02}-{_slug(comparison.query)}.png"
            title = title_of(comparison.by_size[0][1].query)
            figure = grid_figure(title, comparison.rows(), search.pictures, k, comparison.asked)
            write_whole(path, partial(figure.savefig, dpi=_DPI, format="png"))
            grids[comparison.query] = path
        _write_text(folder / "numbers.json", json.dumps(numbers, indent=1) + "\n")
        page = folder / "index.html"
        _write_text(page, _page(search, coverage, grids, numbers))
        for old in set(before) - set(grids.values()):
            old.unlink()
    except OSError as error:
        raise SettingsError(
            f"The report cannot be written to {folder}: {error.strerror or error}. Make room on that disk, or set "
            "ABO_STATE_DIR to a folder that can be written to; the report before it, if any, is still there."
        ) from error
    return Report(page, grids, numbers, coverage)


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


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
 body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }}
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
