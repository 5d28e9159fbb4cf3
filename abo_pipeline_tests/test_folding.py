"""Folding compared with what its definition says, read literally: every candidate beside the best of every group."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abo_pipeline.errors import QueryError
from abo_pipeline.folding import Candidate, End, FoldedPage, Folding, FoldRules, Group, Reason, fold

PRODUCT, IDENTICAL, NEAR = Reason
ANYTHING = FoldRules(product=False, identical=False, near=None)

# The machine that runs this is shared, so no example has a deadline.
thoroughly = settings(deadline=None, database=None, max_examples=200)


def picture(name: str, item: str | None = None, digest: str = "", vector: Sequence[float] | None = None) -> Candidate:
    """A candidate with a file of its own, unless a digest is given."""
    row = None if vector is None else np.array(vector, np.float32)
    return Candidate(name, item, digest or f"bytes of {name}", row, payload=name.upper())


def group(best: Candidate, *folded: tuple[str, Reason]) -> Group:
    return Group(best, tuple(name for name, _ in folded), dict(Counter(reason for _, reason in folded)))


def chunked(candidates: Sequence[Candidate], sizes: Sequence[int]) -> Iterator[Sequence[Candidate]]:
    """The candidates in chunks of these sizes, over and over."""
    at, turn = 0, 0
    while at < len(candidates):
        yield candidates[at : at + sizes[turn % len(sizes)]]
        at, turn = at + sizes[turn % len(sizes)], turn + 1


# --- The definition ---


def why(candidate: Candidate, best: Candidate, rules: FoldRules) -> Reason | None:
    if rules.product and candidate.item_id is not None and candidate.item_id == best.item_id:
        return PRODUCT
    if rules.identical and candidate.digest == best.digest:
        return IDENTICAL
    if rules.near is not None and cosine_is_at_least(rules.near, candidate.vector, best.vector):
        return NEAR
    return None


def cosine_is_at_least(bound: float, one: Any, other: Any) -> bool:
    """Without rounding: the vectors hold small whole numbers."""
    if one is None or other is None or not one.any() or not other.any():
        return False
    a, b = [int(value) for value in one], [int(value) for value in other]
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = sum(x * x for x in a) * sum(y * y for y in b)
    return dot > 0 and dot * dot >= Fraction(str(bound)) ** 2 * lengths


def pages(candidates: Sequence[Candidate], rules: FoldRules, sizes: Sequence[int], most: int) -> list[FoldedPage]:
    """The pages of so many groups each, by the definition."""
    bests: list[Candidate] = []
    placed: list[tuple[int, Candidate, Reason | None]] = []
    for candidate in candidates:
        reasons = ((number, why(candidate, best, rules)) for number, best in enumerate(bests))
        number, reason = next((found for found in reasons if found[1]), (len(bests), None))
        if reason is None:
            bests.append(candidate)
        placed.append((number, candidate, reason))
    return list(_pages(placed, sizes, most))


def _pages(placed: list[tuple[int, Candidate, Reason | None]], sizes: Sequence[int], most: int) -> Iterator[FoldedPage]:
    first = start = 0
    for size in sizes:
        stop = next((at for at, (number, _, _) in enumerate(placed) if number == first + size), len(placed))
        end = End.BOUND if stop >= most else End.MORE if stop < len(placed) else End.ALL
        seen = placed[start : min(stop, most)]
        groups = tuple(
            group(candidate, *((other.image_id, reason) for at, other, reason in seen if at == number and reason))
            for number, candidate, begins in seen
            if begins is None
        )
        earlier = tuple(candidate.image_id for number, candidate, _ in seen if number < first)
        yield FoldedPage(groups, earlier, len(seen), end)
        first, start = first + len(groups), start + len(seen)


# --- By the definition ---


@dataclass(frozen=True)
class Asked:
    candidates: list[Candidate]
    chunks: list[int]
    pages: list[int]
    most: int


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    """Catalogues with few products, few files and few directions, so that much of them is the same in some way."""
    numbers = st.integers(-2, 2)
    vectors = st.none() | st.tuples(numbers, numbers, numbers)
    looks = draw(st.lists(vectors, min_size=1, max_size=12))
    pictures = st.tuples(
        st.none() | st.sampled_from("ABCDE"), st.none() | st.sampled_from("123456"), st.sampled_from(looks)
    )
    drawn = draw(st.lists(pictures, max_size=60))
    candidates = [picture(f"{at:02}", item, digest or "", look) for at, (item, digest, look) in enumerate(drawn)]
    few = st.integers(1, 9)
    return Asked(
        candidates,
        draw(st.lists(few, min_size=1, max_size=4)),
        draw(st.lists(few, min_size=1, max_size=5)),
        draw(st.integers(1, 70)),
    )


RULES = st.builds(FoldRules, st.booleans(), st.booleans(), st.none() | st.sampled_from([0.5, 0.9, 0.98, 1.0]))


@thoroughly
@given(asked(), RULES)
def test_pages_are_what_the_definition_says_in_chunks_of_any_size(asked, rules):
    folding = Folding(chunked(asked.candidates, asked.chunks), rules, most=asked.most)

    found = [folding.take(k) for k in asked.pages]

    assert found == pages(asked.candidates, rules, asked.pages, asked.most)


@thoroughly
@given(asked(), RULES)
def test_every_candidate_that_was_looked_at_is_in_one_place_and_none_was_passed_over(asked, rules):
    folding = Folding(chunked(asked.candidates, asked.chunks), rules, most=asked.most)

    found = [folding.take(k) for k in asked.pages]

    names = [name for page in found for name in page.earlier]
    names += [name for page in found for group in page.groups for name in (group.best.image_id, *group.folded)]
    looked_at = sum(page.looked_at for page in found)
    assert sorted(names) == [candidate.image_id for candidate in asked.candidates[:looked_at]]
    assert [sum(group.reasons.values()) for page in found for group in page.groups] == [
        len(group.folded) for page in found for group in page.groups
    ]


@thoroughly
@given(asked(), RULES, st.integers(0, 9))
def test_a_page_by_itself_is_the_page_that_comes_after_the_others(asked, rules, skip):
    k = asked.pages[0]

    alone = fold(chunked(asked.candidates, asked.chunks), rules, k, skip=skip, most=asked.most)

    expected = pages(asked.candidates, rules, [skip, k], asked.most)[1] if skip else None
    assert alone == (expected or pages(asked.candidates, rules, [k], asked.most)[0])


@pytest.mark.parametrize("chunk", [1, 100, 256, 257, 3_000])
def test_thousands_of_clip_like_vectors_are_folded_as_each_pair_by_itself_would_be(chunk):
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(700, 64))
    near = rng.uniform(0.1, 0.4, (3_000, 1)) * rng.normal(size=(3_000, 64))
    vectors = (centres[rng.integers(0, 700, 3_000)] + near).astype(np.float32)
    candidates = [picture(f"{at:04}", vector=vector) for at, vector in enumerate(vectors)]
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    bests: list[int] = []
    folded: dict[int, list[str]] = {}
    for at in range(3_000):
        matching = np.flatnonzero(unit[bests] @ unit[at] >= 0.94)
        if len(matching):
            folded[bests[matching[0]]].append(f"{at:04}")
        else:
            bests.append(at)
            folded[at] = []

    page = fold(chunked(candidates, [chunk]), FoldRules(near=0.94), 5_000)

    assert [(group.best.image_id, group.folded) for group in page.groups] == [
        (f"{at:04}", tuple(names)) for at, names in folded.items()
    ]
    assert 500 < len(bests) < 2_500


# --- What belongs together ---


def test_a_group_is_shown_by_its_best_and_tells_what_it_holds_and_why():
    candidates = [
        picture("a", "chair", "x", [1, 0]),
        picture("b", "lamp", "y", [0, 1]),
        picture("c", "lamp", "x", [0, 1]),
        picture("d", "chair", "x", [1, 0]),
        picture("e", "rug", "y", [0, 1]),
        picture("f", None, "z", [0.001, 1]),
    ]

    page = fold([candidates], FoldRules(), 5)

    assert page == FoldedPage(
        (
            # What is the same in several ways counts as the same product first, then as the same file.
            group(candidates[0], ("c", IDENTICAL), ("d", PRODUCT)),
            group(candidates[1], ("e", IDENTICAL), ("f", NEAR)),
        ),
        earlier=(),
        looked_at=6,
        end=End.ALL,
    )
    assert [group.best.payload for group in page.groups] == ["A", "B"]


def test_each_rule_can_be_left_out():
    first = picture("a", "chair", "x", [1, 0])
    same = {
        "product": picture("b", "chair", "y", [0, 1]),
        "identical": picture("b", "rug", "x", [0, 1]),
        "near": picture("b", "rug", "y", [1, 0]),
    }

    for rule, candidate in same.items():
        only = replace(ANYTHING, **{rule: 0.98 if rule == "near" else True})
        rest = replace(FoldRules(), **{rule: None if rule == "near" else False})

        assert fold([[first, candidate]], only, 2).groups == (group(first, ("b", Reason(rule))),)
        assert fold([[first, candidate]], rest, 2).groups == (group(first), group(candidate))


def test_without_any_rule_every_picture_is_a_result():
    same = [picture(name, "chair", "x", [1, 0]) for name in "abc"]

    assert fold([same], ANYTHING, 2) == FoldedPage((group(same[0]), group(same[1])), (), 2, End.MORE)


def test_pictures_without_a_product_are_not_of_the_same_one():
    candidates = [picture("a"), picture("b")]

    assert fold([candidates], FoldRules(), 9).groups == (group(candidates[0]), group(candidates[1]))


def test_what_is_like_a_folded_picture_but_not_like_the_best_of_its_group_is_a_result_of_its_own():
    # Each is 10 degrees from the one before; from a cosine of 0.98 on, so from 11 degrees down, they are near.
    turned = [picture(f"{at}", vector=[np.cos(at * np.pi / 18), np.sin(at * np.pi / 18)]) for at in range(5)]

    page = fold([turned], FoldRules(near=0.98), 9)

    assert page.groups == (group(turned[0], ("1", NEAR)), group(turned[2], ("3", NEAR)), group(turned[4]))


def test_a_picture_joins_the_first_group_that_it_matches_and_not_the_most_alike():
    first, second = picture("a", vector=[1, 0]), picture("b", "chair", vector=[0.9, 0.436])
    between = picture("c", "chair", vector=[0.96, 0.28])

    page = fold([[first, second, between]], FoldRules(near=0.95), 9)

    assert page.groups == (group(first, ("c", NEAR)), group(second))


def test_equal_vectors_are_near_at_a_cosine_of_one_and_others_are_not():
    rng = np.random.default_rng(0)
    vector = rng.normal(size=512).astype(np.float32)
    candidates = [
        picture("a", vector=vector),
        picture("longer", vector=3 * vector),
        picture("other", vector=vector + 0.01 * rng.normal(size=512)),
    ]

    page = fold([candidates], FoldRules(near=1.0), 9)

    assert page.groups == (group(candidates[0], ("longer", NEAR)), group(candidates[2]))


def test_a_picture_whose_vector_is_unknown_or_has_no_direction_is_near_to_none():
    candidates = [
        picture("a"),
        picture("b"),
        picture("c", vector=[0, 0]),
        picture("d", vector=[0, 0]),
        picture("e", vector=[1, 0]),
        picture("f", vector=[1, 0]),
    ]

    for sizes in ([1], [2], [6]):
        page = fold(chunked(candidates, sizes), FoldRules(near=0.0001), 9)

        assert [group.best.image_id for group in page.groups] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("near", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_what_is_no_cosine_to_fold_from_is_refused(near):
    with pytest.raises(QueryError) as refused:
        FoldRules(near=near)

    assert str(refused.value) == (
        f"Pictures are folded from a cosine of {near} on; give one above 0 and up to 1, such as 0.98."
    )


# --- How far is looked ---


def test_a_page_looks_up_to_the_candidate_that_would_begin_one_group_too_many():
    # The chair comes again after the third product.
    candidates = [picture("a", "chair"), picture("b", "lamp"), picture("c", "lamp"), picture("d", "rug")]
    candidates += [picture("e", "chair"), picture("f", "rug"), picture("g", "bed")]
    folding = Folding([candidates], FoldRules())

    first, second, third = folding.take(2), folding.take(1), folding.take(9)

    assert first == FoldedPage((group(candidates[0]), group(candidates[1], ("c", PRODUCT))), (), 3, End.MORE)
    assert second == FoldedPage((group(candidates[3], ("f", PRODUCT)),), ("e",), 3, End.MORE)
    assert third == FoldedPage((group(candidates[6]),), (), 1, End.ALL)
    assert folding.take(9) == FoldedPage((), (), 0, End.ALL)


def test_no_chunk_is_pulled_before_it_is_needed():
    pulled = []

    def stream() -> Iterator[list[Candidate]]:
        for number in range(1_000):
            pulled.append(number)
            yield [picture(f"{number}a", f"{number}"), picture(f"{number}b", f"{number}")]

    folding = Folding(stream(), FoldRules())

    assert pulled == []
    assert [(len(folding.take(k).groups), pulled[-1]) for k in (1, 1, 5)] == [(1, 1), (1, 2), (5, 7)]


def test_empty_chunks_are_no_end():
    candidates = [picture("a"), picture("b")]

    page = fold([[], candidates[:1], [], [], candidates[1:], []], FoldRules(), 9)

    assert page == FoldedPage((group(candidates[0]), group(candidates[1])), (), 2, End.ALL)


def test_nothing_folds_into_nothing():
    assert fold([], FoldRules(), 9) == fold([[]], FoldRules(), 9) == FoldedPage((), (), 0, End.ALL)


def test_where_everything_is_one_thing_the_bound_ends_the_search_and_is_told():
    def everything() -> Iterator[list[Candidate]]:
        number = 0
        while True:
            yield [picture(f"{at}", "chair") for at in range(number, number + 100)]
            number += 100

    page = fold(everything(), FoldRules(), 10, most=1_000)

    assert (len(page.groups), len(page.groups[0].folded), page.looked_at, page.end) == (1, 999, 1_000, End.BOUND)


def test_the_bound_is_for_all_pages_together():
    folding = Folding(([picture(f"{at}")] for at in range(100)), FoldRules(), most=25)

    found = [folding.take(10) for _ in range(4)]

    assert [(len(page.groups), page.end) for page in found] == [
        (10, End.MORE),
        (10, End.MORE),
        (5, End.BOUND),
        (0, End.BOUND),
    ]


def test_a_page_may_hold_ten_thousand_results():
    rng = np.random.default_rng(0)
    candidates = [picture(f"{at}", vector=vector) for at, vector in enumerate(rng.normal(size=(10_000, 64)))]

    page = fold(chunked(candidates, [500]), FoldRules(), 10_000)

    assert page.groups == tuple(map(group, candidates))
    assert page.end == End.BOUND
