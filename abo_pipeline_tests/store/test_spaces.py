"""One space's rows: what is embedded, what has failed, and that every image is accounted for."""

import random
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import psycopg
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from abo_pipeline import catalog
from abo_pipeline.errors import StoreError
from abo_pipeline.sampling import LAST_KEY, partition_keys, partition_range, partition_starts, sample_key
from abo_pipeline.store import EmbeddingSpace, Store
from abo_pipeline.store.database import transaction
from abo_pipeline.store.schema import Failure
from abo_pipeline.store.spaces import Account, Adopted, Embedded, Failed, NormCheck, Reason
from benchmarks.stores import NamedOnly

DIMENSION = 3
NOTHING = Account(kept=0, embedded=0, failed=0, pending=0, departed=0)


@dataclass(frozen=True)
class NamedEncoder(NamedOnly):
    """What opening a space asks of a model: who it is. Embedding is not tested here."""

    fingerprint: str = "0011223344556677"
    dimension: int = DIMENSION
    model: str = "clip-test"
    device: str = "cpu"


@pytest.fixture
def space(store: Store) -> EmbeddingSpace:
    return store.open_space("clip", NamedEncoder())


def write_images(store: Store, images: Iterable[tuple[str, int, str]]) -> None:
    """A catalogue from (image_id, sample_key, digest)."""
    store.write_images(
        pl.DataFrame(
            [(image_id, f"{image_id}.jpg", 1000, 1000, key, 0, 1, digest) for image_id, key, digest in images],
            schema=catalog.SCHEMA,
            orient="row",
        )
    )


def embedded(image_id: str, key: int = 0, digest: str = "d1", vector: Iterable[float] = (1, 0, 0)) -> Embedded:
    return Embedded(image_id, key, digest, np.array(vector, np.float32))


def failed(
    image_id: str,
    key: int = 0,
    digest: str = "d1",
    stage: str = "decode",
    error_type: str = "OSError",
    message: str = "it is truncated",
) -> Failed:
    return Failed(image_id, key, digest, stage, error_type, message)


def stored(space: EmbeddingSpace) -> dict[str, list[tuple]]:
    """All rows of a space; of the failures everything but the time."""
    columns = [column for column in Failure.__table__.columns if column.name != "failed_at"]
    with transaction(space.engine) as connection:
        vectors = connection.execute(select(space.table).order_by("image_id"))
        failures = connection.execute(select(*columns).where(Failure.space == space.name).order_by("image_id"))
        return {
            "vectors": [(*row[:4], list(row[4])) for row in vectors],
            "failures": [tuple(row) for row in failures],
        }


# --- Writing ---


def test_a_batch_becomes_vectors_and_failures(space):
    space.write([embedded("a", 1, vector=(0.6, 0.8, 0)), embedded("b", 2)], [failed("c", 3, "d3")])

    assert stored(space) == {
        "vectors": [
            ("a", 1, "d1", "0011223344556677", [np.float32(0.6), np.float32(0.8), 0.0]),
            ("b", 2, "d1", "0011223344556677", [1.0, 0.0, 0.0]),
        ],
        "failures": [("clip", "c", 3, "d3", "decode", "OSError", "it is truncated")],
    }


def test_an_empty_batch_writes_nothing(space):
    space.write([], [])

    assert stored(space) == {"vectors": [], "failures": []}


def test_a_batch_written_again_is_left_alone(space):
    batch = [embedded("a", 1), embedded("b", 2)]
    space.write(batch, [])
    with transaction(space.engine) as connection:
        before = connection.execute(text("SELECT image_id, ctid, xmin FROM embeddings_clip")).all()

    space.write(batch, [])

    with transaction(space.engine) as connection:
        assert connection.execute(text("SELECT image_id, ctid, xmin FROM embeddings_clip")).all() == before


def test_other_bytes_replace_the_vector(space):
    space.write([embedded("a"), embedded("b")], [])

    space.write([embedded("a", digest="d2", vector=(0, 1, 0))], [])

    assert stored(space)["vectors"] == [
        ("a", 0, "d2", "0011223344556677", [0.0, 1.0, 0.0]),
        ("b", 0, "d1", "0011223344556677", [1.0, 0.0, 0.0]),
    ]


def test_a_failure_that_comes_again_is_told_with_its_newest_reason(space):
    space.write([], [failed("a", stage="read", message="first")])

    space.write([], [failed("a", digest="d2", stage="encode", error_type="ImageError", message="second")])

    assert stored(space) == {
        "vectors": [],
        "failures": [("clip", "a", 0, "d2", "encode", "ImageError", "second")],
    }


def test_an_image_that_fails_loses_its_vector_and_one_that_is_embedded_its_failure(space):
    space.write([embedded("a"), embedded("b")], [failed("c"), failed("d")])

    space.write([embedded("c")], [failed("a")])

    assert [row[0] for row in stored(space)["vectors"]] == ["b", "c"]
    assert [row[1] for row in stored(space)["failures"]] == ["a", "d"]


def test_two_at_once_with_different_outcomes_leave_one_of_them(store, space):
    write_images(store, [("a", 0, "d1"), ("b", 1, "d1")])
    outcomes = [
        ([embedded("a"), embedded("b", 1)], []),
        ([], [failed("b", 1), failed("a")]),
    ]

    with ThreadPoolExecutor(2) as threads:
        for _ in range(40):
            start = threading.Barrier(2)

            def write(outcome, start=start):
                start.wait()
                space.write(*outcome)

            for done in [threads.submit(write, outcome) for outcome in outcomes]:
                done.result()

            assert space.account().settled


def test_new_images_among_known_ones_are_added_and_the_known_left_alone(space):
    space.write([embedded("a", 1), embedded("b", 2), embedded("it's", 3)], [])
    versions = text("SELECT image_id, ctid, xmin FROM embeddings_clip WHERE image_id IN ('a', 'it''s')")
    with transaction(space.engine) as connection:
        before = connection.execute(versions).all()

    space.write([embedded("c", 4), embedded("a", 1), embedded("b", 2, "d2"), embedded("it's", 3)], [])

    assert [row[:3] for row in stored(space)["vectors"]] == [
        ("a", 1, "d1"),
        ("b", 2, "d2"),
        ("c", 4, "d1"),
        ("it's", 3, "d1"),
    ]
    with transaction(space.engine) as connection:
        assert connection.execute(versions).all() == before


def test_an_image_that_comes_twice_in_a_batch_leaves_all_as_it_was(space):
    space.write([embedded("a")], [failed("b")])
    before = stored(space)

    with pytest.raises(psycopg.errors.UniqueViolation):
        space.write([embedded("b"), embedded("c"), embedded("c", digest="d2")], [])

    assert stored(space) == before


def test_two_at_once_take_turns_also_over_images_that_are_not_in_the_catalogue(space):
    images = [embedded(f"{number}", number * 2**57) for number in range(64)]
    failures = [failed(image.image_id, image.sample_key) for image in reversed(images)]
    outcomes = [(images, []), (images[::-1], []), ([], failures)]

    with ThreadPoolExecutor(3) as threads:
        for _ in range(15):
            start = threading.Barrier(3)

            def write(outcome, start=start):
                start.wait()
                space.write(*outcome)

            for done in [threads.submit(write, outcome) for outcome in outcomes]:
                done.result()

            found = stored(space)
            assert sorted([len(found["vectors"]), len(found["failures"])]) == [0, 64]


def test_a_batch_looks_at_its_own_rows_however_the_table_has_grown(store):
    # Rows as large as real ones: small ones would rightly be read all at once.
    space = store.open_space("clip", NamedEncoder(dimension=512))
    images = [embedded(f"{number}", number, vector=np.ones(512) / np.sqrt(512)) for number in range(3_000)]

    # A statement that comes often keeps the plan that it has by then.
    for first in range(20):
        space.write(images[first : first + 1], [])
        with transaction(space.engine) as connection:
            connection.execute(text("ANALYZE embeddings_clip"))
    for first in range(20, 3_000, 50):
        space.write(images[first : first + 50], [])

    with transaction(space.engine) as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with transaction(space.engine) as connection:
        read = text("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relid = to_regclass('embeddings_clip')")
        # Reading all that is there for each batch would be 90,000.
        assert connection.scalar(read) < 20_000


def test_any_array_of_numbers_is_stored_as_single_precision(space):
    vectors = [np.array([0.6, 0.8, 0]), np.array([0, 9, 0.6, 9, 0.8, 9], np.float16)[::2], np.array([0, 0, 1])]

    space.write([Embedded(f"{number}", 0, "d1", vector) for number, vector in enumerate(vectors)], [])

    assert [row[4] for row in stored(space)["vectors"]] == [vector.astype(np.float32).tolist() for vector in vectors]


def test_a_vector_of_another_length_is_refused_with_both_lengths(space):
    with pytest.raises(StoreError) as refused:
        space.write([embedded("a"), embedded("b", vector=(1, 0, 0, 0))], [])

    assert str(refused.value) == "The vector of b has 4 dimensions; space clip has 3."
    assert stored(space) == {"vectors": [], "failures": []}


def test_a_matrix_is_no_vector(space):
    image = Embedded("a", 0, "d1", np.ones((1, DIMENSION), np.float32))

    with pytest.raises(StoreError, match="The vector of a "):
        space.write([image], [])


@pytest.mark.parametrize("bad", [(np.nan, 0, 0), (np.inf, 0, 0)])
def test_one_bad_vector_among_good_ones_leaves_all_as_it_was(space, bad):
    space.write([embedded("a")], [failed("b")])
    before = stored(space)

    with pytest.raises(StoreError, match="The vector of d holds a number that is not finite; nothing was written"):
        space.write([embedded("b"), embedded("c"), embedded("d", vector=bad)], [failed("a"), failed("e")])

    assert stored(space) == before


def test_one_bad_failure_among_good_rows_leaves_all_as_it_was(space):
    space.write([embedded("a")], [failed("b")])
    before = stored(space)

    with pytest.raises(DBAPIError, match="out of range"):
        space.write([embedded("b"), embedded("c")], [failed("a"), failed("d", key=2**63)])

    assert stored(space) == before


def test_of_vectors_made_elsewhere_those_are_taken_that_the_catalogue_has_with_the_same_bytes(store, space):
    write_images(store, [(name, key, "d1") for key, name in enumerate("abcde")])
    space.write([embedded("a"), embedded("b", 1, digest="d0")], [failed("c", 2)])

    elsewhere = [
        embedded("a", 0, vector=(0, 1, 0)),
        embedded("b", 1, vector=(0, 1, 0)),
        embedded("c", 2, vector=(0, 1, 0)),
        embedded("d", 3, digest="d2"),
        embedded("x", 9),
    ]
    adopted = [space.adopt(elsewhere), space.adopt(elsewhere)]

    assert adopted == [
        Adopted(accepted=2, unchanged=1, unknown=1, other_bytes=1),
        Adopted(accepted=0, unchanged=3, unknown=1, other_bytes=1),
    ]
    assert stored(space) == {
        "vectors": [
            ("a", 0, "d1", "0011223344556677", [1.0, 0.0, 0.0]),
            ("b", 1, "d1", "0011223344556677", [0.0, 1.0, 0.0]),
            ("c", 2, "d1", "0011223344556677", [0.0, 1.0, 0.0]),
        ],
        "failures": [],
    }


def test_only_a_vector_that_is_taken_counts_as_a_change(store, space):
    write_images(store, [("a", 0, "d1")])
    times = [space.changed_at()]
    for image in (embedded("x"), embedded("a"), embedded("a")):
        space.adopt([image])
        times.append(space.changed_at())

    assert times[0] == times[1] < times[2] == times[3]


def test_a_vector_made_elsewhere_of_another_length_is_refused(store, space):
    write_images(store, [("a", 0, "d1"), ("b", 0, "d1")])

    with pytest.raises(StoreError, match="The vector of b has 4 dimensions; space clip has 3"):
        space.adopt([embedded("a"), embedded("b", vector=(1, 0, 0, 0))])

    assert stored(space) == {"vectors": [], "failures": []}


def test_a_run_and_an_import_at_once_leave_one_outcome(store, space):
    write_images(store, [("a", 0, "d1"), ("b", 1, "d1")])
    work = [
        lambda: space.adopt([embedded("a"), embedded("b", 1)]),
        lambda: space.write([], [failed("b", 1), failed("a")]),
    ]

    with ThreadPoolExecutor(2) as threads:
        for _ in range(40):
            start = threading.Barrier(2)

            def at_once(task, start=start):
                start.wait()
                task()

            for done in [threads.submit(at_once, task) for task in work]:
                done.result()

            assert space.account().settled


def test_spaces_do_not_touch_one_another(store, space):
    other = store.open_space("other", NamedEncoder("8899aabbccddeeff"))
    space.write([embedded("a"), embedded("c")], [failed("b"), failed("d")])
    before = stored(space)

    other.write([embedded("b")], [failed("a")])
    other.remove(["a", "b", "c", "d"])

    assert stored(space) == before
    assert stored(other) == {"vectors": [], "failures": []}


def test_forgetting_takes_the_images_named_and_no_others(space):
    space.write([embedded("a"), embedded("it's")], [failed("c"), failed("d")])

    space.remove(["a", "c", "never seen"])
    space.remove([])

    assert [row[0] for row in stored(space)["vectors"]] == ["it's"]
    assert [row[1] for row in stored(space)["failures"]] == ["d"]


# --- What is known ---


def test_what_is_known_of_a_range_of_keys_includes_both_ends(space):
    space.write(
        [embedded("a", 0), embedded("b", 10, "d2"), embedded("c", 20)], [failed("d", 10), failed("e", LAST_KEY, "d5")]
    )

    def known(first: int, last: int) -> tuple[set[tuple], set[tuple]]:
        vectors, failures = space.known(first, last)
        return set(vectors.rows()), set(failures.rows())

    assert known(0, LAST_KEY) == ({("a", "d1"), ("b", "d2"), ("c", "d1")}, {("d", "d1"), ("e", "d5")})
    assert known(1, 10) == ({("b", "d2")}, {("d", "d1")})
    assert known(10, 20) == ({("b", "d2"), ("c", "d1")}, {("d", "d1")})


def test_what_is_known_of_nothing_can_be_compared_with_a_catalogue(space):
    frames = space.known(0, LAST_KEY)

    assert [frame.schema for frame in frames] == [{"image_id": pl.String, "digest": pl.String}] * 2
    assert [len(frame) for frame in frames] == [0, 0]


def test_coverage_counts_up_to_the_cutoff_and_including_it(store, space):
    write_images(store, [("a", 0, "d1"), ("b", 10, "d1"), ("c", 20, "d1")])
    space.write([embedded("a", 0), embedded("b", 10)], [failed("c", 20)])

    coverage = [space.coverage(cutoff) for cutoff in (0, 9, 10, 20, LAST_KEY)]

    assert coverage == [(1, 1), (1, 1), (2, 2), (2, 3), (2, 3)]


def test_lengths_are_checked_of_a_range_of_keys(space):
    space.write(
        [
            embedded("a", 0),
            embedded("b", 10, vector=(0.6, 0.8, 0)),
            embedded("c", 20, vector=(0.5, 0, 0)),
            embedded("d", 30, vector=(0, 1.001, 0)),
        ],
        [],
    )

    checks = [space.check_norms(*asked) for asked in ((0, 10, 1e-3), (0, 30, 0.01), (0, 30, 1e-4), (40, 50, 1e-3))]

    assert checks == [
        NormCheck(vectors=2, off_unit=0, shortest=pytest.approx(1), longest=pytest.approx(1)),
        NormCheck(vectors=4, off_unit=1, shortest=0.5, longest=pytest.approx(1.001)),
        NormCheck(vectors=4, off_unit=2, shortest=0.5, longest=pytest.approx(1.001)),
        NormCheck(vectors=0, off_unit=0, shortest=None, longest=None),
    ]


def test_failures_are_summed_up_by_reason_most_frequent_first(space):
    space.write(
        [],
        [
            failed("f", 1, message="broken at 9"),
            failed("b", 2, message="broken at 7"),
            failed("a", 3, stage="read", error_type="ImageError", message="too large"),
            failed("c", 4, stage="decode", error_type="ImageError", message="too many pixels"),
            failed("z", 99, message="out of range"),
        ],
    )

    assert space.failures_by_reason(0, 50) == [
        Reason("decode", "OSError", 2, "b: broken at 7"),
        Reason("decode", "ImageError", 1, "c: too many pixels"),
        Reason("read", "ImageError", 1, "a: too large"),
    ]
    assert space.failures_by_reason(50, 60) == []


# --- Accounts ---


def test_an_account_counts_every_image_once(store, space):
    write_images(store, [("a", 0, "d1"), ("b", 1, "d1"), ("c", 2, "d1"), ("d", 3, "new"), ("e", 4, "new")])
    space.write([embedded("a", 0), embedded("d", 3, "old"), embedded("gone", 9)], [failed("b", 1), failed("e", 4)])

    account = space.account()

    assert account == Account(kept=5, embedded=1, failed=1, pending=3, departed=1)
    assert (account.balances, account.settled) == (True, False)


def test_an_account_is_settled_when_nothing_is_left_to_do(store, space):
    write_images(store, [("a", 0, "d1"), ("b", 1, "d1")])
    space.write([embedded("a", 0)], [failed("b", 1)])

    account = space.account()

    assert account == Account(kept=2, embedded=1, failed=1, pending=0, departed=0)
    assert (account.balances, account.settled) == (True, True)


def test_an_empty_catalogue_has_an_empty_account(space):
    assert space.accounts(partition_starts(3)) == [NOTHING] * 3
    assert NOTHING.settled


@pytest.mark.parametrize("partitions", [1, 3, 7, 64])
def test_an_image_at_the_very_edge_is_counted_in_the_partition_that_embeds_it(store, space, partitions):
    edges = [partition_range(key) for key in partition_keys(partitions)]
    write_images(store, [(f"{key:x}", key, "d1") for key in sorted({key for edge in edges for key in edge})])
    # All images at a range's beginning are embedded, all at an end have failed: each partition has one of both.
    space.write([embedded(f"{first:x}", first) for first, _ in edges], [failed(f"{last:x}", last) for _, last in edges])

    accounts = space.accounts(partition_starts(partitions))
    known = [tuple(frame["image_id"].to_list() for frame in space.known(*edge)) for edge in edges]

    assert accounts == [Account(kept=2, embedded=1, failed=1, pending=0, departed=0)] * partitions
    assert known == [([f"{first:x}"], [f"{last:x}"]) for first, last in edges]


@dataclass
class Books:
    """What the rows ought to say, kept by hand: sample key and digest of each image in each of three places."""

    catalogue: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def account(self, first: int, last: int) -> Account:
        here = [image for image in self.catalogue if first <= sample_key(image) <= last]
        return Account(
            kept=len(here),
            embedded=sum(self.vectors.get(image) == self.catalogue[image] for image in here),
            failed=sum(self.failures.get(image) == self.catalogue[image] for image in here),
            pending=sum(
                self.catalogue[image] not in (self.vectors.get(image), self.failures.get(image)) for image in here
            ),
            departed=sum(first <= sample_key(image) <= last for image in self.departed),
        )

    @property
    def departed(self) -> list[str]:
        return sorted((self.vectors.keys() | self.failures.keys()) - self.catalogue.keys())


class History:
    """Random things that happen to a catalogue and a space, entered into the rows and into the books."""

    def __init__(self, store: Store, space: EmbeddingSpace, seed: int) -> None:
        self.store, self.space, self.random = store, space, random.Random(seed)  # noqa: S311 - no secrets, the same history every time
        self.ids = [f"{number:08x}" for number in range(40)]
        self.books = Books()
        self.steps = [
            (6, self.add_images),
            (3, self.change_bytes),
            (2, self.remove_images),
            (6, self.embed_and_fail),
            (2, self.embed_bytes_that_have_changed_meanwhile),
            (3, self.retry_failures),
            (1, self.forget_departed),
        ]

    def step(self) -> str:
        weights, steps = zip(*self.steps, strict=True)
        (step,) = self.random.choices(steps, weights)
        step()
        return step.__name__

    def add_images(self) -> None:
        self._write_catalogue({image: "d0" for image in self._some(self.ids) if image not in self.books.catalogue})

    def change_bytes(self) -> None:
        self._write_catalogue({image: self._digest() for image in self._some(self.books.catalogue)})

    def remove_images(self) -> None:
        for image in self._some(self.books.catalogue):
            del self.books.catalogue[image]
        self._write_catalogue({})

    def embed_and_fail(self) -> None:
        batch = self._some(self.books.catalogue)
        cut = self.random.randint(0, len(batch))
        self._write(
            {image: self.books.catalogue[image] for image in batch[:cut]},
            {image: self.books.catalogue[image] for image in batch[cut:]},
        )

    def embed_bytes_that_have_changed_meanwhile(self) -> None:
        self._write({image: self._digest() for image in self._some(self.books.catalogue)}, {})

    def retry_failures(self) -> None:
        failures = self._some(self.books.failures)
        self._write({image: self.books.failures[image] for image in failures}, {})

    def forget_departed(self) -> None:
        departed = self.books.departed
        self.space.remove(departed)
        for image in departed:
            self.books.vectors.pop(image, None)
            self.books.failures.pop(image, None)

    def _some(self, images: Iterable[str]) -> list[str]:
        images = sorted(images)
        return self.random.sample(images, min(len(images), self.random.randint(1, 6)))

    def _digest(self) -> str:
        return f"d{self.random.randint(0, 3)}"

    def _write_catalogue(self, changes: dict[str, str]) -> None:
        self.books.catalogue |= changes
        write_images(self.store, [(image, sample_key(image), digest) for image, digest in self.books.catalogue.items()])

    def _write(self, vectors: dict[str, str], failures: dict[str, str]) -> None:
        self.space.write(
            [embedded(image, sample_key(image), digest) for image, digest in vectors.items()],
            [failed(image, sample_key(image), digest) for image, digest in failures.items()],
        )
        self.books.vectors = {i: d for i, d in self.books.vectors.items() if i not in failures} | vectors
        self.books.failures = {i: d for i, d in self.books.failures.items() if i not in vectors} | failures


@pytest.mark.parametrize("seed", [1, 2])
def test_after_whatever_happens_each_partition_is_accounted_for(store, space, seed):
    history, happened = History(store, space, seed), []
    starts = partition_starts(3)
    edges = [partition_range(key) for key in partition_keys(3)]

    for _ in range(120):
        happened.append(history.step())

        accounts = space.accounts(starts)
        vectors, failures = space.known(0, LAST_KEY)
        assert accounts == [history.books.account(*edge) for edge in edges], happened
        assert all(account.balances for account in accounts), happened
        assert dict(vectors.rows()) == history.books.vectors, happened
        assert dict(failures.rows()) == history.books.failures, happened
        assert not history.books.vectors.keys() & history.books.failures.keys(), happened

    assert len(set(happened)) == 7
