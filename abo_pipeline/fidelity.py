"""Which encoder a space's vectors are made by: the quickest one that is true enough to the reference.

A model in fewer digits is several times as quick, and whether its vectors are still good depends on the weights: random
ones hardly mind, those with outliers do. So before the first vector of a space, the encoders that this machine is quick
with are compared with the reference, on the catalogue's own images: the first of them that finds (nearly) the same
nearest neighbours is taken, and what was measured is kept with the space. Later runs, on whatever machine, go by that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from abo_pipeline.archive import Archive
from abo_pipeline.embedding import Limits, picture_of
from abo_pipeline.encoder import Encoder, Say, Vectors
from abo_pipeline.errors import ImageError, ModelError
from abo_pipeline.openvino_tower import CALIBRATION_IMAGES
from abo_pipeline.stages import in_parallel
from abo_pipeline.store import EmbeddingSpace, Store

OVERLAP = 0.97
"""So many of the ten nearest neighbours must be those of the reference."""

FEWEST_IMAGES = 500
"""With fewer, neighbours are too far apart to tell encoders from one another."""

_IMAGES = 640
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Fidelity:
    """How true an encoder's vectors are to the reference's.

    Attributes:
        precision: of the encoder.
        why: it was proposed.
        images: that were compared; 0 if none were.
        mean_cosine, min_cosine: of the two vectors of an image; None if nothing was compared.
        overlap: share of an image's ten nearest among the others that are the same, on average; None likewise.
        is_true: whether that is enough.
    """

    precision: str
    why: str
    images: int = 0
    mean_cosine: float | None = None
    min_cosine: float | None = None
    overlap: float | None = None

    @property
    def is_true(self) -> bool:
        """Whether it may be used."""
        return self.overlap is None or self.overlap >= OVERLAP

    def __str__(self) -> str:
        if self.overlap is None:
            return f"{self.precision}, not compared: {self.why}"
        return (
            f"{self.precision}: {self.overlap:.1%} of the ten nearest neighbours are the reference's, cosine to it "
            f"{self.mean_cosine:.5f} on average and {self.min_cosine:.5f} at least, on {self.images:,} images"
        )


class Sample:
    """Photographs of the catalogue to compare encoders with: the first by sample key, which are a fair sample.

    Args:
        catalogue: kept images with the columns of ``catalog.SCHEMA``.
        archive: where they are.
        limits: on one of them.
    """

    def __init__(self, catalogue: pl.DataFrame, archive: Archive, limits: Limits) -> None:
        self._kept = catalogue
        self._archive = archive
        self._limits = limits

    def __len__(self) -> int:
        return len(self._catalogue)

    @cached_property
    def _catalogue(self) -> pl.DataFrame:
        # Few who have a sample come to look at it.
        return self._kept.unique("digest").sort("sample_key", "image_id")

    def pictures(self, most: int) -> Iterator[Image.Image]:
        """The first so many that can be decoded."""
        found = 0
        for row in self._catalogue.iter_rows(named=True):
            if found == most:
                return
            try:
                picture = picture_of(self._archive, row, self._limits)
            except ImageError:
                continue
            found += 1
            yield picture


def settled(store: Store, name: str, encoder: Encoder, sample: Sample, say: Say) -> tuple[EmbeddingSpace, Encoder]:
    """A space that may be written to, and the encoder that makes its vectors.

    Args:
        store: where the space is, or will be.
        name: of the space.
        encoder: that was asked for.
        sample: to compare encoders with, if nobody has.
        say: told in words which encoder is taken, and why.

    Raises:
        StoreError: the space holds vectors of another model, or made in another way than was asked for.
        ModelError: the model cannot be had; or the precision that was asked for is not true enough.
    """
    space = store.open_space(name, encoder)
    if not store.is_settled(space):
        chosen, fidelity = _choose(encoder, sample, say)
        space = store.settle_space(name, chosen, asdict(fidelity))
    matching = space.require_encoder(encoder)
    matching.make_ready(lambda: sample.pictures(CALIBRATION_IMAGES), say)
    return space, matching


def compare(encoder: Encoder, reference: Vectors, pictures: Sequence[Image.Image], why: str = "") -> Fidelity:
    """Measure an encoder by the reference's vectors.

    Args:
        encoder: to be measured.
        reference: (n, dimension), the reference's vectors of the pictures, of length 1 or not finite.
        pictures: n of them.
        why: the encoder is proposed.
    """
    has_direction = np.isfinite(reference).all(axis=1)
    vectors, reference = embed(encoder, pictures)[has_direction], reference[has_direction]
    neighbours = min(_NEIGHBOURS, len(vectors) - 1)
    if neighbours < 1:
        return Fidelity(encoder.precision, why)
    cosines = np.nan_to_num((vectors * reference).sum(axis=1))
    pairs = zip(_nearest(np.nan_to_num(vectors), neighbours), _nearest(reference, neighbours), strict=True)
    shared = [len(set(one) & set(other)) for one, other in pairs]
    return Fidelity(
        encoder.precision,
        why,
        len(vectors),
        float(cosines.mean()),
        float(cosines.min()),
        float(np.mean(shared)) / neighbours,
    )


def embed(encoder: Encoder, pictures: Sequence[Image.Image]) -> Vectors:
    """The vectors of pictures, in their order, by as many threads as the encoder wants."""
    size = encoder.batch
    starts = range(0, len(pictures), size)
    parts = dict(
        in_parallel(
            lambda start: (start, encoder.encode_images(pictures[start : start + size])),
            starts,
            encoder.workers,
            enter_thread=encoder.enter_thread,
        )
    )
    return np.concatenate([parts[start] for start in starts])


def _choose(encoder: Encoder, sample: Sample, say: Say) -> tuple[Encoder, Fidelity]:
    *quicker, last = encoder.candidates()
    if last.encoder.precision != encoder.reference.precision:
        quicker.append(last)
    elif len(sample) < FEWEST_IMAGES and quicker:
        quicker.clear()
        last = replace(last, why=f"it takes {FEWEST_IMAGES} images to judge another, and there are {len(sample):,}")
    pictures: list[Image.Image] = []
    if quicker:
        pictures = list(sample.pictures(_IMAGES))
        say(f"comparing encoders on {len(pictures):,} images, once for this space")
        reference = embed(encoder.reference, pictures)
    refused = ""
    for candidate in quicker:
        say(f"trying {candidate.encoder.precision}, because {candidate.why}")
        try:
            candidate.encoder.make_ready(lambda: sample.pictures(CALIBRATION_IMAGES), say)
            fidelity = compare(candidate.encoder, reference, pictures, candidate.why)
        except ModelError as error:
            if candidate is last:
                raise
            say(f"{candidate.encoder.precision} is left out: {error}")
            continue
        if fidelity.is_true:
            say(f"{fidelity}. It is taken.")
            return candidate.encoder, fidelity
        refused = f"{fidelity}. It is refused, for at least {OVERLAP:.0%} of the neighbours must be."
        say(refused)
    if last in quicker:
        raise ModelError(
            f"{encoder.model} in {refused} Unset ABO_PRECISION: then the quickest one is taken that is true enough."
        )
    say(f"{last.encoder.precision} is taken, because {last.why}")
    return last.encoder, Fidelity(last.encoder.precision, last.why)


def _nearest(vectors: Vectors, count: int) -> NDArray[np.int64]:
    """The numbers of the nearest of each vector, itself left out: (n, count), in any order."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    return np.argpartition(-similar, count - 1, axis=1)[:, :count]
