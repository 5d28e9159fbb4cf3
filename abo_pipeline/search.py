"""Search: a text, a picture, a stored image or a mix of them → the most similar stored images.

Rows of the store become hits here that a person can read. How a query becomes a vector is for ``query_vectors``, which
rows are nearest for ``store.nearest``; grids over several sizes are for ``report``.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from abo_pipeline.encoder import ClipEncoder, Encoder, Vectors, encoder_from
from abo_pipeline.errors import DamagedIndexError, ModelError, QueryError
from abo_pipeline.evaluation import TEXT, percentile
from abo_pipeline.filters import NO_FILTER, Filters
from abo_pipeline.folding import MOST_CANDIDATES, Candidate, End, Folding, FoldRules
from abo_pipeline.grids import row_figure
from abo_pipeline.hits import Hit, Hits, Match
from abo_pipeline.pictures import Pictures
from abo_pipeline.queries import ImageQuery, LikeQuery, MixQuery, Part, Query, TextQuery
from abo_pipeline.query_vectors import QueryVector, QueryVectors
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace, Store, open_store
from abo_pipeline.store.analytics import Count, Facets, facets, keywords
from abo_pipeline.store.canary import ask_canary
from abo_pipeline.store.explain import Explanation, exact_ranks, explain
from abo_pipeline.store.filtering import count_matching
from abo_pipeline.store.measures import background
from abo_pipeline.store.nearest import (
    Ask,
    Neighbour,
    Scope,
    first_image,
    nearest_to,
    neighbour_chunks,
    scope,
    stored_vector,
)

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
        self._untrusted: dict[tuple[str | None, str | None], str] = {}

    def __call__(
        self,
        query: str | Path | Query,
        k: int = 10,
        *,
        size: int | None = None,
        min_similarity: float | None = None,
        filters: Filters = NO_FILTER,
        page: int = 1,
        fold: FoldRules | None = None,
    ) -> Hits:
        """The k stored images most similar to a query, or all there are.

        Args:
            query: a text as it stands, a path of a picture, or a ``Query``; ``parse_query`` makes one of an expression
                such as ``'"red shoe" - "heel"'``. Stored images that it is made from are never among its hits.
            k: how many hits, at least 1.
            size: search among so many images of the catalogue only; by default the largest size that is indexed.
            min_similarity: leave out hits below this cosine.
            filters: only images that satisfy them.
            page: the k hits after so many pages of k, from 1. Pages do not overlap, and follow one another in order.
            fold: make one hit of pictures of one thing, still k of them; ``folded`` of a hit says which others.

        Raises:
            QueryError: k, size or page is below 1, the text is empty, the picture cannot be read, or the id is unknown.
        """
        query = _as_query(query)
        _check_numbers(k, size, page, min_similarity)
        asked = self._vector(query)
        within, warnings = self._scope(size)
        options = {"exclude": asked.made_from, "filters": filters}
        try:
            best, found, more, _ = _page(self.space, asked.vector, k, within, page, fold, options)
        except DamagedIndexError as error:
            warnings += (_broken(within, error.said),)
            best, found, more, _ = _page(self.space, asked.vector, k, _exactly(within), page, fold, options)
        hits = tuple(hit for hit in found if min_similarity is None or hit.similarity >= min_similarity)
        if len(hits) < len(found):
            more += (f"{'The other' if hits else 'All'} hits are below the least similarity, {min_similarity:g}.",)
        elif len(found) < k and not more:
            # The last page of hits that were not folded tells how many there are.
            is_told = fold is None and (found or page == 1)
            there = (
                (page - 1) * k + len(found)
                if is_told
                else count_matching(self.space, within.cutoff, filters, asked.made_from)
            )
            more += (_why_few(len(found), k, page, there, filters, folded=fold is not None),)
        return Hits(
            query,
            hits,
            within.size,
            asked.warnings + warnings + more,
            self.space.name,
            page=page,
            filters=filters,
            match=self._match(asked, within, best),
        )

    def explain(
        self,
        query: str | Path | Query,
        k: int = 10,
        *,
        size: int | None = None,
        filters: Filters = NO_FILTER,
        page: int = 1,
        fold: FoldRules | None = None,
        hits: Hits | None = None,
    ) -> ExplainedHits:
        """How a search is answered: by which way and why, how long each part takes, and each hit's exact rank.

        Takes what a search takes, and costs three of them and an exact one.

        Args:
            query: as a search takes it.
            k: likewise.
            size: likewise.
            filters: likewise.
            page: likewise.
            fold: likewise.
            hits: whose ranks to tell; by default those that are found now.
        """
        query = _as_query(query)
        _check_numbers(k, size, page, None)
        # Loading the model, and its first text, are no part of a query.
        _ = self._encoder.dimension
        started = time.perf_counter()
        asked = self._vector(query)
        encoded = time.perf_counter()
        within, warnings = self._scope(size)
        options = {"exclude": asked.made_from, "filters": filters}

        def watch(within: Scope) -> tuple[_Page, Explanation, float]:
            answer = _page(self.space, asked.vector, k, within, page, fold, options)
            return answer, *_watched(self.space, answer.asked[-1])

        try:
            answer, explanation, wall_ms = watch(within)
        except DamagedIndexError as error:
            warnings = (_broken(within, error.said),)
            answer, explanation, wall_ms = watch(_exactly(within))
        return ExplainedHits(
            replace(explanation, reason=warnings[0]) if warnings else explanation,
            searches=len(answer.asked),
            encode_ms=1000 * (encoded - started),
            sql_ms=min(explanation.server_ms, wall_ms),
            fetch_ms=max(0.0, wall_ms - explanation.server_ms),
            exact_ranks=exact_ranks(
                self.space, answer.asked[0], [hit.image_id for hit in (answer.hits if hits is None else hits)]
            ),
        )

    def facets(self, hits: Hits) -> Facets:
        """How many of the hits are of each product type, colour and brand."""
        return facets(self.space.engine, [hit.image_id for hit in hits])

    def keywords(self, hits: Hits) -> list[Count]:
        """The keywords of the best hit's product, by how many products among the hits have them."""
        return keywords(self.space.engine, [hit.image_id for hit in hits])

    def display(self, hits: Hits) -> Figure:
        """The hits as one row of pictures, each with its similarity and caption."""
        return row_figure(hits, self.pictures)

    @cached_property
    def pictures(self) -> Pictures:
        """The photographs that hits can be shown with."""
        return Pictures.of(self.settings)

    def _vector(self, query: Query) -> QueryVector:
        """The query's unit vector, the stored images that it was made from, and warnings."""
        return QueryVectors(self.space, self._encoder, self.settings).of(query)

    def _scope(self, size: int | None) -> tuple[Scope, tuple[str, ...]]:
        """What a size means; without its index if that was made by another version of its extension, and fails."""
        within = scope(self.space, None if size is None else min(size, LAST_KEY))
        how = self._distrust(within) if within.is_upgraded else None
        return (within, ()) if how is None else (_exactly(within), (_broken(within, how),))

    def _distrust(self, within: Scope) -> str | None:
        """How an index answers wrongly since its extension got another version; None if it answers rightly.

        One that does is remembered by the store, and one that does not by this object, until it is built anew.
        """
        index = within.index_name, within.extension
        if within.size is not None and index not in self._untrusted:
            answer = ask_canary(self.space, within.size)
            if answer is None or answer.found:
                return None
            said = answer.error or "it misses images"
            self._untrusted[index] = f"made by {answer.made_by}, now {answer.installed}: {said}"
        return self._untrusted.get(index)

    def _match(self, asked: QueryVector, within: Scope, best: Neighbour | None) -> Match | None:
        """How good the best hit is for what is wanted; None if that cannot be judged."""
        if best is None or within.size is None:
            return None
        kind, similarity = self._judged(asked, best)
        share = None if similarity is None else percentile(background(self.space, within.size, kind), similarity)
        return None if share is None else Match(kind, share)

    def _judged(self, asked: QueryVector, best: Neighbour) -> tuple[str, float | None]:
        """How similar the best hit is to what is wanted, and of which kind that is.

        To a query of one part, as it was found. Of a mix, to what its texts say. Not to its pictures: what is like one
        of them and also something else is seldom as near to it as its neighbours are, and so as those of any picture.
        """
        match asked.wanted:
            case ((kind, direction),) if direction is asked.vector:
                return kind, best.similarity
        texts = [direction for kind, direction in asked.wanted if kind == TEXT]
        vector = stored_vector(self.space, best.image_id) if texts else None
        return TEXT, None if vector is None else float(vector @ texts[0])


@dataclass(frozen=True)
class ExplainedHits:
    """How a search is answered.

    Attributes:
        explanation: what Postgres says of the last search.
        searches: how many it took, each going on behind the one before: for a page far down, and to fold.
        encode_ms: from the query to its vector, with the model loaded.
        sql_ms: of the last search, in Postgres.
        fetch_ms: of the last search, the rest of the way to Python.
        exact_ranks: of each hit, by image_id.
    """

    explanation: Explanation
    searches: int
    encode_ms: float
    sql_ms: float
    fetch_ms: float
    exact_ranks: dict[str, int]


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
    # Of whatever precision the space is: what the settings say of that is for embedding.
    own = other if other.model == space.model and _fits(other, space) else ClipEncoder(space.model, settings.device)
    try:
        fits = own.matching(space.fingerprint) is not None
    except ModelError as error:
        if _fits(other, space):
            return other
        raise ModelError(
            f"Space {space.name} is searched with the model that it was made with, {space.model}, and that cannot be "
            f"had: {error} Put it back, or set ABO_MODEL to where it is now; `abo spaces` lists other spaces."
        ) from error
    return other if not fits and _fits(other, space) else own


def _fits(encoder: Encoder, space: EmbeddingSpace) -> bool:
    with suppress(ModelError):
        return encoder.matching(space.fingerprint) is not None
    return False


def _existing_space(store: Store, name: str) -> EmbeddingSpace:
    """A space to search. It is not made: only who embeds does that."""
    space = store.find_space(name)
    if space is None:
        others = ", ".join(store.space_names())
        remedy = f"This catalogue has {others}." if others else "Run `abo run` (or `abo demo`) first."
        raise QueryError(f"Nothing has been embedded into space {name} yet. {remedy}")
    return space


def stands_for(space: EmbeddingSpace, query: Query) -> Query:
    """A query of the settings with ``like:`` filled in: the first image, a member of every size."""
    match query:
        case LikeQuery(""):
            return LikeQuery(first_image(space) or "")
        case MixQuery(parts) if LikeQuery("") in (part.query for part in parts):
            first = LikeQuery(first_image(space) or "")
            return MixQuery(tuple(Part(p.weight, first if p.query == LikeQuery("") else p.query) for p in parts))
        case _:
            return query


def _as_query(query: str | Path | Query) -> Query:
    if isinstance(query, str):
        return TextQuery(query)
    return ImageQuery(query) if isinstance(query, Path) else query


def _check_numbers(k: int, size: int | None, page: int, min_similarity: float | None) -> None:
    if k < 1:
        raise QueryError(f"k is {k}; ask for at least 1 hit.")
    if size is not None and size < 1:
        raise QueryError(f"The size is {size}; search among at least 1 image.")
    if page < 1:
        raise QueryError(f"The page is {page}; the first one is 1.")
    if min_similarity is not None and not -1 <= min_similarity <= 1:
        raise QueryError(f"The least similarity is {min_similarity}; a cosine lies between -1 and 1.")


class _Page(NamedTuple):
    """A page of an answer.

    Attributes:
        best: the best hit there is, on whichever page.
        hits: of this page.
        warnings: what to know about them.
        asked: the searches that it took.
    """

    best: Neighbour | None
    hits: tuple[Hit, ...]
    warnings: tuple[str, ...]
    asked: list[Ask]


def _page(
    space: EmbeddingSpace,
    vector: Vectors,
    k: int,
    within: Scope,
    page: int,
    fold: FoldRules | None,
    options: dict[str, Any],
) -> _Page:
    """A page of k hits; ``options`` are ``exclude`` and ``filters``."""
    asked: list[Ask] = []
    # Beyond the last key there is no image, and no number that Postgres takes.
    k, skip = min(k, LAST_KEY), min((page - 1) * k, LAST_KEY)
    if fold is None:
        walk = chain.from_iterable(neighbour_chunks(space, vector, k, within, asked=asked, **options))
        first = next(walk, None)
        found = islice(chain([first] if first else [], walk), skip, min(skip + k, LAST_KEY))
        return _Page(first, tuple(_hit(skip + rank, hit) for rank, hit in enumerate(found, start=1)), (), asked)
    # More at once than hits are wanted, for some will be folded.
    chunk = max(2 * min(k, _FOLD_CHUNK), 20)
    chunks = neighbour_chunks(space, vector, chunk, within, asked=asked, with_vectors=True, **options)
    folding = Folding(([_candidate(neighbour) for neighbour in found] for found in chunks), fold)
    before = folding.take(skip).groups if skip else ()
    groups = folding.take(k)
    best = next(iter((*before, *groups.groups)), None)
    hits = tuple(
        replace(_hit(skip + rank, group.best.payload), folded=group.folded)
        for rank, group in enumerate(groups.groups, start=1)
    )
    warnings = (_LOOKED_FAR,) if groups.end is End.BOUND else ()
    return _Page(best.best.payload if best else None, hits, warnings, asked)


def _watched(space: EmbeddingSpace, ask: Ask) -> tuple[Explanation, float]:
    """What Postgres says of a search, and the milliseconds that it takes unwatched."""
    # First so that the timed search finds a connection, and the same pages in memory.
    explanation = explain(space, ask)
    started = time.perf_counter()
    nearest_to(space, ask)
    return explanation, 1000 * (time.perf_counter() - started)


def _candidate(neighbour: Neighbour) -> Candidate[Neighbour]:
    return Candidate(neighbour.image_id, neighbour.item_id, neighbour.digest, neighbour.vector, neighbour)


_FOLD_CHUNK = 500
_LOOKED_FAR = f"Only the {MOST_CANDIDATES:,} nearest pictures were looked at: there may be more results."


def _why_few(found: int, k: int, page: int, there: int, filters: Filters, *, folded: bool) -> str:
    """Why there are fewer than k hits on a page, of so many images that there are."""
    if not there:
        if not filters:
            return "No image that is searched is embedded yet: `abo run` embeds those that are missing."
        nothing = f"No image that is searched passes the filter {filters}."
        if filters.on_values:
            return f"{nothing} `abo search` without it and with --facets shows which values hits have."
        return f"{nothing} Words of a title are whole words." if filters.title else nothing
    what = "1 image" if there == 1 else f"{there:,} images"
    what += (" passes the filter" if there == 1 else " pass the filter") if filters else " in all"
    if folded:
        return f"There are no more hits: {what}, and pictures of one thing are one hit."
    if found or page == 1:
        return f"There are no more hits: {what}."
    return f"There is no page {page:,} of {k:,} hits: {what}, and the last page is {-(-there // k):,}."


def _exactly(within: Scope) -> Scope:
    return replace(within, index_name=None)


def _broken(within: Scope, how: str) -> str:
    return (
        f"The index of size {within.size or 0:,} does not answer rightly ({how}), so this was searched exactly. "
        "`abo index --rebuild` builds it anew."
    )


def _hit(rank: int, neighbour: Neighbour) -> Hit:
    # A cosine computed from rounded numbers may come out a hair beyond its bounds.
    similarity = float(np.clip(neighbour.similarity, -1.0, 1.0))
    known = {name: getattr(neighbour, name) for name in _KNOWN}
    return Hit(rank, **(known | {"similarity": similarity}))


_KNOWN = tuple(field.name for field in fields(Hit) if field.name not in ("rank", "folded"))
