"""Vectors that go from one database into another through a file, and files that must not get in."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sqlalchemy import make_url, text

from abo_pipeline import portable
from abo_pipeline.archive import Archive, digest_of
from abo_pipeline.catalog import read_catalogue
from abo_pipeline.embedding import Limits, embed_partition
from abo_pipeline.encoder import ClipEncoder
from abo_pipeline.errors import ArchiveError, PortableError, StoreError
from abo_pipeline.hits import LikeQuery
from abo_pipeline.portable import Exported, export_space, import_space
from abo_pipeline.sample import Sample
from abo_pipeline.sampling import sample_key
from abo_pipeline.search import ImageSearch
from abo_pipeline.settings import Settings
from abo_pipeline.store import EmbeddingSpace, Store
from abo_pipeline.store.database import open_engine
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline.store.schema import embeddings_table
from abo_pipeline.store.spaces import Adopted, Embedded, Failed
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.conftest import fresh_database
from abo_pipeline_tests.fakes import ColourEncoder

SPACE = "small_clip"
LIMITS = Limits(10**7, 10**7)
COLUMNS = ["image_id", "path", "sample_key", "digest", "fingerprint", "embedding"]


@dataclass(frozen=True)
class There:
    """The machine that has embedded: its space, its catalogue, and its exports by precision."""

    store: Store
    space: EmbeddingSpace
    kept: pl.DataFrame
    files: dict[str, Path]

    @property
    def embedded(self) -> int:
        return len(rows(self.store))


@pytest.fixture(scope="module")
def there(
    server: EmbeddedServer, sample: Sample, encoder: ClipEncoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[There]:
    folder = tmp_path_factory.mktemp("exports")
    with fresh_database(server) as url, Archive.open(sample.archive) as archive:
        store = Store(open_engine(make_url(url)))
        kept = read_catalogue(archive, min_side=1000).kept
        store.write_images(kept)
        space = store.open_space(SPACE, encoder)
        embed_partition("00of1", kept, archive, encoder, space, limits=LIMITS, batch_size=32)
        files = {precision: folder / f"{precision}.parquet" for precision in ("float32", "float16")}
        for precision, path in files.items():
            export_space(space, path, catalogue="abo", precision=precision)
        yield There(store, space, kept, files)
        store.engine.dispose()


@pytest.fixture
def here(store: Store, there: There) -> Store:
    """Another machine: the same archive's catalogue, and nothing embedded."""
    store.write_images(there.kept)
    return store


@pytest.fixture
def take_in(here: Store, settings: Settings, encoder: ClipEncoder) -> Callable[..., Any]:
    """Import a file into the other machine."""

    def take_in(path: Path, **options: Any) -> Any:
        return import_space(path, here, encoder, settings, **({"check": 8} | options))

    return take_in


@pytest.fixture
def blocks_of_20(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "_BLOCK_ROWS", 20)


def rows(store: Store, columns: str = "image_id, sample_key, digest, fingerprint, embedding::text") -> list[tuple]:
    """What is stored in the space; nothing if it is not there."""
    if store.find_space(SPACE) is None:
        return []
    with store.engine.connect() as connection:
        query = text(f"SELECT {columns} FROM embeddings_{SPACE} ORDER BY image_id")
        return [tuple(row) for row in connection.execute(query)]


def versions(store: Store) -> list[tuple]:
    """Which change of the database wrote each row."""
    return rows(store, "image_id, xmin::text, ctid::text")


def vectors(store: Store) -> dict[str, np.ndarray]:
    return {image_id: vector.to_numpy() for image_id, vector in rows(store, "image_id, embedding")}


def changed(there: There, target: Path, change: Callable[[pl.DataFrame], pl.DataFrame], **description: str) -> Path:
    """The export with other rows, or another description of itself, by somebody who knows how it is made."""
    source = there.files["float32"]
    metadata = {name: value for name, value in pl.read_parquet_metadata(source).items() if name != "ARROW:schema"}
    frame = change(pl.read_parquet(source))
    if "embedding" in frame.columns:
        metadata["content"] = digest_of([frame["embedding"].to_numpy().tobytes()])
    frame.write_parquet(target, metadata=metadata | {"count": str(len(frame))} | description)
    return target


def with_row(number: int, **values: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Change values of one row."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        for name, value in values.items():
            column = frame[name].to_list()
            column[number] = value
            frame = frame.with_columns(pl.Series(name, column, dtype=frame.schema[name]))
        return frame

    return change


# --- There and back ---


def test_a_file_says_what_it_holds_and_is_in_the_catalogues_order(there, encoder):
    frame = pl.read_parquet(there.files["float32"])
    description = pl.read_parquet_metadata(there.files["float32"])

    assert frame.columns == COLUMNS
    assert frame.schema["embedding"] == pl.Array(pl.Float32, 128)
    assert pl.read_parquet_schema(there.files["float16"])["embedding"] == pl.Array(pl.Float16, 128)
    assert frame["sample_key"].is_sorted()
    known = there.kept.select("image_id", "path", "sample_key", "digest")
    assert frame.select(known.columns).equals(known.filter(pl.col("image_id").is_in(frame["image_id"].to_list())))
    description.pop("ARROW:schema")
    assert description == {
        "format": "abo_pipeline embeddings",
        "format_version": "1",
        "model": "small-clip",
        "space": SPACE,
        "dimension": "128",
        "fingerprint": encoder.fingerprint,
        "made": "",
        "precision": "float32",
        "catalogue": "abo",
        "count": str(there.embedded),
        "content": digest_of([frame["embedding"].to_numpy().tobytes()]),
    }
    # The two that cannot be decoded are not among them.
    assert (len(frame), len(there.kept) - len(frame)) == (there.embedded, 2)


@pytest.mark.usefixtures("blocks_of_20")
def test_an_export_says_how_large_it_is_and_how_far(there, tmp_path):
    told: list[tuple[int, int]] = []

    done = export_space(there.space, tmp_path / "e.parquet", catalogue="abo", progress=lambda *args: told.append(args))

    size = (tmp_path / "e.parquet").stat().st_size
    assert done == Exported(tmp_path / "e.parquet", there.embedded, size, done.seconds)
    assert told == [(n, there.embedded) for n in [*range(0, there.embedded, 20), there.embedded]]
    assert pl.read_parquet(tmp_path / "e.parquet").equals(pl.read_parquet(there.files["float32"]))


def test_imported_rows_are_bit_for_bit_those_of_the_other_machine(there, here, take_in):
    done = take_in(there.files["float32"])

    assert done.adopted == Adopted(accepted=there.embedded)
    assert (done.rows, done.checked) == (there.embedded, 8)
    assert done.least_cosine == pytest.approx(1.0, abs=1e-5)
    assert rows(here) == rows(there.store)


@pytest.mark.usefixtures("blocks_of_20")
def test_a_space_that_is_imported_into_cannot_be_dropped_until_that_is_done(there, here, take_in, encoder):
    other = here.open_space("other", encoder)
    other.write([Embedded("a", 0, "d", next(iter(vectors(there.store).values())))], [])
    refused: list[str] = []

    def try_to_drop(stage: str, done: int, _: int) -> None:
        if (stage, done) == ("importing", 40):
            here.switch_default("other")
            with pytest.raises(StoreError) as told:
                here.drop_space(SPACE)
            refused.append(str(told.value))

    take_in(there.files["float32"], progress=try_to_drop)

    assert refused == [f"A run is writing into space {SPACE}. Try again when it has ended."]
    assert rows(here) == rows(there.store)
    here.drop_space(SPACE)
    assert rows(here) == []


def test_a_search_finds_the_same_on_both_machines(there, here, take_in, encoder, settings):
    take_in(there.files["float32"])
    known = pl.read_parquet(there.files["float32"])["image_id"][5]

    searches = [ImageSearch(store, encoder, settings) for store in (there.store, here)]

    for query in ("a red chair", LikeQuery(known)):
        ours, theirs = (search(query, k=20, size=1000) for search in searches)
        assert (len(ours), ours.hits) == (20, theirs.hits)


def test_float16_comes_back_with_length_1_and_less_than_a_hundred_thousandth_off(there, here, take_in, encoder):
    done = take_in(there.files["float16"])

    assert done.adopted == Adopted(accepted=there.embedded)
    exact, rounded = vectors(there.store), vectors(here)
    assert exact.keys() == rounded.keys()
    assert min(float(exact[image_id] @ rounded[image_id]) for image_id in exact) >= 0.99999
    lengths = np.linalg.norm(np.stack(list(rounded.values())).astype(np.float64), axis=1)
    assert lengths == pytest.approx(np.ones(len(lengths)), abs=1e-6)
    here.open_space(SPACE, encoder).require_sound(1e-5)
    # Ids, paths and digests are as long in both.
    sizes = {precision: path.stat().st_size for precision, path in there.files.items()}
    assert sizes["float32"] - sizes["float16"] > 0.8 * there.embedded * 128 * 2


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_importing_again_touches_no_row(there, here, take_in, encoder, precision):
    take_in(there.files[precision])
    space = here.open_space(SPACE, encoder)
    before, changed_at = versions(here), space.changed_at()

    done = take_in(there.files[precision])

    assert done.adopted == Adopted(unchanged=there.embedded)
    assert versions(here) == before
    assert space.changed_at() == changed_at


def test_what_is_embedded_here_is_not_exchanged_for_what_is_rounded(there, here, take_in):
    take_in(there.files["float32"])
    before = versions(here)

    assert take_in(there.files["float16"]).adopted == Adopted(unchanged=there.embedded)
    assert versions(here) == before


def test_what_was_imported_counts_as_embedded_and_a_run_does_only_the_rest(there, here, take_in, encoder, sample):
    half = there.kept.head(len(there.kept) // 2)
    with there.store.engine.connect() as connection:
        embedded_half = {row[0] for row in connection.execute(text(f"SELECT image_id FROM embeddings_{SPACE}"))}
    embedded_half &= set(half["image_id"])
    here.write_images(half, allow_removal=True)

    done = take_in(there.files["float32"])
    here.write_images(there.kept)
    with Archive.open(sample.archive) as archive:
        space = here.open_space(SPACE, encoder)
        before = versions(here)
        account = space.account()
        tally = embed_partition("00of1", there.kept, archive, encoder, space, limits=LIMITS, batch_size=32)

    assert done.adopted == Adopted(accepted=len(embedded_half), unknown=there.embedded - len(embedded_half))
    assert (account.embedded, account.pending) == (len(embedded_half), len(there.kept) - len(embedded_half))
    assert (tally.unchanged, tally.embedded, tally.failed) == (
        len(embedded_half),
        there.embedded - len(embedded_half),
        2,
    )
    assert set(before) <= set(versions(here))
    assert space.account().settled


def test_an_image_with_other_bytes_here_is_left_out(there, here, take_in):
    embedded = pl.read_parquet(there.files["float32"])["image_id"].to_list()
    other = embedded[3::10]
    replaced = pl.when(pl.col("image_id").is_in(other)).then(pl.lit("0" * 32)).otherwise("digest").alias("digest")
    here.write_images(there.kept.with_columns(replaced))

    done = take_in(there.files["float32"])

    assert done.adopted == Adopted(accepted=len(embedded) - len(other), other_bytes=len(other))
    assert {row[0] for row in rows(here)} == set(embedded) - set(other)


def test_a_vector_takes_the_place_of_a_failure_and_of_a_vector_of_other_bytes(there, here, take_in, encoder):
    first, second = pl.read_parquet(there.files["float32"]).select("image_id", "sample_key", "digest").rows()[:2]
    space = here.open_space(SPACE, encoder)
    stale = Embedded(second[0], second[1], "0" * 32, np.eye(1, 128, dtype=np.float32)[0])
    space.write([stale], [Failed(*first, "decode", "MemoryError", "too little memory")])

    done = take_in(there.files["float32"])

    assert done.adopted == Adopted(accepted=there.embedded)
    assert rows(here) == rows(there.store)
    account = space.account()
    assert (account.embedded, account.failed, account.pending) == (there.embedded, 0, 2)


def test_what_was_imported_can_be_exported_again(there, here, take_in, encoder, tmp_path):
    take_in(there.files["float32"])

    export_space(here.open_space(SPACE, encoder), tmp_path / "again.parquet", catalogue="abo")

    assert pl.read_parquet(tmp_path / "again.parquet").equals(pl.read_parquet(there.files["float32"]))


def test_only_vectors_of_the_catalogue_as_it_is_are_exported(there, here, take_in, encoder, tmp_path):
    take_in(there.files["float32"])
    embedded = pl.read_parquet(there.files["float32"])["image_id"].to_list()
    gone, stale = embedded[0], embedded[1]
    replaced = pl.when(pl.col("image_id") == stale).then(pl.lit("0" * 32)).otherwise("digest").alias("digest")
    here.write_images(there.kept.filter(pl.col("image_id") != gone).with_columns(replaced))

    done = export_space(here.open_space(SPACE, encoder), tmp_path / "e.parquet", catalogue="abo")

    assert done.rows == len(embedded) - 2
    assert pl.read_parquet(tmp_path / "e.parquet")["image_id"].to_list() == embedded[2:]


@pytest.mark.usefixtures("blocks_of_20")
def test_an_export_is_of_one_moment_whatever_is_written_meanwhile(there, here, take_in, encoder, tmp_path):
    take_in(there.files["float32"])
    space = here.open_space(SPACE, encoder)
    ids = [row[0] for row in rows(here)]

    def meddle(done: int, _: int) -> None:
        if done == 20:
            space.remove(ids[::2])
            here.write_images(there.kept.head(10), allow_removal=True)

    done = export_space(space, tmp_path / "e.parquet", catalogue="abo", progress=meddle)

    assert done.rows == there.embedded
    assert pl.read_parquet(tmp_path / "e.parquet").equals(pl.read_parquet(there.files["float32"]))
    assert len(rows(here)) == there.embedded // 2


# --- Exports that end early, or cannot be ---


@pytest.mark.usefixtures("blocks_of_20")
def test_an_export_that_fails_in_the_middle_leaves_the_old_file_and_no_other(there, tmp_path):
    (tmp_path / "e.parquet").write_text("the old one")

    def fail(done: int, _: int) -> None:
        if done == 60:
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        export_space(there.space, tmp_path / "e.parquet", catalogue="abo", progress=fail)

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("e.parquet", "the old one")]
    assert export_space(there.space, tmp_path / "e.parquet", catalogue="abo").rows == there.embedded


@pytest.mark.usefixtures("blocks_of_20")
def test_ctrl_c_leaves_no_file(there, tmp_path):
    heard = threading.Event()

    def hear(*signal_and_frame: Any) -> None:
        heard.set()
        signal.default_int_handler(*signal_and_frame)

    def interrupt(done: int, _: int) -> None:
        if done == 60:
            os.kill(os.getpid(), signal.SIGINT)
            # This is another thread than the one that hears it, and may be done with the rest by then.
            assert heard.wait(10)

    before = signal.signal(signal.SIGINT, hear)
    try:
        with pytest.raises(KeyboardInterrupt):
            export_space(there.space, tmp_path / "e.parquet", catalogue="abo", progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)

    assert list(tmp_path.glob("*.parquet*")) == []


@pytest.mark.usefixtures("blocks_of_20")
def test_a_database_that_goes_away_in_the_middle_is_said_so(there, here, take_in, encoder, tmp_path):
    take_in(there.files["float32"])

    def cut(done: int, _: int) -> None:
        if done == 40:
            with there.store.engine.begin() as connection:
                connection.execute(
                    text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                    {"name": here.engine.url.database},
                )

    # More than what lies in buffers between the server and us.
    many_rows(here, encoder, 20_000)
    with pytest.raises(StoreError, match="Postgres does not answer at"):
        export_space(here.open_space(SPACE, encoder), tmp_path / "e.parquet", catalogue="abo", progress=cut)

    assert list(tmp_path.glob("*.parquet*")) == []


def many_rows(store: Store, encoder: ClipEncoder, count: int) -> None:
    """Fill a space and its catalogue with vectors that nothing is known of but that they are sound."""
    table = embeddings_table(SPACE, encoder.dimension).name
    with store.engine.begin() as connection:
        numbers = f"generate_series(1, {count}) n"
        connection.execute(
            text(f"INSERT INTO images SELECT 'x' || n, n || '.jpg', 1000, 1000, n, md5('') FROM {numbers}")
        )
        connection.execute(
            text(
                f"INSERT INTO {table} SELECT 'x' || n, n, md5(''), :fingerprint, embedding "
                f"FROM {numbers}, (SELECT embedding FROM {table} LIMIT 1) one"
            ),
            {"fingerprint": encoder.fingerprint},
        )


def test_a_space_without_vectors_is_not_exported(here, encoder, tmp_path):
    with pytest.raises(PortableError) as caught:
        export_space(here.open_space(SPACE, encoder), tmp_path / "e.parquet", catalogue="abo")

    assert str(caught.value) == (
        "Space small_clip has no vector of an image of the catalogue abo. Run `abo run` first."
    )
    assert list(tmp_path.glob("*.parquet*")) == []


def test_vectors_that_may_not_be_compared_are_not_exported(here, encoder, tmp_path):
    space = here.open_space(SPACE, encoder)
    image_id, key, digest = read_first(here)
    space.write([Embedded(image_id, key, digest, np.full(128, 0.5, np.float32))], [])

    with pytest.raises(StoreError, match="1 do not have length 1"):
        export_space(space, tmp_path / "e.parquet", catalogue="abo")


def read_first(store: Store) -> tuple[str, int, str]:
    with store.engine.connect() as connection:
        query = text("SELECT image_id, sample_key, digest FROM images ORDER BY sample_key LIMIT 1")
        return tuple(connection.execute(query).one())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "it is a folder"), ("no/e.parquet", "there is no folder {folder}/no"), ("x" * 300, "File name too long")],
)
def test_a_place_that_cannot_be_written_to_is_named(there, tmp_path, name, reason):
    with pytest.raises(PortableError) as caught:
        export_space(there.space, tmp_path / name, catalogue="abo")

    assert str(caught.value).startswith(f"The export cannot be written to {tmp_path / name}: ")
    assert reason.format(folder=tmp_path) in str(caught.value)


def test_a_precision_that_is_none_is_refused(there, tmp_path):
    with pytest.raises(PortableError, match="no precision 'int8'; there are float32 and float16"):
        export_space(there.space, tmp_path / "e.parquet", catalogue="abo", precision="int8")


# --- What must not get in ---


def refusal(take_in: Callable[..., Any], here: Store, path: Path, **options: Any) -> str:
    """Why a file is refused; nothing of it is in the database then."""
    before = rows(here)
    with pytest.raises(PortableError) as caught:
        take_in(path, **options)
    assert rows(here) == before
    return str(caught.value)


def test_a_vector_that_the_model_does_not_give_here_is_caught_and_named(there, here, take_in, tmp_path):
    frame = pl.read_parquet(there.files["float32"])
    # The first row is always among the images that are chosen.
    image_id, another = frame["image_id"][0], frame["embedding"].to_list()[1]
    cosine = np.dot(frame["embedding"].to_list()[0], another)
    tampered = changed(there, tmp_path / "t.parquet", with_row(0, embedding=another))

    assert refusal(take_in, here, tampered) == (
        f"Of 8 images of {tampered} that were embedded again here, 1 came out differently: {image_id} most, its cosine "
        f"with the file's vector is {cosine:.4f}, and at least 0.999 is asked for. Nothing was accepted. Export again "
        "from where it was made, or embed here with `abo run`."
    )
    assert here.find_space(SPACE) is None


def test_checking_every_image_finds_any_that_is_wrong(there, here, take_in, tmp_path):
    frame = pl.read_parquet(there.files["float32"])
    swapped = frame["embedding"].to_list()[60:62]
    tampered = changed(there, tmp_path / "t.parquet", with_row(60, embedding=swapped[1]))

    said = refusal(take_in, here, tampered, check=1000)

    assert f"Of {there.embedded} images of" in said
    assert f"1 came out differently: {frame['image_id'][60]} most" in said


def test_another_model_with_the_same_files_name_is_refused_with_both_named(there, here, settings, encoder):
    other = ColourEncoder()

    with pytest.raises(PortableError) as caught:
        import_space(there.files["float32"], here, other, settings)

    assert f"vectors of small-clip (fingerprint {encoder.fingerprint}), and mean-colour" in str(caught.value)
    assert "has fingerprint c0104f00c0104f00 here: they cannot be compared." in str(caught.value)
    assert other.batches == []


def test_a_space_of_another_model_is_refused_before_anything_else(there, here, take_in):
    here.open_space(SPACE, ColourEncoder())

    with pytest.raises(StoreError, match="Space small_clip holds vectors of mean-colour"):
        take_in(there.files["float32"])


def test_a_file_whose_vectors_have_another_length_than_the_models_is_refused(there, here, take_in, tmp_path):
    def shorten(frame: pl.DataFrame) -> pl.DataFrame:
        short = frame["embedding"].to_numpy()[:, :64]
        short = short / np.linalg.norm(short, axis=1, keepdims=True)
        return frame.with_columns(embedding=pl.Series(short, dtype=pl.Array(pl.Float32, 64)))

    path = changed(there, tmp_path / "s.parquet", shorten, dimension="64")

    assert "its cosine with the file's vector is nan" in refusal(take_in, here, path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused(there, here, take_in, tmp_path, share):
    content = there.files["float32"].read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: int(len(content) * share)])

    said = refusal(take_in, here, tmp_path / "cut.parquet")

    assert said.startswith(f"{tmp_path}/cut.parquet cannot be read as a whole parquet file: ")


def test_a_vector_that_is_not_the_exported_one_is_noticed_even_where_it_is_not_checked(there, here, take_in, tmp_path):
    frame = pl.read_parquet(there.files["float32"])
    vector = frame["embedding"].to_list()[70]
    description = pl.read_parquet_metadata(there.files["float32"])
    altered = with_row(70, embedding=[vector[0] + 1e-6, *vector[1:]])
    path = changed(there, tmp_path / "d.parquet", altered, content=description["content"])

    said = refusal(take_in, here, path, check=2)

    assert said.startswith(f"{path} is damaged: its vectors are not those that were exported. ")


def test_of_a_file_with_a_wrong_bit_nothing_gets_in_that_is_not_true(there, here, take_in, tmp_path):
    content = there.files["float32"].read_bytes()
    truth = set(rows(there.store))
    random = np.random.default_rng(4)
    refused = 0

    for position in random.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(random.integers(8))
        (tmp_path / "damaged.parquet").write_bytes(damaged)
        try:
            take_in(tmp_path / "damaged.parquet", check=1)
        except PortableError:
            refused += 1
            assert rows(here) == []
            continue
        assert set(rows(here)) <= truth
        space = here.find_space(SPACE)
        space.remove([row[0] for row in rows(here)])

    # The rest are bits of what does not matter, such as statistics.
    assert refused > 40


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"format": "something else"}, "is a parquet file, but no export of embeddings"),
        ({"format_version": "2"}, "has version 2 of the format, and this abo_pipeline knows 1"),
        ({"precision": "int8"}, "lacks a part of its description, or has a wrong one: 'int8'"),
        ({"dimension": "many"}, "lacks a part of its description, or has a wrong one: invalid literal"),
        ({"dimension": "64"}, "has other columns than an export"),
        ({"dimension": "-1"}, "has other columns than an export"),
        ({"precision": "float16"}, "has other columns than an export"),
        ({"count": "150"}, "of its 150 vectors. Copy the file again from where it was exported, or export it anew."),
    ],
)
def test_a_file_that_describes_itself_otherwise_is_refused(there, here, take_in, tmp_path, description, message):
    path = changed(there, tmp_path / "d.parquet", lambda frame: frame, **description)

    assert message in refusal(take_in, here, path)


def test_vectors_of_models_that_were_made_otherwise_are_not_mixed(there, here, take_in, tmp_path):
    take_in(there.files["float32"])
    path = changed(there, tmp_path / "d.parquet", lambda frame: frame, made="00000000000000a1")

    assert refusal(take_in, here, path) == (
        f"{path} holds vectors that were computed by the model '00000000000000a1', which was made for that, and space "
        f"{SPACE} has those of '': they cannot be mixed. Import into another space with --space (ABO_SPACE)."
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.drop("digest"),
        lambda frame: frame.rename({"embedding": "vector"}),
        lambda frame: frame.with_columns(pl.col("embedding").arr.to_list()),
        lambda frame: frame.with_columns(pl.col("sample_key").cast(pl.String)),
        lambda frame: frame.with_columns(more=1),
    ],
    ids=["missing", "renamed", "list", "type", "more"],
)
def test_a_file_with_other_columns_is_refused(there, here, take_in, tmp_path, change):
    path = changed(there, tmp_path / "c.parquet", change)

    said = refusal(take_in, here, path)

    assert said.startswith(f"{path} has other columns than an export: ")
    assert "instead of image_id String, path String, sample_key Int64, digest String, fingerprint String, " in said


def test_an_empty_export_is_refused(there, here, take_in, tmp_path):
    assert "holds 0 of its 0 vectors" in refusal(
        take_in, here, changed(there, tmp_path / "e.parquet", pl.DataFrame.clear)
    )


def swap_rows(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame[1], frame[0], frame[2:]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_row(70, embedding=[2.0] + [0.0] * 127), "has the length 2 instead of 1"),
        (with_row(70, embedding=[0.0] * 128), "has the length 0 instead of 1"),
        (with_row(70, embedding=[float("nan")] + [1.0] * 127), "has the length nan instead of 1"),
        (with_row(70, embedding=[float("inf")] * 128), "has the length inf instead of 1"),
        (with_row(70, embedding=[None] + [1.0] * 127), "has the length nan instead of 1"),
        (with_row(70, embedding=None), "a row has no value in a column"),
        (with_row(70, digest=None), "a row has no value in a column"),
        (with_row(70, digest="no digest"), "has a digest that is none"),
        (with_row(70, fingerprint="0" * 16), "has another fingerprint than the file"),
        (with_row(70, image_id="with a blank"), "image 'with a blank' has an id that no image has"),
        (with_row(70, image_id="nul\x00"), "has an id that no image has"),
        (with_row(70, image_id=""), "image '' has an id that no image has"),
        (with_row(70, image_id="another"), "of image another is "),
        (with_row(70, sample_key=5), "is 5, and not "),
        (swap_rows, "is there twice, or out of order"),
        (lambda frame: pl.concat([frame[:71], frame[70:]]), "is there twice, or out of order"),
        (lambda frame: pl.concat([frame, frame]), "is there twice, or out of order"),
    ],
)
def test_a_row_that_no_export_has_is_refused(there, here, take_in, tmp_path, change, message):
    path = changed(there, tmp_path / "r.parquet", change)

    said = refusal(take_in, here, path)

    assert said.startswith(f"{path} is not as `abo export` writes it: ")
    assert message in said
    assert said.endswith("Nothing was accepted. Copy the file again from where it was exported, or export it anew.")


@pytest.mark.usefixtures("blocks_of_20")
def test_rows_are_in_order_across_blocks_too(there, here, take_in, tmp_path):
    path = changed(there, tmp_path / "r.parquet", lambda frame: pl.concat([frame[:40], frame[20:40], frame[40:]]))

    assert "is there twice, or out of order" in refusal(take_in, here, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist, or is no file. Give a file that `abo export` has written."),
        (b"image_id,path\n1,2\n", "cannot be read as a whole parquet file: "),
    ],
)
def test_a_path_that_is_no_export_is_named(here, take_in, tmp_path, content, message):
    path = tmp_path / "other.parquet"
    if content is not None:
        path.write_bytes(content)

    said = refusal(take_in, here, path)

    assert said.startswith(f"{path} {message}")


def test_another_parquet_file_is_no_export(here, take_in, tmp_path):
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "a.parquet")

    assert "is a parquet file, but no export of embeddings" in refusal(take_in, here, tmp_path / "a.parquet")


def test_a_file_with_nothing_in_common_is_refused_in_words(there, store, settings, encoder):
    with pytest.raises(PortableError) as caught:
        import_space(there.files["float32"], store, encoder, settings)

    assert str(caught.value) == (
        f"None of the {there.embedded} images in {there.files['float32']} is in the catalogue abo with the same bytes, "
        "so that nothing can be checked, and nothing was accepted. Is it an export of this archive? "
        "`abo run --until image_paths` reads the archive's catalogue, if that has not been done yet."
    )


def test_an_archive_that_is_not_the_catalogues_is_noticed(there, here, settings, encoder, tmp_path):
    other = write_images(tmp_path / "other.tar", {"aa/a.jpg": jpeg()})
    elsewhere = settings.model_copy(update={"archive": str(other)})

    with pytest.raises(ArchiveError, match="is not the archive that the catalogue was read from"):
        import_space(there.files["float32"], here, encoder, elsewhere, check=8)

    assert rows(here) == []


def test_pictures_over_the_limits_cannot_be_checked_and_without_any_nothing_is_accepted(there, here, encoder, settings):
    strict = settings.model_copy(update={"max_pixels": 1})

    with pytest.raises(PortableError, match=r"No image of .* that was chosen for the check can be embedded here"):
        import_space(there.files["float32"], here, encoder, strict, check=8)

    assert rows(here) == []


def test_a_check_of_no_image_is_none(there, here, take_in):
    assert refusal(take_in, here, there.files["float32"], check=0) == (
        "0 images are to be checked; at least 1 has to be."
    )


def test_the_check_is_spread_over_the_file_and_the_same_each_time(there, here, settings, encoder, monkeypatch):
    asked: list[list[str]] = []
    whole = portable._cosines

    def listen(*args: Any) -> dict[str, float]:
        cosines = whole(*args)
        asked.append(list(cosines))
        return cosines

    monkeypatch.setattr(portable, "_cosines", listen)
    for _ in range(2):
        import_space(there.files["float32"], here, encoder, settings, check=5)

    ids = pl.read_parquet(there.files["float32"])["image_id"].to_list()
    spread = [ids[round(n * (len(ids) - 1) / 4)] for n in range(5)]
    assert asked == [spread, spread]


# --- Imports that end early ---


@pytest.mark.usefixtures("blocks_of_20")
def test_an_import_that_is_interrupted_keeps_its_blocks_and_the_next_one_does_the_rest(there, here, take_in):
    def interrupt(stage: str, done: int, _: int) -> None:
        if (stage, done) == ("importing", 60):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_in(there.files["float32"], progress=interrupt)
    before = versions(here)

    done = take_in(there.files["float32"])

    assert len(before) == 60
    assert done.adopted == Adopted(accepted=there.embedded - 60, unchanged=60)
    assert set(before) <= set(versions(here))
    assert rows(here) == rows(there.store)


def test_a_file_that_is_replaced_after_the_check_is_not_imported(there, here, take_in, tmp_path):
    path = tmp_path / "e.parquet"
    path.write_bytes(there.files["float32"].read_bytes())

    def replace(stage: str, *_: int) -> None:
        if stage == "comparing":
            path.write_bytes(there.files["float16"].read_bytes())

    assert "changed while it was being read" in refusal(take_in, here, path, progress=replace)


@pytest.mark.usefixtures("blocks_of_20")
def test_an_import_tells_how_far_it_is(there, take_in):
    told: list[tuple[str, int, int]] = []

    take_in(there.files["float32"], progress=lambda *args: told.append(args))

    counts = [*range(20, there.embedded, 20), there.embedded]
    assert told == [
        *(("checking", done, there.embedded) for done in counts),
        ("comparing", 8, 8),
        *(("importing", done, there.embedded) for done in counts),
    ]


@pytest.mark.usefixtures("blocks_of_20")
def test_two_imports_at_the_same_time_end_with_every_row_once(there, here, settings, encoder):
    with ThreadPoolExecutor(2) as pool:
        path = there.files["float32"]
        both = [pool.submit(import_space, path, here, encoder, settings, check=4) for _ in range(2)]
        adopted = [future.result().adopted for future in both]

    assert adopted[0] + adopted[1] == Adopted(accepted=there.embedded, unchanged=there.embedded)
    assert rows(here) == rows(there.store)


def test_sample_keys_in_a_file_are_those_of_its_ids(there):
    frame = pl.read_parquet(there.files["float32"])

    assert frame["sample_key"].to_list() == [sample_key(image_id) for image_id in frame["image_id"]]
