"""How queries are written and read: mixes, single terms, and everything else, which is a text."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abo_pipeline.errors import QueryError
from abo_pipeline.queries import (
    MOST_PARTS,
    ImageQuery,
    LikeQuery,
    MixQuery,
    Part,
    Term,
    TextQuery,
    UrlQuery,
    misread,
    one_query,
    parse_query,
    recorded,
    shown,
)

RED, HEEL = TextQuery("red shoe"), TextQuery("heel")
TEN_MB = 10_000_000


def mix(*parts: tuple[float, Term]) -> MixQuery:
    return MixQuery(tuple(Part(weight, query) for weight, query in parts))


# --- What is written, and what is meant ---


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("red shoe", TextQuery("red shoe")),
        ("  red shoe ", TextQuery("red shoe")),
        ("like:71abc", LikeQuery("71abc")),
        ("like: 71abc ", LikeQuery("71abc")),
        ("like:41++65Gq75L", LikeQuery("41++65Gq75L")),
        ("like:", LikeQuery("")),
        ("image:photo.jpg", ImageQuery(Path("photo.jpg"))),
        ('image:"my photo.jpg"', ImageQuery(Path("my photo.jpg"))),
        ("url:https://example.org/a.jpg?b=1", UrlQuery("https://example.org/a.jpg?b=1")),
    ],
)
def test_a_single_term_needs_no_quotes(written, meant):
    assert parse_query(written) == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"red shoe" + like:71a - "heel"', mix((1, RED), (1, LikeQuery("71a")), (-1, HEEL))),
        ('"red shoe" − "heel"', mix((1, RED), (-1, HEEL))),
        ('"red shoe" – "heel"', mix((1, RED), (-1, HEEL))),
        ("“red shoe” - “heel”", mix((1, RED), (-1, HEEL))),
        ('"red shoe"-"heel"', mix((1, RED), (-1, HEEL))),
        ('"red shoe"\n  + "heel"', mix((1, RED), (1, HEEL))),
        ('"red shoe" - 0.5*"heel"', mix((1, RED), (-0.5, HEEL))),
        ('2 * "red shoe" - .5 * "heel"', mix((2, RED), (-0.5, HEEL))),
        ('1e-3*"red shoe" + 0*"heel"', mix((0.001, RED), (0, HEEL))),
        ('0.5*"heel"', mix((0.5, HEEL))),
        ('- "heel"', mix((-1, HEEL))),
        ('+"heel"', mix((1, HEEL))),
        ("like:a-b+c - like:-d", mix((1, LikeQuery("a-b+c")), (-1, LikeQuery("-d")))),
        ('like: - "heel"', mix((1, LikeQuery("")), (-1, HEEL))),
        (
            'image:a.jpg + image:"my photo.jpg" + url:https://example.org/a+b',
            mix(
                (1, ImageQuery(Path("a.jpg"))),
                (1, ImageQuery(Path("my photo.jpg"))),
                (1, UrlQuery("https://example.org/a+b")),
            ),
        ),
        (r'"a 24\" screen" - "C:\dir\\"', mix((1, TextQuery('a 24" screen')), (-1, TextQuery("C:\\dir\\")))),
        ("“say \\” + “x”", mix((1, TextQuery("say \\")), (1, TextQuery("x")))),
        ('"" + "x"', mix((1, TextQuery("")), (1, TextQuery("x")))),
    ],
)
def test_a_mix_is_a_sum_of_terms(written, meant):
    assert parse_query(written) == meant


@pytest.mark.parametrize(
    "written",
    [
        "I like: shoes",
        "image: a red shoe",
        "black - white striped shirt",
        "-heel",
        '"red shoe"',
        "“red shoe”",
        '24" screen + stand',
        "2 * red",
        '"red" + shoe',
        '"red" "shoe"',
        '"red"x + "shoe"',
        '"red" + ',
        '"red" - - "shoe"',
        '"red + "shoe"',
        'like:71a + "x',
        'like: 71a + "x"',
        '9e999*"x"',
        '1.2.3*"x"',
        '٣*"x"',
        "'red' - 'heel'",
        "'; DROP TABLE images; -- %s :query",
        '"\x00',
        "\udcff",
        "",
    ],
)
def test_whatever_is_no_mix_is_a_text_as_it_stands(written):
    assert parse_query(written) == TextQuery(written.strip())


@pytest.mark.parametrize(
    ("written", "warned"),
    [
        ('"red" + shoe', True),
        ('like:71a - "x', True),
        ('2*"red" – shoe', True),
        ("- image:a.jpg + shoe", True),
        ("“red” - shoe", True),
        ("red + like:71a", True),
        ("a shoe like:71a", True),
        ('"red shoe" * "heel"', True),
        ('"red shoe" +', True),
        ("black - white striped shirt", False),
        ('"red shoe"', False),
        ('"Air-Max" shoe', False),
        ("I like: shoes - and heels", False),
        ("a chair that I like:-)", False),
        ("5 * red", False),
    ],
)
def test_a_text_that_looks_as_if_a_mix_was_meant_is_pointed_out(written, warned):
    said = 'The query was read as one text. A mix is written like this: "red shoe" + like:ID - 0.5*"heel".'

    assert misread(written) == (said if warned else None)


def test_the_mix_that_the_warning_shows_is_one():
    assert parse_query('"red shoe" + like:ID - 0.5*"heel"') == mix((1, RED), (1, LikeQuery("ID")), (-0.5, HEEL))


def test_a_mix_that_python_takes_for_a_text_is_pointed_out():
    assert misread('"red" + "blue"') == "The query was read as one text; parse_query reads it as a mix."


# --- How a query is printed ---


@pytest.mark.parametrize(
    ("query", "printed"),
    [
        (TextQuery('a "b'), 'a "b'),
        (LikeQuery("71a"), "like:71a"),
        (ImageQuery(Path("/home/me/my photo.jpg")), 'image:"/home/me/my photo.jpg"'),
        (UrlQuery("https://example.org/a.jpg"), "url:https://example.org/a.jpg"),
        (mix((1, RED), (-0.5, HEEL), (2, LikeQuery("a"))), '"red shoe" - 0.5*"heel" + 2*like:a'),
        (mix((-1, HEEL), (1, RED)), '-"heel" + "red shoe"'),
        (mix((1, RED)), '1*"red shoe"'),
        (mix((1, TextQuery('24" \\'))), r'1*"24\" \\"'),
    ],
)
def test_a_query_is_printed_as_it_is_written(query, printed):
    assert str(query) == printed


texts = st.text()
terms = st.one_of(
    texts.map(TextQuery),
    texts.map(LikeQuery),
    texts.map(UrlQuery),
    texts.map(lambda name: ImageQuery(Path(name))),
)
weights = st.floats(allow_nan=False, allow_infinity=False)
mixes = st.lists(st.builds(Part, weights, terms), min_size=1, max_size=6).map(lambda parts: MixQuery(tuple(parts)))


@settings(deadline=None)
@given(mixes)
@example(mix((1, LikeQuery('"'))))
@example(mix((1, LikeQuery("")), (-0.0, UrlQuery(""))))
@example(mix((5e-324, TextQuery("\\")), (-1.7976931348623157e308, ImageQuery(Path("“ ")))))
@example(mix((0.00012345678901234567, LikeQuery("\x1c\u3000\u200b"))))
def test_a_printed_mix_is_read_as_the_same_mix(query):
    assert parse_query(str(query)) == query


@settings(deadline=None)
@given(st.text(alphabet=' "\\“”+-−–*0.5likemagur:\n') | st.text())
def test_every_text_is_read_as_some_query_and_what_is_no_expression_as_it_stands(text):
    query = parse_query(text)

    assert str(query).encode().decode() == str(query)
    assert len(shown(query)) <= 160
    if isinstance(query, TextQuery):
        assert query.text == text.strip()


def test_a_file_whose_name_is_no_text_can_be_printed():
    assert str(ImageQuery(Path("caf\udce9.jpg"))) == "image:caf?.jpg"


def test_what_is_shown_of_a_query_is_short_and_keeps_secrets_and_folders():
    url = UrlQuery("https://me:s3cret@example.org/a.jpg?token=s3cret")

    assert shown(mix((1, url), (-1, ImageQuery(Path("/home/me/a b.jpg"))))) == (
        'url:https://example.org/a.jpg - image:"a b.jpg"'
    )
    assert shown(UrlQuery("https:s3cret")) == "url:…"
    assert shown(TextQuery("red\x1b[31m\nshoe\x9b")) == "red [31m shoe "
    assert shown(TextQuery("x" * 1000)) == "x" * 159 + "…"


def test_what_is_kept_of_a_query_is_what_was_asked_without_secrets_and_two_pictures_stay_two():
    one, other = (UrlQuery(f"https://me:s3cret@example.org/a.jpg?id={number}") for number in (1, 2))
    query = mix((1, one), (-0.5, other), (1, UrlQuery("https://example.org/b.jpg")), (1, RED))

    assert re.fullmatch(
        r"url:https://example\.org/a\.jpg\?([0-9a-f]{8}) - 0\.5\*url:https://example\.org/a\.jpg\?(?!\1)[0-9a-f]{8} "
        r'\+ url:https://example\.org/b\.jpg \+ "red shoe"',
        recorded(query),
    )
    assert recorded(one) == recorded(UrlQuery(one.url)) != recorded(other)
    assert [recorded(kept) for kept in (RED, LikeQuery("71a"))] == ["red shoe", "like:71a"]


# --- Several flags at once ---


def test_one_of_anything_is_that_query():
    assert one_query("red shoe") == RED
    assert one_query(images=["a.jpg"]) == ImageQuery(Path("a.jpg"))
    assert one_query(likes=["71a"]) == LikeQuery("71a")
    assert one_query(urls=["https://example.org/a.jpg"]) == UrlQuery("https://example.org/a.jpg")
    assert one_query(plus=["red shoe"]) == RED


def test_several_are_a_mix():
    query = one_query(
        "red shoe", images=["a.jpg"], likes=["71a", "71b"], urls=["https://example.org/a"], plus=["x"], minus=["heel"]
    )

    assert str(query) == ('"red shoe" + image:a.jpg + like:71a + like:71b + url:https://example.org/a + "x" - "heel"')


def test_a_mix_among_several_is_spread_out_with_its_signs():
    query = one_query('"a" - 2*"b"', minus=['"c" - 0.5*"d"', "like:71a"])

    assert str(query) == '"a" - 2*"b" - "c" + 0.5*"d" - like:71a'


def test_something_that_is_only_to_be_avoided_is_a_mix_too():
    assert one_query(minus=["heel"]) == mix((-1, HEEL))


def test_nothing_at_all_is_refused():
    with pytest.raises(QueryError) as caught:
        one_query()

    assert str(caught.value) == ("Nothing is asked for. Give a text, a picture, a URL or a stored image to search by.")


# --- What cannot be ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixQuery(()), "A mix has 1 to 50 parts, not none."),
        (lambda: mix(*[(1, RED)] * (MOST_PARTS + 1)), "A mix has 1 to 50 parts, not more."),
        (lambda: parse_query(" + ".join(['"a"'] * (MOST_PARTS + 1))), "A mix has 1 to 50 parts, not more."),
        (lambda: one_query(likes=["a"] * (MOST_PARTS + 1)), "A mix has 1 to 50 parts, not more."),
        (lambda: Part(float("nan"), RED), "The weight of red shoe is nan; give a finite number."),
    ],
)
def test_a_mix_that_cannot_be_is_refused_in_words(make, message):
    with pytest.raises(QueryError) as caught:
        make()

    assert str(caught.value) == message


def test_a_mix_may_have_as_many_parts_as_are_allowed():
    assert len(parse_query(" - ".join(['"a"'] * MOST_PARTS)).parts) == MOST_PARTS


@pytest.mark.parametrize(
    ("before", "again", "after"),
    [
        ("", '"', ""),
        ('"', "\\", ""),
        ('"', '\\"', ""),
        ("", '"a" + ', "b"),
        ('"a" + "', "b", ""),
        ('"', "a", '" + "b"'),
        ("", "“", ""),
        ("", " ", "x"),
        ('"x"', " ", "x"),
        ("", "-", ""),
        ("", "9", ""),
        ("", "0.5*", ""),
        ("1", " ", '* "x"'),
        ("like:", "a", ""),
        ("", "like:", ""),
        ("url:https://example.org/", "a/../", ""),
        ("", "😀", ""),
    ],
)
def test_ten_megabytes_are_read_at_once(before, again, after):
    text = before + again * (TEN_MB // len(again)) + after
    began = time.process_time()

    try:
        said = shown(parse_query(text))
    except QueryError as error:
        said = str(error)
    misread(text)

    assert time.process_time() - began < 5
    assert said == "A mix has 1 to 50 parts, not more." if again == '"a" + ' else len(said) <= 160
