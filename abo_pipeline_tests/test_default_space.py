"""Which space a search uses, and with which model: two real models side by side, one of them in a folder."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from abo_pipeline import catalog
from abo_pipeline.encoder import ClipEncoder
from abo_pipeline.errors import ModelError, QueryError, StoreError
from abo_pipeline.hits import Hits
from abo_pipeline.sample import SMALL_CLIP
from abo_pipeline.search import ImageSearch, open_search, search_in
from abo_pipeline.settings import Settings
from abo_pipeline.store import Store
from abo_pipeline.store.spaces import Embedded
from abo_pipeline_tests.fakes import ColourEncoder

IMAGES = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of its own, as far as its fingerprint tells."""
    shutil.copytree(SMALL_CLIP, tmp_path / "clip")
    (tmp_path / "clip" / "extra.json").write_text("{}")
    return tmp_path / "clip"


@pytest.fixture
def other(folder: Path) -> ClipEncoder:
    return ClipEncoder(str(folder), "cpu")


@pytest.fixture
def spaces(store: Store, encoder: ClipEncoder, other: ClipEncoder) -> Store:
    """Two spaces, made one after the other; each image is embedded in one of them only, and its id says in which."""
    names = [f"{('small', 'other')[number % 2]}-{number:02}" for number in range(IMAGES)]
    rows = [(name, f"{name}.jpg", 1000, 1000, key, 0, 1, "d") for key, name in enumerate(names)]
    store.write_images(pl.DataFrame(rows, schema=catalog.SCHEMA, orient="row"))
    random = np.random.default_rng(0)
    for space_name, model in (("small", encoder), ("other", other)):
        space = store.open_space(space_name, model)
        vectors = random.normal(size=(IMAGES, space.dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        space.write(
            [Embedded(name, key, "d", vectors[key]) for key, name in enumerate(names) if name.startswith(space.name)],
            [],
        )
    return store


@pytest.fixture
def last() -> Settings:
    """Of a last run that embedded into the other space."""
    return Settings.read(space="other", model="/gone/elsewhere", device="cpu")


def places(hits: Hits) -> set[str]:
    """The spaces that hits come from, by their ids."""
    return {hit.image_id.split("-")[0] for hit in hits}


def test_a_search_uses_the_default_with_the_model_that_it_was_made_with(spaces, last, encoder, other):
    first = search_in(spaces, last)
    before = first("red chair", k=IMAGES)
    spaces.switch_default("other")
    second = search_in(spaces, last)
    after = second("red chair", k=IMAGES)

    assert (before.space, places(before), len(before)) == ("small", {"small"}, IMAGES // 2)
    assert (after.space, places(after), len(after)) == ("other", {"other"}, IMAGES // 2)
    # One that is open stays where it is.
    assert first("red chair", k=IMAGES) == before
    models = [search_in(spaces, last, space=name)._encoder.fingerprint for name in ("small", "other")]
    assert models == [encoder.fingerprint, other.fingerprint]


def test_what_is_asked_for_goes_before_the_variable_and_that_before_the_default(spaces, last, monkeypatch):
    by_default = search_in(spaces, last).space.name
    monkeypatch.setenv("ABO_SPACE", "other")
    by_variable = search_in(spaces, last).space.name
    asked = search_in(spaces, last, space="small").space.name

    assert (by_default, by_variable, asked) == ("small", "other", "small")


@pytest.mark.parametrize("variable", [True, False])
def test_a_space_that_is_not_there_is_named_with_those_that_are(spaces, last, monkeypatch, variable):
    if variable:
        monkeypatch.setenv("ABO_SPACE", "nope")

    with pytest.raises(QueryError) as refused:
        search_in(spaces, last, space=None if variable else "nope")

    assert str(refused.value) == "Nothing has been embedded into space nope yet. This catalogue has small, other."
    assert spaces.space_names() == ["small", "other"]


def test_before_anything_is_embedded_the_space_of_the_settings_is_the_one_to_fill(store, last):
    with pytest.raises(QueryError) as refused:
        search_in(store, last)

    assert str(refused.value) == "Nothing has been embedded into space other yet. Run `abo run` (or `abo demo`) first."
    assert store.space_names() == []


def test_an_encoder_that_is_there_is_used_where_it_fits_and_another_model_where_not(spaces, last, encoder, other):
    """The code location of a run into one space answers searches of another."""
    fitting = search_in(spaces, last, encoder=encoder)
    spaces.switch_default("other")
    foreign = search_in(spaces, last, encoder=encoder)

    assert fitting._encoder is encoder
    assert foreign._encoder.fingerprint == other.fingerprint
    assert places(foreign("red chair")) == {"other"}


def test_a_stand_in_that_gives_the_same_vectors_under_another_name_will_do(store, last):
    made = ColourEncoder()
    store.open_space("colours", made)
    renamed = ColourEncoder(model="/no/such/colours")

    assert search_in(store, last, encoder=renamed)._encoder is renamed


def test_a_model_that_has_been_moved_is_found_where_the_settings_name_it(spaces, last, folder, tmp_path):
    spaces.switch_default("other")
    shutil.move(folder, tmp_path / "moved")

    search = search_in(spaces, last.model_copy(update={"model": str(tmp_path / "moved")}))

    assert search._encoder.model == str(tmp_path / "moved")
    assert places(search("red chair")) == {"other"}


def test_a_model_that_is_gone_is_named_with_what_to_do(spaces, last, folder):
    spaces.switch_default("other")
    shutil.rmtree(folder)

    with pytest.raises(ModelError) as refused:
        search_in(spaces, last)

    assert str(refused.value) == (
        f"Space other is searched with the model that it was made with, {folder}, and that cannot be had: There is no "
        f"model folder {folder}. Give a folder that holds a CLIP model with --model PATH (or ABO_MODEL), or use the "
        "small one that is bundled: --model small-clip. Put it back, or set ABO_MODEL to where it is now; `abo spaces` "
        "lists other spaces."
    )


def test_a_model_whose_files_have_changed_is_named_with_both_fingerprints(spaces, last, folder, other):
    spaces.switch_default("other")
    was = other.fingerprint
    (folder / "extra.json").write_text('{"changed": true}')
    now = ClipEncoder(str(folder)).fingerprint

    with pytest.raises(StoreError) as refused:
        search_in(spaces, last)

    assert now != was
    assert str(refused.value) == (
        f"Space other holds vectors of {folder} as it was with fingerprint {was}; now it has {now}, because its files "
        "have changed, or the way to prepare pictures for it, or its precision: they cannot be compared. Put the model "
        "back as it was, unset ABO_PRECISION and ABO_PREPARATION, or embed into another space with --space (ABO_SPACE)."
    )


@pytest.fixture
def opened(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ImageSearch]]:
    """Searches to be closed."""
    monkeypatch.setenv("ABO_DATABASE_URL", database_url)
    monkeypatch.setenv("ABO_DEVICE", "cpu")
    searches: list[ImageSearch] = []
    yield searches
    for search in searches:
        search.space.engine.dispose()


def test_a_search_is_opened_without_naming_anything(opened, spaces, last):
    last.remember()

    opened.append(open_search())
    opened.append(open_search(space="other"))
    spaces.switch_default("other")
    opened.append(open_search(Settings.read()))

    assert [search("red chair", k=1).space for search in opened] == ["small", "other", "other"]


@pytest.mark.slow
@pytest.mark.usefixtures("opened")
def test_searches_go_on_while_the_default_is_switched_back_and_forth_and_never_mix(spaces, last):
    def search() -> list[Hits]:
        answers = []
        while not done.is_set():
            found = open_search(last)
            answers += [found("red chair", k=IMAGES), found("red chair", k=3)]
            found.space.engine.dispose()
        return answers

    done = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        searching = [threads.submit(search) for _ in range(2)]
        for _ in range(60):
            spaces.switch_default("other")
            spaces.switch_default("small")
            done.wait(0.02)
            spaces.switch_back()
            done.wait(0.02)
        done.set()
        answers = [hits for thread in searching for hits in thread.result()]

    assert {hits.space for hits in answers} == {"small", "other"}
    assert [hits for hits in answers if places(hits) != {hits.space} or len(hits) not in (3, IMAGES // 2)] == []
