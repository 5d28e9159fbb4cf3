"""Fixed queries: what is recorded, and how a recording is compared with the one before."""

import pytest

from abo_pipeline.golden import Change, changes, mean_overlap
from abo_pipeline.store import golden
from abo_pipeline.store.golden import last_recording, record
from benchmarks.stores import NamedOnly


class Encoder(NamedOnly):
    model, fingerprint, dimension = "none", "f00", 3


@pytest.fixture
def space(store):
    return store.open_space("colours", Encoder())


def hits(ids: str) -> list[tuple[str, float]]:
    return [(image_id, 1 - rank / 10) for rank, image_id in enumerate(ids)]


def test_answers_are_compared_query_by_query_and_size_by_size():
    before = {(10, "red"): hits("abcd"), (10, "gone"): hits("x")}
    now = {(10, "red"): hits("axbd"), (20, "red"): hits("a")}

    assert changes(now, before) == [
        Change("red", 10, 4, overlap=0.75, newcomers=("x",), gone=("c",), best_similarity=1.0),
        Change("red", 20, 1, overlap=None, newcomers=(), gone=(), best_similarity=1.0),
    ]


def test_hits_that_are_fewer_than_before_are_gone_and_not_forgotten():
    (change,) = changes({(10, "red"): []}, {(10, "red"): hits("ab")})

    assert (change.overlap, change.gone, change.best_similarity) == (0.0, ("a", "b"), None)


def test_the_mean_is_over_the_queries_of_a_size_that_had_been_recorded():
    found = changes(
        {(10, "red"): hits("ab"), (10, "blue"): hits("cd"), (10, "new"): hits("e"), (20, "red"): hits("ab")},
        {(10, "red"): hits("ab"), (10, "blue"): hits("ce")},
    )

    assert mean_overlap(found, 10) == 0.75
    assert mean_overlap(found, 20) is None


def test_the_last_recording_is_what_was_recorded_last(space):
    assert last_recording(space) is None
    record(space, {(10, "red"): hits("ab")})
    newest = record(space, {(10, "red"): hits("ba"), (20, "blue"): hits("c")})

    assert last_recording(space) == newest


def test_recordings_of_two_spaces_are_apart(space, store):
    other = store.open_space("others", Encoder())
    record(other, {(10, "red"): hits("ab")})

    assert last_recording(space) is None


def test_only_the_last_recordings_are_kept(space, store, monkeypatch):
    monkeypatch.setattr(golden, "KEPT_RECORDINGS", 3)
    other = store.open_space("others", Encoder())
    kept_apart = record(other, {(10, "red"): hits("z")})

    times = [record(space, {(10, "red"): hits("ab")}).recorded_at for _ in range(5)]

    with store.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT DISTINCT recorded_at FROM golden_hits WHERE space = 'colours' ORDER BY 1"
        ).scalars()
        assert list(found) == times[2:]
    assert last_recording(other) == kept_apart
