"""Searches under filters: k that match or all that do, in exact order, whatever share of the images that is."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from abo_pipeline import catalog
from abo_pipeline.filters import Filters
from abo_pipeline.sampling import sample_key
from abo_pipeline.store import nearest as searching
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.explain import plan_of
from abo_pipeline.store.filtering import estimated_share
from abo_pipeline.store.nearest import Ask, Scope, nearest, scope, way_of
from abo_pipeline_tests.library import Library, Vectors, clip, ids, stored_library

ROWS = 3_000
SIZES = (1_000, 3_000)

EVERY = {
    "100 %": (Filters(product_type=("chair",)), 1),
    "50 %": (Filters(color=("GRÜN",)), 2),
    "10 %": (Filters(brand=("ñandú", "nobody's")), 10),
    "3 %": (
        Filters(color=("grün", "blau"), brand=("Ñandú",), product_type=("Chair",), min_height=700, max_height=700),
        30,
    ),
    "1 %": (Filters(keyword=("SITZ",)), 100),
    "0.1 %": (Filters(title=("white", "stool")), 1_000),
    "one image": (Filters(country=("de",)), 5_000),
    "none": (Filters(color=("mauve",)), None),
    "a third, by sides": (Filters(min_width=2_000, max_width=2_000, max_height=700), 3),
    "a sixth, by sides and products": (Filters(min_width=1_500, color=("grün",)), 6),
}
"""Filters, and which images of the catalogue's order pass: those whose place is a multiple of the number."""


@pytest.fixture(scope="module")
def library(server: EmbeddedServer) -> Iterator[Library]:
    """Three thousand pictures, each of a product of its own. No test changes it."""
    vectors = clip().images(ROWS)
    vectors[-90:] = np.repeat(vectors[:30], 3, axis=0)
    with stored_library(server, vectors) as library:
        sides = [(2_000, 700) if at % 3 == 0 else (1_000, 3_000) for at in range(ROWS)]
        rows = [
            (name, f"{name}.jpg", *side, sample_key(name), 0, 1, "d1")
            for name, side in zip(map(str, library.ids), sides, strict=True)
        ]
        library.store.write_images(pl.DataFrame(rows, schema=catalog.SCHEMA, orient="row"))
        library.products(_product(at, str(name)) for at, name in enumerate(library.ids))
        library.index(*SIZES)
        yield library


def _product(at: int, image: str) -> tuple:
    def each(number: int, this: str, that: str | None) -> str | None:
        return this if at % number == 0 else that

    return (
        f"B{at:05}",
        "amazon.com",
        each(1_000, "Bar-Stool, Black/White™", "White: a chair, no barstool"),
        "CHAIR",
        each(2, "grün", "rot"),
        each(10, "Ñandú", None),
        each(5_000, "DE", "US"),
        ["seat", each(100, "Sitz", "sits")],
        [image, f"not in the catalogue {at}"],
    )


def matches(library: Library, which: str) -> set[str]:
    step = EVERY[which][1]
    return set(map(str, library.ids[::step])) if step else set()


def queries(count: int = 4) -> list[Vectors]:
    return [*clip().like_images(count), *clip().texts(count)]


@pytest.fixture(params=SIZES)
def within(request: pytest.FixtureRequest, library: Library) -> Scope:
    """A size, as it was indexed."""
    return scope(library.space, request.param)


@pytest.fixture
def by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """No share of the images is so small that they are all compared."""
    monkeypatch.setattr(searching, "FEW_MATCHES", 0)


# --- Whatever the share ---


@pytest.mark.parametrize("which", EVERY)
@pytest.mark.parametrize("k", [1, 10, 100])
def test_compared_with_all_that_match_the_answer_is_exact(library, within, which, k):
    filters, among = EVERY[which][0], matches(library, which)
    exactly = replace(within, index_name=None)

    for query in queries():
        hits = nearest(library.space, query, k, exactly, filters=filters)

        assert library.is_exact(hits, query, k, size=within.size, among=among)
        # So few pictures are compared even where there is an index.
        assert nearest(library.space, query, k, within, filters=filters) == hits


@pytest.mark.parametrize("which", EVERY)
@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.usefixtures("by_index")
def test_by_the_index_there_are_k_or_all_that_match_in_order(library, within, which, k):
    filters, among = EVERY[which][0], matches(library, which)
    found = []

    for query in queries():
        expected = library.expected(query, k, size=within.size, among=among)
        hits = nearest(library.space, query, k, within, filters=filters)

        assert len(hits) == len({hit.image_id for hit in hits}) == len(expected)
        assert {hit.image_id for hit in hits} <= among
        assert all((one.distance, one.image_id) < (other.distance, other.image_id) for one, other in pairwise(hits))
        found.append(len(set(ids(hits)) & set(expected)) / max(1, len(expected)))

    assert np.mean(found) >= 0.98 or not among


@pytest.mark.parametrize("which", EVERY)
@pytest.mark.usefixtures("by_index")
def test_the_way_and_the_plan_of_a_filter(library, monkeypatch, which):
    filters, step = EVERY[which]
    ask = Ask(queries()[0], 10, scope(library.space, ROWS), filters=filters)
    share = estimated_share(library.space, ask.scope.cutoff, filters)

    way, plan = way_of(library.space, ask), plan_of(library.space, ask)
    monkeypatch.undo()
    usual = way_of(library.space, ask)

    assert share == pytest.approx(len(range(0, 1_000, step)) / 1_000 if step else 0)
    uses_index = f"Index Scan using {ask.scope.index_name} on embeddings_clip" in plan
    assert uses_index == (way.strategy is not None) == (share > 0)
    if way.strategy:
        assert (way.strategy.name, way.effort) == ("hnsw", 200)
        assert way.visited == int(2 * 200 / share)
        assert way.reason == f"about {share:.1%} pass the filter: by the size's index"
    assert usual.strategy is None
    assert usual.reason == f"about {share:.1%} pass the filter: few enough to compare with all of them"


@pytest.mark.usefixtures("by_index")
def test_matches_that_are_all_far_from_the_query_are_found_by_the_index(server: EmbeddedServer):
    """The estimate takes matches for spread evenly, and here the nearest nine tenths match not at all."""
    with stored_library(server, clip(seed=3).images(2_000)) as library:
        query = clip(seed=3).like_images(1)[0]
        far = library.expected(query, 2_000)[1_800:]
        library.products((f"B{at}", "x", None, "FAR", None, None, None, [], [name]) for at, name in enumerate(far))
        library.index(2_000)
        within, filters = scope(library.space, 2_000), Filters(product_type=("far",))

        way = way_of(library.space, Ask(query, 50, within, filters=filters))
        hits = nearest(library.space, query, 50, within, filters=filters)

        assert way.strategy
        assert len(hits) == 50
        assert set(ids(hits)) <= set(far)
        assert len(set(ids(hits)) & set(far[:50])) >= 49


@pytest.mark.parametrize("takes_index", [True, False])
def test_filter_exclusion_continuation_and_vectors_go_together(library, within, monkeypatch, takes_index):
    if takes_index:
        monkeypatch.setattr(searching, "FEW_MATCHES", 0)
    filters, among = EVERY["10 %"][0], matches(library, "10 %")
    place = {str(name): at for at, name in enumerate(library.ids)}

    for query in queries(2):
        exclude = library.expected(query, 7, size=within.size, among=among)
        expected = library.expected(query, 60, size=within.size, among=among, without=exclude)
        options = {"exclude": exclude, "filters": filters, "with_vectors": True}
        first = nearest(library.space, query, 30, within, **options)
        last = (first[-1].distance, first[-1].image_id)
        second = nearest(library.space, query, 30, within, after=last, **options)

        assert way_of(library.space, Ask(query, 30, within, exclude, filters, last)).strategy or not takes_index
        found = ids([*first, *second])
        assert len(found) == len(set(found)) == 60
        assert len(set(found) & set(expected)) >= (59 if takes_index else 60)
        assert takes_index or library.is_exact(
            [*first, *second], query, 60, size=within.size, among=among, without=exclude
        )
        for hit in (*first, *second):
            np.testing.assert_array_equal(hit.vector, library.vectors[place[hit.image_id]])


# --- What passes ---


@pytest.fixture
def small(store) -> Library:
    """Forty pictures with an index; a test's own, to give it products."""
    library = Library(store, clip(seed=5).images(40))
    library.index(40)
    return library


def passing(library: Library, filters: Filters) -> set[str]:
    """Which images do, by every way there is, which agree."""
    query, within = clip(seed=5).texts(1)[0], scope(library.space, None)
    assert within.index_name
    answers = [
        ids(nearest(library.space, query, 50, each, filters=filters))
        for each in (within, replace(within, index_name=None))
    ]
    share = estimated_share(library.space, within.cutoff, filters)
    assert answers[0] == answers[1]
    assert share == pytest.approx(len(answers[0]) / len(library.ids))
    return set(answers[0])


@pytest.mark.usefixtures("by_index")
def test_one_product_must_satisfy_everything_that_is_asked_of_products(small):
    together, apart, unlisted = map(str, small.ids[:3])
    small.products(
        [
            ("B1", "x", "a red lamp", "LAMP", "red", "Rivet", "US", ["a", "b"], [together]),
            ("B2", "x", "a red chair", "CHAIR", "red", None, "US", ["a"], [apart, together]),
            ("B3", "x", "a blue lamp", "LAMP", "blue", "Rivet", "DE", ["b"], [apart]),
            ("B4", "x", "a red lamp", "LAMP", "red", "Rivet", "US", ["a", "b"], []),
            # The same item in another shop, where it is shown by another picture.
            ("B1", "a", "a red chair", "CHAIR", "red", None, "DE", ["a"], [apart]),
            ("B3", "y", "a red lamp", "LAMP", "red", "Rivet", "US", ["a", "b"], ["not in the catalogue"]),
        ]
    )

    assert passing(small, Filters(product_type=("lamp",), color=("red",))) == {together}
    assert passing(small, Filters(title=("red lamp",))) == {together}
    assert passing(small, Filters(brand=("rivet",), keyword=("a",))) == {together}
    assert passing(small, Filters(product_type=("lamp", "chair"), color=("red",))) == {together, apart}
    assert passing(small, Filters(keyword=("a", "b"), country=("us", "de"))) == {together, apart}
    assert passing(small, Filters(product_type=("lamp",), color=("red",), country=("DE",))) == set()
    assert passing(small, Filters(min_width=1_000)) == set(map(str, small.ids)) >= {unlisted}
    assert passing(small, Filters(min_width=1_001)) == passing(small, Filters(max_height=0)) == set()


NASTY = (
    "grün",
    "GRÜN",
    "gru\u0308n",  # not the same letters
    "straße",
    "STRASSE",
    "ÇÅÑ ŻÓŁĆ ЖЁЛТЫЙ ΚΌΚΚΙΝΟ",
    "çåñ żółć жёлтый κόκκινο",
    "",
    " ",
    "%",
    "_",
    "50%",
    "5__%",
    "\\",
    "C:\\new\\table",
    "'",
    "O'Neil's \"best\" ''chair''",
    "'; DROP TABLE images; --",
    ":filter_color %(k)s %s {letters} $1",
    "&|!:*()<->",
    "chair & !lamp",
    "chair:*",
    "(chair | lamp)",
    "black/white",
    "e-mail@shop.example https://shop.example/a/b?c=d",
    "-5 3.5mm 1e10 v1.2",
    '{a,NULL,"b"}',
    "NULL",
    "\t\n\r\u00a0\u2003\u200b\ufeff",
    "a\u00a0b",
    "\u202eשלם\u202c",
    "椅子、赤い",
    *(f"plane {plane}: {chr(plane * 0x10000 + 0xFFFD)} {chr(plane * 0x10000 + 0x1234)}" for plane in range(17)),
)
"""Every one is data, and only itself but for the case of letters."""


def lower(value: str) -> str:
    """Letter by letter, as Postgres does it."""
    return "".join(letter.lower() for letter in value)


@pytest.mark.parametrize("name", ["product_type", "color", "brand", "country", "keyword"])
def test_values_are_compared_whole_and_without_regard_to_case(store, name):
    library = Library(store, clip(seed=5).images(len(NASTY)))
    at = ("item_id", "domain_name", "title", "product_type", "color", "brand", "country", "keyword").index(name)

    def product(number: int, value: str) -> tuple:
        known = [f"B{number:03}", "x", None, None, None, None, None, ["another"], [str(library.ids[number])]]
        known[at] = ["another", value] if name == "keyword" else value
        return tuple(known)

    library.products(product(number, value) for number, value in enumerate(NASTY))
    query = clip(seed=5).texts(1)[0]
    whole = Scope(None, 2**63 - 1, None)

    def found(*values: str) -> set[str]:
        return set(ids(nearest(library.space, query, 100, whole, filters=Filters.of(**{name: values}))))

    for value in NASTY:
        same = [number for number, other in enumerate(NASTY) if lower(other) == lower(value)]
        assert found(value) == set(map(str, library.ids[same])), value
    assert found(*NASTY) == set(map(str, library.ids))
    assert found("a value that none has", "x" * 10_000_000) == set()


def words(value: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", lower(value)))


@pytest.mark.parametrize("takes_index", [True, False])
def test_every_word_of_a_title_is_looked_for_and_only_words_count(store, monkeypatch, takes_index):
    monkeypatch.setattr(searching, "FEW_MATCHES", 0 if takes_index else 10**6)
    # What is a letter differs between versions of Unicode where characters are new, or none at all.
    titles = [title for title in NASTY if not title.startswith("plane")]
    library = Library(store, clip(seed=5).images(len(titles) + 1))
    library.products(
        (f"B{number:03}", "x", title, None, None, None, None, [], [str(library.ids[number])])
        for number, title in enumerate([*titles, None])
    )
    library.index(100)
    asked = [*titles, "white black", "CHAIR", "lamp chair", "mail", "table new c", "5", "mm", "3 10", "b", "赤い"]

    for value in asked:
        expected = {str(library.ids[at]) for at, title in enumerate(titles) if words(value) <= words(title)}
        if not words(value):
            expected = set(map(str, library.ids))

        assert found_by_title(library, value) == expected, value

    assert found_by_title(library, "white", "!", "black") == found_by_title(library, "black/white")
    assert found_by_title(library, "chair " * 250_000) == found_by_title(library, "chair")
    assert found_by_title(library, " ".join(map(str, range(200_000)))) == set()


def found_by_title(library: Library, *texts: str) -> set[str]:
    query = clip(seed=5).texts(1)[0]
    return set(ids(nearest(library.space, query, 100, scope(library.space, None), filters=Filters(title=texts))))


def test_texts_of_every_plane_are_data_in_titles(small):
    planes = [title for title in NASTY if title.startswith("plane")]
    small.products(
        (f"B{at:03}", "x", title, None, None, None, None, [], [str(small.ids[at])]) for at, title in enumerate(planes)
    )

    for at, title in enumerate(planes):
        assert str(small.ids[at]) in found_by_title(small, title)
    assert found_by_title(small, "plane", "16") == {str(small.ids[16])}
