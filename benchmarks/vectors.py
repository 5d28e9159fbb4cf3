"""Vectors that are spread as CLIP's are: what the benchmarks load and search, and what the tests of searching use.

Pictures lie in clusters on one cone, a few of them twice or nearly so; texts lie on another cone, drawn to the same
clusters. This gap is CLIP's own, and what makes a text the harder query for an index: at 100,000 vectors of 512
dimensions, HNSW with m = 16 and ef_search = 40 finds .97 of the ten pictures nearest to a picture and .81 of those
nearest to a text. How vectors are stored and searched stays out of here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

BLOCK = 4096
"""Vectors are drawn so many at a time, each block by itself: a longer run begins with a shorter one's vectors, and
nothing but the result is ever as large as the result."""

_TWINS, _NEAR_TWINS = 0.01, 0.02
"""Shares of the pictures that are another one's copy, byte by byte, or up to its last few bits."""


def unit(vectors: NDArray) -> Vectors:
    """The same directions with length 1, in float32."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Clip:
    """A model that was never trained: the same seed gives the same vectors.

    Attributes:
        dimension: of the vectors.
        clusters: that pictures and texts lie in.
        seed: of all that is drawn.
    """

    dimension: int = 512
    clusters: int = 100
    seed: int = 0

    def images(self, count: int) -> Vectors:
        """Pictures, (count, dimension)."""
        vectors = np.empty((count, self.dimension), np.float32)
        for first, block in self.image_blocks(count):
            vectors[first : first + len(block)] = block
        return vectors

    def image_blocks(self, count: int) -> Iterator[tuple[int, Vectors]]:
        """The same pictures, block by block, each with the place of its first."""
        for first in range(0, count, BLOCK):
            yield first, self._image_block(first // BLOCK)[: count - first]

    def like_images(self, count: int) -> Vectors:
        """Pictures of what the first so many pictures show: near them, and not the same."""
        return unit(self.images(count) + 0.25 * unit(self._noise(self._rng("queries"), count)))

    def texts(self, count: int) -> Vectors:
        """Texts, (count, dimension)."""
        rng = self._rng("texts")
        centres = self._centres[rng.integers(0, self.clusters, count)]
        return unit(self._text_cone + 0.35 * centres + 0.5 * self._noise(rng, count))

    def _image_block(self, number: int) -> Vectors:
        rng = self._rng("images", number)
        centres = self._centres[rng.integers(0, self.clusters, BLOCK)]
        vectors = unit(self._cone + 0.6 * centres + 0.8 * self._noise(rng, BLOCK))
        copies = np.flatnonzero(rng.random(BLOCK) < _TWINS + _NEAR_TWINS)
        # Each of one before it in its block, so that a short run has its twins too.
        originals = rng.integers(0, np.maximum(copies, 1))
        off = np.where(rng.random((len(copies), 1)) < _TWINS / (_TWINS + _NEAR_TWINS), 0, 0.1).astype(np.float32)
        nearly = unit(vectors[originals] + off * unit(self._noise(rng, len(copies))))
        vectors[copies] = np.where(off, nearly, vectors[originals])
        return vectors

    @cached_property
    def _cone(self) -> Vectors:
        return unit(self._noise(self._rng("cone"), 1))

    @cached_property
    def _text_cone(self) -> Vectors:
        """At about 80 degrees to the other."""
        return unit(unit(self._rng("text cone").standard_normal((1, self.dimension), np.float32)) + 0.2 * self._cone)

    @cached_property
    def _centres(self) -> Vectors:
        return unit(self._noise(self._rng("centres"), self.clusters))

    @cached_property
    def _axes(self) -> Vectors:
        """Directions in which vectors differ, the first of them more than the last: (dimension, dimension).

        Turned at random, for a model's coordinates are not its principal axes, and quantization sees coordinates.
        """
        lengths = np.arange(1, self.dimension + 1) ** -0.5
        turned, _ = np.linalg.qr(self._rng("axes").standard_normal((self.dimension, self.dimension)))
        return ((lengths / np.linalg.norm(lengths))[:, None] * turned).astype(np.float32)

    def _noise(self, rng: np.random.Generator, count: int) -> Vectors:
        """Vectors in no particular direction, of about length 1."""
        return rng.standard_normal((count, self.dimension), np.float32) @ self._axes

    def _rng(self, purpose: str, block: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, block, *purpose.encode()])
