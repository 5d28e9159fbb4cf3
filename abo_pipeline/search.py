"""Search: a text, a picture or a stored image → the most similar stored images.

A query becomes a unit vector here, and rows of the store become hits that a person can read. Which rows are nearest is
for ``store.nearest``; grids over several sizes are for ``report``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from abo_pipeline.decoding import decode
from abo_pipeline.encoder import ClipEncoder, Encoder, Vectors, encoder_from
from abo_pipeline.errors import ImageError, ModelError, QueryError
from abo_pipeline.grids import row_figure
from abo_pipeline.hits import Hit, Hits, ImageQuery, LikeQuery, Query, TextQuery
from abo_pipeline.pictures import Pictures
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace, Store, open_store
from abo_pipeline.store.nearest import Neighbour, first_image, nearest, scope, stored_vector

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ImageSearch:
    """Finds stored images by meaning.

        search = ImageSearch(store, encoder)
        for hit in search("red shoe", k=5):
            print(hit.rank, hit.similarity, hit.caption)
        search.display(search("red shoe", k=5)).savefig("red-shoe.png")

    It stays with its space, whatever others are made the default meanwhile. ``open_search`` finds space and model by
    itself.

    Args:
        store: where the vectors are.
        encoder: the model they were made with.
        settings: name the embedding space, and the archive for ``display``; by default those of the last run.
        space: another embedding space than the settings name.

    Raises:
        QueryError: nothing has been embedded into the space yet.
        StoreError: the space was made with another model.
        ModelError: the encoder's model cannot be had.
    """

    def __init__(
        self, store: Store, encoder: Encoder, settings: Settings | None = None, *, space: str | None = None
    ) -> None:
        self.settings = settings or Settings.last()
        self.space: EmbeddingSpace = _existing_space(store, space or self.settings.space_name)
        self.space.require_encoder(encoder)
        self._encoder = encoder

    def __call__(
        self,
        query: str | Path | Query,
        k: int = 10,
        *,
        size: int | None = None,
        min_similarity: float | None = None,
    ) -> Hits:
        """The k stored images most similar to a query, or all there are.

        Args:
            query: a text, a path of a picture, or a ``Query``. A stored image is never among its own hits.
            k: how many hits, at least 1.
            size: search among so many images of the catalogue only; by default the largest size that is indexed.
            min_similarity: leave out hits below this cosine.

        Raises:
            QueryError: k or size is below 1, the text is empty, the picture cannot be read, or the id is unknown.
        """
        query = _as_query(query)
        if k < 1:
            raise QueryError(f"k is {k}; ask for at least 1 hit.")
        if size is not None and size < 1:
            raise QueryError(f"The size is {size}; search among at least 1 image.")
        if min_similarity is not None and not -1 <= min_similarity <= 1:
            raise QueryError(f"The least similarity is {min_similarity}; a cosine lies between -1 and 1.")
        vector, own_ids, warnings = self._vector(query)
        within = scope(self.space, None if size is None else min(size, LAST_KEY))
        found = nearest(self.space, vector, min(k, LAST_KEY), within, exclude=own_ids)
        hits = tuple(_hit(rank, neighbour) for rank, neighbour in enumerate(found, start=1))
        if min_similarity is not None:
            hits = tuple(hit for hit in hits if hit.similarity >= min_similarity)
        return Hits(query, hits, within.size, warnings, space=self.space.name)

    def display(self, hits: Hits) -> Figure:
        """The hits as one row of pictures, each with its similarity and caption."""
        return row_figure(hits, self.pictures)

    @cached_property
    def pictures(self) -> Pictures:
        """The photographs that hits can be shown with."""
        return Pictures.of(self.settings)

    def _vector(self, query: Query) -> tuple[Vectors, list[str], tuple[str, ...]]:
        """The query's unit vector, the stored images that it was made from, and warnings."""
        match query:
            case TextQuery(text):
                _check_characters(text)
                if not text.strip():
                    raise QueryError("The query is empty. Say what to look for, such as: red leather office chair.")
                cut = self._encoder.truncates(text)
                warnings = ("The text is longer than the model reads; its end was ignored.",) if cut else ()
                return self._encoder.encode_texts([text])[0], [], warnings
            case ImageQuery(path):
                return self._encoder.encode_images([_open_picture(path, self.settings)])[0], [], ()
            case LikeQuery(image_id):
                _check_characters(image_id)
                vector = stored_vector(self.space, image_id)
                if vector is None:
                    raise QueryError(
                        f"No image {image_id!r} is embedded in space {self.space.name}. "
                        "Ids are in the results of a search, and in the first column of images.csv.gz."
                    )
                return vector, [image_id], ()


def open_search(settings: Settings | None = None, *, space: str | None = None) -> ImageSearch:
    """A search of the space that is asked for, with the model that it was made with; the model is loaded when needed.

        search = open_search()
        search("red shoe", k=5)

    Args:
        settings: name the database and the archive; by default those of the last run.
        space: an embedding space; by default the one that ``searched_space`` says.

    Raises:
        QueryError: nothing has been embedded into the space yet, or there is no such space.
        ModelError: the model that it was made with cannot be had.
        StoreError: that model has changed since, or the database does not answer.
    """
    settings = settings or Settings.last()
    store = open_store(settings)
    try:
        return search_in(store, settings, space=space)
    except BaseException:
        store.engine.dispose()
        raise


def search_in(
    store: Store, settings: Settings, *, space: str | None = None, encoder: Encoder | None = None
) -> ImageSearch:
    """As ``open_search``, in a store that is open.

    Args:
        store: where the vectors are.
        settings: name the archive and the device.
        space: an embedding space; by default the one that ``searched_space`` says.
        encoder: one that is there already, and is used if the space was made with its model.
    """
    name = space or searched_space(store, settings)
    found = _existing_space(store, name)
    return ImageSearch(store, encoder_of(found, settings, encoder), settings, space=name)


def searched_space(store: Store, settings: Settings) -> str:
    """The space that a search uses if it is not told: what ABO_SPACE says, else the default of the catalogue.

    Not the settings' own, which is the one that the last run embedded into; only before anything is embedded.
    """
    return Settings.read().space or store.default_space() or settings.space_name


def encoder_of(space: EmbeddingSpace, settings: Settings, encoder: Encoder | None = None) -> Encoder:
    """The model that a space was made with.

    If it is not where it was then, or not as it was, the one that the settings name will do if it gives the same
    vectors: a folder may have been moved, and ABO_MODEL says where to. Whether what is returned fits the space is for
    ``EmbeddingSpace.require_encoder``.

    Args:
        space: made with which model.
        settings: name the device, and another model.
        encoder: one that is there already, instead of the settings' model.

    Raises:
        ModelError: the model cannot be had.
    """
    other = encoder or encoder_from(settings)
    own = other if other.model == space.model else ClipEncoder(space.model, settings.device)
    try:
        fits = own.fingerprint == space.fingerprint
    except ModelError as error:
        if _has_fingerprint(other, space.fingerprint):
            return other
        raise ModelError(
            f"Space {space.name} is searched with the model that it was made with, {space.model}, and that cannot be "
            f"had: {error} Put it back, or set ABO_MODEL to where it is now; `abo spaces` lists other spaces."
        ) from error
    return other if not fits and _has_fingerprint(other, space.fingerprint) else own


def _has_fingerprint(encoder: Encoder, fingerprint: str) -> bool:
    with suppress(ModelError):
        return encoder.fingerprint == fingerprint
    return False


def _existing_space(store: Store, name: str) -> EmbeddingSpace:
    """A space to search. It is not made: only who embeds does that."""
    space = store.find_space(name)
    if space is None:
        others = ", ".join(store.space_names())
        remedy = f"This catalogue has {others}." if others else "Run `abo run` (or `abo demo`) first."
        raise QueryError(f"Nothing has been embedded into space {name} yet. {remedy}")
    return space


def stands_for(space: EmbeddingSpace, query: TextQuery | LikeQuery) -> TextQuery | LikeQuery:
    """A query of the settings with ``like:`` filled in: the first image, a member of every size."""
    return LikeQuery(first_image(space) or "") if query == LikeQuery("") else query


def _as_query(query: str | Path | Query) -> Query:
    if isinstance(query, str):
        return TextQuery(query)
    return ImageQuery(query) if isinstance(query, Path) else query


def _check_characters(text: str) -> None:
    """Refuse what neither the model nor Postgres can take: a shell may hand over bytes that are no text."""
    if "\x00" in text or text.encode(errors="ignore").decode() != text:
        raise QueryError("The query holds bytes that are no text in UTF-8.")


def _open_picture(path: Path, settings: Settings) -> Image.Image:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise QueryError(f"The picture {path} is no file.")
        if size > settings.max_file_bytes:
            limit = f"{settings.max_file_bytes:,} (ABO_MAX_FILE_BYTES)"
            raise QueryError(f"The picture {path} has {size:,} bytes, and the limit is {limit}.")
        return decode(path.read_bytes(), max_pixels=settings.max_pixels)
    except OSError as error:
        raise QueryError(f"The picture {path} cannot be read: {error.strerror}.") from None
    except ImageError as error:
        raise QueryError(f"The picture {path} cannot be used: {error}.") from None


def _hit(rank: int, neighbour: Neighbour) -> Hit:
    # A cosine computed from rounded numbers may come out a hair beyond its bounds.
    similarity = float(np.clip(neighbour.similarity, -1.0, 1.0))
    return Hit(rank, **(asdict(neighbour) | {"similarity": similarity}))
