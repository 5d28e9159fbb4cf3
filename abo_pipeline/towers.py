"""Prepared pictures → vectors: a CLIP's image tower in each precision that torch computes.

A tower is called by several threads at once, each with a batch of its own. On a CPU each of them computes alone, one
core a batch: with one batch over all cores, every core waits at every layer for the slowest, and a single busy
neighbour (a database, a daemon) takes more than half of the throughput away. On a GPU the threads prepare pictures, and
take turns in computing batches there, each turn in a stream of its own. Towers of other runtimes are modules of their
own (``openvino_tower``); which one is used, and under what fingerprint, is for ``encoder``.
"""

import copy
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from abo_pipeline.machine import cores
from abo_pipeline.preparation import Preparation

if TYPE_CHECKING:
    from torch import Tensor

FLOAT32, BFLOAT16, FLOAT16, INT8 = "float32", "bfloat16", "float16", "int8"

CPU_BATCH = 16
"""Images of a CPU's forward pass. Larger ones are no quicker; and from 32 on, every layer's memory is given back to the
system and fetched again."""

_GPU_BATCHES = (32, 64, 128, 256, 512)
_TRIALS = 5
_ENOUGH = 0.97
"""A smaller batch is taken that gives such a share of the best throughput: one thread prepares it, while others wait
for it at the end of a partition."""

_ON_THE_GPU = 2
"""Batches that may be there at once: one computes while the results of the other are fetched."""


class Tower(Protocol):
    """A CLIP's image tower.

    Attributes:
        workers: threads that should call it at once.
        batch: images that each should give it at once.
        pinned: whether batches should be in pinned memory, from which a GPU fetches them by itself.
    """

    @property
    def pinned(self) -> bool:
        """Whether batches should be in pinned memory."""

    @property
    def workers(self) -> int:
        """Threads that should call it at once."""

    @property
    def batch(self) -> int:
        """Images that each should give it at once."""

    def enter_thread(self) -> None:
        """To be called once in each thread that calls ``encode`` beside others."""

    def encode(self, pixels: "Tensor") -> NDArray[np.float32]:
        """uint8 (n, 3, side, side) in the CPU's memory → float32 (n, dimension), of any length. Thread-safe."""


def _turns(device: Any, count: int) -> "queue.LifoQueue[Any]":
    """A stream for each who may compute at once; None for each on a CPU."""
    import torch

    turns: queue.LifoQueue[Any] = queue.LifoQueue()
    is_cuda = device.type == "cuda"
    if is_cuda:
        # Weights came in the default stream, for which others do not wait.
        torch.cuda.synchronize(device)
    for _ in range(count):
        turns.put(torch.cuda.Stream(device) if is_cuda else None)  # type: ignore[no-untyped-call]
    return turns


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Also as the libraries beside torch's own memory say it, which raise plain errors."""
    import torch

    signs = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16; else it is slower than in single precision."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def vision_of(clip: Any) -> Any:
    """The image side of a ``transformers.CLIPModel`` as a torch module: normalised pixels → projected vectors."""
    import torch

    class Vision(torch.nn.Module):
        """Vision transformer and projection."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = clip.vision_model
            self.projection = clip.visual_projection

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            """(n, 3, side, side) → (n, dimension)."""
            projected: torch.Tensor = self.projection(self.transformer(pixel_values=pixels).pooler_output)
            return projected

    return Vision().eval()


def _in_precision(vision: Any, precision: str) -> Any:
    """A copy in another precision.

    In bfloat16, of 8 binary digits, are only the factors of matrix products: sums and normalisations stay in single
    precision, which costs nothing that could be measured, and keeps half of the neighbours that would be lost.
    """
    import torch

    if precision == FLOAT32:
        return vision
    other = copy.deepcopy(vision)
    if precision == FLOAT16:
        return other.half()
    for module in other.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(torch.bfloat16)
    return other


class TorchTower:
    """A tower that torch computes.

    Args:
        vision: what ``vision_of`` gives, on its device and in single precision; it is copied for any other.
        preparation: of its pictures.
        precision: float32, bfloat16 or float16.
    """

    def __init__(self, vision: Any, preparation: Preparation, precision: str) -> None:
        import torch

        self._dtype = getattr(torch, precision)
        self._input_dtype = torch.float32 if precision == BFLOAT16 else self._dtype
        self._preparation = preparation
        self._vision = _in_precision(vision, precision)
        self._is_mixed = precision == BFLOAT16
        self._device = next(vision.parameters()).device
        self._on_cpu = self._device.type == "cpu"
        self._normalising = preparation.normalising(self._device)
        self._at_once = cores() if self._on_cpu else _ON_THE_GPU
        self._turns = _turns(self._device, self._at_once)
        self._gathering = threading.Lock()
        self._batch = CPU_BATCH
        if not self._on_cpu:
            self._batch = self._quickest_batch()

    @property
    def workers(self) -> int:
        """One a core, on a GPU too: they prepare its pictures while some more wait for it."""
        return cores() if self._on_cpu else cores() + _ON_THE_GPU

    @property
    def batch(self) -> int:
        """Images of a forward pass; fewer, after the GPU's memory was too small for more."""
        return self._batch

    def enter_thread(self) -> None:
        """Have torch compute with this thread alone; in others it stays as it is."""
        import torch

        torch.set_num_threads(1)

    @property
    def pinned(self) -> bool:
        """Whether batches should be in pinned memory."""
        return bool(self._device.type == "cuda")

    def encode(self, pixels: "Tensor") -> NDArray[np.float32]:
        """uint8 (n, 3, side, side) → float32 (n, dimension); in parts where the GPU's memory is too small for all."""
        try:
            with self._turn() as stream:
                return self._encode(pixels, stream)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        # Outside of the handler, whose traceback holds the memory that is to be freed. Perhaps it was only the other
        # batch that was in the way.
        with self._alone() as stream:
            return self._encode_in_parts(pixels, stream)

    def _encode_in_parts(self, pixels: "Tensor", stream: Any) -> NDArray[np.float32]:
        import torch

        torch.cuda.empty_cache()
        try:
            return self._encode(pixels, stream)
        except RuntimeError as error:
            if not _is_out_of_memory(error) or len(pixels) == 1:
                raise
        half = (len(pixels) + 1) // 2
        self._batch = max(1, min(self._batch, half))
        return np.concatenate([self._encode_in_parts(part, stream) for part in (pixels[:half], pixels[half:])])

    def _encode(self, pixels: "Tensor", stream: Any) -> NDArray[np.float32]:
        import torch

        mixed = torch.autocast(self._device.type, self._dtype, enabled=self._is_mixed, cache_enabled=False)
        # Without a stream nothing is asked of CUDA, which may be there and not wanted.
        in_stream = nullcontext() if stream is None else torch.cuda.stream(stream)
        with torch.inference_mode(), in_stream, mixed:
            there = pixels.to(self._device, non_blocking=True)
            normalised = self._preparation.normalised(there, self._input_dtype, self._normalising)
            vectors = self._vision(normalised).float()
            if stream is not None:
                # A thread that waits for this sleeps; one that fetches what is not there yet keeps a core busy.
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                done.record(stream)
                done.synchronize()
            found: NDArray[np.float32] = vectors.cpu().numpy()
        return found

    @contextmanager
    def _turn(self) -> Iterator[Any]:
        """Be one of those who compute, in a stream of its own on a GPU."""
        stream = self._turns.get()
        try:
            yield stream
        finally:
            self._turns.put(stream)

    @contextmanager
    def _alone(self) -> Iterator[Any]:
        """Be the only one who computes."""
        # Two who each had some of the turns would wait for each other.
        with self._gathering:
            streams = [self._turns.get() for _ in range(self._at_once)]
        try:
            yield streams[0]
        finally:
            for stream in streams:
                self._turns.put(stream)

    def _quickest_batch(self) -> int:
        """The smallest batch that is about as quick as any, an image."""
        rates: dict[int, float] = {}
        for size in _GPU_BATCHES:
            try:
                pixels = self._preparation.memory(size, pinned=self.pinned).zero_()
                with self._turn() as stream:
                    self._encode(pixels, stream)
                    started = time.perf_counter()
                    for _ in range(_TRIALS):
                        self._encode(pixels, stream)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                break
            rates[size] = _TRIALS * size / (time.perf_counter() - started)
        best = max(rates.values(), default=0.0)
        return next((size for size, rate in rates.items() if rate >= _ENOUGH * best), 1)
