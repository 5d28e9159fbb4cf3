"""The storage ladder: the ways to store and to index a space's vectors, each with what it costs and what it finds.

Every rung is measured on a scratch copy of the same vectors, with the same queries, by the statements and settings that
searches would have; a hit's description, which costs the same on every rung, is left out. The truth, the queries and
recall are those of ``evaluation``. How a rung is stored is for ``store.ladder``; which one to use is said in words, and
left to a person.
"""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from abo_pipeline.download import write_whole
from abo_pipeline.encoder import Encoder
from abo_pipeline.errors import QueryError, SettingsError
from abo_pipeline.evaluation import Progress, Queries, image_queries, recall_at, text_queries, truths
from abo_pipeline.plots import ladder_figure
from abo_pipeline.projection import Projection, fit
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace
from abo_pipeline.store.ladder import NotIndexableError, Row, Scratch, Storage, lacks_extension, scratch, stored_vectors
from abo_pipeline.store.measures import blocks
from abo_pipeline.store.nearest import Scope, scope
from abo_pipeline.store.strategies import EXACT, HNSW, NAMES, PROJECTED, STRATEGIES, Strategy

K = 10
"""Hits that recall is measured at."""

SLOWER_BY = 1.25
SLOWER_BY_MS = 1.0
"""A search that takes no longer than this many times the quickest, or so many milliseconds more, is as good as it."""

_MOST_COMPONENTS = 128
_DPI = 110


@dataclass(frozen=True)
class Rung:
    """A way to store and to index vectors; without a strategy they are compared with one by one."""

    name: str
    words: str
    storage: Storage
    strategy: Strategy | None


RUNGS = (
    Rung(EXACT, "full precision, no index", Storage.FULL, None),
    *(Rung(name, strategy.words, Storage.FULL, strategy) for name, strategy in STRATEGIES.items()),
    Rung("halfvec", "half precision alone, no index", Storage.HALF, None),
    Rung("halfvec_hnsw", "half precision alone, HNSW over it", Storage.HALF, STRATEGIES[HNSW]),
    Rung(PROJECTED.name, PROJECTED.words, Storage.PROJECTED, PROJECTED),
)
"""In the order in which they are measured."""


@dataclass(frozen=True)
class Found:
    """What queries of one kind found: recall@10, and the milliseconds that half and 95 % of them took at most."""

    recall: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class RungMeasures:
    """What was measured of a rung.

    Attributes:
        name, words: of the rung.
        rows: vectors.
        vector_bytes: of the columns that hold them.
        index_bytes: of the index; 0 without one.
        build_seconds: for the index, and for the projection where there is one.
        effort: the least that met the target for both kinds of queries, or the largest there is; 0 without an index.
        image, text: what queries of that kind found with it.
    """

    name: str
    words: str
    rows: int
    vector_bytes: int
    index_bytes: int
    build_seconds: float
    effort: int
    image: Found
    text: Found

    @property
    def bytes(self) -> int:
        """Vectors and index."""
        return self.vector_bytes + self.index_bytes

    @property
    def bytes_a_vector(self) -> int:
        """Vectors and index, divided among the vectors."""
        return round(self.bytes / max(self.rows, 1))

    @property
    def recall(self) -> float:
        """Of the kind of queries for which it is lower."""
        return min(self.image.recall, self.text.recall)

    @property
    def p50_ms(self) -> float:
        """Of the kind of queries that takes longer."""
        return max(self.image.p50_ms, self.text.p50_ms)

    def as_row(self) -> dict[str, Any]:
        """As a row of a table, rounded to what a person reads."""
        found = {"image": self.image, "text": self.text}
        return {
            "rung": self.name,
            "what it is": self.words,
            "bytes": self.bytes,
            "vector_bytes": self.vector_bytes,
            "index_bytes": self.index_bytes,
            "bytes_a_vector": self.bytes_a_vector,
            "build_seconds": round(self.build_seconds, 2),
            "effort": self.effort or None,
            **{f"{kind}_recall_at_{K}": round(each.recall, 4) for kind, each in found.items()},
            **{f"{kind}_p50_ms": round(each.p50_ms, 2) for kind, each in found.items()},
            **{f"{kind}_p95_ms": round(each.p95_ms, 2) for kind, each in found.items()},
        }

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """What ``asdict`` gave."""
        return cls(**plain | {kind: Found(**plain[kind]) for kind in ("image", "text")})


@dataclass(frozen=True)
class Advice:
    """Which rung to use, None if none is good enough, and the reasons in words."""

    rung: str | None
    words: str


@dataclass(frozen=True)
class Ladder:
    """The rungs of one size of a space.

    Attributes:
        space: its name.
        size: MAX_IMAGES; None for everything.
        rows: vectors, which are fewer if the catalogue is smaller or not all of it is embedded.
        dimension: of the vectors.
        target: recall that the effort was raised for.
        rungs: as measured.
        left_out: other rungs, each with the reason.
    """

    space: str
    size: int | None
    rows: int
    dimension: int
    target: float
    rungs: tuple[RungMeasures, ...]
    left_out: dict[str, str]

    @property
    def advice(self) -> Advice:
        """What to make of it."""
        return advise(self.rungs, self.target)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with what was concluded; ``of`` reads them."""
        return asdict(self) | {"recommended": self.advice.rung, "recommendation": self.advice.words}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """What ``as_json`` gave, also after a way through JSON."""
        known = {name: plain[name] for name in cls.__dataclass_fields__}
        return cls(**known | {"rungs": tuple(RungMeasures.of(rung) for rung in plain["rungs"])})


@dataclass(frozen=True)
class LadderFiles:
    """What was written: the plot, a PNG, and the numbers, as JSON that ``read_ladder`` reads."""

    plot: Path
    numbers: Path


def measure_ladder(
    space: EmbeddingSpace,
    encoder: Encoder,
    settings: Settings,
    *,
    size: int | None = None,
    rungs: Sequence[str] | None = None,
    progress: Progress = lambda _: None,
) -> Ladder:
    """Measure the rungs, one after another. Takes minutes, and is disturbed by whatever else the machine does.

    Args:
        space: is only read.
        encoder: of the space; asked for the texts' vectors.
        settings: name the sizes, the target, the components, and the memory for building.
        size: MAX_IMAGES; by default the largest size of the settings of which nothing is pending.
        rungs: names of those to measure; by default all that can be.
        progress: told in words how far it is.

    Raises:
        SettingsError: there is no such size or rung, or it cannot be measured here.
        QueryError: fewer than two images are embedded.
        StoreError: another ladder is being measured.
    """
    within = scope(space, _size(space, settings, size))
    wanted, left_out = _wanted(space, settings, rungs)
    for name, reason in left_out.items():
        progress(f"{name} is left out: {reason}")
    images = image_queries(space, within.cutoff)
    if images is None:
        raise QueryError(
            f"Fewer than two images are embedded in space {space.name}: there is nothing to measure. "
            "Run `abo run` (or `abo demo`) first."
        )
    asked = [images, text_queries(space, encoder, settings.prompts)]
    progress(f"measuring with {', '.join(f'{len(each.vectors)} {each.kind} queries' for each in asked)}")
    truth = truths(space, [within.cutoff], asked, depth=K)[within.cutoff]
    exam = _Exam(space, asked, truth, settings, progress)
    measured: list[RungMeasures] = []
    rows = 0
    with scratch(space, progress) as table:
        for storage, group in itertools.groupby(wanted, key=lambda rung: rung.storage):
            projection, rows, seconds = _store(table, space, within, storage, _components(space, settings), progress)
            for rung in group:
                try:
                    measured.append(exam.sit(table, rung, rows, projection, seconds))
                except NotIndexableError as error:
                    left_out[rung.name] = str(error)
    return Ladder(space.name, within.size, rows, space.dimension, settings.recall_target, tuple(measured), left_out)


def advise(rungs: Sequence[RungMeasures], target: float) -> Advice:
    """Which of the rungs to use, from nothing but what was measured.

    It meets the target; it can be set; among those as quick as the quickest, within what nobody notices, it is the
    smallest. So without an index wherever an index saves nothing worth having.
    """
    if not rungs:
        return Advice(None, "Nothing was measured.")
    good = [rung for rung in rungs if rung.recall >= target]
    if not good:
        best = max(rungs, key=lambda rung: rung.recall)
        return Advice(
            None,
            f"None finds {target:.1%} of the {K} nearest for pictures and for texts. The best of them is {best.name}, "
            f"with {best.recall:.1%}. An exact search finds them all.",
        )
    words = [_which_are_good(rungs, good, target), _extremes(good)]
    settable = [rung for rung in good if rung.name in NAMES]
    if not settable:
        return Advice(None, " ".join([*words, "None of these can be set: measure exact and hnsw as well."]))
    quickest = min(settable, key=lambda rung: rung.p50_ms)
    bearable = max(SLOWER_BY * quickest.p50_ms, quickest.p50_ms + SLOWER_BY_MS)
    choice = min(
        (rung for rung in settable if rung.p50_ms <= bearable), key=lambda rung: (rung.bytes, rung.build_seconds)
    )
    return Advice(choice.name, " ".join([*words, _reasons(choice, quickest, good)]))


def write_ladder(ladder: Ladder, folder: Path) -> LadderFiles:
    """Write plot and numbers into a folder that exists; each appears as a whole, in place of an earlier one.

    Raises:
        SettingsError: the folder cannot be written to.
    """
    files = LadderFiles(folder / "ladder.png", folder / "ladder.json")
    numbers = json.dumps(ladder.as_json(), indent=1, ensure_ascii=False) + "\n"
    try:
        write_whole(files.plot, partial(ladder_figure(ladder).savefig, dpi=_DPI, format="png"))
        write_whole(files.numbers, lambda unfinished: unfinished.write_text(numbers, encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"The ladder cannot be written to {folder}: {error.strerror or error}. Make room on that disk, or set "
            "ABO_STATE_DIR to a folder that can be written to."
        ) from error
    return files


def read_ladder(numbers: Path) -> Ladder:
    """What ``write_ladder`` wrote."""
    return Ladder.of(json.loads(numbers.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class _Exam:
    """Queries, and how similar the truly nearest images of each are."""

    space: EmbeddingSpace
    asked: Sequence[Queries]
    truth: Sequence[NDArray[np.float32]]
    settings: Settings
    progress: Progress

    def sit(self, table: Scratch, rung: Rung, rows: int, projection: Projection | None, seconds: float) -> RungMeasures:
        """Index the table as a rung does, and raise the effort until the target holds."""
        index_bytes, words = 0, rung.words
        if rung.strategy:
            built = table.index(rung.strategy, self.settings.index_memory_mb)
            index_bytes, seconds = built.bytes, seconds + built.seconds
        if projection is not None:
            words = f"{words}; {len(projection.components)} hold {projection.share:.0%} of the variance"
        effort, (image, text) = self._raise_effort(table, rung, rows, projection)
        return RungMeasures(
            rung.name, words, rows, table.vector_bytes(), index_bytes, seconds, effort, image=image, text=text
        )

    def _raise_effort(
        self, table: Scratch, rung: Rung, rows: int, projection: Projection | None
    ) -> tuple[int, list[Found]]:
        efforts = rung.strategy.efforts(rows) if rung.strategy else (0,)
        for effort in efforts:
            found = [
                self._ask(table, rung, queries, similarities, effort, projection)
                for queries, similarities in zip(self.asked, self.truth, strict=True)
            ]
            recalls = ", ".join(
                f"{queries.kind} {each.recall:.4f} in {each.p50_ms:.1f} ms"
                for queries, each in zip(self.asked, found, strict=True)
            )
            self.progress(f"{rung.name}: recall@{K}{f' at effort {effort}' if effort else ''}: {recalls}")
            if all(each.recall >= self.settings.recall_target for each in found):
                break
        return effort, found

    def _ask(
        self,
        table: Scratch,
        rung: Rung,
        queries: Queries,
        truth: NDArray[np.float32],
        effort: int,
        projection: Projection | None,
    ) -> Found:
        """Ask every query; what it found is judged by the full vectors, whatever the rung knows of them."""
        answers, seconds = [], []
        for vector, own in zip(queries.vectors, queries.without, strict=True):
            started = time.perf_counter()
            projected = None if projection is None else projection(vector)
            answers.append(table.search(vector, K, own, rung.strategy, effort, projected=projected))
            seconds.append(time.perf_counter() - started)
        stored = stored_vectors(self.space, {image_id for answer in answers for image_id in answer})
        similarities = [
            sorted((float(stored[image_id] @ vector) for image_id in answer if image_id in stored), reverse=True)
            for vector, answer in zip(queries.vectors, answers, strict=True)
        ]
        p50, p95 = 1000 * np.percentile(seconds, [50, 95])
        return Found(recall_at(K, similarities, truth), float(p50), float(p95))


def _size(space: EmbeddingSpace, settings: Settings, wanted: int | None) -> int:
    """The size to measure; of the settings' sizes the largest that is done, or the smallest if none is."""
    if wanted is not None:
        if not 1 <= wanted <= LAST_KEY:
            raise SettingsError(f"The size is {wanted:,}; it is a number of images, at least 1.")
        return wanted
    sizes: Sequence[int] = settings.sizes
    done = [size for size in sizes if space.account(0, scope(space, size).cutoff).pending == 0]
    return done[-1] if done else sizes[0]


def _wanted(
    space: EmbeddingSpace, settings: Settings, names: Sequence[str] | None
) -> tuple[list[Rung], dict[str, str]]:
    """The rungs to measure, and those that cannot be measured here, each with the reason."""
    known = [rung.name for rung in RUNGS]
    if unknown := [name for name in names or () if name not in known]:
        raise SettingsError(f"The ladder has no rung {unknown[0]!r}. There are {', '.join(known)}.")
    chosen = [rung for rung in RUNGS if not names or rung.name in names]
    reasons = {rung.name: reason for rung in chosen if (reason := _obstacle(space, settings, rung))}
    if names and reasons:
        name, reason = next(iter(reasons.items()))
        raise SettingsError(f"The rung {name} cannot be measured: {reason}.")
    return [rung for rung in chosen if rung.name not in reasons], reasons


def _components(space: EmbeddingSpace, settings: Settings) -> int:
    """How many principal components the rung with a projection has."""
    return settings.ladder_pca or max(1, min(_MOST_COMPONENTS, space.dimension // 2))


def _obstacle(space: EmbeddingSpace, settings: Settings, rung: Rung) -> str:
    """Why a rung cannot be measured here; empty if it can."""
    if rung.storage is Storage.PROJECTED and (components := _components(space, settings)) >= space.dimension:
        return (
            f"ABO_LADDER_PCA is {components:,}, and the vectors have no more than {space.dimension:,} "
            "dimensions; set it lower"
        )
    if rung.strategy and lacks_extension(space, rung.strategy):
        return f"this database has no extension {rung.strategy.extension}"
    return ""


def _store(
    table: Scratch, space: EmbeddingSpace, within: Scope, storage: Storage, d: int, progress: Progress
) -> tuple[Projection | None, int, float]:
    """Fill the table; the projection if there is one, how many vectors it holds, and seconds for the projection."""
    if storage is not Storage.PROJECTED:
        progress(f"copying the vectors as {storage}")
        return None, table.fill(storage, within.cutoff), 0.0
    progress(f"finding {d} principal components")
    started = time.perf_counter()
    projection = fit((block.vectors for block in blocks(space, within.cutoff)), d)
    seconds = time.perf_counter() - started
    return projection, table.fill_projected(_projected(space, within, projection), d), seconds


def _projected(space: EmbeddingSpace, within: Scope, projection: Projection) -> Iterator[Row]:
    for block in blocks(space, within.cutoff):
        yield from map(Row, block.ids, projection(block.vectors), block.vectors)


def _which_are_good(rungs: Sequence[RungMeasures], good: Sequence[RungMeasures], target: float) -> str:
    words = f"find at least {target:.1%} of the {K} nearest, for pictures and for texts"
    if len(good) == len(rungs):
        return f"All that were measured {words}."
    bad = ", ".join(f"{rung.name} ({rung.recall:.1%})" for rung in rungs if rung not in good)
    return f"{len(good)} of {len(rungs)} {words}; not {bad}."


def _extremes(good: Sequence[RungMeasures]) -> str:
    smallest = min(good, key=lambda rung: (rung.bytes, rung.p50_ms))
    quickest = min(good, key=lambda rung: rung.p50_ms)
    if smallest is quickest:
        return f"Of these {smallest.name} is both the smallest and the quickest: {_costs(smallest)}."
    extremes = f"{smallest.name} is the smallest, {_costs(smallest)}; {quickest.name} the quickest, {_costs(quickest)}"
    return f"Of these {extremes}."


def _costs(rung: RungMeasures) -> str:
    return f"{rung.bytes_a_vector:,} bytes a vector and {rung.p50_ms:.1f} ms"


def _reasons(choice: RungMeasures, quickest: RungMeasures, good: Sequence[RungMeasures]) -> str:
    """Why this one, and how to have it."""
    exact = next((rung for rung in good if rung.name == EXACT), None)
    rows, words = f"{choice.rows:,}", f"Recommended for {choice.rows:,} vectors: {choice.name}"
    if choice is exact:
        why = "the quickest that can be set: an index would only cost"
        if choice is not quickest:
            saved, cost = choice.p50_ms - quickest.p50_ms, quickest.index_bytes / 1e6
            why = f"because an index ({quickest.name}) would save {saved:.1f} ms and cost {cost:,.1f} MB"
        return f"{words}, {why}. To have it, set ABO_EXACT_BELOW above {rows}."
    why = "the quickest that can be set" if choice is quickest else f"nearly as quick as {quickest.name}, and smaller"
    if exact:
        why += f"; {exact.p50_ms / choice.p50_ms:,.1f} times as quick as exact"
    return f"{words}, {why}. To have it, set ABO_STRATEGY={choice.name}, and ABO_EXACT_BELOW to no more than {rows}."
