"""One partition at a time: real archives, a real database, and a model that can be counted."""

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sqlalchemy import text

from abo_pipeline import embedding
from abo_pipeline.archive import Archive
from abo_pipeline.catalog import read_catalogue
from abo_pipeline.decoding import decode
from abo_pipeline.embedding import Limits, Tally, embed_partition
from abo_pipeline.errors import ArchiveError, ImageError, StoreError
from abo_pipeline.sampling import partition_range
from abo_pipeline.store import EmbeddingSpace, Store
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.fakes import ColourEncoder
from abo_pipeline_tests.threads import at_work

WHOLE = "00of1"
FILES = {f"{n:02x}/{n:08x}.jpg": jpeg((n * 9 % 256, 80, 255 - n * 9 % 256)) for n in range(25)}


@dataclass
class Bench:
    """A store and a folder to run partitions in."""

    store: Store
    folder: Path
    encoder: ColourEncoder

    def run(
        self,
        files: Mapping[str, bytes],
        partition: str = WHOLE,
        *,
        batch_size: int = 10,
        limits: Limits | None = None,
        **what: Any,
    ) -> Tally:
        limits = limits or Limits(max_file_bytes=100_000, max_pixels=1_000_000)
        with Archive.open(write_images(self.folder / "images.tar", files)) as archive:
            kept = read_catalogue(archive, min_side=1000).kept
            self.store.write_images(kept)
            return embed_partition(
                partition,
                kept,
                archive,
                self.encoder,
                self.space,
                limits=limits,
                batch_size=batch_size,
                **what,
            )

    @property
    def space(self) -> EmbeddingSpace:
        return self.store.open_space("colours", self.encoder)

    def rows(self) -> pl.DataFrame:
        with self.store.engine.connect() as connection:
            query = text("SELECT image_id, digest, xmin::text AS version FROM embeddings_colours ORDER BY image_id")
            return pl.DataFrame([dict(row) for row in connection.execute(query).mappings()])

    def vectors(self) -> dict[str, list[float]]:
        with self.store.engine.connect() as connection:
            rows = connection.execute(text("SELECT image_id, embedding FROM embeddings_colours")).all()
        return {image_id: vector.to_list() for image_id, vector in rows}

    def expected(self, files: Mapping[str, bytes]) -> list[list[float]]:
        """The vector of each file by its name, one after another; empty for what is no picture."""
        found = []
        for name in sorted(files):
            try:
                picture = decode(files[name], max_pixels=10**6)
            except ImageError:
                found.append([])
            else:
                found.append(ColourEncoder().encode_images([picture])[0].tolist())
        return found

    def failures(self) -> list[tuple[str, str, str, str]]:
        with self.store.engine.connect() as connection:
            query = text("SELECT image_id, stage, error_type, message FROM failures ORDER BY image_id")
            return [tuple(row) for row in connection.execute(query)]


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path, ColourEncoder())


def counts(tally: Tally) -> dict[str, int]:
    names = ("kept", "unchanged", "known_failures", "embedded", "failed", "removed")
    return {name: getattr(tally, name) for name in names}


def test_every_image_gets_one_vector_in_batches_of_the_asked_size(bench):
    tally = bench.run(FILES, batch_size=10)

    assert counts(tally) == dict(kept=25, unchanged=0, known_failures=0, embedded=25, failed=0, removed=0)
    assert bench.encoder.batches == [10, 10, 5]
    assert bench.rows()["image_id"].to_list() == [f"{n:08x}" for n in range(25)]
    assert bench.space.account().settled


def test_a_vector_is_the_one_of_its_own_image(bench):
    colours = {"red": jpeg("red"), "blue": jpeg("blue"), "bad": b"no", "lime": jpeg("lime")}

    bench.run({f"aa/{name}.jpg": data for name, data in colours.items()})

    with bench.store.engine.connect() as connection:
        rows = connection.execute(text("SELECT image_id, embedding FROM embeddings_colours")).all()

    strongest = {image_id: int(np.argmax(vector.to_list())) for image_id, vector in rows}
    assert strongest == {"red": 0, "lime": 1, "blue": 2}


def test_running_again_embeds_nothing_and_touches_no_row(bench):
    bench.run(FILES)
    before = bench.rows()

    tally = bench.run(FILES)

    assert counts(tally) == dict(kept=25, unchanged=25, known_failures=0, embedded=0, failed=0, removed=0)
    assert len(bench.encoder.batches) == 3
    assert bench.rows().equals(before)


def test_only_what_is_new_changed_or_gone_is_worked_on(bench):
    bench.run(FILES)
    before = bench.rows()
    names = list(FILES)
    changed = {name: data for name, data in FILES.items() if name != names[0]}
    changed[names[1]] = jpeg("lime")
    changed["ff/new.jpg"] = jpeg("white")

    tally = bench.run(changed)

    assert counts(tally) == dict(kept=25, unchanged=23, known_failures=0, embedded=2, failed=0, removed=1)
    untouched = [Path(name).stem for name in names[2:]]
    after = bench.rows()
    assert after.filter(pl.col("image_id").is_in(untouched)).equals(before.filter(pl.col("image_id").is_in(untouched)))
    assert set(after["image_id"]) == {*untouched, Path(names[1]).stem, "new"}


def test_a_file_that_moved_in_the_archive_is_not_embedded_again(bench):
    bench.run(FILES)

    tally = bench.run({"00/first.jpg": jpeg("white", (64, 64)), **FILES})

    assert (tally.embedded, tally.unchanged) == (1, 25)


def test_a_bad_file_costs_itself_and_says_why(bench):
    good = jpeg("green", (64, 64))
    files = {
        "00/good.jpg": good,
        "01/empty.jpg": b"",
        "02/text.jpg": b"<html>not here</html>",
        "03/cut.jpg": good[: len(good) // 2],
        "04/huge.jpg": jpeg("green", (2000, 2000)),
        "05/heavy.jpg": good + bytes(100_001),
        "06/fine.jpg": jpeg("blue"),
    }

    tally = bench.run(files)

    assert counts(tally) == dict(kept=7, unchanged=0, known_failures=0, embedded=2, failed=5, removed=0)
    assert bench.rows()["image_id"].to_list() == ["fine", "good"]
    assert [(image_id, stage) for image_id, stage, _, _ in bench.failures()] == [
        ("cut", "decode"),
        ("empty", "decode"),
        ("heavy", "read"),
        ("huge", "decode"),
        ("text", "decode"),
    ]
    messages = {image_id: (error, message) for image_id, _, error, message in bench.failures()}
    assert messages["empty"] == ("ImageError", "the file is empty")
    assert messages["text"] == ("ImageError", "not a picture: it begins with b'<html>no'")
    assert messages["huge"] == ("ImageError", "2000×2000 pixels are more than the limit of 1,000,000")
    assert messages["heavy"] == (
        "ImageError",
        f"its file of {len(good) + 100_001:,} bytes is over the limit of 100,000 (ABO_MAX_FILE_BYTES)",
    )
    assert messages["cut"][0] == "OSError"
    assert messages["cut"][1].startswith("cannot be decoded: ")
    account = bench.space.account()
    assert (account.kept, account.embedded, account.failed, account.pending) == (7, 2, 5, 0)


def test_a_batch_of_only_bad_files_is_fine(bench):
    bench.run({f"{n:02}/bad{n}.jpg": b"bad" for n in range(12)}, batch_size=4)

    assert bench.encoder.batches == []
    assert len(bench.failures()) == 12


def test_a_picture_without_direction_is_a_failure_of_the_model(bench):
    bench.encoder.aimless = frozenset({(48, 48)})

    tally = bench.run({"00/lost.jpg": jpeg("red", (48, 48)), "01/found.jpg": jpeg("red")})

    assert (tally.embedded, tally.failed) == (1, 1)
    assert bench.failures() == [
        ("lost", "encode", "ImageError", "the model gives it a vector without a direction (zero or not finite)")
    ]


def test_a_known_failure_is_left_alone_until_its_file_changes_or_a_retry_is_asked_for(bench):
    files = {"00/bad.jpg": b"bad", "01/good.jpg": jpeg()}
    bench.run(files)

    again = bench.run(files)
    retried = bench.run(files, retry_failures=True)
    mended = bench.run({**files, "00/bad.jpg": jpeg("blue")})

    assert counts(again) == dict(kept=2, unchanged=1, known_failures=1, embedded=0, failed=0, removed=0)
    assert counts(retried) == dict(kept=2, unchanged=1, known_failures=0, embedded=0, failed=1, removed=0)
    assert counts(mended) == dict(kept=2, unchanged=1, known_failures=0, embedded=1, failed=0, removed=0)
    assert bench.failures() == []


def test_an_image_that_was_good_and_is_now_bad_loses_its_vector(bench):
    bench.run({"00/a.jpg": jpeg(), "01/b.jpg": jpeg("blue")})

    bench.run({"00/a.jpg": b"bad", "01/b.jpg": jpeg("blue")})

    assert bench.rows()["image_id"].to_list() == ["b"]
    assert [failure[0] for failure in bench.failures()] == ["a"]


def test_a_partition_leaves_its_neighbours_alone(bench):
    tallies = [bench.run(FILES, f"{n:02}of4") for n in range(3)]

    accounts = bench.space.accounts([partition_range(f"{n:02}of4")[0] for n in range(4)])
    assert sum(tally.embedded for tally in tallies) == 25 - accounts[3].kept
    assert [account.pending for account in accounts] == [0, 0, 0, accounts[3].kept]
    assert accounts[3].kept > 0


def test_partitions_may_be_cut_differently_without_embedding_again(bench):
    bench.run(FILES)

    tallies = [bench.run(FILES, f"{n:02}of7") for n in range(7)]

    assert sum(tally.unchanged for tally in tallies) == 25
    assert sum(tally.embedded for tally in tallies) == 0


def test_a_run_that_is_interrupted_keeps_its_committed_batches_and_the_next_one_does_the_rest(bench, monkeypatch):
    encode = bench.encoder.encode_images

    def fail_at_the_third(images):
        if len(bench.encoder.batches) == 2:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(bench.encoder, "encode_images", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        bench.run(FILES, batch_size=10)
    monkeypatch.undo()
    assert len(bench.rows()) == 20

    tally = bench.run(FILES, batch_size=10)

    assert (tally.unchanged, tally.embedded) == (20, 5)
    assert bench.space.account().settled


def test_a_model_of_another_length_is_refused_with_both_numbers(bench):
    bench.run(FILES)
    bench.encoder = ColourEncoder(model="other-colours", fingerprint="0dd0dd0dd0dd0dd0", dimension=5)

    with pytest.raises(StoreError) as caught:
        bench.run(FILES)

    assert str(caught.value) == (
        "Space colours holds vectors of mean-colour (fingerprint c0104f00c0104f00), and other-colours has fingerprint "
        "0dd0dd0dd0dd0dd0, with 3 and 5 dimensions: they cannot be compared. Use that model, or name another space "
        "with --space (ABO_SPACE)."
    )


def test_progress_is_told_after_every_batch(bench):
    told: list[tuple[int, int]] = []
    with Archive.open(write_images(bench.folder / "images.tar", FILES)) as archive:
        kept = read_catalogue(archive, min_side=1000).kept
        bench.store.write_images(kept)
        embed_partition(
            WHOLE,
            kept,
            archive,
            bench.encoder,
            bench.space,
            limits=Limits(10**6, 10**6),
            batch_size=10,
            progress=lambda tally: told.append((tally.done, tally.to_do)),
        )

    assert told == [(0, 25), (10, 25), (20, 25), (25, 25)]


# --- The same bytes ---


def test_images_with_the_same_bytes_are_embedded_once_and_each_has_the_vector(bench):
    files = {
        f"aa/{name}.jpg": jpeg(colour) for name, colour in [("a", "red"), ("b", "blue"), ("c", "red"), ("d", "red")]
    }

    tally = bench.run(files)

    assert counts(tally) == dict(kept=4, unchanged=0, known_failures=0, embedded=4, failed=0, removed=0)
    assert tally.shared == 2
    assert bench.encoder.batches == [2]
    vectors = bench.vectors()
    assert vectors["a"] == vectors["c"] == vectors["d"] != vectors["b"]
    assert bench.space.account().settled


def test_the_same_bytes_are_not_embedded_again_for_an_image_of_another_partition(bench):
    files = {f"{n:02x}/{n:08x}.jpg": jpeg("red" if n % 2 else "lime") for n in range(40)}

    tallies = [bench.run(files, f"{n:02}of4") for n in range(4)]

    assert sum(bench.encoder.batches) == 2
    assert [tally.embedded for tally in tallies] == [tally.kept for tally in tallies]
    assert sum(tally.shared for tally in tallies) == 38
    vectors = bench.vectors()
    assert vectors == {f"{n:08x}": vectors[f"{n % 2:08x}"] for n in range(40)}


def test_the_same_bytes_fail_once_and_every_image_that_has_them_is_a_failure(bench):
    bench.encoder.aimless = frozenset({(48, 48)})
    lost = jpeg("red", (48, 48))

    tally = bench.run({"00/a.jpg": b"bad", "01/b.jpg": b"bad", "02/c.jpg": lost, "03/d.jpg": lost, "04/e.jpg": jpeg()})

    assert counts(tally) == dict(kept=5, unchanged=0, known_failures=0, embedded=1, failed=4, removed=0)
    assert bench.encoder.batches == [2]
    assert [failure[:2] for failure in bench.failures()] == [
        ("a", "decode"),
        ("b", "decode"),
        ("c", "encode"),
        ("d", "encode"),
    ]


def test_a_vector_of_another_encoder_is_no_vector_of_the_same_bytes(bench):
    bench.run({"00/a.jpg": jpeg()})
    with bench.store.engine.begin() as connection:
        connection.execute(text("UPDATE embeddings_colours SET fingerprint = 'another'"))

    bench.run({"00/a.jpg": jpeg(), "01/b.jpg": jpeg()})

    assert bench.encoder.batches == [1, 1]


# --- What a run tells of itself ---


def test_a_run_tells_where_its_time_went(bench):
    tally = bench.run(FILES)

    assert list(tally.seconds) == ["read", "decode", "prepare", "encode", "write"]
    assert all(spent > 0 for spent in tally.seconds.values())
    assert 0 < max(tally.seconds.values()) <= tally.elapsed
    assert tally.images_per_second == pytest.approx(25 / tally.elapsed)
    assert tally.seconds_left == 0


@pytest.mark.parametrize(
    ("seconds", "workers", "bottleneck"),
    [
        ({}, 1, "none"),
        ({"encode": 5.0, "decode": 1.0, "write": 2.0}, 4, "write"),
        ({"encode": 5.0, "decode": 1.0, "write": 2.0}, 2, "encode"),
        ({"decode": 5.0, "encode": 1.0}, 2, "decode"),
    ],
)
def test_the_bottleneck_is_the_stage_that_keeps_its_threads_busiest(seconds, workers, bottleneck):
    tally = Tally(10, workers=workers)
    tally.seconds |= seconds

    assert tally.bottleneck == bottleneck


# --- Faults ---


@dataclass
class Several(ColourEncoder):
    """Is called from several threads at once."""

    workers: int = 3


class Faults:
    """Raises now and then, as a seed says, and for the first time before long."""

    def __init__(self, seed: int, share: float) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._share = share
        self._first = self._random.choice((1, 2))
        self._turn = threading.Lock()

    def may_strike(self, what: str) -> None:
        with self._turn:
            self._first -= 1
            strikes = self._first == 0 or self._random.random() < self._share
        if strikes:
            raise RuntimeError(f"{what} broke")


def after(faults: Faults, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which breaks now and then; half of the time after its work is done."""

    def broken(*arguments: Any, **named: Any) -> Any:
        faults.may_strike(what)
        result = function(*arguments, **named)
        faults.may_strike(what)
        return result

    return broken


@pytest.mark.parametrize("stage", ["read", "decode", "prepare", "encode", "write"])
@pytest.mark.parametrize("seed", range(4))
def test_no_image_is_lost_or_doubled_when_a_stage_breaks_at_random(bench, monkeypatch, stage, seed):
    """Each run ends with the error of the stage that broke, keeps what it had finished, and the next one goes on."""
    bench.encoder = Several()
    files = {f"{n:02x}/{n:08x}.jpg": jpeg((n % 100, 80, 120)) for n in range(120)} | {"ff/bad.jpg": b"bad"}
    faults = Faults(seed, {"read": 0.05, "decode": 0.05}.get(stage, 0.15))
    functions = {
        "read": (embedding, "read_image"),
        "decode": (embedding, "decode_pixels"),
        "prepare": (Several, "prepare"),
        "encode": (Several, "encode_images"),
        "write": (EmbeddingSpace, "write"),
    }
    owner, name = functions[stage]
    with monkeypatch.context() as broken:
        broken.setattr(embedding, "_COMMIT_ROWS", 7)
        broken.setattr(owner, name, after(faults, stage, getattr(owner, name)))
        errors = []
        for _ in range(6):
            try:
                bench.run(files, batch_size=5)
            except RuntimeError as error:
                errors.append(str(error))
            account = bench.space.account()
            assert account.balances
            assert at_work() == []

    bench.run(files, batch_size=5)

    assert set(errors) == {f"{stage} broke"}
    account = bench.space.account()
    assert (account.kept, account.embedded, account.failed, account.settled) == (121, 120, 1, True)
    expected = zip(sorted(files), bench.expected(files), strict=True)
    assert bench.vectors() == {Path(name).stem: vector for name, vector in expected if vector}


def test_pictures_are_prepared_one_by_one_as_they_are_decoded(bench, monkeypatch):
    """At full size, a batch of an archive of large pictures would not fit into memory."""
    decoded: list[int] = []
    waiting: list[int] = []

    class OneByOne(ColourEncoder):
        def prepare(self, images, most):
            assert most == 10
            prepared = []
            for image in images:
                waiting.append(len(decoded) - sum(map(len, bench.encoder.prepared)) - len(prepared))
                prepared.append(image)
            self.prepared.append(prepared)
            return super().prepare(prepared, most)

    bench.encoder = OneByOne()
    bench.encoder.prepared = []
    decode_one = embedding.decode_pixels
    monkeypatch.setattr(embedding, "decode_pixels", lambda *a, **b: decoded.append(1) or decode_one(*a, **b))

    tally = bench.run(dict(list(FILES.items())[:20]))

    assert (tally.embedded, waiting) == (20, [1] * 20)
    assert tally.seconds["prepare"] > 0


def test_what_is_needed_to_embed_is_got_ready_only_if_there_is_something_to_embed(bench):
    asked: list[str] = []

    bench.run(FILES, get_ready=lambda: asked.append("first run"))
    bench.run(FILES, get_ready=lambda: asked.append("second run"))

    assert asked == ["first run"]


@pytest.mark.parametrize(
    ("images", "batch", "workers", "sizes"),
    [
        (71, 16, 2, [16, 16, 16, 8, 4, 4, 4, 3]),
        (1000, 256, 1, [256, 256, 256, 232]),
        (600, 256, 4, [128, 64, 64, 64, 64, 32, 32, 32, 32, 32, 32, 24]),
    ],
)
def test_batches_become_smaller_towards_the_end(images, batch, workers, sizes):
    encoder = ColourEncoder()
    encoder.batch, encoder.workers = batch, workers
    rows = pl.DataFrame({"image_id": [str(number) for number in range(images)]})

    found = list(embedding._batches(rows, encoder, None))

    assert [len(part) for part in found] == sizes
    assert [row["image_id"] for part in found for row in part] == rows["image_id"].to_list()
    assert {len(part) for part in list(embedding._batches(rows, encoder, 20))[:-1]} == {20}


def test_a_database_that_goes_away_ends_the_run_with_its_own_error(bench, monkeypatch):
    bench.encoder = Several()

    def gone(*_: object) -> None:
        raise StoreError("The database went away.")

    monkeypatch.setattr(EmbeddingSpace, "write", gone)

    with pytest.raises(StoreError, match="The database went away"):
        bench.run(FILES, batch_size=2)


def test_an_archive_that_was_replaced_ends_the_run_and_what_was_done_is_kept(bench, monkeypatch):
    bench.encoder = Several()
    read, done = embedding.read_image, []

    def changed_later(archive: Archive, row: dict[str, Any], limits: Limits) -> bytes:
        if len(done) > 12:
            raise ArchiveError("It has changed.")
        done.append(row["image_id"])
        return read(archive, row, limits)

    monkeypatch.setattr(embedding, "read_image", changed_later)

    with pytest.raises(ArchiveError, match="It has changed"):
        bench.run(FILES, batch_size=2)
    assert 0 < len(bench.rows()) <= 13
