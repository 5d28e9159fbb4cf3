"""Vectors spread as CLIP's are, a space that holds them, and numpy's answers over the same."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sqlalchemy import make_url

from abo_pipeline import catalog, listings
from abo_pipeline.sampling import cutoff, sample_key
from abo_pipeline.store import Store
from abo_pipeline.store.database import open_engine
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.indexes import build_index
from abo_pipeline.store.nearest import Neighbour, Scope, nearest
from abo_pipeline.store.spaces import Embedded
from abo_pipeline_tests.conftest import fresh_database
from benchmarks.stores import NamedOnly
from benchmarks.vectors import Clip, Vectors

DIMENSION = 64


@dataclass(frozen=True)
class NamedEncoder(NamedOnly):
    """What opening a space asks of a model: who it is. Embedding is not tested here."""

    fingerprint: str = "0011223344556677"
    dimension: int = DIMENSION
    model: str = "clip-test"
    device: str = "cpu"


def clip(seed: int = 0) -> Clip:
    """Draws vectors that are spread as CLIP's are."""
    return Clip(DIMENSION, clusters=40, seed=seed)


class Library:
    """A space with its pictures, and the same pictures for numpy."""

    def __init__(self, store: Store, vectors: Vectors) -> None:
        self.store = store
        self.space = store.open_space("clip", NamedEncoder())
        names = [f"{number:08x}" for number in range(len(vectors))]
        order = sorted(range(len(names)), key=lambda at: sample_key(names[at]))
        self.ids = np.array([names[at] for at in order])
        self.keys = np.array([sample_key(name) for name in self.ids], np.int64)
        self.vectors = vectors[order]
        self.catalogue(self.ids)
        self.write(np.ones(len(self.ids), bool))

    def write(self, these: NDArray[np.bool_]) -> None:
        """Store the vectors of some of the pictures."""
        rows = zip(self.ids[these], self.keys[these], self.vectors[these], strict=True)
        self.space.write([Embedded(str(name), int(key), "d1", vector) for name, key, vector in rows], [])

    def catalogue(self, ids: Iterable[str]) -> None:
        """Make these ids, and no others, the catalogue."""
        rows = [(str(name), f"{name}.jpg", 1000, 1000, sample_key(str(name)), 0, 1, "d1") for name in ids]
        self.store.write_images(pl.DataFrame(rows, schema=catalog.SCHEMA, orient="row"), allow_removal=True)

    def index(self, *sizes: int, **options: object) -> None:
        for size in sizes:
            build_index(self.space, size, self.cutoff(size), memory_mb=64, **options)

    def products(self, rows: Iterable[Sequence]) -> None:
        """Make these the listings: values in the order of ``listings.SCHEMA``."""
        self.store.write_products(pl.DataFrame(list(rows), schema=listings.SCHEMA, orient="row"))

    def cutoff(self, size: int) -> int:
        return cutoff(pl.Series(self.keys), size)

    def similarities(self, query: Vectors) -> NDArray[np.float64]:
        # Einstein's sum, for a matrix product rounds equal rows differently by where they stand.
        dots = np.einsum("nd,d->n", self.vectors.astype(np.float64), query.astype(np.float64))
        return dots / np.linalg.norm(self.vectors.astype(np.float64), axis=1) / np.linalg.norm(query)

    def expected(
        self,
        query: Vectors,
        k: int,
        *,
        size: int | None = None,
        without: Iterable[str] = (),
        among: Collection[str] | None = None,
    ) -> list[str]:
        """The ids of the k nearest of a size, by numpy; ties by id. By default of all, and among all ids."""
        similarities, left_out = self.similarities(query), set(without)
        seen = [
            at for at, name in enumerate(self.ids[:size]) if name not in left_out and (among is None or name in among)
        ]
        seen.sort(key=lambda at: (-similarities[at], self.ids[at]))
        return [str(self.ids[at]) for at in seen[:k]]

    def is_exact(self, hits: Sequence[Neighbour], query: Vectors, k: int, **options: object) -> bool:
        """Whether hits are what is expected, in that order, but for images whose similarities differ by rounding."""
        similarities = dict(zip(map(str, self.ids), self.similarities(query), strict=True))
        all_there_are = self.expected(query, len(self.ids), **options)
        found, expected = [similarities[name] for name in ids(hits)], [similarities[name] for name in all_there_are[:k]]
        places = [(hit.distance, hit.image_id) for hit in hits]
        return (
            len(found) == len(set(ids(hits)) & set(all_there_are)) == len(expected)
            and places == sorted(places)
            and np.allclose(found, expected, rtol=0, atol=1e-6)
        )

    def recall(self, queries: Iterable[Vectors], k: int, within: Scope, *, without: Sequence[str] = ()) -> float:
        """How much of the k nearest a search finds, on average."""
        size = len(self.keys[self.keys <= within.cutoff])
        found = []
        for query in queries:
            expected = self.expected(query, k, size=size, without=without)
            hits = ids(nearest(self.space, query, k, within))
            assert len(hits) == len(set(hits)) == len(expected)
            found.append(len(set(expected) & set(hits)) / len(expected))
        return float(np.mean(found))


def ids(neighbours: Iterable[Neighbour]) -> list[str]:
    return [neighbour.image_id for neighbour in neighbours]


@contextmanager
def stored_library(server: EmbeddedServer, vectors: Vectors) -> Iterator[Library]:
    """A library in a database of its own, for the block."""
    with fresh_database(server) as url:
        store = Store(open_engine(make_url(url)))
        yield Library(store, vectors)
        store.engine.dispose()
