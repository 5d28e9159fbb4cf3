"""Prepared pictures → vectors in 8-bit integers: a CLIP's image tower that OpenVINO computes on the CPU.

The weights become 8-bit, and so does most of what is multiplied with them. For that it must be known how large those
numbers get, which is measured once, on pictures (calibration). It takes minutes; so the model that comes of it is kept
in a folder, and later processes load it in a moment. Which pictures those are, where the folder is, and whether the
vectors are near enough to the true ones, is for ``encoder``.
"""

import importlib
import importlib.util
import json
import logging
import queue
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from abo_pipeline.errors import ModelError
from abo_pipeline.machine import cores
from abo_pipeline.preparation import Preparation
from abo_pipeline.towers import CPU_BATCH, INT8

if TYPE_CHECKING:
    from torch import Tensor

Calibration = Callable[[], Iterator["Tensor"]]
"""Gives pictures of the kind that is to be embedded, as batches of uint8 (n, 3, side, side) of any lengths."""

CALIBRATION_IMAGES = 300
"""Pictures that are measured; of more, the first ones. It is NNCF's own number; 100 were found to be too few."""

PART = ".part"
"""How the name of a folder ends in which a tower is being made, or was when its process was killed."""

_MODEL, _WEIGHTS, _RECORD = "model.xml", "model.bin", "export.json"


class OpenVinoTower:
    """A ``Tower`` that OpenVINO computes, on the CPU.

    Args:
        compiled: a model that OpenVINO compiled, uint8 (n, 3, side, side) → float32 (n, dimension).
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        # Each holds the memory of one batch; threads come and go, and those that come take what others left.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The tower that was made in a folder.

        Raises:
            ModelError: OpenVINO is not installed, or cannot load the tower; or there is none.
        """
        _openvino()
        if digest_of(folder) is None:
            raise ModelError(f"There is no {INT8} model in {folder}, or not all of it. Run again to have it made anew.")
        return cls(_compiled(folder))

    @classmethod
    def prepared(cls, folder: Path, vision: Any, preparation: Preparation, calibration: Calibration) -> Self:
        """The tower from its folder; it is made there first where it is not yet.

        Several processes may do so at once: the first one makes it, the others wait and load it.

        Args:
            folder: for this tower alone; what stands there and is no tower is replaced.
            vision: what ``towers.vision_of`` gives, on the CPU and in single precision. Unused where the tower is
                there.
            preparation: of its pictures.
            calibration: pictures to make the tower with.

        Raises:
            ModelError: OpenVINO is not installed, or cannot make or load the tower; or there are no pictures to make
                it with.
        """
        _openvino()
        if not is_prepared(folder, preparation):
            with _turn(folder):
                if not is_prepared(folder, preparation):
                    _make(folder, vision, preparation, calibration)
        return cls.load(folder)

    @property
    def workers(self) -> int:
        """One a core."""
        return cores()

    @property
    def batch(self) -> int:
        """Images of a forward pass."""
        return CPU_BATCH

    @property
    def pinned(self) -> bool:
        """There is no GPU."""
        return False

    def enter_thread(self) -> None:
        """Have torch, which prepares the pictures, compute with this thread alone."""
        import torch

        torch.set_num_threads(1)

    def encode(self, pixels: "Tensor") -> NDArray[np.float32]:
        """uint8 (n, 3, side, side) → float32 (n, dimension), of any length. Thread-safe."""
        batch = pixels.contiguous().numpy()
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        # Not ``infer``, which computes in the calling thread and with a stream that is dealt to it by number: two may
        # get the same one, and wait for each other. A request that is started is computed by a stream that is idle.
        request.start_async([batch], share_inputs=True)
        request.wait()
        vectors: NDArray[np.float32] = np.array(request.get_output_tensor(0).data, dtype=np.float32)
        self._idle.put(request)
        return vectors


def require() -> None:
    """See that a tower could be computed and made here.

    Raises:
        ModelError: OpenVINO, or what makes models for it, is not installed.
    """
    _openvino()
    _nncf()


def is_available() -> bool:
    """Whether OpenVINO is installed, and what makes models for it; neither is imported."""
    return all(importlib.util.find_spec(package) is not None for package in ("openvino", "nncf"))


def is_prepared(folder: Path, preparation: Preparation) -> bool:
    """Whether the folder holds a whole tower, for pictures that are prepared so."""
    record = _record(folder)
    return record is not None and bool(record["preparation"] == _plain(preparation))


def digest_of(folder: Path) -> str | None:
    """Which tower the folder holds, as 16 hex digits: what was measured on the pictures is part of it. None if none."""
    record = _record(folder)
    return str(record["digest"]) if record else None


def _record(folder: Path) -> dict[str, Any] | None:
    """What was noted of a tower; None where there is no whole one."""
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text())
        return record if record["sizes"] == _sizes(folder) and {"digest", "preparation"} <= record.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Whoever waits for it finds the tower made by the one who came first."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        turn = FileLock(f"{folder}.lock").acquire()
    except OSError as error:
        raise ModelError(
            f"{_cannot_be_made(folder)}: {error.strerror or error}. Give a folder that may be written."
        ) from error
    with turn:
        yield


def _make(folder: Path, vision: Any, preparation: Preparation, calibration: Calibration) -> None:
    """Make the tower and put it into its folder, whole or not at all."""
    openvino, nncf = _openvino(), _nncf()
    # Each by itself: of a batch, NNCF would take one minimum and one maximum for all its pictures.
    pictures = [each[None].numpy() for each in islice(chain.from_iterable(calibration()), CALIBRATION_IMAGES)]
    if not pictures:
        raise ModelError(f"{_cannot_be_made(folder)}: there are no pictures to make it with. Embed some.")
    try:
        with _quiet(nncf):
            quantized = _quantized(nncf, _converted(openvino, vision, preparation), pictures)
        # Only one who holds the lock is here: what is in the way was left by a process that was killed.
        part = folder.with_name(f"{folder.name}{PART}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        openvino.save_model(quantized, part / _MODEL, compress_to_fp16=False)
        record = {
            "made with": {package: version(package) for package in ("openvino", "nncf", "torch", "transformers")},
            "pictures": len(pictures),
            "preparation": _plain(preparation),
            # Of all numbers in it. What else is in a model are names, which are others each time.
            "digest": blake2b((part / _WEIGHTS).read_bytes(), digest_size=8).hexdigest(),
            "sizes": _sizes(part),
        }
        (part / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except Exception as error:
        # Three libraries work on a model of unknown origin; they raise whatever they meet.
        raise ModelError(f"{_cannot_be_made(folder)}: {_last_line(error)} Choose another precision.") from error


def _converted(openvino: Any, vision: Any, preparation: Preparation) -> Any:
    """The tower as OpenVINO's graph: uint8 pictures, as many as one likes, are normalised in it."""
    import torch

    class Normalising(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = vision

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = self.vision(preparation.normalised(pixels, torch.float32))
            return vectors

    shape = (3, preparation.side, preparation.side)
    # Two pictures, since torch may take a one for a constant.
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        # What torch says of each number that it takes for a constant. Those are the model's: its sizes, mean and std.
        warnings.simplefilter("ignore")
        return openvino.convert_model(Normalising().eval(), example_input=example, input=[-1, *shape])


def _quantized(nncf: Any, model: Any, pictures: list[NDArray[np.uint8]]) -> Any:
    """The graph in 8-bit integers, with SmoothQuant, which belongs to the type of model."""
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # What no picture exceeds. NNCF's own choice, the mean of what each has at most, cuts off what few have, and that is
    # much in a transformer: with it the bundled model found 93 % of real photographs' ten nearest, and with this 98 %.
    ranges = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX)
    return nncf.quantize(
        model,
        nncf.Dataset(pictures),
        subset_size=len(pictures),
        model_type=nncf.ModelType.TRANSFORMER,
        target_device=nncf.TargetDevice.CPU,
        advanced_parameters=ranges,
    )


def _compiled(folder: Path) -> Any:
    """Have OpenVINO load the model."""
    openvino = _openvino()
    from openvino import properties
    from openvino.properties import hint

    settings = {
        # A stream a core, each a thread of its own, for the same reason as in ``towers``.
        properties.num_streams(): cores(),
        properties.inference_num_threads(): cores(),
        hint.enable_hyper_threading(): True,
        # Else each process binds its streams to the same cores, whatever else computes there.
        hint.enable_cpu_pinning(): False,
        # For what is not in integers. Else it depends on the CPU, and with it the vectors would.
        hint.inference_precision(): openvino.Type.f32,
    }
    try:
        return openvino.Core().compile_model(folder / _MODEL, "CPU", settings)
    except RuntimeError as error:
        made = json.loads((folder / _RECORD).read_text())["made with"]["openvino"]
        raise ModelError(
            f"The {INT8} model in {folder}, made with OpenVINO {made}, cannot be loaded by {version('openvino')}: "
            f"{_last_line(error)} Remove the folder to have it made anew."
        ) from error


def _cannot_be_made(folder: Path) -> str:
    return f"The {INT8} model in {folder} cannot be made"


def _openvino() -> Any:
    # Both packages report to their makers that they are imported, and of every model. The way out that is documented
    # (``opt_in_out --opt_out``) reports that too, and decides for the user's other programs. But both do without the
    # package that reports, so they are told that it is not installed.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return _imported("openvino", f"{INT8} needs OpenVINO")


def _nncf() -> Any:
    before = logging.getLoggerClass()
    try:
        return _imported("nncf", f"{INT8} needs NNCF to make its model")
    finally:
        # It would have every logger made from now on be of its own kind.
        logging.setLoggerClass(before)


def _imported(package: str, need: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelError(
            f"{need}, and that cannot be imported: {error}. Run pip install 'abo-pipeline[{INT8}]'."
        ) from error


@contextmanager
def _quiet(nncf: Any) -> Iterator[None]:
    """Keep NNCF from writing on the terminal, and the model from what it says when it is looked through."""
    from rich import get_console
    from transformers.utils import logging as transformers_logging

    nncf.set_log_level(logging.ERROR)
    # Its progress has no switch; it is shown on the console that rich keeps for those who have none of their own.
    console = get_console()
    before, console.quiet = console.quiet, True
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        console.quiet = before


def _plain(preparation: Preparation) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(asdict(preparation)))


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in (_MODEL, _WEIGHTS)}


def _last_line(error: Exception) -> str:
    """What OpenVINO says last is the reason; the lines before tell where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if lines else type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."
