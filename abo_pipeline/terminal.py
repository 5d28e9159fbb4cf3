"""What a person at a terminal sees of a run: a line an asset, a bar for what takes long.

Where the output is no terminal, the bars are lines now and then. What a run does is for ``runner``.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from abo_pipeline.catalog import REASONS
from abo_pipeline.download import in_megabytes
from abo_pipeline.embedding import Tally
from abo_pipeline.evaluation import IMAGE, KS, TEXT
from abo_pipeline.ladder import Found, Ladder
from abo_pipeline.plan import Plan
from abo_pipeline.runner import PipelineProgress
from abo_pipeline.search import ExplainedHits
from abo_pipeline.settings import Settings
from abo_pipeline.store import SpaceSummary
from abo_pipeline.store.analytics import Count, Facet, Facets
from abo_pipeline.store.strategies import EXACT

_LINE_SECONDS = 10.0

STAGES = {
    "raw_archive": "archive",
    "listings": "listings",
    "image_paths": "catalogue",
    "image_embeddings": "embeddings",
    "embedding_index": "index",
    "golden_queries": "queries",
    "search_report": "report",
    "storage_ladder": "ladder",
}
"""What an asset is called at the terminal."""


class Bars:
    """Progress bars on a terminal; elsewhere a line every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic()
        # On a narrow terminal the bar goes first, and then the words' end.
        self._progress = Progress(
            TextColumn("[bold]{task.description}[/]", table_column=Column(min_width=11, no_wrap=True)),
            BarColumn(table_column=Column(min_width=8)),
            TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
            TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),
            TextColumn("{task.fields[words]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, what: str, done: float, total: float | None, words: str) -> None:
        """How far something is; its bar goes when it is complete."""
        if self._progress.disable:
            now = time.monotonic()
            if now - self._last_line >= _LINE_SECONDS:
                self._last_line = now
                self._console.print(f"{what:<11} {words}")
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, words=words)
        self._progress.update(self._tasks[what], completed=done, total=total, words=words)
        if total is not None and done >= total:
            self.remove(what)

    def line_beside(self, out: Console, line: str) -> None:
        """Print a line on another console; above the bars, if both are terminals, which are one and the same then."""
        both = out.is_terminal and not self._progress.disable
        (self._console if both else out).print(line)

    def wait_for(self, what: str) -> None:
        """A bar without end, for what nobody knows how long it takes; nothing where there are no bars."""
        if not self._progress.disable:
            self.update(what, 0, None, "")

    def remove(self, what: str) -> None:
        """Take a bar away."""
        task = self._tasks.pop(what, None)
        # The first bar's number is 0.
        if task is not None:
            self._progress.remove_task(task)


@contextmanager
def bar(what: str, unit: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """One bar; call what this yields with how many of how many are done."""
    with stage_bars(unit, console) as advance:
        yield partial(advance, what)


@contextmanager
def stage_bars(unit: str, console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage; call what this yields with a stage and how many of how many are done."""
    with Bars(console) as bars:
        yield lambda what, done, total: bars.update(what, done, total, f"{done:,}/{total:,} {unit}")


class TerminalProgress(PipelineProgress):
    """Prints what a run does.

    Args:
        out: for results.
        err: for bars.
    """

    def __init__(self, out: Console, err: Console) -> None:
        self._out = out
        self._bars = Bars(err)
        self._images = 0
        self._before = self._failed_before = 0
        self._current = ("", 0, 0)
        self._started: float | None = None

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)

    def say(self, what: str, words: str) -> None:
        """A line of the run's record."""
        self._bars.line_beside(self._out, f"[bold]{what:<11}[/] {escape(words)}")

    def download(self, name: str, done: int, total: int | None) -> None:
        """Bytes of a file that are here."""
        self._bars.update("fetching", done, total, f"{name}: {in_megabytes(done, total)}")

    def indexing(self, name: str, done: int, total: int | None) -> None:
        """Bytes of a tar that are indexed."""
        self._bars.update("indexing", done, total, f"{name}: {in_megabytes(done, total)}")

    def pending(self, images: int) -> None:
        """So many images are to be embedded, over all partitions."""
        self._images = images

    def choosing(self, words: str) -> None:
        """What is done to find an encoder, which may take a minute."""
        self.say("encoder", words)
        self._bars.wait_for("encoder")

    def embedding(self, partition_key: str, tally: Tally) -> None:
        """A batch is done; partitions before this one count as well."""
        self._bars.remove("encoder")
        key, done, failed = self._current
        if key != partition_key:
            self._before += done
            self._failed_before += failed
        self._current = (partition_key, tally.done, tally.failed)
        done = self._before + tally.done
        if self._started is None and tally.done:
            # What was done before, to find an encoder and to load the model, is not counted.
            self._started = time.monotonic() - tally.elapsed
        speed = f", {done / max(time.monotonic() - self._started, 1e-6):.1f}/s" if self._started else ""
        all_failed = self._failed_before + tally.failed
        failures = f", {all_failed:,} failed" if all_failed else ""
        words = f"{done:,}/{self._images:,} images{speed}{failures}, partition {partition_key}"
        if self._images:
            self._bars.update("embedding", done, self._images, words)

    def building(self, words: str) -> None:
        """How far the vector indexes are."""
        self._bars.update("building", 0, None, words)

    def finished(self, asset: str, metadata: dict[str, Any]) -> None:
        """An asset is done."""
        for bar_name in ("fetching", "indexing", "encoder", "embedding", "building"):
            self._bars.remove(bar_name)
        self.say(STAGES[asset], _WORDS[asset](metadata))


def plan_lines(plan: Plan, settings: Settings) -> list[tuple[str, str]]:
    """A plan as lines of a heading and words."""
    account = f"kept {plan.kept:,} = embedded {plan.embedded:,} + failed {plan.failed:,} + pending {plan.pending:,}"
    lines = [("catalogue", f"{settings.catalogue}: {account}"), ("pending", str(plan))]
    if speed := plan.speed:
        words = f"{speed.images_per_second:.1f} images/s, from {speed.images:,} images in {speed.runs:,} runs here"
        lines.append(("speed", words))
    if settings.database_url is None:
        free = shutil.disk_usage(settings.folder()).free
        fits = (
            "" if plan.disk_bytes < free else ", which is too little: make room, or set ABO_STATE_DIR to another disk"
        )
        lines.append(("disk", f"{free / 1e6:,.0f} MB free in {settings.state_dir}{fits}"))
    return lines


def space_rows(spaces: Sequence[SpaceSummary]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Spaces as a table: its columns, and its rows."""
    return ("searches", "space", "vectors", "failed", "pending", "sizes", "MB", "model"), [
        (
            "use it" if space.is_default else "used it" if space.is_previous else "",
            space.name,
            f"{space.vectors:,}",
            f"{space.failures:,}",
            f"{space.pending:,}",
            " ".join(f"{size:,}" for size in space.sizes),
            f"{(space.table_bytes + space.index_bytes) / 1e6:,.1f}",
            space.model,
        )
        for space in spaces
    ]


def index_rows(metadata: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """How each size is searched and what that finds, as a table's headings and rows."""
    measured = [(f"{kind}_recall_at_{k}", f"{kind}@{k}") for kind in (IMAGE, TEXT) for k in KS]
    rows = []
    for row in metadata["indexes"]:
        efforts = "/".join(str(row[f"effort_at_{k}"] or "-") for k in KS)
        recalls = ("-" if row.get(name) is None else f"{row[name]:.4f}" for name, _ in measured)
        rows.append((f"{row['size']:,}", row["strategy"], efforts, *recalls, f"{row['bytes'] / 1e6:,.1f}"))
    return ("size", "strategy", "effort", *(head for _, head in measured), "MB"), rows


def index_notes(metadata: dict[str, Any]) -> list[str]:
    """Why a size is searched otherwise than was asked for, and which are searched no more."""
    notes = [f"size {row['size']:,}: {row['why']}" for row in metadata["indexes"] if row["why"]]
    if dropped := metadata["sizes_dropped"]:
        notes.append(f"dropped, for they are none of ABO_SIZES any more: {dropped}")
    return notes


def facet_lines(facets: Facets, words: Sequence[Count]) -> list[tuple[str, str]]:
    """Counts over the hits as lines of a heading and words."""
    lines = [(name, _counts(getattr(facets, name))) for name in ("product_type", "color", "brand")]
    return [*lines, ("keywords", ", ".join(f"{word.value} {word.count}" for word in words) or "none")]


def explained_lines(explained: ExplainedHits) -> list[tuple[str, str]]:
    """How an answer came about, as lines of a heading and words."""
    how = explained.explanation
    effort = f", effort {how.effort}" if how.effort else ""
    several = f"{explained.searches}, each going on behind the one before; this is the last"
    return [
        *([("searches", several)] if explained.searches > 1 else []),
        ("strategy", f"{how.strategy}{effort}: {how.reason}"),
        ("plan", how.plan_line),
        ("rows visited", f"{how.visited:,}"),
        (
            "milliseconds",
            f"{explained.encode_ms:.1f} encode, {explained.sql_ms:.1f} SQL, {explained.fetch_ms:.1f} fetch",
        ),
    ]


def _counts(facet: Facet) -> str:
    counts = [f"{count.value} {count.count:,}" for count in facet.counts]
    return ", ".join(counts + ([f"unknown {facet.unknown:,}"] if facet.unknown else [])) or "none"


def ladder_rows(ladder: Ladder) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The storage ladder as a table of 80 characters: its columns, and its rows."""
    found = ("image", "p50/p95", "text", "p50/p95")
    return ("rung", "MB", "B/vector", "build s", "effort", *found), [
        (
            rung.name,
            f"{rung.bytes / 1e6:,.1f}",
            f"{rung.bytes_a_vector:,}",
            f"{rung.build_seconds:,.1f}",
            f"{rung.effort:,}" if rung.effort else "",
            *_recall_and_times(rung.image),
            *_recall_and_times(rung.text),
        )
        for rung in ladder.rungs
    ]


def _recall_and_times(found: Found) -> tuple[str, str]:
    digits = 1 if found.p95_ms < 100 else 0
    return f"{found.recall:.4f}", f"{found.p50_ms:.{digits}f}/{found.p95_ms:.{digits}f}"


def _archive(metadata: dict[str, Any]) -> str:
    how = "fetched" if metadata["fetched"] else "already here"
    left_out = ", ".join(f"{count:,} {kind}" for kind, count in metadata["left_out"].items())
    words = f"{metadata['path']}, {metadata['bytes'] / 1e6:,.1f} MB, {metadata['members']:,} members, {how}"
    return f"{words}; left out: {left_out}" if left_out else words


def _catalogue(metadata: dict[str, Any]) -> str:
    dropped = [f"{metadata[f'dropped: {reason}']:,} {reason}" for reason in REASONS if metadata[f"dropped: {reason}"]]
    words = f"kept {metadata['kept']:,} of {metadata['rows']:,} images"
    return f"{words}; dropped {', '.join(dropped)}" if dropped else words


def _listings(metadata: dict[str, Any]) -> str:
    if metadata["source"] == "none":
        return "none"
    words = f"{metadata['dagster/row_count']:,} products, {metadata['images']:,} images"
    return f"{words}; {metadata['malformed_lines']:,} malformed lines" if metadata["malformed_lines"] else words


def _embeddings(totals: dict[str, Any]) -> str:
    words = f"embedded {totals['embedded']:,}" if totals["embedded"] else "nothing to embed"
    words += f", {totals['skipped']:,} were there already, failed {totals['failed']:,}"
    if totals["failed_before"]:
        words += f", {totals['failed_before']:,} failed before (--retry-failures tries them again)"
    if totals["removed"]:
        words += f", removed {totals['removed']:,} that left the catalogue"
    account = f"kept {totals['kept']:,} = embedded {totals['total_embedded']:,} + failed {totals['total_failed']:,}"
    computed = f"; computed in {totals['precision']}" if totals["embedded"] and totals.get("precision") else ""
    return f"{words}\n{'':<11} {account}{computed}"


def _index(metadata: dict[str, Any]) -> str:
    built = f"built {metadata['built']} in {metadata['seconds']:.1f} s" if metadata["built"] else "nothing to build"
    rows = metadata["indexes"]
    ways = {EXACT: "exactly"}
    sizes = ", ".join(f"{row['rows']:,} {ways.get(row['strategy'], 'by ' + row['strategy'])}" for row in rows)
    recalls = [value for row in rows for name, value in row.items() if "_recall_at_" in name and value is not None]
    recall = f"; recall at least {min(recalls):.3f}" if recalls else ""
    return f"{built}; {sizes}, {metadata['bytes'] / 1e6:,.1f} MB{recall}"


def _golden(metadata: dict[str, Any]) -> str:
    overlaps = [value for name, value in metadata.items() if name.startswith("overlap_at_10_")]
    if not overlaps:
        return f"{metadata['queries']} recorded, to be compared with after the next build"
    shared = ", ".join(f"{overlap:.0%}" for overlap in overlaps)
    return f"{metadata['queries']} recorded; {shared} of the hits as before, {metadata['newcomers']:,} newcomers"


def _report(metadata: dict[str, Any]) -> str:
    return f"{metadata['queries']} grids\n{'':<11} {metadata['first_grid']}\n{'':<11} {metadata['page_file']}"


def _ladder(metadata: dict[str, Any]) -> str:
    return f"{metadata['plot_file']}\n{'':<11} {metadata['numbers_file']}"


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "raw_archive": _archive,
    "listings": _listings,
    "image_paths": _catalogue,
    "image_embeddings": _embeddings,
    "embedding_index": _index,
    "golden_queries": _golden,
    "search_report": _report,
    "storage_ladder": _ladder,
}
