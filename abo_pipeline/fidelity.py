"""Which encoder a space's vectors are made by: the quickest one that is true enough to the reference.

A model in fewer digits is several times as quick, and whether its vectors are still good depends on the weights: random
ones hardly mind, those with outliers do. So before the first vector of a space, the encoders that this machine is quick
with are compared with the reference, on the catalogue's own images: the first of them that finds (nearly) the same
nearest neighbours is taken, and what was measured is kept with the space. Later runs, on whatever machine, go by that.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

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

_FEWEST_TO_COMPARE = 21
"""Among fewer than twice as many images as neighbours, most are neighbours whatever the vectors."""

_IMAGES = 640
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Fidelity:
    """How true an encoder's vectors are to the reference's.

    Attributes:
        precision: of the encoder.
        why: it was proposed.
        images: that were looked at; 0 if none were.
        mean_cosine, min_cosine: of the two vectors of an image; None if nothing was compared.
        overlap: share of an image's ten nearest among the others that are the same, on average; None likewise.
        without_direction: of the images compared, those that get a vector of nothing, and would be failures.
        made: which of the models that were made for the precision; empty where none is.
        is_true: whether that is enough.
    """

    precision: str
    why: str
    images: int = 0
    mean_cosine: float | None = None
    min_cosine: float | None = None
    overlap: float | None = None
    without_direction: int = 0
    made: str = ""

    @property
    def is_true(self) -> bool:
        """Whether it may be used: what was not compared was asked for by name."""
        return not self.without_direction and (self.overlap is None or self.overlap >= OVERLAP)

    def __str__(self) -> str:
        if self.without_direction:
            return f"{self.precision}: {self.without_direction:,} of {self.images:,} images get no direction"
        if self.overlap is None:
            return f"{self.precision}, not compared: {self.why}"
        # Not rounded up to a share that would do.
        share = int(self.overlap * 1000) / 10
        return (
            f"{self.precision}: {share}% of the ten nearest neighbours are the reference's, cosine to it "
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
    if not store.is_settled(store.open_space(name, encoder)):
        store.settle_space(name, *_choose(encoder, sample, say))
    # Somebody else may have come first, with another encoder.
    space = store.open_space(name, encoder)
    return space, space.require_encoder(encoder).made_as(store.made_for(name))


def compare(encoder: Encoder, reference: Vectors, pictures: Iterable[Image.Image], why: str = "") -> Fidelity:
    """Measure an encoder by the reference's vectors.

    Args:
        encoder: to be measured.
        reference: (n, dimension), the reference's vectors of the pictures, of length 1 or not finite.
        pictures: n of them.
        why: the encoder is proposed.
    """
    has_direction = np.isfinite(reference).all(axis=1)
    vectors, reference = embed(encoder, pictures)[has_direction], reference[has_direction]
    lost = int(len(vectors) - np.isfinite(vectors).all(axis=1).sum())
    if len(vectors) < _FEWEST_TO_COMPARE:
        few = f"{why}; {len(vectors):,} images are too few to compare it with the reference"
        return Fidelity(encoder.precision, few, len(vectors), without_direction=lost, made=encoder.made)
    cosines = np.nan_to_num((vectors * reference).sum(axis=1))
    pairs = zip(_nearest(np.nan_to_num(vectors), _NEIGHBOURS), _nearest(reference, _NEIGHBOURS), strict=True)
    shared = [len(set(one) & set(other)) for one, other in pairs]
    return Fidelity(
        encoder.precision,
        why,
        len(vectors),
        float(cosines.mean()),
        float(cosines.min()),
        float(np.mean(shared)) / _NEIGHBOURS,
        lost,
        encoder.made,
    )


def embed(encoder: Encoder, pictures: Iterable[Image.Image]) -> Vectors:
    """The vectors of pictures, in their order, by as many threads as the encoder wants; no more are held than that."""
    coming, size = iter(pictures), encoder.batch
    batches = enumerate(iter(lambda: list(islice(coming, size)), []))
    parts = dict(
        in_parallel(
            lambda numbered: (numbered[0], encoder.encode_images(numbered[1])),
            batches,
            encoder.workers,
            enter_thread=encoder.enter_thread,
        )
    )
    return np.concatenate([parts[number] for number in sorted(parts)] or [encoder.encode_images([])])


def _choose(encoder: Encoder, sample: Sample, say: Say) -> tuple[Encoder, dict[str, Any]]:
    """The encoder for a new space, and what is to be noted of it."""
    *quicker, last = encoder.candidates()
    if last.encoder.precision != encoder.reference.precision:
        quicker.append(last)
    images = sum(1 for _ in sample.pictures(_IMAGES)) if quicker else 0
    if images < FEWEST_IMAGES and last not in quicker and quicker:
        quicker.clear()
        last = replace(last, why=f"it takes {FEWEST_IMAGES} images to judge another, and there are {images:,}")
    if quicker:
        say(f"comparing encoders on {images:,} images, once for this space")
        reference = embed(encoder.reference, sample.pictures(_IMAGES))
    refused = ""
    for candidate in quicker:
        say(f"trying {candidate.encoder.precision}, because {candidate.why}")
        try:
            candidate.encoder.make_ready(lambda: sample.pictures(CALIBRATION_IMAGES), say)
            fidelity = compare(candidate.encoder, reference, sample.pictures(_IMAGES), candidate.why)
        except (ModelError, RuntimeError) as error:
            # A runtime that has no memory, or does not know this CPU, says so by the latter.
            if candidate is last:
                raise
            say(f"{candidate.encoder.precision} is left out: {error}")
            continue
        if fidelity.is_true:
            say(f"{fidelity}. It is taken.")
            return candidate.encoder, asdict(fidelity)
        refused = f"{fidelity}. It is refused, for at least {OVERLAP:.0%} of the neighbours must be."
        if fidelity.without_direction:
            refused = f"{fidelity}. It is refused, for the reference gives them one."
        say(refused)
    if last in quicker:
        raise ModelError(
            f"{encoder.model} in {refused} Unset ABO_PRECISION: then the quickest one is taken that is true enough."
        )
    say(f"{last.encoder.precision} is taken, because {last.why}")
    return last.encoder, asdict(Fidelity(last.encoder.precision, last.why))


def _nearest(vectors: Vectors, count: int) -> NDArray[np.int64]:
    """The numbers of the nearest of each vector, itself left out: (n, count), in any order."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    return np.argpartition(-similar, count - 1, axis=1)[:, :count]
