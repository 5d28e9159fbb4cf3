"""Pictures → what a CLIP looks at: resized, cropped to the middle square, in whole numbers.

The model's own processor does the same in floating point and Python, at five times the cost; it remains the reference,
and the way for models whose preparation is another one. Here a picture stays 8-bit until the model's device normalises
it, so that a batch is small to move. How files become pictures is for ``decoding``.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from abo_pipeline.decoding import Pixels

if TYPE_CHECKING:
    from torch import Tensor

PREPARATION = "uint8-bicubic-1"
"""Version of what this module makes of a picture. It is part of an embedding space's fingerprint: change it with the
pixels."""


@dataclass(frozen=True)
class Preparation:
    """How pictures are prepared for a model.

    Attributes:
        side: of the square that the model looks at, in pixels.
        shortest_edge: that a picture's shorter side is scaled to before.
        mean, std: by which the model's input is normalised, a colour each, of values from 0 to 1.
    """

    side: int
    shortest_edge: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, processor: Any) -> Self | None:
        """What an image processor of transformers is set to do; None if that is more, or other, than is done here."""
        try:
            size, crop = dict(processor.size), dict(processor.crop_size)
            usual = (
                processor.do_resize
                and processor.do_center_crop
                and processor.do_rescale
                and processor.do_normalize
                and int(processor.resample) == Image.Resampling.BICUBIC
                and abs(processor.rescale_factor * 255 - 1) < 1e-9
                and crop["height"] == crop["width"] <= size["shortest_edge"]
                and len(processor.image_mean) == len(processor.image_std) == 3
            )
            if not usual:
                return None
            return cls(crop["width"], size["shortest_edge"], tuple(processor.image_mean), tuple(processor.image_std))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def prepare(self, image: Image.Image | Pixels) -> "Tensor":
        """An RGB picture → uint8 (3, side, side): bicubic with antialiasing, as Pillow has it, and the middle of that.

        Within 2 of 255 of what the model's own processor makes of it.
        """
        import torch

        # Torch wants to be able to write to its memory; of a picture of Pillow's that makes a copy.
        array = np.require(image, np.uint8, ["C", "W"])
        pixels = torch.from_numpy(array).permute(2, 0, 1)[None]
        height, width = self._scaled(*array.shape[:2])
        if (height, width) != array.shape[:2]:
            # Channels last is the layout in which torch has a fast way for 8-bit pictures, and the one they come in.
            pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
        top, left = (height - self.side) // 2, (width - self.side) // 2
        return pixels[0, :, top : top + self.side, left : left + self.side]

    def batch(self, images: Iterable[Image.Image | Pixels], most: int, *, pinned: bool = False) -> "Tensor":
        """Pictures → uint8 (n, 3, side, side), in memory that lies together.

        Args:
            images: n of them, taken one after another.
            most: that n may be.
            pinned: in memory that a GPU fetches from by itself.
        """
        batch, count = self.memory(most, pinned=pinned), 0
        for image in images:
            batch[count].copy_(self.prepare(image))
            count += 1
        return batch[:count]

    def memory(self, count: int, *, pinned: bool = False) -> "Tensor":
        """A batch of whatever was there before; what is pinned, torch keeps for the next one."""
        import torch

        shape = (count, 3, self.side, self.side)
        if pinned:
            # Where no more of it can be had, the rest goes over as from any memory: only slower.
            with suppress(RuntimeError):
                return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.empty(shape, dtype=torch.uint8)

    def normalising(self, device: Any) -> "tuple[Tensor, Tensor]":
        """By what pixels are multiplied, and what is taken from them then: x/255 gets mean 0 and deviation 1."""
        import torch

        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (1 / (255 * std)).to(device), (mean / std).to(device)

    def normalised(self, pixels: "Tensor", dtype: Any, by: "tuple[Tensor, Tensor] | None" = None) -> "Tensor":
        """uint8 (n, 3, side, side) → the model's input, on the device where the pixels are.

        Args:
            pixels: a batch.
            dtype: torch's type to give it.
            by: what ``normalising`` gives for that device; a GPU would have to be waited for to get it there.
        """
        import torch

        factor, offset = by or self.normalising(pixels.device)
        # In one pass over memory each.
        return pixels.to(torch.float32).mul_(factor).sub_(offset).to(dtype)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """The shorter side as it is to be, the other one rounded down, as transformers does."""
        if height <= width:
            return self.shortest_edge, int(self.shortest_edge * width / height)
        return int(self.shortest_edge * height / width), self.shortest_edge
