"""The model: pictures and texts → unit vectors in one space.

``Encoder`` is all that the rest of the package asks of a model. ``ClipEncoder`` keeps the promise with whatever
``SentenceTransformer(...)`` loads that embeds both pictures and texts; the model is loaded when the first vector is
wanted, once a process, because importing sentence-transformers alone takes seconds. Batching over a partition, and what
becomes of a picture that cannot be embedded, is for ``embedding``.
"""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from abo_pipeline.decoding import DECODING
from abo_pipeline.errors import ModelError
from abo_pipeline.settings import Settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]

SMALL_MODEL = "small-clip"
"""The name under which the bundled model is asked for."""

_PRECISION = "float32"
_HUB_TIMEOUT = 10.0
_NOT_WEIGHTS = frozenset({"README.md", "LICENSE"})


class Encoder(Protocol):
    """What the pipeline and the search ask of a model."""

    @property
    def model(self) -> str:
        """The model's name, for people."""

    @property
    def fingerprint(self) -> str:
        """Two encoders with the same fingerprint give the same vectors; 16 hex digits."""

    @property
    def dimension(self) -> int:
        """Length of the vectors."""

    @property
    def device(self) -> str:
        """Where it computes, such as ``cpu`` or ``cuda:0``."""

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """RGB pictures → (n, dimension) float32, each row of length 1; NaN in a row that has no direction."""

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts → (n, dimension) float32, each row of length 1. What is over the model's length is cut off."""

    def truncates(self, text: str) -> bool:
        """Whether the text is longer than the model reads (77 tokens for CLIP), so that its end is ignored."""


class ClipEncoder:
    """An ``Encoder`` from sentence-transformers.

    Args:
        model: a hub name such as ``clip-ViT-B-32``, a folder, or ``small-clip`` for the bundled model.
        device: a torch device; empty for the best there is.

    Raises:
        ModelError: from every member that needs the model: it cannot be found or loaded, or does not embed both
            pictures and texts.
    """

    def __init__(self, model: str, device: str = "") -> None:
        self.model = model
        self._device = device

    @cached_property
    def fingerprint(self) -> str:
        """Hash over the model's files or its revision on the hub, how pictures are decoded, and the precision."""
        return blake2b("\n".join([_identity(self.model), DECODING, _PRECISION]).encode(), digest_size=8).hexdigest()

    @cached_property
    def dimension(self) -> int:
        """Length of the vectors."""
        return int(self.encode_texts(["dimension"]).shape[1])

    @property
    def device(self) -> str:
        """Where it computes."""
        return str(self._loaded.device)

    def encode_images(self, images: Sequence[Image.Image]) -> Vectors:
        """RGB pictures → unit vectors, through the model's own processor."""
        return self._encode(list(images))

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

    @property
    def _loaded(self) -> "SentenceTransformer":
        return _load(self.model, self._device)

    def _encode(self, inputs: list[Any]) -> Vectors:
        if not inputs:
            return np.empty((0, self.dimension), dtype=np.float32)
        vectors = self._loaded.encode(inputs, batch_size=len(inputs), convert_to_numpy=True, show_progress_bar=False)
        vectors = np.asarray(vectors, dtype=np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def encoder_from(settings: Settings) -> ClipEncoder:
    """The encoder that the settings name; nothing is loaded yet."""
    return ClipEncoder(settings.model, settings.device)


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
    logger.info("Loaded the model %s on %s.", folder or model, loaded.device)
    return loaded


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
