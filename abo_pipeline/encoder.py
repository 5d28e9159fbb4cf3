"""The model: pictures and texts → unit vectors in one space.

``Encoder`` is all that the rest of the package asks of a model. ``ClipEncoder`` keeps the promise with whatever
``SentenceTransformer(...)`` loads that embeds both pictures and texts; the model is loaded when the first vector is
wanted, once a process, because importing sentence-transformers alone takes seconds.

There are several ways to one model's vectors of pictures, and they differ by what they cost and by their last digits.
The reference is sentence-transformers in single precision with the model's own processor; for a CLIP, the others are a
``Preparation`` of ours and a ``Tower`` in some precision. Each has a fingerprint of its own, so a space holds vectors
made in one way. Texts are few, and always embedded as the reference does. Which way a space takes is for ``fidelity``;
batching over a partition, and what becomes of a picture that cannot be embedded, is for ``embedding``.
"""

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from abo_pipeline import openvino_tower
from abo_pipeline.decoding import DECODING, Pixels
from abo_pipeline.errors import ModelError
from abo_pipeline.machine import cores
from abo_pipeline.openvino_tower import CALIBRATION_IMAGES, PART, OpenVinoTower, digest_of, is_prepared
from abo_pipeline.preparation import PREPARATION, Preparation
from abo_pipeline.settings import Settings
from abo_pipeline.towers import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    INT8,
    TorchTower,
    Tower,
    has_fast_bfloat16,
    vision_of,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]

Say = Callable[[str], None]
"""Is told something in words, for a log or a terminal."""

SMALL_MODEL = "small-clip"
"""The name under which the bundled model is asked for."""

AUTO = "auto"
FAST, MODELS_OWN = "fast", "model"
"""How pictures are prepared: by ``preparation`` where the model is a CLIP, or by the model's own processor."""

_HUB_TIMEOUT = 10.0
_NOT_WEIGHTS = frozenset({"README.md", "LICENSE"})


@dataclass(frozen=True)
class Candidate:
    """An encoder that may be used for a space, and why it is proposed."""

    encoder: "Encoder"
    why: str


class Encoder(ABC):
    """What the pipeline and the search ask of a model.

    Attributes:
        model: the model's name, for people.
        fingerprint: two encoders with the same one give the same vectors; 16 hex digits.
        dimension: length of the vectors.
        device: where it computes, such as ``cpu`` or ``cuda:0``.
        precision: of its vectors of pictures.
        made: which of the models that were made for it, in 16 hex digits; empty if none has to be, or is yet.
        workers: threads that should embed pictures at once, each its own.
        batch: pictures that each should embed at once.
    """

    model: str
    fingerprint: str
    dimension: int
    device: str
    precision: str = FLOAT32
    made: str = ""
    workers: int = 1
    batch: int = 64

    @abstractmethod
    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """RGB pictures → (n, dimension) float32, each row of length 1; NaN in a row that has no direction."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts → (n, dimension) float32, each row of length 1. What is over the model's length is cut off."""

    @abstractmethod
    def truncates(self, text: str) -> bool:
        """Whether the text is longer than the model reads (77 tokens for CLIP), so that its end is ignored."""

    def prepare(self, images: Iterable[Image.Image | Pixels], most: int) -> Any:
        """RGB pictures → what ``encode_prepared`` takes: the part of the work that is not the model's.

        That is the pictures themselves, unless an encoder has work to do with them.

        Args:
            images: to be taken one after another, for each may be large.
            most: that there may be.
        """
        del most
        return [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]

    def encode_prepared(self, prepared: Any) -> Vectors:
        """What ``prepare`` gave → vectors, as ``encode_images`` gives them."""
        return self.encode_images(prepared)

    def enter_thread(self) -> None:  # noqa: B027 - most have nothing to do here
        """To be called once by each thread that embeds pictures beside others."""

    def make_ready(self, pictures: Callable[[], Iterable[Image.Image]], say: Say) -> None:  # noqa: B027 - likewise
        """Do what has to be done before it can embed pictures; again, it does nothing.

        Args:
            pictures: gives some that it will be asked for.
            say: told what is done, if it takes long.

        Raises:
            ModelError: it cannot be done; or what is there, or was made, is not what ``made`` says.
        """

    def made_as(self, made: str) -> "Encoder":
        """The same encoder, held to a model that was made for it: its vectors depend on that, as on the fingerprint."""
        del made
        return self

    def variants(self) -> Sequence["Encoder"]:
        """Every encoder of this model whose spaces this one may be used for."""
        return (self,)

    def candidates(self) -> Sequence[Candidate]:
        """Encoders for a new space, the most wanted first; the last one is of the reference's precision, or alone."""
        return (Candidate(self, "there is no other"),)

    @property
    def reference(self) -> "Encoder":
        """What an encoder of this model is measured by."""
        return self

    @property
    def in_single_precision(self) -> "Encoder":
        """What pictures are embedded by of which few come, as those to search by: it needs nothing to be made."""
        return self

    def matching(self, fingerprint: str) -> "Encoder | None":
        """The one of ``variants`` with this fingerprint; None if there is none."""
        return next((encoder for encoder in self.variants() if encoder.fingerprint == fingerprint), None)


class ClipEncoder(Encoder):
    """An ``Encoder`` from sentence-transformers.

    With precision ``auto`` it computes in single precision itself, and may be used for spaces of any precision.

    Args:
        model: a hub name such as ``clip-ViT-B-32``, a folder, or ``small-clip`` for the bundled model.
        device: a torch device; empty for the best there is.
        precision: of the pictures' vectors: auto, float32, bfloat16, float16 or int8.
        preparation: ``FAST`` or ``MODELS_OWN``.
        folder: for what has to be made once; needed for int8.
        made: the ``made`` of the only model for int8 that will do, if there is one.

    Raises:
        ModelError: from every member that needs the model: it cannot be found or loaded, or does not embed both
            pictures and texts.
    """

    def __init__(
        self,
        model: str,
        device: str = "",
        precision: str = AUTO,
        preparation: str = FAST,
        folder: Path | None = None,
        made: str = "",
    ) -> None:
        self.model = model
        self.made = made
        self.precision = FLOAT32 if precision == AUTO else precision
        self._is_auto = precision == AUTO
        self._preparation = preparation
        self._device = device
        self._folder = folder
        self._int8_folder: Path | None = None
        self._source = _Source(model)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # computed, as all members that need the model
        """Hash over the model's files or its revision on the hub, and how pictures become vectors."""
        # The reference's is what it was before there were other ways.
        how = [PREPARATION] if self._preparation == FAST else []
        parts = [self._source.identity, DECODING, self.precision, *how]
        return blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()

    @cached_property
    def dimension(self) -> int:  # type: ignore[override]
        """Length of the vectors."""
        return int(self.encode_texts(["dimension"]).shape[1])

    @property
    def device(self) -> str:  # type: ignore[override]
        """Where it computes pictures' vectors."""
        return "cpu" if self.precision == INT8 else str(self._loaded.device)

    @property
    def workers(self) -> int:  # type: ignore[override]
        """One a core, where the model is a CLIP; others compute with all cores at once."""
        return self._tower.workers if self._tower else 1

    @property
    def batch(self) -> int:  # type: ignore[override]
        """Pictures of a forward pass."""
        return self._tower.batch if self._tower else 32

    @property
    def reference(self) -> "ClipEncoder":
        """Single precision and the model's own processor."""
        return self._like(FLOAT32, MODELS_OWN)

    @property
    def in_single_precision(self) -> "ClipEncoder":
        """The same without its precision."""
        return self._like(FLOAT32, self._preparation)

    def enter_thread(self) -> None:
        """Have this thread compute alone, on one core; or with all of them, where it is the only one."""
        if self._tower:
            self._tower.enter_thread()
        else:
            import torch

            # Threads are used again, and this one may have belonged to a tower.
            torch.set_num_threads(cores())

    def make_ready(self, pictures: Callable[[], Iterable[Image.Image]], say: Say) -> None:
        """Have a model for int8: the one that is asked for, or the one that these pictures make.

        What a model is like depends on the pictures that it is made with. So there may be several, and vectors of
        different ones are not to be mixed.
        """
        if self.precision != INT8 or self._int8_folder:
            return
        self._int8_folder = self._made_before() or self._make(pictures, say)
        self.made = digest_of(self._int8_folder) or ""

    def made_as(self, made: str) -> "ClipEncoder":
        """The same encoder, held to a model that was made for it."""
        return self if made == self.made else self._like(self.precision, self._preparation, made)

    def _made_before(self) -> Path | None:
        """Where the model is that is asked for, if one is and it is here."""
        folders = sorted(self._made_once.glob("*")) if self.made else []
        whole = (folder for folder in folders if folder.suffix != PART)
        return next((folder for folder in whole if digest_of(folder) == self.made), None)

    def _make(self, pictures: Callable[[], Iterable[Image.Image]], say: Say) -> Path:
        """Make the model of these pictures, unless that was done before, and see that it is the one asked for."""
        openvino_tower.require()
        on_cpu = self._device if self._loaded.device.type == "cpu" else "cpu"
        clip = _clip_of(self.model, on_cpu)
        if clip is None:
            raise self._has_no_tower()
        vision, preparation = clip
        calibration = preparation.batch(islice(pictures(), CALIBRATION_IMAGES), CALIBRATION_IMAGES)
        if self.made and not len(calibration):
            raise self._is_elsewhere("")
        folder = self._made_once / blake2b(calibration.numpy().tobytes(), digest_size=8).hexdigest()
        if not is_prepared(folder, preparation):
            say(f"making the {INT8} model in {folder}, once on this machine; it takes about a minute")
            OpenVinoTower.prepared(folder, vision, preparation, lambda: iter([calibration]))
        if self.made and digest_of(folder) != self.made:
            another = f", and what the catalogue's images make here is another one, {digest_of(folder)}"
            raise self._is_elsewhere(f"{another}: their vectors cannot be mixed")
        return folder

    def _is_elsewhere(self, besides: str) -> ModelError:
        return ModelError(
            f"The vectors were made by the {INT8} model {self.made}, which is not in {self._made_once}{besides}. Copy "
            "that folder from the state folder of the machine that made them, or embed into another space with "
            "--space (ABO_SPACE)."
        )

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """RGB pictures → unit vectors."""
        return self.encode_prepared(self.prepare(images, len(images))) if images else _none(self.dimension)

    def prepare(self, images: Iterable[Image.Image | Pixels], most: int) -> Any:
        """RGB pictures → pixels, or the pictures themselves where the model's own processor is to see them."""
        if self._tower is None or self._clip is None:
            return super().prepare(images, most)
        _, preparation = self._clip
        return preparation.batch(images, most, pinned=self._tower.pinned)

    def encode_prepared(self, prepared: Any) -> Vectors:
        """What ``prepare`` gave → unit vectors."""
        if self._tower is None:
            return self._encode(prepared)
        return _unit(self._tower.encode(prepared))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts → unit vectors.

        Each is said to be a text: a bare string that looks like the URL or the path of a picture would be opened.
        """
        return self._encode([{"text": text} for text in texts])

    def truncates(self, text: str) -> bool:
        """Whether the text has more tokens than the model reads."""
        limit = self._loaded.max_seq_length
        # A tokenizer that names no limit says so with a number of 31 digits.
        if limit is None or limit > sys.maxsize:
            return False
        # One token more than the model reads tells; asked for without a limit, the tokenizer warns on its own.
        tokens = self._loaded.tokenizer(text, truncation=True, max_length=limit + 1)["input_ids"]
        return len(tokens) > limit

    def variants(self) -> Sequence["ClipEncoder"]:
        """Every way to the model's vectors, itself first; where precision or preparation were asked for, itself."""
        if not self._is_auto or self._preparation == MODELS_OWN:
            return (self,)
        ways = [(precision, FAST) for precision in (FLOAT32, BFLOAT16, FLOAT16, INT8)]
        found = [self._like(*way) for way in (*ways, (FLOAT32, MODELS_OWN))]
        return sorted(found, key=lambda encoder: encoder.fingerprint != self.fingerprint)

    def candidates(self) -> Sequence[Candidate]:
        """Of ``auto`` what this machine computes quickest first; the model's own processor, where asked for, alone."""
        if not self._is_auto:
            return (Candidate(self, f"ABO_PRECISION is {self.precision}"),)
        if self._preparation == MODELS_OWN:
            return (Candidate(self.reference, "the model's own processor was asked for"),)
        if self._clip is None:
            return (Candidate(self._like(FLOAT32, FAST), "the model is no CLIP of the usual preparation"),)
        found: list[tuple[str, str]] = []
        if self._loaded.device.type != "cpu":
            found = [(FLOAT16, "a GPU computes it several times as fast as single precision")]
        else:
            if openvino_tower.is_available() and self._folder:
                found.append((INT8, "OpenVINO is installed"))
            if has_fast_bfloat16():
                found.append((BFLOAT16, "this CPU computes it twice as fast as single precision"))
        found.append((FLOAT32, "nothing quicker will do here"))
        return [Candidate(self._like(precision, FAST), why) for precision, why in found]

    def _like(self, precision: str, preparation: str, made: str = "") -> "ClipEncoder":
        """The same model, in another way."""
        other = ClipEncoder(self.model, self._device, precision, preparation, self._folder, made)
        # Reading all of a model's files takes a second; once will do.
        other._source = self._source
        return other

    @property
    def _loaded(self) -> "SentenceTransformer":
        return _load(self.model, self._device)

    @property
    def _clip(self) -> "tuple[Any, Preparation] | None":
        return _clip_of(self.model, self._device)

    @cached_property
    def _tower(self) -> "Tower | None":
        """What computes the vectors of pictures; None for sentence-transformers."""
        if self._preparation == MODELS_OWN or self._clip is None:
            if self.precision == FLOAT32:
                return None
            raise self._has_no_tower()
        if self.precision != INT8:
            return _torch_tower(self.model, self._device, self.precision)
        if self._int8_folder is None:
            raise ModelError(
                f"The {INT8} model of {self.model} has not been made for this encoder; make_ready does that. "
                "Embedding pictures calls it."
            )
        return _int8_tower(self._int8_folder)

    def _has_no_tower(self) -> ModelError:
        return ModelError(
            f"{self.model} cannot be computed in {self.precision}: sentence-transformers computes it, because it "
            f"is no CLIP of the usual preparation, or ABO_PREPARATION is {MODELS_OWN}. Unset ABO_PRECISION."
        )

    @property
    def _made_once(self) -> Path:
        if self._folder is None:
            raise ModelError(f"{self.model} in {self.precision} needs a folder for what is made once; none was given.")
        return self._folder / self.fingerprint

    def _encode(self, inputs: list[Any]) -> Vectors:
        if not inputs:
            return _none(self.dimension)
        vectors = self._loaded.encode(inputs, batch_size=len(inputs), convert_to_numpy=True, show_progress_bar=False)
        return _unit(np.asarray(vectors, dtype=np.float32))


def encoder_from(settings: Settings) -> ClipEncoder:
    """The encoder that the settings name; nothing is loaded yet."""
    return ClipEncoder(
        settings.model, settings.device, settings.precision, settings.preparation, settings.state_dir / "encoders"
    )


def _none(dimension: int) -> Vectors:
    return np.empty((0, dimension), dtype=np.float32)


def _unit(vectors: NDArray[np.float32]) -> Vectors:
    with np.errstate(invalid="ignore", divide="ignore"):
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@lru_cache(maxsize=2)
def _clip_of(model: str, device: str) -> "tuple[Any, Preparation] | None":
    """The image side of a model and how its pictures are prepared; None if it is no CLIP, or one of its own kind."""
    from transformers import CLIPModel

    modules = list(_load(model, device))
    inner, processor = getattr(modules[0], "model", None), getattr(modules[0], "processor", None)
    preparation = Preparation.of(getattr(processor, "image_processor", None))
    # What comes after the projection and only changes lengths does not change a unit vector.
    only_lengths = all(type(module).__name__ == "Normalize" for module in modules[1:])
    if not isinstance(inner, CLIPModel) or preparation is None or not only_lengths:
        return None
    return vision_of(inner), preparation


@lru_cache(maxsize=4)
def _torch_tower(model: str, device: str, precision: str) -> "Tower | None":
    """A tower is made once a process: it may be a copy of the weights."""
    clip = _clip_of(model, device)
    return clip and TorchTower(*clip, precision)


@lru_cache(maxsize=2)
def _int8_tower(folder: Path) -> "Tower":
    return OpenVinoTower.load(folder)


def where_is(model: str) -> str:
    """Where a model comes from, in words, without loading it.

    Raises:
        ModelError: from nowhere: there is no such folder, or it is not on this machine and the hub cannot be reached.
    """
    if model == SMALL_MODEL:
        return f"{model}, bundled"
    if folder := _folder(model):
        if not any((folder / name).is_file() for name in ("modules.json", "config.json")):
            raise ModelError(f"The folder {folder} holds no model: no modules.json and no config.json. {_REMEDY}")
        return str(folder)
    if revision := _cached_revision(model):
        return f"{model}, revision {revision[:8]}, on this machine"
    return f"{model}, revision {_hub_revision(model)[:8]}, to be downloaded from the model hub"


@lru_cache(maxsize=2)
def _load(model: str, device: str) -> "SentenceTransformer":
    """Load a model once a process."""
    # torch reads the tokenizers' setting when they fork; the warning it would give else is noise to our users.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = _folder(model)
    _check_device(device)
    try:
        loaded = _from_folder(str(folder), device) if folder else _from_hub(model, device)
    except ModelError:
        raise
    except Exception as error:
        # Loading runs the code of three libraries over files of unknown origin; they raise whatever they meet.
        what = f"{folder} is not a model that SentenceTransformer can load"
        again = ""
        if folder is None:
            what, again = f"The model {model} cannot be downloaded and loaded", "Run again if the connection broke. "
        raise ModelError(f"{what}: {_first_line(error)} {again}{_REMEDY}") from error
    modalities = [str(modality) for modality in loaded.modalities]
    if not {"text", "image"} <= set(modalities):
        raise ModelError(f"The model {model} embeds {' and '.join(modalities)}, not both image and text. {_REMEDY}")
    if not _knows_words(loaded):
        raise ModelError(f"The model {folder or model} lacks its tokenizer's files. {_REMEDY}")
    _without_torchvision(loaded)
    logger.info("Loaded the model %s on %s.", folder or model, loaded.device)
    return loaded


def _without_torchvision(model: "SentenceTransformer") -> None:
    """Have Pillow resize pictures for a CLIP also where torchvision is installed, whose pixels are others."""
    processor: Any = getattr(model[0], "processor", None)
    images: Any = getattr(processor, "image_processor", None)
    if type(images).__name__ == "CLIPImageProcessor":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        processor.image_processor = CLIPImageProcessorPil.from_dict(images.to_dict())


def _check_device(device: str) -> None:
    """Tell a device that is not there from a model that cannot be loaded."""
    import torch

    try:
        torch.empty(0, device=device or None)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The device {device} cannot be used: {_first_line(error)} Unset ABO_DEVICE to use the best there is."
        ) from error


def _from_folder(folder: str, device: str) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, device=device or None, local_files_only=True)


def _from_hub(model: str, device: str) -> "SentenceTransformer":
    """Load a model by its hub name: what is on this machine without a question to the network, else download it."""
    from sentence_transformers import SentenceTransformer

    if _cached_revision(model):
        # An earlier download may have been cut off: then go on and complete it.
        with suppress(OSError, ValueError):
            loaded = SentenceTransformer(model, device=device or None, local_files_only=True)
            if _knows_words(loaded):
                return loaded
    _hub_revision(model)
    return SentenceTransformer(model, device=device or None)


def _knows_words(model: "SentenceTransformer") -> bool:
    """Whether the tokenizer tells words apart. Where its files are missing, transformers makes one up that does not."""
    tokenizer = model.tokenizer
    return not hasattr(tokenizer, "tokenize") or tokenizer.tokenize("chair") != tokenizer.tokenize("table")


_REMEDY = (
    "Give a folder that holds a CLIP model with --model PATH (or ABO_MODEL), "
    f"or use the small one that is bundled: --model {SMALL_MODEL}."
)


def _folder(model: str) -> Path | None:
    """The folder that a model's name means; None for a name on the hub."""
    if model == SMALL_MODEL:
        # Imported here because with it comes the code that draws the sample.
        from abo_pipeline.sample import SMALL_CLIP

        return SMALL_CLIP
    with suppress(OSError, RuntimeError):
        # Neither has a folder: a name too long for one, and the home of a user that is not there.
        path = Path(model).expanduser()
        if model and path.is_dir():
            return path
    # A hub name is NAME or OWNER/NAME: anything else can only have been meant as a path.
    if Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"There is no model folder {model}. {_REMEDY}")
    return None


@dataclass(frozen=True)
class _Source:
    """Where a model comes from."""

    model: str

    @cached_property
    def identity(self) -> str:
        """As ``_identity`` has it, found out once."""
        return _identity(self.model)


def _identity(model: str) -> str:
    """What tells this model's weights and configuration from any other's."""
    folder = _folder(model)
    if folder is None:
        return f"{_repository(model)}@{_cached_revision(model) or _hub_revision(model)}"
    digest = blake2b()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and _is_of_the_model(path, folder)):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _is_of_the_model(path: Path, folder: Path) -> bool:
    """Not its description, nor what git, a download or a file manager keeps beside it."""
    return path.name not in _NOT_WEIGHTS and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _repository(model: str) -> str:
    """The hub's full name: sentence-transformers' own models may be named without their owner."""
    return model if "/" in model else f"sentence-transformers/{model}"


def _cached_revision(model: str) -> str | None:
    """The commit of the hub's model that is on this machine, so that a cached model asks the network nothing."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("modules.json", "config.json"):
        try:
            found = try_to_load_from_cache(_repository(model), name)
        except HFValidationError:
            raise ModelError(f"{model!r} is no model folder, and no name that the model hub has. {_REMEDY}") from None
        if isinstance(found, str):
            return Path(found).parts[Path(found).parts.index("snapshots") + 1]
    return None


def _hub_revision(model: str) -> str:
    """The newest commit on the hub: one short question, before a library asks with a minute of retries."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        revision = HfApi().model_info(_repository(model), timeout=_HUB_TIMEOUT).sha
    except RepositoryNotFoundError:
        raise ModelError(f"The model hub knows no model {_repository(model)}. {_REMEDY}") from None
    except Exception as error:
        # Which library's connection error this is depends on the version of huggingface_hub.
        raise ModelError(
            f"The model {model} is not on this machine, and the model hub cannot be reached. {_REMEDY}"
        ) from error
    if revision is None:
        raise ModelError(f"The model hub gives no revision of {_repository(model)}. {_REMEDY}")
    return revision


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), type(error).__name__).strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."
