"""Principal components of many vectors, found in one pass that keeps none of them.

Jolliffe: Principal Component Analysis. What projected vectors are good for is measured by ``ladder``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Projection:
    """The directions in which vectors differ most.

    Attributes:
        mean: (dimension,), of the vectors that it was fitted on.
        components: (d, dimension), of length 1 and at right angles, in descending order of variance.
        share: of the whole variance that these directions hold, from 0 to 1.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    share: float

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Where vectors (…, dimension) lie along the components: (…, d)."""
        return ((vectors - self.mean) @ self.components.T).astype(np.float32)


def fit(blocks: Iterable[NDArray[np.float32]], d: int) -> Projection:
    """Find the d principal components of all vectors.

    Args:
        blocks: of vectors (n, dimension), together at least one; each is looked at once.
        d: components wanted, at least 1 and at most the dimension.
    """
    count, total, squares = 0, np.zeros(1), np.zeros((1, 1))
    for block in blocks:
        wide = block.astype(np.float64)
        count += len(wide)
        total = total + wide.sum(axis=0)
        squares = squares + wide.T @ wide
    mean = total / count
    variances, directions = np.linalg.eigh(squares / count - np.outer(mean, mean))
    # Ascending, and where there is no variance perhaps a hair below 0.
    variances = np.maximum(variances[::-1], 0.0)
    components = directions.T[::-1][:d]
    # A direction has no sign; this one is the same on every machine.
    largest = components[np.arange(len(components)), np.abs(components).argmax(axis=1)]
    whole = float(variances.sum())
    return Projection(
        mean, components * np.sign(largest)[:, None], float(variances[:d].sum()) / whole if whole else 1.0
    )
