"""What else finds near vectors: libraries that search in the process's own memory, with the parameters of our index.

A peer is built from vectors (n, dimension) and asked for row numbers. All threads may build, one searches; numpy leaves
that to its linear algebra.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from abo_pipeline.store.strategies import HNSW_EF_CONSTRUCTION, HNSW_M
from benchmarks.vectors import Vectors

EFFORTS = (20, 40, 80, 120, 200, 400, 800)


class Peer(Protocol):
    """An index that is built.

    Attributes:
        efforts: worth trying; (0,) where there is nothing to choose.
        bytes: that it takes, the vectors included.
        build_seconds: that making it took.
    """

    efforts: Sequence[int]
    bytes: int
    build_seconds: float

    def search(self, query: Vectors, k: int, effort: int) -> NDArray[np.int64]:
        """Row numbers of the k nearest that it finds."""


class Numpy:
    """A matrix product, and the largest of it."""

    efforts = (0,)
    build_seconds = 0.0

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self.bytes = vectors.nbytes

    def search(self, query: Vectors, k: int, effort: int) -> NDArray[np.int64]:
        """All of them compared."""
        del effort
        similarities = self._vectors @ query
        top = np.argpartition(similarities, -k)[-k:]
        return top[np.argsort(-similarities[top])]


class FaissFlat:
    """All vectors compared, by faiss."""

    efforts = (0,)

    def __init__(self, vectors: Vectors) -> None:
        import faiss

        started = time.perf_counter()
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)
        self.build_seconds = time.perf_counter() - started
        self.bytes = vectors.nbytes
        faiss.omp_set_num_threads(1)

    def search(self, query: Vectors, k: int, effort: int) -> NDArray[np.int64]:
        """All of them compared."""
        del effort
        return self._index.search(query[None], k)[1][0]


class FaissHnsw:
    """HNSW over full precision, by faiss."""

    efforts = EFFORTS

    def __init__(self, vectors: Vectors) -> None:
        import faiss

        faiss.omp_set_num_threads(faiss.omp_get_max_threads())
        started = time.perf_counter()
        self._index = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_M, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = HNSW_EF_CONSTRUCTION
        self._index.add(vectors)
        self.build_seconds = time.perf_counter() - started
        self.bytes = vectors.nbytes + 4 * self._index.hnsw.neighbors.size()
        faiss.omp_set_num_threads(1)

    def search(self, query: Vectors, k: int, effort: int) -> NDArray[np.int64]:
        """As far as the effort goes."""
        self._index.hnsw.efSearch = effort
        return self._index.search(query[None], k)[1][0]


class Hnswlib:
    """HNSW over full precision, by its inventors."""

    efforts = EFFORTS

    def __init__(self, vectors: Vectors) -> None:
        import hnswlib

        started = time.perf_counter()
        self._index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        self._index.init_index(len(vectors), ef_construction=HNSW_EF_CONSTRUCTION, M=HNSW_M)
        self._index.add_items(vectors)
        self.build_seconds = time.perf_counter() - started
        self.bytes = self._index.index_file_size()
        self._index.set_num_threads(1)

    def search(self, query: Vectors, k: int, effort: int) -> NDArray[np.int64]:
        """As far as the effort goes."""
        self._index.set_ef(max(effort, k))
        return self._index.knn_query(query[None], k)[0][0].astype(np.int64)


PEERS: Mapping[str, type[Peer]] = {
    "numpy, exact": Numpy,
    "faiss flat": FaissFlat,
    "faiss HNSW": FaissHnsw,
    "hnswlib": Hnswlib,
}
