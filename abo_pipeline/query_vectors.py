"""Queries → unit vectors: what is asked, as a direction in an embedding space.

With a vector come the stored images that it was made from, which a search leaves out of its answer, and what to know
about it. How queries are written is for ``queries``; what is near to a vector, for ``search``.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from abo_pipeline.archive import digest_of
from abo_pipeline.decoding import decode
from abo_pipeline.encoder import Encoder, Vectors
from abo_pipeline.errors import ImageError, QueryError
from abo_pipeline.queries import (
    ImageQuery,
    LikeQuery,
    MixQuery,
    Part,
    Query,
    Term,
    TextQuery,
    UrlQuery,
    kind_of,
    misread,
    shortened,
    shown,
)
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace
from abo_pipeline.store.nearest import stored_vector, stored_with_digest

MOST_CHARACTERS = 50_000
"""Of a text that is handed to the tokenizer, which reads the whole before it cuts it to what the model reads: 77 tokens
for CLIP, 8,192 for the longest models, and a token is four letters or so."""

TOO_LONG = "The text is longer than the model reads; its end was ignored."

_MOST_URL_CHARACTERS = 8_000
# A text that is embedded once more is 2e-7 from what it was, on a CPU; other devices round more coarsely.
_NOTHING_LEFT = 1e-5
_TEXTS_AT_ONCE = 64


class QueryVector(NamedTuple):
    """A query as a vector.

    Attributes:
        vector: (dimension,), of length 1.
        made_from: image_ids of the stored images that it was made from, those that count negatively included.
        warnings: what to know about it, such as a text that was cut.
        wanted: the direction of what hits are to be like, for each kind of part: a mix may be of both, and what hits
            are to be unlike is left out.
    """

    vector: Vectors
    made_from: list[str]
    warnings: tuple[str, ...] = ()
    wanted: tuple[tuple[str, Vectors], ...] = ()


@dataclass(frozen=True)
class QueryVectors:
    """Makes vectors of queries.

    Args:
        space: where the vectors of stored images are.
        encoder: the model that they were made with.
        settings: the prompts for texts, and the limits of files and URLs.
    """

    space: EmbeddingSpace
    encoder: Encoder
    settings: Settings

    def of(self, query: Query) -> QueryVector:
        """The vector of a query. That of a mix is the sum of its parts', each times its weight, at length 1 again.

        Raises:
            QueryError: a text is empty, a picture cannot be had or used, an id is unknown, the model has no direction
                for a part, or the parts of a mix cancel each other.
        """
        return self._of_mix(query.parts) if isinstance(query, MixQuery) else self._of_term(query, MOST_CHARACTERS)

    def _of_term(self, query: Term, most_characters: int) -> QueryVector:
        match query:
            case TextQuery(text):
                found = self._of_text(text, most_characters)
            case ImageQuery(path):
                found = self._of_picture(_read(path, self.settings), query)
            case UrlQuery(url):
                found = self._of_picture(_fetched(url, self.settings), query)
            case LikeQuery(image_id):
                found = self._of_stored(image_id)
        if not np.isfinite(found.vector).all():
            raise QueryError(f"The model has no direction for {shown(query)}, so that nothing is like it.")
        return found._replace(wanted=((kind_of(query), found.vector),))

    def _of_mix(self, parts: Sequence[Part]) -> QueryVector:
        # Its texts share what one may have, so that a mix takes no longer.
        found = [self._of_term(part.query, MOST_CHARACTERS // len(parts)) for part in parts]
        weights = np.array([part.weight for part in parts], dtype=np.float64)
        if not weights.any():
            raise QueryError("All weights of the mix are 0. Give at least one part another weight.")
        vectors = np.stack([each.vector for each in found])
        total = _direction(weights, vectors)
        if total is None:
            raise QueryError("The parts of the mix cancel each other. Leave one of them out, or change its weight.")
        kinds = [kind_of(part.query) for part in parts]
        wanted = {
            kind: _direction(np.where([kind == other for other in kinds], weights.clip(min=0), 0), vectors)
            for kind in _distinct(kinds)
        }
        return QueryVector(
            total,
            _distinct(image_id for each in found for image_id in each.made_from),
            tuple(_distinct(warning for each in found for warning in each.warnings)),
            tuple((kind, direction) for kind, direction in wanted.items() if direction is not None),
        )

    def _of_text(self, text: str, most_characters: int) -> QueryVector:
        _check_characters(text)
        if not text.strip():
            raise QueryError("The query is empty. Say what to look for, such as: red leather office chair.")
        prompts = self.settings.prompts
        read, cut = _beginning(text, most_characters)
        cut = cut or any(self.encoder.truncates(_asked(prompt, read)) for prompt in prompts)
        warnings = (TOO_LONG if cut else None, misread(text))
        (vector,) = text_vectors(self.encoder, [read], prompts)
        return QueryVector(vector, [], tuple(filter(None, warnings)))

    def _of_picture(self, data: bytes, query: ImageQuery | UrlQuery) -> QueryVector:
        """Of a file; the stored images whose files have the same bytes are the same picture, and have its vector."""
        digest = digest_of([data])
        same = stored_with_digest(self.space, digest)
        for image_id in same:
            # Perhaps in fewer digits than it would be embedded in here; less itself, nothing is to be left of it.
            if (stored := stored_vector(self.space, image_id, digest)) is not None:
                return QueryVector(stored, same)
        try:
            picture = decode(data, max_pixels=self.settings.max_pixels)
        except ImageError as error:
            raise QueryError(f"The picture {_name(query)} cannot be used: {error}.") from None
        (vector,) = self.encoder.in_single_precision.encode_images([picture])
        return QueryVector(vector, same)

    def _of_stored(self, image_id: str) -> QueryVector:
        _check_characters(image_id)
        vector = stored_vector(self.space, image_id)
        if vector is None:
            raise QueryError(
                f"No image {shortened(image_id)!r} is embedded in space {self.space.name}. "
                "Ids are in the results of a search, and in the first column of images.csv.gz."
            )
        return QueryVector(vector, [image_id])


def text_vectors(encoder: Encoder, texts: Sequence[str], prompts: Sequence[str] = ("{}",)) -> Vectors:
    """Texts → (n, dimension) float32, each row of length 1: the mean of the vectors of the text's prompts.

    Args:
        encoder: the model.
        texts: what is over the model's length is cut off.
        prompts: each holds ``{}``, where the text goes.
    """
    asked = [_asked(prompt, _beginning(text)[0]) for text in texts for prompt in prompts]
    batches = [encoder.encode_texts(asked[at : at + _TEXTS_AT_ONCE]) for at in range(0, len(asked), _TEXTS_AT_ONCE)]
    if not batches:
        return np.empty((0, encoder.dimension), dtype=np.float32)
    vectors = np.concatenate(batches)
    if len(prompts) == 1:
        return vectors
    means = vectors.reshape(len(texts), len(prompts), -1).mean(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit: Vectors = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _asked(prompt: str, text: str) -> str:
    return prompt.replace("{}", text)


def _beginning(text: str, most_characters: int = MOST_CHARACTERS) -> tuple[str, bool]:
    """As much of a text as a tokenizer is done with in less than a second, and whether something is missing.

    Only of a text that is too long are runs of blanks made one: models differ in what they make of them.
    """
    if len(text) <= most_characters:
        return text, False
    text = " ".join(text.split())
    return text[:most_characters], len(text) > most_characters


def _check_characters(text: str) -> None:
    """Refuse what neither the model nor Postgres can take: a shell may hand over bytes that are no text."""
    if "\x00" in text or text.encode(errors="ignore").decode() != text:
        raise QueryError("The query holds bytes that are no text in UTF-8.")


def _read(path: Path, settings: Settings) -> bytes:
    name = _name(ImageQuery(path))
    try:
        path = _expanded(path)
        size = path.stat().st_size
        if not path.is_file():
            raise QueryError(f"The picture {name} is no file.")
        if size > settings.max_file_bytes:
            limit = f"{settings.max_file_bytes:,} (ABO_MAX_FILE_BYTES)"
            raise QueryError(f"The picture {name} has {size:,} bytes, and the limit is {limit}.")
        return path.read_bytes()
    except OSError as error:
        raise QueryError(f"The picture {name} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise QueryError(f"The picture {name} cannot be read: no file has such a name.") from None


def _name(query: ImageQuery | UrlQuery) -> str:
    return shortened(query.shown_path if isinstance(query, ImageQuery) else query.shown_url)


def _expanded(path: Path) -> Path:
    """With the home folder for a ``~``, which no shell sees in the middle of a mix."""
    with suppress(RuntimeError):
        return path.expanduser()
    return path


def _fetched(url: str, settings: Settings) -> bytes:
    _check_characters(url)
    if len(url) > _MOST_URL_CHARACTERS:
        raise QueryError(f"The URL has {len(url):,} characters; no server takes more than {_MOST_URL_CHARACTERS:,}.")
    # Brings the network's libraries, which few searches need and no code location should wait for.
    from abo_pipeline.web_pictures import fetch_picture

    return fetch_picture(url, settings)


def _direction(weights: NDArray[np.float64], vectors: Vectors) -> Vectors | None:
    """The sum of vectors, each times its weight, at length 1; None if nothing is left of it."""
    largest = np.abs(weights).max()
    if not largest:
        return None
    # Only their proportions count; so no sum of them is too large for a number.
    total: NDArray[np.float64] = (weights / largest) @ vectors.astype(np.float64)
    length = np.linalg.norm(total)
    return None if length < _NOTHING_LEFT else (total / length).astype(np.float32)


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
