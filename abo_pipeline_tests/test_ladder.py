"""The storage ladder: what each rung costs and finds, what is advised, and what it looks like."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import pytest
from PIL import Image

from abo_pipeline.encoder import Vectors
from abo_pipeline.errors import QueryError, SettingsError
from abo_pipeline.ladder import (
    RUNGS,
    Found,
    Ladder,
    RungMeasures,
    advise,
    measure_ladder,
    read_ladder,
    write_ladder,
)
from abo_pipeline.plots import ladder_figure
from abo_pipeline.settings import Settings
from abo_pipeline.store.strategies import PROJECTED
from abo_pipeline_tests.library import DIMENSION, Library, NamedEncoder, clip
from abo_pipeline_tests.store.test_ladder import everything
from abo_pipeline_tests.store.test_nearest import ROWS, SIZES, library

__all__ = ["library"]

TEXTS = 104
"""Colours and things; there are no products whose titles could be asked for."""


@dataclass(frozen=True)
class ClipEncoder(NamedEncoder):
    """Gives texts the vectors that texts have in ``clip``."""

    def encode_texts(self, texts: list[str]) -> Vectors:
        drawn = clip().texts(1_000)
        return drawn[[crc32(text.encode()) % len(drawn) for text in texts]]


def settings(**given: object) -> Settings:
    return Settings.read(**{"sizes": SIZES, "ladder_pca": 24} | given)


@pytest.fixture(scope="module")
def measured(library: Library) -> tuple[Ladder, list[str]]:
    """Every rung that this server has, and what was told meanwhile."""
    before = everything(library.space.engine)
    told: list[str] = []
    ladder = measure_ladder(library.space, ClipEncoder(), settings(), progress=told.append)
    assert everything(library.space.engine) == before
    return ladder, told


def by_name(ladder: Ladder) -> dict[str, RungMeasures]:
    return {rung.name: rung for rung in ladder.rungs}


# --- Measuring ---


def test_every_rung_is_measured_or_left_out_with_the_reason(measured):
    ladder, _ = measured

    assert (ladder.space, ladder.size, ladder.rows, ladder.dimension, ladder.target) == (
        *("clip", 3_000, ROWS, DIMENSION),
        0.99,
    )
    assert [*by_name(ladder), *ladder.left_out] == [
        *("exact", "hnsw", "hnsw_float", "ivfflat", "bit", "halfvec", "halfvec_hnsw", "pca", "diskann")
    ]
    assert ladder.left_out == {"diskann": "this database has no extension vectorscale"}


def test_an_exact_search_finds_everything_and_needs_no_index(measured):
    exact = by_name(measured[0])["exact"]

    assert (exact.image.recall, exact.text.recall) == (1, 1)
    assert (exact.index_bytes, exact.build_seconds, exact.effort) == (0, 0, 0)


def test_bytes_are_what_the_way_of_storing_takes(measured):
    rungs = by_name(measured[0])

    vectors = {name: rung.vector_bytes / ROWS for name, rung in rungs.items()}
    full, half = 4 * DIMENSION + 8, 2 * DIMENSION + 8
    assert vectors == {
        **dict.fromkeys(("exact", "hnsw", "hnsw_float", "ivfflat", "bit"), full),
        **dict.fromkeys(("halfvec", "halfvec_hnsw"), half),
        "pca": full + 2 * 24 + 5,
    }
    indexes = {name: rung.index_bytes for name, rung in rungs.items()}
    assert indexes["bit"] < indexes["pca"] < indexes["hnsw"] < indexes["hnsw_float"]
    assert indexes["halfvec_hnsw"] == pytest.approx(indexes["hnsw"], rel=0.02)
    assert min(rungs.values(), key=lambda rung: rung.bytes).name == "halfvec"


def test_efforts_are_raised_until_the_target_holds_for_both_kinds(measured):
    ladder, told = measured

    for rung in ladder.rungs:
        tries = [words for words in told if words.startswith(f"{rung.name}: recall@10")]
        efforts = next((each.strategy.efforts(ROWS) for each in RUNGS if each.name == rung.name and each.strategy), [0])
        assert rung.effort == efforts[len(tries) - 1]
        assert rung.recall >= 0.99 or rung.effort == efforts[-1]
    assert by_name(ladder)["hnsw"].recall >= 0.99


def test_most_queries_take_no_longer_than_nearly_all(measured):
    found = [each for rung in measured[0].rungs for each in (rung.image, rung.text)]

    assert all(0 < each.p50_ms <= each.p95_ms for each in found)
    assert all(0 <= each.recall <= 1 for each in found)


def test_half_precision_is_judged_by_the_full_vectors(measured):
    half = by_name(measured[0])["halfvec"]

    assert 0.98 < half.recall <= 1


def test_the_share_of_variance_that_components_hold_is_said(measured):
    words = by_name(measured[0])["pca"].words

    assert re.fullmatch(re.escape(f"{PROJECTED.words}; 24 hold ") + r"[78]\d% of the variance", words)


def test_it_is_said_how_far_it_is(measured):
    told = measured[1]

    assert told[:2] == [
        "diskann is left out: this database has no extension vectorscale",
        f"measuring with 200 image queries, {TEXTS} text queries",
    ]
    assert {"copying the vectors as vector", "copying the vectors as halfvec", "finding 24 principal components"} <= {
        *told
    }


def test_a_size_and_some_rungs_can_be_asked_for(library):
    ladder = measure_ladder(library.space, ClipEncoder(), settings(), size=500, rungs=["hnsw", "exact"])

    assert (ladder.size, ladder.rows, ladder.left_out) == (500, 500, {})
    assert list(by_name(ladder)) == ["exact", "hnsw"]


def test_by_default_it_is_the_largest_size_of_which_nothing_is_pending(library):
    gone = library.ids[2_000]
    library.space.remove([str(gone)])
    try:
        ladder = measure_ladder(library.space, ClipEncoder(), settings(), rungs=["exact"])
    finally:
        library.write(library.ids == gone)

    assert (ladder.size, ladder.rows) == (1_000, 1_000)


def test_components_that_are_not_fewer_are_left_out_with_the_reason(library):
    told: list[str] = []
    many = settings(ladder_pca=DIMENSION)

    ladder = measure_ladder(library.space, ClipEncoder(), many, size=50, progress=told.append)

    reason = f"ABO_LADDER_PCA is {DIMENSION}, and the vectors have no more than {DIMENSION} dimensions; set it lower"
    assert ladder.left_out["pca"] == reason
    assert f"pca is left out: {reason}" in told


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"size": 0}, "The size is 0; it is a number of images, at least 1."),
        ({"size": 2**70}, f"The size is {2**70:,}; it is a number of images, at least 1."),
        (
            {"rungs": ["exact", "hsnw"]},
            "The ladder has no rung 'hsnw'. There are exact, hnsw, hnsw_float, ivfflat, bit, diskann, halfvec, "
            "halfvec_hnsw, pca.",
        ),
        (
            {"rungs": ["diskann"]},
            "The rung diskann cannot be measured: this database has no extension vectorscale.",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(library, asked, message):
    with pytest.raises(SettingsError) as refused:
        measure_ladder(library.space, ClipEncoder(), settings(), **asked)

    assert str(refused.value) == message


def test_without_a_number_of_components_it_is_half_of_few_dimensions(library):
    ladder = measure_ladder(library.space, ClipEncoder(), settings(ladder_pca=None), size=50, rungs=["pca"])

    assert f"; {DIMENSION // 2} hold " in ladder.rungs[0].words


def test_components_that_are_asked_for_must_be_fewer(library):
    with pytest.raises(SettingsError) as refused:
        measure_ladder(library.space, ClipEncoder(), settings(ladder_pca=65), rungs=["pca"])

    assert str(refused.value) == (
        "The rung pca cannot be measured: ABO_LADDER_PCA is 65, and the vectors have no more than 64 dimensions; "
        "set it lower."
    )


def test_without_vectors_there_is_nothing_to_measure(store):
    space = store.open_space("empty", ClipEncoder())

    with pytest.raises(QueryError) as refused:
        measure_ladder(space, ClipEncoder(), settings())

    assert str(refused.value) == (
        "Fewer than two images are embedded in space empty: there is nothing to measure. Run `abo run` (or `abo demo`) "
        "first."
    )


# --- Advice ---


def rung(name: str, kilobytes: float, ms: float, recall: float = 1.0, *, index: float = 0.0) -> RungMeasures:
    """A thousand vectors; recall is that of texts."""
    found = Found(1.0, ms / 2, ms), Found(recall, ms, 2 * ms)
    return RungMeasures(name, name, 1_000, int(1e6 * kilobytes), int(1e6 * index), 1.0, 40 if index else 0, *found)


EXACT = rung("exact", 2, 20)


@pytest.mark.parametrize(
    ("rungs", "recommended", "words"),
    [
        pytest.param((), None, "Nothing was measured.", id="nothing"),
        pytest.param(
            (EXACT, rung("hnsw", 2, 4, 0.995, index=1), rung("halfvec", 1, 10, 0.999)),
            "hnsw",
            "All that were measured find at least 99.0% of the 10 nearest, for pictures and for texts. Of these "
            "halfvec is the smallest, 1,000 bytes a vector and 10.0 ms; hnsw the quickest, 3,000 bytes a vector and "
            "4.0 ms. Recommended for 1,000 vectors: hnsw, the quickest that can be set; 5.0 times as quick as exact. "
            "To have it, set ABO_STRATEGY=hnsw, and ABO_EXACT_BELOW to no more than 1,000.",
            id="an index",
        ),
        pytest.param(
            (EXACT, rung("hnsw_float", 2, 4, index=3), rung("hnsw", 2, 4.4, index=1), rung("bit", 2, 30, 0.8, index=1)),
            "hnsw",
            "3 of 4 find at least 99.0% of the 10 nearest, for pictures and for texts; not bit (80.0%). Of these exact "
            "is the smallest, 2,000 bytes a vector and 20.0 ms; hnsw_float the quickest, 5,000 bytes a vector and "
            "4.0 ms. Recommended for 1,000 vectors: hnsw, nearly as quick as hnsw_float, and smaller; 4.5 times as "
            "quick as exact. To have it, set ABO_STRATEGY=hnsw, and ABO_EXACT_BELOW to no more than 1,000.",
            id="the smaller of two quick ones",
        ),
        pytest.param(
            (rung("exact", 2, 1.5), rung("hnsw", 2, 2, index=1)),
            "exact",
            "All that were measured find at least 99.0% of the 10 nearest, for pictures and for texts. Of these exact "
            "is both the smallest and the quickest: 2,000 bytes a vector and 1.5 ms. Recommended for 1,000 vectors: "
            "exact, the quickest that can be set: an index would only cost. To have it, set ABO_EXACT_BELOW above "
            "1,000.",
            id="exact is the quickest",
        ),
        pytest.param(
            (rung("exact", 2, 1.5), rung("hnsw", 2, 0.9, index=1)),
            "exact",
            "All that were measured find at least 99.0% of the 10 nearest, for pictures and for texts. Of these exact "
            "is the smallest, 2,000 bytes a vector and 1.5 ms; hnsw the quickest, 3,000 bytes a vector and 0.9 ms. "
            "Recommended for 1,000 vectors: exact, because an index (hnsw) would save 0.6 ms and cost 1.0 MB. To have "
            "it, set ABO_EXACT_BELOW above 1,000.",
            id="an index saves nothing worth having",
        ),
        pytest.param(
            (rung("bit", 2, 1, 0.7, index=1), rung("ivfflat", 2, 1, 0.9, index=1)),
            None,
            "None finds 99.0% of the 10 nearest for pictures and for texts. The best of them is ivfflat, with 90.0%. "
            "An exact search finds them all.",
            id="none is good enough",
        ),
        pytest.param(
            (rung("halfvec", 1, 1), rung("pca", 3, 2, index=1)),
            None,
            "All that were measured find at least 99.0% of the 10 nearest, for pictures and for texts. Of these "
            "halfvec is both the smallest and the quickest: 1,000 bytes a vector and 1.0 ms. None of these can be set: "
            "measure exact and hnsw as well.",
            id="none can be set",
        ),
    ],
)
def test_the_advice_follows_from_the_numbers(rungs, recommended, words):
    advice = advise(rungs, 0.99)

    assert (advice.rung, advice.words) == (recommended, words)


# --- Files ---


CROWDED = Ladder(
    "clip",
    1_000,
    1_000,
    64,
    0.99,
    (
        rung("exact", 2, 3.1),
        rung("hnsw", 2, 3, 0.995, index=1),
        rung("hnsw_float", 2, 3.05, 0.994, index=2),
        rung("ivfflat", 2, 3.2, 0.996, index=0.1),
        rung("bit", 2, 60, 0.93, index=0.3),
        rung("halfvec", 1, 3, 0.999),
        rung("halfvec_hnsw", 1, 2.9, 0.994, index=1),
        rung("pca", 2.3, 3.1, 0.995, index=0.6),
    ),
    {"diskann": "this database has no extension vectorscale"},
)


def test_what_was_written_can_be_read_again(tmp_path: Path):
    files = write_ladder(CROWDED, tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["ladder.json", "ladder.png"]
    assert read_ladder(files.numbers) == CROWDED
    plain = json.loads(files.numbers.read_text(encoding="utf-8"))
    assert (plain["recommended"], plain["recommendation"]) == (CROWDED.advice.rung, CROWDED.advice.words)
    assert Image.open(files.plot).format == "PNG"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "ladder.png").mkdir()

    with pytest.raises(SettingsError) as refused:
        write_ladder(CROWDED, tmp_path)

    assert str(refused.value).startswith(f"The ladder cannot be written to {tmp_path}: ")


@pytest.mark.parametrize("ladder", [CROWDED, replace(CROWDED, rungs=CROWDED.rungs[:1])])
def test_the_plot_has_a_label_for_each_rung_and_none_lies_on_another(ladder):
    from matplotlib.text import Text

    figure = ladder_figure(ladder)

    figure.draw_without_rendering()
    for axes in figure.axes:
        names = [text for text in axes.texts if text.get_text().endswith(" B")]
        assert sorted(text.get_text().split(",")[0] for text in names) == sorted(rung.name for rung in ladder.rungs)
        # A label's own box, without the line that leads to its bubble.
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert [box.count_overlaps(boxes) for box in boxes] == [1] * len(boxes)
        inside = axes.get_window_extent().padded(1)
        assert all(inside.contains(*corner) for box in boxes for corner in box.get_points())


def test_bubbles_are_as_large_as_bytes_and_filled_where_the_target_is_met():
    axes = ladder_figure(CROWDED).axes[1]

    drawn = [
        (float(bubble.get_offsets()[0][1]), float(bubble.get_sizes()[0]), len(bubble.get_facecolor()) > 0)
        for bubble in axes.collections
    ]
    largest = max(rung.bytes_a_vector for rung in CROWDED.rungs)
    # Large ones first, so that small ones lie on them.
    expected = [
        (rung.text.recall, pytest.approx(900 * rung.bytes_a_vector / largest), rung.recall >= 0.99)
        for rung in sorted(CROWDED.rungs, key=lambda rung: -rung.bytes)
    ]
    assert drawn == expected
