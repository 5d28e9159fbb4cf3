"""Encoders that behave in ways a model does not on demand. Everything else in the tests is real."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from abo_pipeline.encoder import Candidate, Encoder, Vectors


@dataclass
class ColourEncoder(Encoder):
    """Embeds a picture as its mean colour, and a text as the colour it names; counts what it is asked."""

    model: str = "mean-colour"
    fingerprint: str = "c0104f00c0104f00"
    dimension: int = 3
    device: str = "cpu"
    batches: list[int] = field(default_factory=list)
    aimless: frozenset[tuple[int, int]] = frozenset()
    """Sizes of pictures that get no direction."""

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Mean red, green and blue."""
        self.batches.append(len(images))
        rows = [
            np.full(3, np.nan) if image.size in self.aimless else np.asarray(image, np.float64).mean(axis=(0, 1)) + 1
            for image in images
        ]
        return _unit(np.array(rows).reshape(-1, 3))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Pure red, green or blue, whichever is named; grey otherwise."""
        named = [[float(colour in text) for colour in ("red", "green", "blue")] for text in texts]
        return _unit(np.array([row if any(row) else [1.0, 1.0, 1.0] for row in named]))

    def truncates(self, text: str) -> bool:
        """Reads 77 words."""
        return len(text.split()) > 77


def _unit(rows: np.ndarray) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class RoughEncoder(ColourEncoder):
    """Embeds pictures as well as it is told: some vectors are others."""

    precision: str = "float32"
    wrong: float = 0.0
    """Share of pictures, every so many, that get the vector of black."""
    embedded: int = 0

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Mean colours, and wrong ones."""
        vectors = super().encode_images(images)
        for number in range(len(vectors)):
            before, self.embedded = self.embedded * self.wrong, self.embedded + 1
            if int(before) != int(self.embedded * self.wrong):
                vectors[number] = _unit(np.ones((1, 3)))
        return vectors


@dataclass
class ChoosyEncoder(ColourEncoder):
    """A model with several ways to its vectors, of which it is the reference.

    Attributes:
        ways: the quicker ones, most wanted first.
        asked_for: whether the first of them was asked for by name, so that no other will do.
    """

    ways: tuple[RoughEncoder, ...] = ()
    asked_for: bool = False

    def variants(self) -> Sequence[Encoder]:
        """The ways, and itself."""
        return (self, *self.ways)

    def candidates(self) -> Sequence[Candidate]:
        """The ways, then itself."""
        quick = [Candidate(way, f"{way.precision} is quick") for way in self.ways]
        return quick[:1] if self.asked_for else [*quick, Candidate(self, "nothing quicker will do here")]
