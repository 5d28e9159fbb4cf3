"""What a query points at among coloured squares, and which of them it is made from."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from abo_pipeline.archive import Archive
from abo_pipeline.encoder import ClipEncoder
from abo_pipeline.errors import QueryError
from abo_pipeline.queries import (
    MOST_PARTS,
    ImageQuery,
    LikeQuery,
    MixQuery,
    Part,
    Query,
    TextQuery,
    UrlQuery,
    parse_query,
)
from abo_pipeline.query_vectors import MOST_CHARACTERS, TOO_LONG, QueryVectors, text_vectors
from abo_pipeline.search import ImageSearch, stands_for
from abo_pipeline.settings import Settings
from abo_pipeline_tests.archives import jpeg
from abo_pipeline_tests.fakes import ColourEncoder
from abo_pipeline_tests.test_search import ids, search
from abo_pipeline_tests.test_web_pictures import Server, serving

__all__ = ["search"]

TEN_MB = 10_000_000
RED, GREEN, BLUE, GREY = np.vstack([np.eye(3), np.ones(3) / np.sqrt(3)])


@pytest.fixture
def photo(search: ImageSearch, tmp_path: Path) -> Path:
    """A copy of the file of red-3."""
    path = tmp_path / "photo.jpg"
    with Archive.open(Path(search.settings.archive)) as archive:
        path.write_bytes(archive.read("images/small/aa/red-3.jpg"))
    return path


@pytest.fixture
def web(photo: Path):
    """A web server that has the photo, and another picture."""
    server = Server()
    server.pages["/photo.jpg"] = lambda page: page.send(photo.read_bytes())
    server.pages["/page.html"] = lambda page: page.send(b"<html>")
    with serving(server):
        yield server


def vectors(search: ImageSearch, encoder: ColourEncoder | None = None, **settings: object) -> QueryVectors:
    changed = Settings.read(**search.settings.model_dump() | settings)
    return QueryVectors(search.space, encoder or ColourEncoder(), changed)


def direction(search: ImageSearch, query: str | Query, **settings: object) -> np.ndarray:
    query = parse_query(query) if isinstance(query, str) else query
    return vectors(search, **settings).of(query).vector


def unit(*vector: float) -> np.ndarray:
    return np.asarray(vector) / np.linalg.norm(vector)


# --- Mixes ---


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"red" + "blue" - "blue"', RED),
        ('"red" + "blue"', unit(1, 0, 1)),
        ('3*"red" + 4*"blue"', unit(3, 0, 4)),
        ('0.3*"red" + 0.4*"blue"', unit(3, 0, 4)),
        ('"red" - "blue"', unit(1, 0, -1)),
        ('-"blue"', -BLUE),
        ('0*"red" + "blue"', BLUE),
        ('5*"red"', RED),
    ],
)
def test_a_mix_is_the_sum_of_its_parts_at_length_1(search, written, expected):
    np.testing.assert_allclose(direction(search, written), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-9, 1e9, 1.7e308])
def test_only_the_proportions_of_the_weights_count(search, scale):
    query = MixQuery((Part(scale, TextQuery("red")), Part(scale, TextQuery("blue"))))

    np.testing.assert_allclose(direction(search, query), unit(1, 0, 1), atol=1e-6)


def test_any_mix_is_what_numpy_makes_of_it(search):
    random = np.random.default_rng(1)
    stored = [f"{colour}-{n}" for colour in ("red", "blue") for n in range(20)]
    for _ in range(30):
        parts = random.integers(1, 8)
        chosen = random.choice(stored, parts)
        weights = random.normal(size=parts)
        each = np.stack([search._vector(LikeQuery(str(image_id))).vector for image_id in chosen])
        total = (weights[:, None] * each).sum(axis=0)

        query = MixQuery(tuple(Part(w, LikeQuery(str(i))) for w, i in zip(weights, chosen, strict=True)))
        found = search(query, k=40, size=40)

        np.testing.assert_allclose(direction(search, query), unit(*total), atol=1e-5)
        assert not set(ids(found)) & set(chosen)
        assert len(found) == 40 - len(set(chosen))


def test_what_is_taken_away_goes_and_what_is_left_is_found(search):
    found = search(parse_query('"red" + "blue" - "blue"'), k=5, size=40)

    assert ids(found) == ids(search("red", k=5, size=40))


def test_a_stored_image_and_a_text_together(search):
    query = parse_query('like:blue-19 - "green"')

    assert ids(search(query, k=1, size=40)) == ["blue-0"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            '"red" - "red"',
            "The parts of the mix cancel each other. Leave one of them out, or change its weight.",
        ),
        (
            '2*like:red-1 - like:red-1 - 1*like:red-1 + 1e-9*"red"',
            "The parts of the mix cancel each other. Leave one of them out, or change its weight.",
        ),
        ('0*"red" - 0*"blue"', "All weights of the mix are 0. Give at least one part another weight."),
        ('"red" - " "', "The query is empty. Say what to look for, such as: red leather office chair."),
        ('"red" - "\udcff"', "The query holds bytes that are no text in UTF-8."),
        (
            '"red" - like:nobody',
            "No image 'nobody' is embedded in space colours. Ids are in the results of a search, and in the first "
            "column of images.csv.gz.",
        ),
        ('"red" - image:gone.jpg', "The picture gone.jpg cannot be read: No such file or directory."),
    ],
)
def test_a_mix_without_an_answer_is_refused_in_words(search, written, message):
    with pytest.raises(QueryError) as caught:
        search(parse_query(written))

    assert str(caught.value) == message


def test_in_python_a_string_is_a_text_and_an_expression_is_parsed(search):
    assert search('"red" - "red"', k=1).query == TextQuery('"red" - "red"')
    assert search('"red" - "red"', k=1).warnings == ("The query was read as one text; parse_query reads it as a mix.",)
    assert search(parse_query('"red" - "blue"'), k=1).warnings == ()


def test_a_text_that_was_perhaps_meant_as_a_mix_is_searched_for_with_a_warning(search):
    hits = search(parse_query('"red" - blue stripes'), k=1, size=40)

    assert hits.query == TextQuery('"red" - blue stripes')
    assert hits.warnings == (
        'The query was read as one text. A mix is written like this: "red shoe" + like:ID - 0.5*"heel".',
    )


def test_like_without_an_id_stands_for_the_first_image_in_a_mix_too(search):
    alone = stands_for(search.space, parse_query("like:"))

    assert stands_for(search.space, parse_query('"red" - 2*like: + like:red-3')) == MixQuery(
        (Part(1, TextQuery("red")), Part(-2, alone), Part(1, LikeQuery("red-3")))
    )
    assert stands_for(search.space, parse_query("red")) == TextQuery("red")


# --- What a query is made from ---


def test_a_file_that_is_stored_is_not_among_its_own_hits(search, photo):
    hits = search(photo, k=100, size=40)

    assert len(hits) == 39
    assert set(ids(hits)[:2]) == {"red-2", "red-4"}


def test_of_a_picture_with_other_bytes_nothing_is_left_out(search, photo):
    Image.open(photo).save(photo.with_suffix(".png"))

    assert ids(search(photo.with_suffix(".png"), k=1, size=40)) == ["red-3"]


def test_every_stored_copy_of_a_file_is_left_out(search, store, photo):
    with store.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE images SET digest = (SELECT digest FROM images WHERE image_id = 'red-3') WHERE image_id = 'blue-8'"
        )

    assert vectors(search).of(ImageQuery(photo)).made_from == ["blue-8", "red-3"]


def test_a_file_that_is_stored_has_the_stored_vector_whatever_it_would_get_here(search, store, photo):
    """A space's vectors may be in fewer digits than queries are."""
    stored = unit(3, 0.01, 0.02).astype(np.float32)
    with store.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE embeddings_colours SET embedding = %s WHERE image_id = 'red-3'", (str(stored.tolist()),)
        )

    assert direction(search, ImageQuery(photo)).tolist() == stored.tolist()
    with pytest.raises(QueryError, match="The parts of the mix cancel each other"):
        direction(search, f'like:red-3 - image:"{photo}"')


def test_a_picture_is_embedded_in_single_precision_whatever_was_asked_for(search, photo):
    """In fewer digits, a model may have to be made first; that is for those who embed many."""

    class FewDigits(ColourEncoder):
        in_single_precision = ColourEncoder()

        def encode_images(self, images):
            pytest.fail(f"{len(images)} pictures in few digits")

    Image.open(photo).save(photo.with_suffix(".png"))

    assert vectors(search, FewDigits()).of(ImageQuery(photo.with_suffix(".png"))).vector[0] > 0.9


def test_a_file_whose_image_has_the_vector_of_other_bytes_so_far_is_embedded(search, store, photo):
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE embeddings_colours SET digest = 'another' WHERE image_id = 'red-3'")
        connection.exec_driver_sql("UPDATE embeddings_colours SET embedding = '[0,0,1]' WHERE image_id = 'red-3'")

    assert direction(search, ImageQuery(photo))[0] > 0.9


def test_all_that_a_mix_is_made_from_is_left_out_also_what_counts_negatively(search, photo):
    query = parse_query(f'0*like:blue-1 - like:blue-2 + "red" - image:"{photo}" + like:blue-2')

    assert vectors(search).of(query).made_from == ["blue-1", "blue-2", "red-3"]
    assert set(ids(search(query, k=100, size=40))) == {
        f"{colour}-{n}" for colour in ("red", "blue") for n in range(20)
    } - {"blue-1", "blue-2", "red-3"}


# --- Pictures from files and from the web ---


def test_a_picture_from_the_web_is_searched_by_like_a_file(search, store, photo, web):
    settings = Settings.read(**search.settings.model_dump() | {"url_hosts": "127.0.0.1"})
    allowed = ImageSearch(store, ColourEncoder(), settings)

    assert ids(allowed(UrlQuery(f"{web.url}/photo.jpg"), k=5, size=40)) == ids(search(photo, k=5, size=40))
    assert ids(allowed(parse_query(f'"blue" + url:{web.url}/photo.jpg'), k=5, size=40)) == ids(
        search(parse_query(f'"blue" + image:"{photo}"'), k=5, size=40)
    )


def test_what_cannot_be_fetched_or_used_is_refused_without_what_may_be_secret(search, web):
    with pytest.raises(QueryError) as refused:
        direction(search, UrlQuery(f"{web.url}/photo.jpg?token=s3cret"))
    with pytest.raises(QueryError) as no_picture:
        direction(search, UrlQuery(f"{web.url}/page.html?token=s3cret"), url_hosts="127.0.0.1")

    assert str(refused.value).startswith(f"The picture {web.url}/photo.jpg cannot be fetched: ")
    assert str(no_picture.value) == (
        f"The picture {web.url}/page.html cannot be used: not a picture: it begins with b'<html>'."
    )


def test_a_home_folder_is_found_within_a_mix(search, photo, monkeypatch):
    monkeypatch.setenv("HOME", str(photo.parent))

    np.testing.assert_allclose(
        direction(search, "1*image:~/photo.jpg"), direction(search, ImageQuery(photo)), atol=1e-6
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\x00b.jpg", "The picture a\x00b.jpg cannot be read: no file has such a name."),
        ("\ud800.jpg", "The picture ?.jpg cannot be read: no file has such a name."),
        ("caf\udce9.jpg", "The picture caf?.jpg cannot be read: No such file or directory."),
        (
            "~nobody-of-that-name/a.jpg",
            "The picture ~nobody-of-that-name/a.jpg cannot be read: No such file or directory.",
        ),
    ],
    ids=["nul", "surrogate", "no UTF-8", "no such user"],
)
def test_a_path_that_can_be_no_file_is_refused_in_words(search, path, message):
    with pytest.raises(QueryError) as caught:
        search(Path(path))

    assert str(caught.value) == message


def test_a_picture_that_the_model_has_no_direction_for_is_refused(search, tmp_path):
    (tmp_path / "blank.jpg").write_bytes(jpeg("white", (7, 9)))

    with pytest.raises(QueryError) as caught:
        vectors(search, ColourEncoder(aimless=frozenset([(7, 9)]))).of(ImageQuery(tmp_path / "blank.jpg"))

    assert str(caught.value) == "The model has no direction for image:blank.jpg, so that nothing is like it."


# --- Prompts ---


def test_a_text_is_the_mean_of_its_prompts(search):
    prompts = "a photo of {}; {} and blue"

    np.testing.assert_allclose(direction(search, "red", prompts=prompts), unit(*(RED + unit(1, 0, 1))), atol=1e-6)
    np.testing.assert_allclose(
        direction(search, '"red" - "green"', prompts=prompts),
        unit(*(unit(*(RED + unit(1, 0, 1))) - unit(*(GREEN + unit(0, 1, 1))))),
        atol=1e-6,
    )


def test_a_text_with_braces_goes_into_a_prompt_as_it_stands():
    assert text_vectors(Echo(), ["{} {0} {x}"], ["a {}", "b {}"]).shape == (1, 3)
    assert Echo.read == ["a {} {0} {x}", "b {} {0} {x}"]


class Echo(ColourEncoder):
    """Keeps what it is given to read."""

    read: list[str] = []  # noqa: RUF012 - one for the class

    def encode_texts(self, texts):
        type(self).read = list(texts)
        return super().encode_texts(texts)


def test_texts_are_embedded_in_batches_and_stay_in_their_order():
    texts = [("red", "green", "blue", "grey")[n % 4] for n in range(150)]

    found = text_vectors(ColourEncoder(), texts, ["{}", "a {}", "{}!"])

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack([RED, GREEN, BLUE, GREY])[np.arange(150) % 4], atol=1e-6)


def test_no_texts_are_no_vectors():
    assert text_vectors(ColourEncoder(), [], ["{}", "a {}"]).shape == (0, 3)


def test_without_a_prompt_a_vector_is_the_models_own(encoder):
    np.testing.assert_array_equal(text_vectors(encoder, ["a red chair"]), encoder.encode_texts(["a red chair"]))


# --- Long texts, and texts of every kind ---


def test_a_text_that_is_too_long_within_several_prompts_is_pointed_out_once(search):
    query = MixQuery((Part(1, TextQuery("red " * 76)), Part(1, TextQuery("blue " * 100))))

    assert vectors(search, prompts="{}; a photo of {}").of(query).warnings == (TOO_LONG,)
    assert vectors(search, prompts="{}").of(TextQuery("red " * 76)).warnings == ()
    assert vectors(search, prompts="{}; a photo of {}").of(TextQuery("red " * 76)).warnings == (TOO_LONG,)


def test_of_a_text_of_any_length_the_beginning_is_read_and_blanks_are_nothing(search):
    blanks = vectors(search).of(TextQuery(" \n" * (TEN_MB // 2) + "red"))
    long = vectors(search).of(TextQuery("red" + "!" * MOST_CHARACTERS + "blue"))

    np.testing.assert_allclose(blanks.vector, RED)
    assert blanks.warnings == ()
    np.testing.assert_allclose(long.vector, RED)
    assert long.warnings == (TOO_LONG,)


@pytest.mark.parametrize("character", ["a", "red ", " ", "1", "😀", "각", "e\u0301\u0327", "\u200b", '"'])
def test_ten_megabytes_are_embedded_within_seconds(search, encoder: ClipEncoder, character):
    text = "red " + character * (TEN_MB // len(character))
    encoder.encode_texts(["loaded"])
    began = time.process_time()

    found = QueryVectors(search.space, encoder, search.settings).of(TextQuery(text))

    assert time.process_time() - began < 10
    assert np.linalg.norm(found.vector) == pytest.approx(1)
    assert found.warnings == (() if character == " " else (TOO_LONG,))


def test_ten_megabytes_in_a_mix_are_embedded_within_seconds_too(search, encoder: ClipEncoder):
    part = Part(1, TextQuery("red " + "😀" * (TEN_MB // 4 // MOST_PARTS)))
    encoder.encode_texts(["loaded"])
    began = time.process_time()

    found = QueryVectors(search.space, encoder, search.settings).of(MixQuery((part,) * MOST_PARTS))

    assert time.process_time() - began < 30
    assert found.warnings == (TOO_LONG,)


SAMPLES = [chr(plane * 0x10000 + at) for plane in range(17) for at in (1, 0x1B, 0xAD, 0x301, 0x3042, 0xE123, 0xFFFE)]
"""Characters of every plane: controls, marks, letters, private ones, and those that are none."""


def test_every_unicode_plane_is_text_to_the_model(encoder):
    found = text_vectors(encoder, [*SAMPLES, "".join(SAMPLES)], ["{}", "a photo of {}"])

    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", [TextQuery, LikeQuery, UrlQuery, lambda text: ImageQuery(Path(text))])
def test_every_unicode_plane_is_data_in_every_kind_of_query(search, kind):
    for text in (*SAMPLES, "".join(SAMPLES), "\x00", "\ud800", "'; DROP TABLE images; --", "%s :query {} $1"):
        for query in (kind(text), MixQuery((Part(1, kind(text)), Part(1, TextQuery("red"))))):
            try:
                assert len(search(query, k=3)) == 3
            except QueryError as error:
                assert len(str(error)) < 2000  # noqa: PT017 - an answer, or a refusal in words


@pytest.mark.parametrize("kind", [LikeQuery, UrlQuery, lambda text: ImageQuery(Path(text))])
def test_ten_megabytes_of_anything_else_are_refused_in_a_short_sentence(search, kind):
    text = "https://" + "x/" * (TEN_MB // 2)
    began = time.process_time()

    with pytest.raises(QueryError) as caught:
        search(kind(text))

    assert len(str(caught.value)) < 400
    assert time.process_time() - began < 10
