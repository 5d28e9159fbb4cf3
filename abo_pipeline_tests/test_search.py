"""Search over a few coloured squares, whose nearest neighbours a person can tell."""

import itertools
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from abo_pipeline import listings
from abo_pipeline.archive import Archive
from abo_pipeline.catalog import read_catalogue
from abo_pipeline.embedding import Limits, embed_partition
from abo_pipeline.errors import QueryError
from abo_pipeline.filters import Filters
from abo_pipeline.folding import FoldRules
from abo_pipeline.hits import Hit, Hits, ImageQuery, LikeQuery, parse_query
from abo_pipeline.sampling import cutoff
from abo_pipeline.search import ImageSearch
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store
from abo_pipeline.store.analytics import Count, Facet, Facets
from abo_pipeline.store.indexes import build_index
from abo_pipeline.store.nearest import scope
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.fakes import ColourEncoder

SHADES = {f"red-{n}": (255, 6 * n, 0) for n in range(20)} | {f"blue-{n}": (0, 6 * n, 255) for n in range(20)}


@pytest.fixture
def search(store: Store, tmp_path: Path) -> ImageSearch:
    archive_path = write_images(tmp_path / "images.tar", {f"aa/{name}.jpg": jpeg(rgb) for name, rgb in SHADES.items()})
    settings = Settings.read(archive=str(archive_path), space="colours")
    encoder = ColourEncoder()
    with Archive.open(archive_path) as archive:
        kept = read_catalogue(archive, min_side=1000).kept
        store.write_images(kept)
        space = store.open_space("colours", encoder)
        embed_partition("00of1", kept, archive, encoder, space, limits=Limits(10**6, 10**6), batch_size=50)
    for size in (10, 30):
        build_index(space, size, cutoff(kept["sample_key"], size), memory_mb=64)
    return ImageSearch(store, encoder, settings)


def ids(hits: Hits) -> list[str]:
    return [hit.image_id for hit in hits]


def test_a_text_finds_the_pictures_it_describes_most_similar_first(search):
    hits = search("red", k=5, size=40)

    assert ids(hits) == ["red-0", "red-1", "red-2", "red-3", "red-4"]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    similarities = [hit.similarity for hit in hits]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] == pytest.approx(1.0, abs=1e-3)


def test_a_picture_finds_pictures_like_it(search, tmp_path):
    Image.new("RGB", (50, 80), (0, 0, 255)).save(tmp_path / "mine.png")

    hits = search(tmp_path / "mine.png", k=3, size=40)

    assert ids(hits) == ["blue-0", "blue-1", "blue-2"]
    assert hits.query == ImageQuery(tmp_path / "mine.png")


def test_a_stored_image_is_never_among_its_own_hits(search):
    hits = search(LikeQuery("blue-7"), k=100, size=40)

    assert len(hits) == 39
    assert "blue-7" not in ids(hits)
    assert set(ids(hits)[:2]) == {"blue-6", "blue-8"}


@pytest.mark.parametrize("k", [1, 39, 40, 41, 1000, 5000, 10**25])
def test_k_hits_or_all_there_are(search, k):
    assert len(search("red", k=k, size=40)) == min(k, 40)


def test_by_default_the_largest_indexed_size_is_searched(search):
    hits = search("red", k=100)

    assert (hits.size, len(hits)) == (30, 30)


def test_sizes_are_nested(search):
    found = [set(ids(search("red", k=100, size=size))) for size in (5, 10, 17, 30, 40, 1000, 10**25)]

    assert [len(hits) for hits in found] == [5, 10, 17, 30, 40, 40, 40]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(found))


def test_hits_below_the_least_similarity_are_left_out(search):
    everything = search("red", k=40, size=40)
    bound = everything[9].similarity

    assert search("red", k=40, size=40, min_similarity=bound).hits == everything[:10]


def test_a_hit_tells_of_the_product_that_it_is_the_main_image_of(search, store):
    product = dict.fromkeys(listings.SCHEMA.names())
    rows = [
        product | {"item_id": "B2", "domain_name": "x", "title": "other", "keywords": [], "image_ids": ["a", "red-0"]},
        product
        | {
            "item_id": "B3",
            "domain_name": "x",
            "title": "a red square",
            "product_type": "SQUARE",
            "color": "red",
            "brand": "acme",
            "keywords": [],
            "image_ids": ["red-0", "red-1"],
        },
    ]
    store.write_products(pl.DataFrame(rows, schema=listings.SCHEMA))

    (hit,) = search("red", k=1, size=40)

    assert hit == Hit(1, "red-0", "aa/red-0.jpg", hit.similarity, "B3", "a red square", "SQUARE", "red", "acme")
    assert hit.caption == "a red square"


def test_without_listings_the_path_is_the_caption(search):
    (hit,) = search("red", k=1, size=40)

    assert hit.caption == "aa/red-0.jpg"


def test_a_text_that_is_too_long_is_cut_with_a_warning(search):
    hits = search("red " * 100, k=1, size=40)

    assert ids(hits) == ["red-0"]
    assert hits.warnings == ("The text is longer than the model reads; its end was ignored.",)


def test_a_text_with_quotes_and_statements_is_only_a_text(search):
    hits = search("red'; DROP TABLE images; -- %s :query", k=2, size=40)

    assert ids(hits) == ["red-0", "red-1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(query="red", k=0), "k is 0; ask for at least 1 hit."),
        (dict(query="red", k=-3), "k is -3; ask for at least 1 hit."),
        (dict(query="red", size=0), "The size is 0; search among at least 1 image."),
        (
            dict(query="red", min_similarity=1.5),
            "The least similarity is 1.5; a cosine lies between -1 and 1.",
        ),
        (dict(query=" \n"), "The query is empty. Say what to look for, such as: red leather office chair."),
        (
            dict(query=LikeQuery("nobody")),
            "No image 'nobody' is embedded in space colours. Ids are in the results of a search, and in the first "
            "column of images.csv.gz.",
        ),
        (dict(query="a\x00b"), "The query holds bytes that are no text in UTF-8."),
        (dict(query="\udcff"), "The query holds bytes that are no text in UTF-8."),
        (dict(query=LikeQuery("a\udcff")), "The query holds bytes that are no text in UTF-8."),
        (
            dict(query=LikeQuery("")),
            "No image '' is embedded in space colours. Ids are in the results of a search, and in the first column of "
            "images.csv.gz.",
        ),
        (dict(query=Path("/dev")), "The picture /dev is no file."),
        (dict(query=Path("/dev/zero")), "The picture /dev/zero is no file."),
        (dict(query=Path("gone.jpg")), "The picture gone.jpg cannot be read: No such file or directory."),
        (
            dict(query=Path(__file__)),
            f'The picture {__file__} cannot be used: not a picture: it begins with b\'"""Searc\'.',
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(search, arguments, message):
    with pytest.raises(QueryError) as caught:
        search(**arguments)

    assert str(caught.value) == message


def test_an_empty_space_says_what_to_run(store):
    with pytest.raises(QueryError) as caught:
        ImageSearch(store, ColourEncoder(), Settings.read(space="colours"))

    assert str(caught.value) == (
        "Nothing has been embedded into space colours yet. Run `abo run` (or `abo demo`) first."
    )


def test_hits_are_plain_values_as_json(search):
    hits = search("red", k=1, size=40)

    assert json.loads(json.dumps(hits.as_json())) == {
        "query": "red",
        "size": 40,
        "warnings": [],
        "hits": [
            {
                "rank": 1,
                "image_id": "red-0",
                "path": "aa/red-0.jpg",
                "similarity": hits[0].similarity,
                "item_id": None,
                "title": None,
                "product_type": None,
                "color": None,
                "brand": None,
                "folded": [],
            }
        ],
        "space": "colours",
        "page": 1,
        "filters": {},
        "match": None,
    }


def test_a_query_is_printed_in_json_as_it_is_written(search):
    query = parse_query('"red" - 0.5*"blue" + like:red-3')

    assert search(query, k=1).as_json()["query"] == '"red" - 0.5*"blue" + like:red-3'


# --- Why there are fewer hits, how they came about, and what they are ---


@pytest.mark.parametrize(
    ("options", "count", "warning"),
    [
        (dict(k=40, size=40), 40, None),
        (dict(k=41, size=40), 40, "There are no more hits: 40 images in all."),
        (dict(k=100), 30, "There are no more hits: 30 images in all."),
        (dict(k=25, size=40, page=2), 15, "There are no more hits: 40 images in all."),
        (dict(k=20, size=40, page=3), 0, "There is no page 3 of 20 hits: 40 images in all, and the last page is 2."),
        (dict(k=5, size=40, min_similarity=1.0), 0, "All hits are below the least similarity, 1."),
        (dict(k=40, size=40, min_similarity=0.9), 20, "The other hits are below the least similarity, 0.9."),
        (dict(k=5, filters=Filters(min_width=1200)), 5, None),
        (
            dict(k=5, filters=Filters(min_width=1201)),
            0,
            "No image that is searched passes the filter min_width 1201.",
        ),
        (dict(k=50, size=40, filters=Filters(min_width=7)), 40, "There are no more hits: 40 images pass the filter."),
        (
            dict(k=40, size=40, fold=FoldRules(near=0.999)),
            None,
            "There are no more hits: 40 images in all, and pictures of one thing are one hit.",
        ),
    ],
)
def test_an_answer_of_fewer_hits_than_were_asked_for_says_why(search, options, count, warning):
    hits = search("red", **options)

    assert len(hits) == count or (count is None and 0 < len(hits) < 40)
    assert hits.warnings == (() if warning is None else (warning,))


def test_what_a_query_was_made_from_is_not_counted_among_what_there_is(search):
    hits = search(LikeQuery("red-3"), k=40, size=40)

    assert (len(hits), hits.warnings) == (39, ("There are no more hits: 39 images in all.",))


def test_a_space_in_which_nothing_is_embedded_yet_says_so(search):
    search.space.remove(list(SHADES))

    hits = search("red", k=3)

    assert (hits.hits, hits.match) == ((), None)
    assert hits.warnings == ("No image that is searched is embedded yet: `abo run` embeds those that are missing.",)


@pytest.mark.parametrize("size", [30, 40])
def test_an_explanation_tells_the_way_the_times_and_each_hits_exact_rank(search, size):
    hits = search("red", k=7, size=size, page=2)

    explained = search.explain("red", 7, size=size, page=2)

    how = explained.explanation
    assert explained.searches == 2
    assert explained.exact_ranks == {hit.image_id: hit.rank for hit in hits}
    if size == 30:
        index_name = scope(search.space, 30).index_name
        assert (how.strategy, how.reason, how.index_name) == ("hnsw", "by the size's index", index_name)
        assert (how.effort, how.plan_line) == (200, f"Index Scan {index_name} {search.space.table.name}")
        assert 14 <= how.visited <= 30
    else:
        assert (how.strategy, how.reason, how.index_name, how.effort) == (
            *("exact", "this size has no index", None),
            0,
        )
        assert how.visited == 40
    assert min(explained.encode_ms, explained.sql_ms, how.server_ms) > 0
    assert explained.fetch_ms >= 0


def test_a_page_far_down_and_folding_take_few_searches(search):
    far = search.explain("red", 2, size=40, page=17)
    folded = search.explain("red", 2, size=40, fold=FoldRules(near=0.5))

    assert far.exact_ranks == {hit.image_id: hit.rank for hit in search("red", 2, size=40, page=17)}
    assert sorted(far.exact_ranks.values()) == [33, 34]
    # 2, 2, 4, 8, 16 and 32 images; and 20, 20, and none, for behind the two groups that there are no third begins.
    assert (far.searches, folded.searches) == (6, 3)


def test_an_explanation_ranks_among_what_passes_the_filter_and_leaves_out_what_the_query_was_made_from(search):
    options = dict(size=40, filters=Filters(min_width=1))
    hits = search(LikeQuery("red-3"), 4, **options)

    explained = search.explain(LikeQuery("red-3"), 4, **options)

    assert explained.exact_ranks == {hit.image_id: hit.rank for hit in hits}
    assert "red-3" not in explained.exact_ranks


def test_facets_and_keywords_are_of_the_hits_alone(search, store):
    product = dict.fromkeys(listings.SCHEMA.names()) | {"domain_name": "x", "keywords": []}
    rows = [
        product
        | {
            "item_id": f"B{n}",
            "product_type": "SQUARE",
            "color": colour,
            "keywords": ["square", colour],
            "image_ids": ids,
        }
        for n, (colour, ids) in enumerate(
            [("red", ["red-0", "red-1"]), ("red", ["red-2"]), ("blue", [f"blue-{n}" for n in range(20)])]
        )
    ]
    store.write_products(pl.DataFrame(rows, schema=listings.SCHEMA))

    hits = search("red", k=4, size=40)

    assert search.facets(hits) == Facets(
        product_type=Facet((Count("SQUARE", 3),), 1), color=Facet((Count("red", 3),), 1), brand=Facet((), 4)
    )
    assert search.keywords(hits) == [Count("red", 2), Count("square", 2)]
    none = search("red", filters=Filters(color=("green",)))
    assert search.facets(none) == Facets(*[Facet((), 0)] * 3)
    assert search.keywords(none) == []


def test_display_shows_the_hits_in_a_row(search, tmp_path):
    figure = search.display(search("red", k=3, size=40))

    figure.savefig(tmp_path / "row.png")
    colours = [np.asarray(axes.images[0].get_array(), float)[128, 128] for axes in figure.axes]
    assert len(figure.axes) == 3
    for colour in colours:
        assert colour == pytest.approx([255, 0, 0], abs=20)
    assert (tmp_path / "row.png").stat().st_size > 1000


def test_display_of_one_hit_and_of_none(search):
    assert len(search.display(search("red", k=1, size=40)).axes) == 1
    assert len(search.display(search("red", k=1, size=40, min_similarity=1.0)).axes) == 1


def test_display_of_many_has_ten_in_a_row(search):
    figure = search.display(search("red", k=25, size=40))

    assert figure.axes[0].get_gridspec().get_geometry() == (3, 10)
    assert [bool(axes.images) for axes in figure.axes] == [True] * 25 + [False] * 5
