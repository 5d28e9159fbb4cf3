"""How well indexes find, measured and tuned: numpy's answers are the truth, and searches go by what is kept."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import text

from abo_pipeline.encoder import Vectors
from abo_pipeline.evaluation import (
    IMAGE,
    IMAGE_QUERIES,
    KS,
    TEXT,
    Point,
    Queries,
    SizeMeasures,
    image_queries,
    measure_sizes,
    percentile,
    recall_at,
    truths,
    tune,
)
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace, Store, measures
from abo_pipeline.store.explain import explain
from abo_pipeline.store.measures import background, keep, measured, now
from abo_pipeline.store.nearest import Ask, Scope, by_index, scope, searching, way_of
from abo_pipeline.store.spaces import Embedded
from abo_pipeline.store.strategies import STRATEGIES
from abo_pipeline_tests.library import Library, NamedEncoder, clip

ROWS = 1_500
WITHOUT_ANY = ((),)


@dataclass(frozen=True)
class DrawnTexts(NamedEncoder):
    """A model whose texts lie where CLIP's do, beside the library's pictures; which text it is makes no difference."""

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return clip(seed=0).texts(len(texts))


def settings(**given: object) -> Settings:
    return Settings.read(**{"sizes": f"300,{ROWS}", "space": "clip"} | given)


@pytest.fixture
def library(store: Store) -> Library:
    """Pictures that are a test's own to index and to change."""
    return Library(store, clip().images(ROWS))


def measure(library: Library, **given: object) -> tuple[list[SizeMeasures], list[str]]:
    """What measuring gives, and what it says meanwhile."""
    said: list[str] = []
    return measure_sizes(library.space, DrawnTexts(), settings(**given), said.append), said


def index(library: Library, strategy: str = "hnsw") -> None:
    library.index(300, ROWS, strategy=strategy)


# --- The truth ---


def asked_of(library: Library, count: int = 7) -> list[Queries]:
    """Pictures that leave themselves out, and texts that leave out nothing."""
    own = tuple((str(name),) for name in library.ids[:count])
    return [
        Queries(IMAGE, library.vectors[:count], own),
        Queries(TEXT, clip().texts(count), WITHOUT_ANY * count),
    ]


def numpys_truths(library: Library, size: int, queries: Queries, depth: int) -> np.ndarray:
    """The highest similarities, one query after another; −1 where there are no more."""
    rows = np.full((len(queries.vectors), depth), -1.0)
    for row, vector, own in zip(rows, queries.vectors, queries.without, strict=True):
        similarities = library.similarities(vector)[:size][~np.isin(library.ids[:size], own)]
        best = np.sort(similarities)[::-1][:depth]
        row[: len(best)] = best
    return rows


@pytest.mark.parametrize("block", [1, 64, 100, 4_096])
def test_one_pass_gives_what_numpy_finds_at_every_size(library, monkeypatch, block):
    monkeypatch.setattr(measures, "_BLOCK_ROWS", block)
    asked = asked_of(library)
    sizes = (1, 63, 64, 65, 100, 200, 1_499, ROWS) if block > 1 else (1, 2, 30)

    found = truths(library.space, [library.cutoff(size) for size in sizes], asked, depth=40)

    assert list(found) == [library.cutoff(size) for size in sizes]
    for size in sizes:
        for queries, similarities in zip(asked, found[library.cutoff(size)], strict=True):
            assert similarities.dtype == np.float32
            np.testing.assert_allclose(similarities, numpys_truths(library, size, queries, 40), atol=1e-6)


def test_an_image_of_several_queries_is_left_out_of_each_of_them_alone(library):
    first, second = (str(name) for name in library.ids[:2])
    between = library.vectors[:1] + library.vectors[1:2]
    vectors = np.concatenate([library.vectors[:2], between / np.linalg.norm(between)])
    queries = Queries(IMAGE, vectors, ((first,), (), (first, second)))

    (found,) = truths(library.space, [library.cutoff(ROWS)], [queries], depth=3)[library.cutoff(ROWS)]

    np.testing.assert_allclose(found, numpys_truths(library, ROWS, queries, 3), atol=1e-6)
    assert found[1, 0] == pytest.approx(1, abs=1e-6)


def test_the_same_cutoff_twice_is_one_answer(library):
    every = library.cutoff(ROWS)

    assert list(truths(library.space, [every, library.cutoff(10), every], asked_of(library))) == [
        library.cutoff(10),
        every,
    ]


def test_an_image_that_left_the_catalogue_is_no_truth_to_be_found(library):
    asked = asked_of(library)
    gone = set(library.expected(asked[1].vectors[0], 5))
    library.catalogue(name for name in library.ids if name not in gone)

    (_, of_texts) = truths(library.space, [library.cutoff(ROWS)], asked, depth=3)[library.cutoff(ROWS)]

    expected = library.expected(asked[1].vectors[0], 8)[5:]
    similarities = library.similarities(asked[1].vectors[0])
    np.testing.assert_allclose(
        of_texts[0], [similarities[list(library.ids).index(name)] for name in expected], atol=1e-6
    )


# --- Recall ---


@pytest.mark.parametrize(
    ("k", "found", "truth", "recall"),
    [
        (2, [[0.9, 0.8]], [[0.9, 0.8, 0.7]], 1.0),
        (2, [[0.9, 0.7]], [[0.9, 0.8, 0.7]], 0.5),
        # As near as the last one is found, whichever it is; and what sums up otherwise is as near.
        (2, [[0.9, 0.8]], [[0.9, 0.8, 0.8]], 1.0),
        (2, [[0.9, 0.799999]], [[0.9, 0.8, 0.8]], 1.0),
        (2, [[0.9, 0.7999]], [[0.9, 0.8, 0.8]], 0.5),
        # Of fewer than k, all are to be found.
        (3, [[0.9]], [[0.9, -1, -1]], 1.0),
        (3, [[]], [[0.9, 0.8, -1]], 0.0),
        # Of nothing, nothing is missing; and of several queries the mean counts.
        (3, [[]], [[-1, -1, -1]], 1.0),
        (1, [[0.9], [0.1]], [[0.9, 0.8], [0.9, 0.8]], 0.5),
        (1, [[0.1], []], [[0.9, 0.8], [-1, -1]], 0.0),
    ],
)
def test_recall_is_the_share_of_the_nearest_that_is_found(k, found, truth, recall):
    assert recall_at(k, found, np.array(truth, np.float32)) == recall


# --- Tuning ---


def tuned(library: Library, target: float) -> tuple[Scope, dict[int, int], list[Point], list[str]]:
    within = scope(library.space, ROWS)
    asked = asked_of(library, 30)
    truth = truths(library.space, [within.cutoff], asked)[within.cutoff]
    said: list[str] = []
    efforts, points = tune(library.space, within, asked, truth, target, said.append)
    return within, efforts, points, said


def numpys_recall(library: Library, within: Scope, queries: Queries, k: int, effort: int) -> float:
    shares = []
    for vector, own in zip(queries.vectors, queries.without, strict=True):
        hits = [hit.image_id for hit in by_index(library.space, vector, k, within, exclude=own, effort=effort)]
        shares.append(len(set(hits) & set(library.expected(vector, k, without=own))) / k)
    return float(np.mean(shares))


def test_the_effort_is_raised_until_both_kinds_of_query_meet_the_target(library):
    library.index(ROWS, strategy="ivfflat")

    within, efforts, points, said = tuned(library, 0.99)

    ladder = STRATEGIES["ivfflat"].efforts(ROWS)
    assert ladder == (1, 2)
    for k in KS:
        of_k = [point for point in points if point.k == k]
        tried = [point.effort for point in of_k if point.kind == TEXT]
        assert [(point.kind, point.effort) for point in of_k] == [(kind, e) for e in tried for kind in (IMAGE, TEXT)]
        assert tried == list(ladder[: len(tried)])
        assert efforts[k] == tried[-1]
        enough = [all(point.recall >= 0.9925 for point in of_k if point.effort == effort) for effort in tried]
        assert enough == [False] * (len(tried) - 1) + [True]
    # Texts are harder, and it is for them that both lists are looked at.
    assert efforts == {10: 2, 100: 2}
    assert said == [
        f"size {ROWS:,}: recall@{k} at effort {effort}: "
        + ", ".join(f"{point.kind} {point.recall:.4f}" for point in points if (point.k, point.effort) == (k, effort))
        for k in KS
        for effort in ladder
    ]
    measured_recall = {(point.kind, point.k, point.effort): point.recall for point in points}
    expected = {
        (queries.kind, k, effort): numpys_recall(library, within, queries, k, effort)
        for queries in asked_of(library, 30)
        for k in KS
        for effort in ladder
    }
    # Twins are as good as one another for recall; numpy's list has but one of two.
    assert measured_recall == pytest.approx(expected, abs=0.01)
    assert all(point.p50_ms > 0 for point in points)


def test_tuning_stops_at_the_first_effort_that_is_enough(library):
    library.index(ROWS, strategy="ivfflat")

    _, efforts, points, _ = tuned(library, 0.01)

    assert efforts == {10: 1, 100: 1}
    assert len(points) == 4


def test_an_effort_that_just_meets_the_target_is_not_enough_for_queries_that_were_not_tuned_with(library):
    library.index(ROWS, strategy="ivfflat")
    _, _, points, _ = tuned(library, 0.01)
    (least,) = {min(point.recall for point in points if point.k == 10)}

    _, efforts, _, _ = tuned(library, least)

    assert 0.5 < least < 1
    assert efforts[10] == 2


@pytest.fixture
def one_sign(store: Store) -> Library:
    """A space of which one bit a dimension says nothing: no vector has anything but positive numbers."""
    library = Library(store, np.abs(clip().images(ROWS)))
    library.index(ROWS, strategy="bit")
    return library


def test_where_no_effort_is_enough_the_largest_is_kept_and_what_it_found(one_sign):
    (found,), said = measure(one_sign, sizes=str(ROWS))

    ladder = STRATEGIES["bit"].efforts(ROWS)
    assert found.efforts == dict.fromkeys(KS, ladder[-1]) == scope(one_sign.space, ROWS).efforts
    assert not found.meets(found.target)
    assert list(found.recalls()) == [(kind, k) for k in KS for kind in (IMAGE, TEXT)]
    assert all(recall < 0.99 for recall in found.recalls().values())
    assert len([words for words in said if "recall@" in words]) == len(KS) * len(ladder)


# --- Measuring the sizes, and what searches make of it ---


def test_searches_go_by_the_effort_that_was_tuned(library):
    index(library)
    before = [scope(library.space, ROWS).effort(k) for k in (1, 10, 11, 100, 250)]

    found, _ = measure(library, recall_target=1)

    within = scope(library.space, ROWS)
    efforts = found[1].efforts
    assert before == [200] * 5
    assert within.efforts == efforts
    assert efforts[10] > 40
    asked = {k: Ask(clip().texts(1)[0], k, within) for k in (1, 5, 10, 11, 50, 100, 101, 200, 250)}
    expected = {k: efforts[10] if k <= 10 else efforts[100] if k <= 100 else -(-efforts[100] * k // 100) for k in asked}
    assert {k: explain(library.space, ask).effort for k, ask in asked.items()} == expected
    for k, ask in asked.items():
        with searching(library.space, ask, way_of(library.space, ask)) as connection:
            set_to = int(connection.scalar(text("SHOW hnsw.ef_search")))
        assert set_to == min(1_000, max(expected[k], STRATEGIES["hnsw"].candidates(k, expected[k])))


def test_recall_of_what_searches_use_meets_the_target(library):
    index(library, "ivfflat")

    found, said = measure(library)

    assert [(each.size, each.strategy, each.rows, each.target) for each in found] == [
        (300, "ivfflat", 300, 0.99),
        (ROWS, "ivfflat", ROWS, 0.99),
    ]
    assert all(each.meets(each.target) for each in found)
    assert [list(each.recalls()) for each in found] == [[(kind, k) for k in KS for kind in (IMAGE, TEXT)]] * 2
    within = scope(library.space, ROWS)
    assert library.recall(clip().texts(50), 10, within) >= 0.99
    assert said[0] == f"measuring with {IMAGE_QUERIES} image queries, 104 text queries"


def test_what_a_size_is_measured_with_says_nothing_of_itself(library):
    queries = image_queries(library.space, library.cutoff(ROWS))

    assert queries.without == tuple((str(name),) for name in library.ids[:IMAGE_QUERIES])
    np.testing.assert_allclose(queries.vectors, library.vectors[:IMAGE_QUERIES], atol=1e-7)


def test_a_size_without_an_index_is_measured_too(library):
    library.index(300, strategy="exact")

    (found,), _ = measure(library)

    assert (found.strategy, found.efforts, found.meets(1.0)) == ("exact", {}, True)
    assert found.recalls() == {(kind, k): 1.0 for kind in (IMAGE, TEXT) for k in KS}
    assert {point.effort for point in found.points} == {0}
    assert len(background(library.space, 300, TEXT)) == len(background(library.space, 300, IMAGE)) == 200


@pytest.mark.parametrize("images", [0, 1])
def test_of_less_than_two_images_nothing_is_measured(store, images):
    library = Library(store, clip().images(images))
    library.space.engine.dispose()
    if images:
        library.index(300)

    found, said = measure(library)

    assert found == []
    assert said == (["fewer than two images are embedded: there is nothing to measure recall with"] if images else [])


def test_what_was_measured_is_the_same_after_a_way_through_the_database(library):
    index(library)

    found, _ = measure(library)

    assert [SizeMeasures.of(each.as_json()) for each in found] == found
    assert [SizeMeasures.of(known.measures) for known in measured(library.space, (300, ROWS))] == found
    assert asdict(found[0])["prompts"] == ("{}",)


# --- Again ---


def measured_at(library: Library) -> list:
    return [known.measured_at for known in measured(library.space, (300, ROWS))]


def test_what_has_not_changed_is_not_measured_again(library):
    index(library)
    found, _ = measure(library)
    before = measured_at(library)

    again, said = measure(library)

    assert (again, said) == (found, [])
    assert measured_at(library) == before


def write_one(library: Library) -> None:
    vector = clip(seed=9).images(1)[0]
    library.space.write([Embedded(str(library.ids[3]), int(library.keys[3]), "d2", vector)], [])


def replace_index(library: Library) -> None:
    library.index(300, strategy="bit")


@pytest.mark.parametrize(
    ("change", "given", "again"),
    [
        (write_one, {}, [300, ROWS]),
        (lambda library: library.space.remove([str(library.ids[5])]), {}, [300, ROWS]),
        (replace_index, {}, [300]),
        (lambda library: library.index(ROWS, rebuild=True), {}, [ROWS]),
        (lambda _: None, {"recall_target": 0.5}, [300, ROWS]),
        (lambda _: None, {"prompts": "a photo of {}"}, [300, ROWS]),
    ],
)
def test_what_has_changed_is_measured_again(library, change, given, again):
    index(library)
    measure(library)
    before = measured_at(library)

    change(library)
    found, said = measure(library, **given)

    after = measured_at(library)
    sizes = [size for size, old, new in zip((300, ROWS), before, after, strict=True) if new != old]
    assert sizes == again
    assert said[0].startswith("measuring with ")
    assert all(each.target == given.get("recall_target", 0.99) for each in found)
    assert measure(library, **given)[1] == []


def test_a_change_while_it_is_measured_is_a_reason_to_measure_again(library, monkeypatch):
    index(library)
    really = measures.blocks

    def changed(space: EmbeddingSpace, cutoff: int) -> Iterator:
        yield from really(space, cutoff)
        write_one(library)

    monkeypatch.setattr("abo_pipeline.evaluation.blocks", changed)
    measure(library)
    monkeypatch.undo()

    assert measure(library)[1] != []


def test_nothing_is_kept_of_an_index_that_was_replaced_meanwhile(library):
    index(library)
    old = scope(library.space, 300).index_name
    replace_index(library)

    kept = keep(
        library.space,
        300,
        old,
        rows=300,
        efforts={10: 40},
        measures={"size": 300},
        background={TEXT: [0.5]},
        as_of=now(library.space),
    )

    known = measured(library.space, [300])
    assert not kept
    assert (known[0].measures, known[0].measured_at, scope(library.space, 300).efforts) == (None, None, {})
    assert len(background(library.space, 300, TEXT)) == 0


def test_what_is_kept_replaces_what_was(library):
    index(library)
    measure(library)
    as_of = now(library.space) + timedelta(days=1)
    name = scope(library.space, 300).index_name
    options = dict(rows=7, efforts={10: 77}, measures={"a": 1}, background={TEXT: [0.5, 0.25]}, as_of=as_of)

    assert keep(library.space, 300, name, **options)

    (known,) = measured(library.space, [300])
    assert (known.measures, known.measured_at) == ({"a": 1}, as_of)
    within = scope(library.space, 300)
    assert (within.efforts, within.rows) == ({10: 77}, 7)
    assert list(background(library.space, 300, TEXT)) == [0.25, 0.5]
    assert len(background(library.space, 300, IMAGE)) == 200


# --- How good a match is ---


@pytest.mark.parametrize(
    ("similarity", "share"), [(0.0, 0.0), (0.1, 0.0), (0.15, 0.25), (0.2, 0.25), (0.35, 0.75), (0.4, 0.75), (0.5, 1.0)]
)
def test_a_percentile_is_the_share_of_random_queries_that_found_less(similarity, share):
    assert percentile(np.array([0.1, 0.2, 0.3, 0.4]), similarity) == share


def test_without_a_background_there_is_no_percentile():
    assert percentile(np.array([]), 0.5) is None


def test_random_pictures_are_as_far_from_the_middle_as_pictures_are_and_like_none_of_them(library):
    index(library)
    measure(library)

    found = background(library.space, ROWS, IMAGE)

    to_the_next = truths(library.space, [library.cutoff(ROWS)], asked_of(library, 200), depth=1)
    nearest_to_pictures = to_the_next[library.cutoff(ROWS)][0][:, 0]
    between = library.vectors[:200] + np.roll(library.vectors[:200], 1, axis=0)
    between /= np.linalg.norm(between, axis=1, keepdims=True)
    assert (np.diff(found) >= 0).all()
    # Half of the pictures have a next one that is nearer than random ones have; what is like a picture, always.
    good = np.percentile(found, 95)
    assert np.mean(nearest_to_pictures > good) > 0.3
    assert np.mean([library.similarities(query).max() > good for query in clip().like_images(50)]) == 1
    assert np.mean([library.similarities(query).max() > good for query in clip(seed=3).images(50)]) == 0
