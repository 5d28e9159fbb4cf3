"""The report over coloured squares: what is in which cell, in the page and in the numbers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text

from abo_pipeline.errors import QueryError, SettingsError
from abo_pipeline.grids import grid_figure, row_figure, thumbnail, title_of
from abo_pipeline.hits import Hit, Hits
from abo_pipeline.pictures import Pictures
from abo_pipeline.queries import ImageQuery, LikeQuery, TextQuery, UrlQuery, parse_query
from abo_pipeline.report import Comparison, Coverage, compare, coverage_of, write_report
from abo_pipeline_tests.test_search import search

__all__ = ["search"]


class Squares(Pictures):
    """Pictures without an archive: a path names a colour; nothing else is there."""

    def __init__(self) -> None:
        pass

    def get(self, path: str) -> Image.Image | None:
        return None if path == "gone" else Image.new("RGB", (200, 100), path)


def hits(*paths: str, size: int = 10) -> Hits:
    found = tuple(Hit(rank, path, path, 1 - rank / 10) for rank, path in enumerate(paths, start=1))
    return Hits(TextQuery("q"), found, size)


def comparison(*rows: Hits) -> Comparison:
    return Comparison("q", None, tuple((Coverage(10 * 2**n, 10 * 2**n, 10 * 2**n), row) for n, row in enumerate(rows)))


@pytest.mark.parametrize(
    ("coverage", "words"),
    [
        (Coverage(1000, 1000, 1000), "all 1,000 embedded"),
        (Coverage(10_000, 10_000, 9_310), "9,310 of 10,000 embedded"),
        (Coverage(10_000, 4_544, 4_544), "4,544 of 4,544 embedded; the catalogue has no more"),
    ],
)
def test_a_size_says_plainly_how_complete_it_is(coverage, words):
    assert str(coverage) == words


def test_newcomers_are_the_hits_that_the_smaller_size_does_not_have():
    compared = comparison(hits("red", "blue"), hits("lime", "red"))

    assert [compared.newcomers(row) for row in (0, 1)] == [set(), {"lime"}]


def test_a_grid_has_a_row_a_size_a_cell_a_rank_and_blanks_where_there_are_fewer():
    compared = comparison(hits("red", "gone"), hits("lime", "red", "blue"))

    figure = grid_figure("q", compared.rows(), Squares(), k=3)

    cells = np.array(figure.axes).reshape(2, 4)
    assert [axes.texts[0].get_text() for axes in cells[:, 0]] == ["10 images", "20 images"]

    def colour(axes) -> tuple | None:
        return tuple(np.asarray(axes.images[0].get_array())[0, 0]) if axes.images else None

    assert [[colour(axes) for axes in row] for row in cells[:, 1:]] == [
        [(255, 0, 0), None, None],
        [(0, 255, 0), (255, 0, 0), (0, 0, 255)],
    ]
    assert [[axes.get_xlabel() for axes in row] for row in cells[:, 1:]] == [
        ["0.900\nred", "0.800\ngone", ""],
        ["0.900\nlime", "0.800\nred", "0.700\nblue"],
    ]
    assert cells[0, 2].texts[0].get_text() == "no picture"
    framed = [[axes.spines["left"].get_visible() for axes in row] for row in cells[:, 1:]]
    assert framed == [[False, False, False], [True, False, True]]


def test_a_title_with_a_dollar_is_drawn_as_it_is(tmp_path):
    found = Hits(TextQuery("q"), (Hit(1, "a", "red", 0.5, title="$5 mug, only $x^{"),), 10)

    grid_figure("q", comparison(found).rows(), Squares(), k=1).savefig(tmp_path / "grid.png")

    assert Image.open(tmp_path / "grid.png").width > 100


@pytest.mark.parametrize(
    ("query", "title"),
    [
        (TextQuery("red shoe"), "“red shoe”"),
        (TextQuery("like:x"), "“like:x”"),
        (LikeQuery("71a"), "more like 71a"),
        (ImageQuery(Path("/home/me/my photo.jpg")), "like the picture my photo.jpg"),
        (UrlQuery("https://me:s3cret@example.org/a.jpg?key=s3cret"), "like the picture https://example.org/a.jpg"),
        (parse_query('"red shoe" - 0.5*image:/home/me/photo.jpg'), '"red shoe" - 0.5*image:photo.jpg'),
        (TextQuery("x" * 10_000_000), f"“{'x' * 159}…”"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_title_says_shortly_what_the_pictures_are_shown_for(query, title):
    assert title_of(query) == title


@pytest.mark.parametrize("query", [TextQuery("x " * 10_000), TextQuery("x" * 500), parse_query('"$1 \n" - "{}"')])
def test_a_title_of_any_length_takes_two_lines_at_most(tmp_path, query):
    figure = row_figure(Hits(query, (Hit(1, "a", "red", 0.5), Hit(2, "b", "blue", 0.4)), 10), Squares())

    figure.savefig(tmp_path / "row.png")
    assert figure._suptitle.get_text().count("\n") <= 1
    assert figure._suptitle.get_window_extent().width <= figure.bbox.width


def test_like_without_an_id_is_the_same_image_at_every_size(search):
    compared = compare(search, "like:", (10, 30), 3)

    image_id = compared.query.removeprefix("like:")
    assert compared.asked == f"aa/{image_id}.jpg"
    assert re.fullmatch(r"(red|blue)-\d+", image_id)
    assert all(image_id not in [hit.image_id for hit in found] for _, found in compared.by_size)


def test_a_mix_is_compared_at_every_size_beside_the_first_stored_image_it_is_like(search):
    compared = compare(search, '"red" - like: + 2*like:red-3 + like:red-4', (10, 30), 3)

    assert re.fullmatch(r'"red" - like:(red|blue)-\d+ \+ 2\*like:red-3 \+ like:red-4', compared.query)
    assert compared.asked == "aa/red-3.jpg"
    assert compare(search, '"red" - like:', (10,), 3).asked is None


def test_the_report_has_a_grid_a_query_a_page_and_numbers(search, tmp_path):
    (tmp_path / "09-old.png").write_bytes(b"of an earlier report")

    report = write_report(search, ("red", "blue & <b>"), (10, 30, 100), 3, tmp_path)

    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["01-red.png", "02-blue-b.png"]
    assert report.grids == {"red": tmp_path / "01-red.png", "blue & <b>": tmp_path / "02-blue-b.png"}
    assert [str(size) for size in report.coverage] == [
        "all 10 embedded",
        "all 30 embedded",
        "40 of 40 embedded; the catalogue has no more",
    ]
    assert json.loads((tmp_path / "numbers.json").read_text()) == report.numbers
    assert [(row["query"], row["size"], row["hits"]) for row in report.numbers] == [
        (query, size, 3) for query in ("red", "blue & <b>") for size in (10, 30, 100)
    ]
    page = report.page.read_text()
    assert page.count("<img ") == 2
    assert '<img src="02-blue-b.png" alt="the nearest pictures to blue &amp; &lt;b&gt;">' in page
    assert "<b>100 images</b>: 40 of 40 embedded; the catalogue has no more" in page


def test_a_larger_size_is_never_less_similar(search, tmp_path):
    numbers = write_report(search, ("red", "blue", "green"), (5, 10, 20, 30, 40), 5, tmp_path).numbers

    for query in ("red", "blue", "green"):
        best = [row["best_similarity"] for row in numbers if row["query"] == query]
        assert best == sorted(best)


def test_a_size_that_is_not_complete_says_how_much_of_it_there_is(search):
    with search.space.engine.begin() as connection:
        first_four = "SELECT image_id FROM images ORDER BY sample_key LIMIT 4"
        connection.execute(text(f"DELETE FROM embeddings_colours WHERE image_id IN ({first_four})"))

    assert str(coverage_of(search, 30)) == "26 of 30 embedded"


def test_a_query_that_cannot_be_answered_names_itself(search, tmp_path):
    with pytest.raises(QueryError, match="No image 'nobody' is embedded"):
        write_report(search, ("like:nobody",), (10,), 3, tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error_in_words(search, tmp_path):
    missing = tmp_path / "gone"

    with pytest.raises(SettingsError) as caught:
        write_report(search, ("red",), (10,), 3, missing)

    assert str(caught.value) == (
        f"The report cannot be written to {missing}: No such file or directory. Make room on that disk, or set "
        "ABO_STATE_DIR to a folder that can be written to; the report before it, if any, is still there."
    )


def test_a_thumbnail_is_small_and_the_same_picture(search, tmp_path):
    report = write_report(search, ("red",), (10, 30), 5, tmp_path)
    path: Path = report.grids["red"]

    assert thumbnail(path).startswith("data:image/png;base64,")
    assert len(thumbnail(path)) < 100_000
