"""Filters as plain values: what may be asked, how it is written, and what is refused."""

import json

import pytest

from abo_pipeline.errors import QueryError
from abo_pipeline.filters import FIELDS, NO_FILTER, Filters


def test_what_is_given_by_flags_becomes_a_filter():
    given = Filters.of(
        color="red", brand=["Rivet", "Stone & Beam"], title=(), keyword=None, min_width=0, max_height=900
    )

    assert given == Filters(color=("red",), brand=("Rivet", "Stone & Beam"), min_width=0, max_height=900)
    assert given.as_json() == {"color": ["red"], "brand": ["Rivet", "Stone & Beam"], "min_width": 0, "max_height": 900}
    assert Filters.of(**json.loads(json.dumps(given.as_json()))) == given
    assert str(given) == "color red, brand Rivet or Stone & Beam, min_width 0, max_height 900"


def test_a_filter_that_asks_for_nothing_is_none():
    given = Filters.of(**dict.fromkeys(FIELDS))

    assert given == Filters.of(color=[], title=()) == NO_FILTER
    assert (bool(given), given.as_json(), str(given)) == (False, {}, "")


@pytest.mark.parametrize(
    ("given", "on_products", "on_sides"),
    [
        (Filters(title=("chair",)), True, False),
        (Filters(color=("",)), True, False),
        (Filters(min_width=0), False, True),
        (Filters(country=("US",), max_height=0), True, True),
    ],
)
def test_a_filter_knows_what_it_is_about(given, on_products, on_sides):
    assert given
    assert (given.on_products, given.on_sides) == (on_products, on_sides)


@pytest.mark.parametrize("name", ["product_type", "color", "brand", "country", "keyword", "title"])
@pytest.mark.parametrize("value", ["a\x00b", "\x00", "\ud83d", "chair \udcff"])
def test_what_is_no_text_is_refused(name, value):
    with pytest.raises(QueryError) as refused:
        Filters.of(**{name: ["fine", value]})

    assert str(refused.value) == f"The filter {name} holds bytes that are no text in UTF-8."


def test_a_text_by_itself_is_one_value_and_not_its_letters():
    assert Filters(color="red", title=["a", "b"]) == Filters(color=("red",), title=("a", "b"))


@pytest.mark.parametrize(("value", "wrong"), [(("x", 5), "5"), (7, "7"), ([None], "None")])
def test_what_is_neither_a_text_nor_several_is_refused(value, wrong):
    with pytest.raises(QueryError) as refused:
        Filters(color=value)

    assert str(refused.value) == f"The filter color is {wrong}; it is a text, or several of them."


@pytest.mark.parametrize("name", ["min_width", "max_width", "min_height", "max_height"])
@pytest.mark.parametrize("side", [-1, 2**31, 10**30, float("nan"), 1.5, "5"])
def test_what_is_no_number_of_pixels_is_refused(name, side):
    with pytest.raises(QueryError) as refused:
        Filters.of(**{name: side})

    assert str(refused.value) == f"The filter {name} is {side}; a side has 0 to 2,147,483,647 pixels."
