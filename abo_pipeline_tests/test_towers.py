"""How a tower copes with a GPU's memory, and with threads; on a CPU, where a GPU's errors are raised on purpose."""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from abo_pipeline import towers
from abo_pipeline.preparation import Preparation
from abo_pipeline.towers import TorchTower

SIDE = 4
PREPARATION = Preparation(SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def pixels():
    import torch

    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (37, 3, SIDE, SIDE), dtype=np.uint8))


def small_memory(most: int, error: RuntimeError | None = None):
    """A linear vision whose memory ends at so many pictures, with this error."""
    import torch

    raised = error or torch.OutOfMemoryError("CUDA out of memory")

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projection = torch.nn.Linear(3 * SIDE * SIDE, 5)
            self.batches: list[int] = []

        def forward(self, normalised: torch.Tensor) -> torch.Tensor:
            if len(normalised) > most:
                raise raised
            self.batches.append(len(normalised))
            return self.projection(normalised.flatten(1))

    torch.manual_seed(3)
    return Vision().eval()


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_nothing_is_lost(pixels):
    vision = small_memory(10)
    tower = TorchTower(vision, PREPARATION, "float32")
    expected = TorchTower(small_memory(1000), PREPARATION, "float32").encode(pixels)

    found = tower.encode(pixels)

    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert sum(vision.batches) == len(pixels)
    assert max(vision.batches) <= 10
    assert tower.batch <= 10


def test_many_that_do_not_fit_at_once_are_all_computed_in_the_end(pixels):
    """Each thread that runs out of memory waits until it is alone; two that gathered turns would wait for ever."""
    tower = TorchTower(small_memory(10), PREPARATION, "float32")
    expected = TorchTower(small_memory(1000), PREPARATION, "float32").encode(pixels)

    with ThreadPoolExecutor(12, initializer=tower.enter_thread) as pool:
        found = list(pool.map(lambda _: tower.encode(pixels), range(24), timeout=60))

    assert all(np.allclose(each, expected, atol=1e-6) for each in found)
    assert tower._turns.qsize() == tower._at_once


@pytest.mark.parametrize("sign", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"])
def test_memory_may_run_out_in_the_libraries_beside_torch(pixels, sign):
    vision = small_memory(10, RuntimeError(sign))
    expected = TorchTower(small_memory(1000), PREPARATION, "float32").encode(pixels)

    found = TorchTower(vision, PREPARATION, "float32").encode(pixels)

    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_any_other_error_is_raised_at_once(pixels):
    vision = small_memory(10, RuntimeError("CUDA error: an illegal memory access was encountered"))

    with pytest.raises(RuntimeError, match="illegal memory access"):
        TorchTower(vision, PREPARATION, "float32").encode(pixels)
    assert vision.batches == []


def test_a_single_picture_that_does_not_fit_is_an_error(pixels):
    import torch

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        TorchTower(small_memory(0), PREPARATION, "float32").encode(pixels[:1])


@pytest.mark.parametrize(
    ("milliseconds", "batch"),
    [
        # Of an image, by the size of the batch.
        ({32: 1.0, 64: 0.6, 128: 0.5, 256: 0.4, 512: 0.395, 1024: 0.394}, 256),
        ({32: 1.0, 64: 1.0, 128: 1.0, 256: 1.0, 512: 1.0, 1024: 1.0}, 32),
        ({32: 1.0, 64: 0.6, 128: 0.5}, 128),
        ({}, 1),
    ],
)
def test_a_gpu_gets_the_smallest_batch_that_is_about_as_quick_as_any(monkeypatch, milliseconds, batch):
    """Sizes that are not in the table do not fit into its memory."""
    import torch

    tower = TorchTower(small_memory(1000), PREPARATION, "float32")
    clock = [0.0]

    def encode(pixels, _) -> None:
        if len(pixels) not in milliseconds:
            raise torch.OutOfMemoryError
        clock[0] += milliseconds[len(pixels)] * len(pixels)

    monkeypatch.setattr(tower, "_encode", encode)
    monkeypatch.setattr(towers.time, "perf_counter", lambda: clock[0])

    assert tower._quickest_batch() == batch


def test_no_more_batches_are_in_the_tower_than_there_are_turns(pixels, monkeypatch):
    import torch

    monkeypatch.setattr(towers, "cores", lambda: 2)
    inside, most = [], []

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projection = torch.nn.Linear(3 * SIDE * SIDE, 5)

        def forward(self, normalised: torch.Tensor) -> torch.Tensor:
            inside.append(threading.get_ident())
            most.append(len(inside))
            found = self.projection(normalised.flatten(1))
            inside.remove(threading.get_ident())
            return found

    tower = TorchTower(Vision(), PREPARATION, "float32")
    with ThreadPoolExecutor(8, initializer=tower.enter_thread) as pool:
        list(pool.map(lambda _: tower.encode(pixels), range(60)))

    assert max(most) <= 2


def test_on_a_gpu_each_turn_computes_in_its_stream_and_sleeps_until_that_is_done(pixels, monkeypatch):
    """As far as that can be seen without one: what is asked of CUDA, and in which order."""
    import torch

    asked: list[object] = []

    class Event:
        def __init__(self, *, blocking: bool) -> None:
            asked.append(("an event", blocking))

        def record(self, stream: str) -> None:
            asked.append(("after what is in", stream))

        def synchronize(self) -> None:
            asked.append("waited")

    @contextmanager
    def stream(of: str):
        asked.append(("into", of))
        yield

    tower = TorchTower(small_memory(1000), PREPARATION, "float32")
    expected = tower.encode(pixels)
    tower._turns = queue.LifoQueue()
    tower._turns.put("a stream")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", stream)

    found = tower.encode(pixels)

    assert asked == [("into", "a stream"), ("an event", True), ("after what is in", "a stream"), "waited"]
    assert np.array_equal(found, expected)
    assert tower._turns.get_nowait() == "a stream"


def test_on_a_cpu_nothing_is_asked_of_cuda(pixels, monkeypatch):
    import torch

    def asked(*_: object, **__: object) -> None:
        pytest.fail("CUDA was asked for something")

    for name in ("stream", "Stream", "Event", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, asked)

    assert TorchTower(small_memory(1000), PREPARATION, "float32").encode(pixels).shape == (37, 5)


def test_a_thread_that_enters_computes_alone_and_leaves_the_others_as_they_are():
    import torch

    tower = TorchTower(small_memory(1000), PREPARATION, "float32")
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=tower.enter_thread) as pool:
        inside = pool.submit(torch.get_num_threads).result()

    assert (inside, torch.get_num_threads()) == (1, before)


def test_another_precision_is_a_copy_and_leaves_the_weights_as_they_were(pixels):
    import torch

    vision = small_memory(1000)
    exact = TorchTower(vision, PREPARATION, "float32").encode(pixels)

    rough = TorchTower(vision, PREPARATION, "bfloat16").encode(pixels)

    assert vision.projection.weight.dtype == torch.float32
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.1
