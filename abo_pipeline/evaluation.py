"""How well the indexes find what an exact search finds, what effort that takes, and how good a match is at all.

Recall is measured against the truth, which one pass over the vectors gives for all sizes at once: a smaller size is a
prefix of a larger one. Queries are of two kinds, because texts lie off the cone of the pictures' vectors and need
several times the effort for the same recall. The effort is raised until the target holds for both; what holds is kept
with the index, and searches go by it. In SQL nothing is done here.

recall@k is the share of the k truly nearest images that a search finds (Manning, Raghavan, Schütze: Introduction to
Information Retrieval, 8.3, with the exact answer as what is relevant). An image as near as the last of them counts as
found.
"""

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abo_pipeline.encoder import Encoder, Vectors
from abo_pipeline.query_vectors import text_vectors
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace
from abo_pipeline.store.measures import Block, blocks, keep, measured, now, titles
from abo_pipeline.store.nearest import Scope, by_index, nearest, scope
from abo_pipeline.store.strategies import STRATEGIES

KS = (10, 100)
"""Numbers of hits that recall is measured at, and the effort tuned for."""

IMAGE, TEXT = "image", "text"
IMAGE_QUERIES = 200
TITLE_QUERIES = 100
RANDOM_QUERIES = 200
TIMED_QUERIES = 20

_HEADROOM = 0.25
"""By this share fewer misses than the target allows are tuned for. A few hundred queries tell recall to three parts in
a thousand, and to stop at the first effort that looks good enough picks those that only look so: 300 other queries were
found to get .9893 where those tuned with got .993."""

_TOLERANCE = 2e-6
"""By which a similarity differs between numpy's and Postgres's way of adding up 512 products in single precision."""

_COLOURS = ("red", "blue", "black", "white", "brown", "green", "grey", "yellow")
_THINGS = (
    "office chair",
    "running shoes",
    "coffee table",
    "ceramic mug",
    "phone case",
    "earrings",
    "floor lamp",
    "striped rug",
    "kitchen knife",
    "backpack",
    "sofa",
    "necklace",
    "boots",
)
_UNRELATED = (
    "parliament algebra volcano treaty glacier election sermon tornado lawsuit surgery monsoon referee dialect riot "
    "plankton inflation avalanche monarchy bacteria satire eclipse verdict census famine cavalry syntax drought "
    "embassy kidney proverb tariff senate mortgage philosophy jury vaccine rumour gravity siege earthquake molecule "
    "diplomacy heresy bankruptcy genome empire hormone asteroid epidemic theorem revolution tundra strait nostalgia "
    "grammar refugee ministry evolution tribunal subsidy propaganda estuary parasite allegory migration rebellion "
    "quorum enzyme ransom sunset wilderness unemployment archaeology referendum chancellor geology perjury"
)
_MOST_WORDS = 3

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Queries:
    """Queries of one kind.

    Attributes:
        kind: image or text.
        vectors: (n, dimension), of length 1.
        without: image_ids that each leaves out, because it was made from them.
    """

    kind: str
    vectors: Vectors
    without: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Point:
    """How a search did: recall@k and the median milliseconds of a query, at an effort (0: exact)."""

    kind: str
    k: int
    effort: int
    recall: float
    p50_ms: float


@dataclass(frozen=True)
class SizeMeasures:
    """What was measured of a size.

    Attributes:
        strategy: by which it is searched.
        rows: vectors in it.
        target: recall that the effort was raised for.
        prompts: that texts were put into.
        efforts: the effort by number of hits.
        points: every measurement, those of an exact search included.
    """

    size: int
    strategy: str
    rows: int
    target: float
    prompts: tuple[str, ...]
    efforts: dict[int, int]
    points: tuple[Point, ...]

    def recalls(self) -> dict[tuple[str, int], float]:
        """recall@k by kind and k, at the effort that searches go by; of an exact search 1."""
        return {(point.kind, point.k): point.recall for point in self.points if self._is_used(point)}

    def meets(self, target: float) -> bool:
        """Whether recall is that high for every kind and number of hits."""
        return all(recall >= target for recall in self.recalls().values())

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``of`` reads them."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "SizeMeasures":
        """What ``as_json`` gave, also after a way through JSON."""
        efforts = {int(k): effort for k, effort in plain["efforts"].items()}
        points = tuple(Point(**point) for point in plain["points"])
        return cls(**{**plain, "prompts": tuple(plain["prompts"]), "efforts": efforts, "points": points})

    def _is_used(self, point: Point) -> bool:
        return point.effort == self.efforts.get(point.k, 0)


def measure_sizes(
    space: EmbeddingSpace,
    encoder: Encoder,
    settings: Settings,
    progress: Progress = lambda _: None,
) -> list[SizeMeasures]:
    """Measure every size of the settings that has changed since it was last measured, and keep what comes of it.

    Args:
        space: whose sizes have been indexed.
        encoder: of the space; asked for the texts' vectors.
        settings: name the sizes and the target.
        progress: told in words how far it is.

    Returns:
        A measure a size, in their order, with those that had been measured before.
    """
    before = measured(space, settings.sizes)
    changed_at = space.changed_at()
    due = [
        known.size
        for known in before
        if known.measures is None
        or known.measures["target"] != settings.recall_target
        or tuple(known.measures["prompts"]) != settings.prompts
        or known.measured_at is None
        or known.measured_at < changed_at
    ]
    if due:
        _measure(space, encoder, settings, due, progress)
    return [SizeMeasures.of(known.measures) for known in measured(space, settings.sizes) if known.measures]


def image_queries(space: EmbeddingSpace, cutoff: int) -> Queries | None:
    """The first images by sample key, which are a fair sample. None if there are not two."""
    first = next(blocks(space, cutoff), None)
    if first is None or len(first.ids) < 2:
        return None
    ids = first.ids[:IMAGE_QUERIES]
    return Queries(IMAGE, first.vectors[:IMAGE_QUERIES], tuple((image_id,) for image_id in ids))


def text_queries(space: EmbeddingSpace, encoder: Encoder, prompts: Sequence[str]) -> Queries:
    """What people ask a shop for, and titles of the catalogue's own products where there are any."""
    asked = [f"{colour} {thing}" for colour in _COLOURS for thing in _THINGS]
    return _of_texts(encoder, asked + titles(space, TITLE_QUERIES), prompts)


def truths(
    space: EmbeddingSpace, cutoffs: Sequence[int], asked: Sequence[Queries], depth: int = max(KS)
) -> dict[int, list[NDArray[np.float32]]]:
    """How similar the truly nearest images of each query are, in one pass over the vectors.

    Args:
        space: where to look.
        cutoffs: the last sample keys of the sizes to look in.
        asked: the queries.
        depth: how many of the nearest.

    Returns:
        For each cutoff an array (n, depth) for each of ``asked``, descending; −1 where there are fewer images.
    """
    vectors = np.concatenate([queries.vectors for queries in asked])
    leaving_out: dict[str, list[int]] = {}
    for number, own in enumerate(itertools.chain.from_iterable(queries.without for queries in asked)):
        for image_id in own:
            leaving_out.setdefault(image_id, []).append(number)
    best = np.full((len(vectors), depth), -1.0, np.float32)
    found: dict[int, NDArray[np.float32]] = {}
    remaining = sorted(set(cutoffs))
    for block in blocks(space, remaining[-1]):
        first = 0
        while remaining and block.keys[-1] > remaining[0]:
            last = int(np.searchsorted(block.keys, remaining[0], side="right"))
            best = _better(best, vectors, block, slice(first, last), leaving_out)
            found[remaining.pop(0)] = best
            first = last
        best = _better(best, vectors, block, slice(first, None), leaving_out)
    found |= dict.fromkeys(remaining, best)
    ends = np.cumsum([len(queries.vectors) for queries in asked])[:-1]
    return {cutoff: np.split(similarities, ends) for cutoff, similarities in found.items()}


def recall_at(k: int, found: Sequence[Sequence[float]], truth: NDArray[np.float32]) -> float:
    """recall@k, averaged over queries; 1 if there is nothing to find.

    Args:
        k: hits wanted.
        found: the similarities of each query's hits, best first.
        truth: (queries, at least k), what ``truths`` gave.
    """
    recalls = []
    for similarities, best in zip(found, truth, strict=True):
        expected = min(k, int((best > -1).sum()))
        if expected:
            bound = best[expected - 1] - _TOLERANCE
            recalls.append(sum(similarity >= bound for similarity in similarities[:expected]) / expected)
    return float(np.mean(recalls or [1.0]))


def tune(
    space: EmbeddingSpace,
    within: Scope,
    asked: Sequence[Queries],
    truth: Sequence[NDArray[np.float32]],
    target: float,
    progress: Progress = lambda _: None,
) -> tuple[dict[int, int], list[Point]]:
    """Raise the effort until recall meets the target for every kind of query, for each number of hits.

    A little more than met, so that it also is for queries that were not tuned with.

    Args:
        space: where to search.
        within: a size, with an index.
        asked: the queries.
        truth: for each of ``asked``, what ``truths`` gave.
        target: recall wanted, up to 1.
        progress: told in words how far it is.

    Returns:
        The effort for each of ``KS``, the largest that there is where none was enough; and all that was measured.
    """
    efforts, points = {}, []
    enough = target + _HEADROOM * (1 - target)
    for k in KS:
        for effort in STRATEGIES[within.strategy].efforts(within.rows):
            tried = [
                _point(space, within, queries, similarities, k, effort)
                for queries, similarities in zip(asked, truth, strict=True)
            ]
            points += tried
            efforts[k] = effort
            recalls = ", ".join(f"{point.kind} {point.recall:.4f}" for point in tried)
            progress(f"size {within.size:,}: recall@{k} at effort {effort}: {recalls}")
            if all(point.recall >= enough for point in tried):
                break
    return efforts, points


def percentile(background: NDArray[np.float64], similarity: float) -> float | None:
    """The share of random queries whose best hit is less similar, from 0 to 1; None without a background."""
    return float(np.searchsorted(background, similarity, side="left") / len(background)) if len(background) else None


def _measure(
    space: EmbeddingSpace, encoder: Encoder, settings: Settings, sizes: Sequence[int], progress: Progress
) -> None:
    as_of = now(space)
    scopes = {size: scope(space, size) for size in sizes}
    images = image_queries(space, max(within.cutoff for within in scopes.values()))
    if images is None:
        progress("fewer than two images are embedded: there is nothing to measure recall with")
        return
    asked = [images, text_queries(space, encoder, settings.prompts)]
    random_queries = [_random_images(images), _random_texts(encoder, settings.prompts)]
    progress(f"measuring with {', '.join(f'{len(each.vectors)} {each.kind} queries' for each in asked)}")
    truth = truths(space, [within.cutoff for within in scopes.values()], asked + random_queries)
    for size, within in scopes.items():
        of_asked, of_random = truth[within.cutoff][:2], truth[within.cutoff][2:]
        points = [_exact_point(space, within, queries, k) for k in KS for queries in asked]
        efforts: dict[int, int] = {}
        if within.index_name:
            efforts, tuned = tune(space, within, asked, of_asked, settings.recall_target, progress)
            points += tuned
        rows = space.vectors(within.cutoff)
        found = SizeMeasures(
            size, within.strategy, rows, settings.recall_target, settings.prompts, efforts, tuple(points)
        )
        keep(
            space,
            size,
            within.index_name,
            rows=rows,
            efforts=efforts,
            measures=found.as_json(),
            background={
                queries.kind: [float(best) for best in similarities[:, 0]]
                for queries, similarities in zip(random_queries, of_random, strict=True)
            },
            as_of=as_of,
        )


def _better(
    best: NDArray[np.float32], vectors: Vectors, block: Block, part: slice, leaving_out: Mapping[str, Sequence[int]]
) -> NDArray[np.float32]:
    """The highest similarities so far, with those of some more images; ``best`` itself is left as it is."""
    ids = block.ids[part]
    if not ids:
        return best
    similarities = vectors @ block.vectors[part].T
    for column, image_id in enumerate(ids):
        if image_id in leaving_out:
            similarities[leaving_out[image_id], column] = -1.0
    every = np.concatenate([best, similarities], axis=1)
    depth = best.shape[1]
    top = np.partition(every, every.shape[1] - depth, axis=1)[:, -depth:]
    return np.sort(top, axis=1)[:, ::-1]


def _point(
    space: EmbeddingSpace, within: Scope, queries: Queries, truth: NDArray[np.float32], k: int, effort: int
) -> Point:
    """Ask every query of the index alone."""
    found, seconds = [], []
    for vector, own in zip(queries.vectors, queries.without, strict=True):
        started = time.perf_counter()
        hits = by_index(space, vector, k, within, exclude=own, effort=effort)
        seconds.append(time.perf_counter() - started)
        found.append([hit.similarity for hit in hits])
    return Point(queries.kind, k, effort, recall_at(k, found, truth), 1000 * float(np.median(seconds)))


def _exact_point(space: EmbeddingSpace, within: Scope, queries: Queries, k: int) -> Point:
    """How long the exact search takes, which finds everything."""
    exactly = Scope(within.size, within.cutoff, None)
    seconds = []
    for vector in queries.vectors[:TIMED_QUERIES]:
        started = time.perf_counter()
        nearest(space, vector, k, exactly)
        seconds.append(time.perf_counter() - started)
    return Point(queries.kind, k, 0, 1.0, 1000 * float(np.median(seconds)))


def _random_images(images: Queries) -> Queries:
    """Vectors with the pictures' mean and covariance: as far from the middle as they are, and like none of them.

    Halfway between two pictures would be too near to the middle, and thereby nearer to some picture than most pictures
    are to their next one.
    """
    rng = np.random.default_rng(0)
    mean = images.vectors.mean(axis=0)
    weights = rng.standard_normal((RANDOM_QUERIES, len(images.vectors))) / np.sqrt(len(images.vectors) - 1)
    drawn = mean + weights @ (images.vectors - mean)
    lengths = np.linalg.norm(drawn, axis=1, keepdims=True)
    # Of two opposite pictures the mean is 0, and a vector may be too.
    unit = np.where(lengths > _TOLERANCE, drawn / np.maximum(lengths, _TOLERANCE), images.vectors[0])
    return Queries(IMAGE, unit.astype(np.float32), ((),) * RANDOM_QUERIES)


def _random_texts(encoder: Encoder, prompts: Sequence[str]) -> Queries:
    """One to three words thrown together that no shop sells.

    Each comes equally often, so that a few which a model takes for something else, or a catalogue does hold, leave the
    best hits of the others as they are.
    """
    rng = random.Random(0)  # noqa: S311 - no secret
    words = _UNRELATED.split()
    shuffled = itertools.chain.from_iterable(rng.sample(words, len(words)) for _ in itertools.count())
    lengths = [1 + number % _MOST_WORDS for number in range(RANDOM_QUERIES)]
    return _of_texts(encoder, [" ".join(itertools.islice(shuffled, length)) for length in lengths], prompts)


def _of_texts(encoder: Encoder, texts: Sequence[str], prompts: Sequence[str]) -> Queries:
    return Queries(TEXT, text_vectors(encoder, texts, prompts), ((),) * len(texts))
