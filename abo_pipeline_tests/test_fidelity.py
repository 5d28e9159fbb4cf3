"""Which encoder a space takes: real archives and a real database, models that are as rough as they are told to be, and
a CLIP with outliers."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import read_catalogue
from abo_pipeline.embedding import Limits, embed_partition
from abo_pipeline.encoder import ClipEncoder, Encoder
from abo_pipeline.errors import ModelError, StoreError
from abo_pipeline.fidelity import OVERLAP, Fidelity, Sample, compare, embed, settled
from abo_pipeline.store import EmbeddingSpace, Store
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.fakes import ChoosyEncoder, ColourEncoder, RoughEncoder
from benchmarks.models import make_clip

LIMITS = Limits(10**6, 10**6)
IMAGES = 520


def colour(number: int) -> tuple[int, int, int]:
    """One of its own for each number."""
    return (number % 256, number // 256 * 64, number * 53 % 256)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("colours")
    files = {f"{n % 256:02x}/{n:08x}.jpg": jpeg(colour(n), (16, 16)) for n in range(IMAGES)}
    with Archive.open(write_images(folder / "images.tar", files | {"ff/bad.jpg": b"bad"}), folder) as archive:
        yield archive


@pytest.fixture
def catalogue(archive: Archive, store: Store) -> pl.DataFrame:
    kept = read_catalogue(archive, min_side=1000).kept
    store.write_images(kept)
    return kept


def way(precision: str, wrong: float = 0.0) -> RoughEncoder:
    return RoughEncoder(fingerprint=f"{precision:0<16}"[:16], precision=precision, wrong=wrong)


class Settling:
    """Settles spaces, and keeps what is said."""

    def __init__(self, store: Store, archive: Archive, catalogue: pl.DataFrame) -> None:
        self.store = store
        self.sample = Sample(catalogue, archive, LIMITS)
        self.said: list[str] = []

    def __call__(self, encoder: Encoder, name: str = "colours") -> tuple[EmbeddingSpace, Encoder]:
        return settled(self.store, name, encoder, self.sample, self.said.append)


@pytest.fixture
def settle(store: Store, archive: Archive, catalogue: pl.DataFrame) -> Settling:
    return Settling(store, archive, catalogue)


# --- The sample ---


def test_a_sample_is_the_first_images_by_key_without_those_that_are_broken(archive, catalogue):
    first = list(Sample(catalogue, archive, LIMITS).pictures(5))
    every = list(Sample(catalogue, archive, LIMITS).pictures(10_000))

    assert [np.asarray(one).tolist() for one in first] == [np.asarray(one).tolist() for one in every[:5]]
    assert len(every) == IMAGES


# --- Comparing ---


@pytest.fixture
def pictures(archive: Archive, catalogue: pl.DataFrame) -> list[Image.Image]:
    return list(Sample(catalogue, archive, LIMITS).pictures(200))


def test_an_encoder_that_gives_the_same_vectors_is_perfectly_true(pictures):
    same = compare(way("float16"), embed(ColourEncoder(), pictures), pictures, "it is quick")

    assert asdict(same) == dict(
        precision="float16",
        why="it is quick",
        images=200,
        mean_cosine=pytest.approx(1),
        min_cosine=pytest.approx(1),
        overlap=1.0,
        without_direction=0,
        made="",
    )
    assert same.is_true
    assert str(same) == (
        "float16: 100.0% of the ten nearest neighbours are the reference's, cosine to it 1.00000 on average and "
        "1.00000 at least, on 200 images"
    )


def test_overlap_is_the_share_of_the_ten_nearest_that_are_the_same(pictures):
    reference = embed(ColourEncoder(), pictures)
    rough = way("int8", wrong=0.2)

    found = compare(rough, reference, pictures)

    vectors = embed(way("int8", wrong=0.2), pictures)
    shares = []
    for number in range(len(pictures)):
        near = [set(np.argsort(-(each @ each[number]))[:11].tolist()) - {number} for each in (vectors, reference)]
        shares.append(len(near[0] & near[1]) / 10)
    assert found.overlap == pytest.approx(np.mean(shares), abs=0.02)
    assert found.overlap < 0.9
    assert found.min_cosine == pytest.approx((vectors * reference).sum(axis=1).min())


def test_a_picture_that_the_reference_has_no_direction_for_does_not_count(pictures):
    aimless = [Image.new("RGB", (7, 7)), *pictures]
    reference = embed(ColourEncoder(aimless=frozenset({(7, 7)})), aimless)

    found = compare(way("float16"), reference, aimless)

    assert (found.images, found.overlap) == (200, 1.0)


def test_a_vector_without_direction_is_as_wrong_as_can_be(pictures):
    reference = embed(ColourEncoder(), pictures)
    broken = RoughEncoder(precision="int8", aimless=frozenset({pictures[0].size}))

    found = compare(broken, reference, pictures)

    assert (found.min_cosine, found.is_true) == (0, False)


def test_one_vector_that_is_lost_is_too_many_whatever_the_others_are(pictures):
    some = [Image.new("RGB", (7, 7), "red"), *pictures]
    reference = embed(ColourEncoder(), some)

    found = compare(RoughEncoder(precision="int8", aimless=frozenset({(7, 7)})), reference, some)

    assert (found.images, found.without_direction, found.is_true) == (201, 1, False)
    assert found.overlap >= 0.97
    assert str(found) == "int8: 1 of 201 images get no direction"


@pytest.mark.parametrize(("images", "compared"), [(20, False), (21, True)])
def test_of_few_images_nobody_says_that_neighbours_are_the_same(pictures, images, compared):
    reference = embed(ColourEncoder(), pictures[:images])

    found = compare(way("int8", wrong=0.5), reference, pictures[:images], "it was asked for")

    assert (found.images, found.overlap is not None) == (images, compared)
    if not compared:
        assert str(found) == (
            "int8, not compared: it was asked for; 20 images are too few to compare it with the reference"
        )


# --- Choosing ---


def test_a_new_space_takes_the_most_wanted_that_is_true_and_keeps_what_was_measured(settle, store):
    quick, quicker = way("bfloat16"), way("int8", wrong=0.3)
    model = ChoosyEncoder(ways=(quicker, quick))

    space, taken = settle(model)

    assert taken is quick
    assert space.fingerprint == quick.fingerprint
    kept = store.fidelity("colours")
    assert kept == dict(
        precision="bfloat16",
        why="bfloat16 is quick",
        images=IMAGES,
        mean_cosine=pytest.approx(1),
        min_cosine=pytest.approx(1),
        overlap=1.0,
        without_direction=0,
        made="",
    )
    refused = settle.said.pop(2)
    assert refused.startswith("int8: ")
    assert refused.endswith(". It is refused, for at least 97% of the neighbours must be.")
    assert settle.said == [
        f"comparing encoders on {IMAGES} images, once for this space",
        "trying int8, because int8 is quick",
        "trying bfloat16, because bfloat16 is quick",
        f"{Fidelity(**kept)}. It is taken.",
    ]


def test_where_none_is_true_the_reference_is_taken(settle, store):
    model = ChoosyEncoder(ways=(way("int8", wrong=0.3), way("bfloat16", wrong=0.2)))

    space, taken = settle(model)

    assert taken is model
    assert space.fingerprint == model.fingerprint
    assert store.fidelity("colours") == asdict(Fidelity("float32", "nothing quicker will do here"))
    assert settle.said[-1] == "float32 is taken, because nothing quicker will do here"


def test_a_precision_that_was_asked_for_and_is_not_true_is_refused_with_the_figures(settle, store):
    with pytest.raises(ModelError) as caught:
        settle(ChoosyEncoder(ways=(way("int8", wrong=0.3),), asked_for=True))

    message = str(caught.value)
    assert message.startswith("mean-colour in int8: ")
    assert "of the ten nearest neighbours are the reference's, cosine to it 0." in message
    assert message.endswith(
        f"at least, on {IMAGES} images. It is refused, for at least 97% of the neighbours must be. "
        "Unset ABO_PRECISION: then the quickest one is taken that is true enough."
    )
    assert store.fidelity("colours") is None


def test_few_images_judge_no_other_precision(settle, archive, catalogue, store):
    quick = way("bfloat16")
    settle.sample = Sample(catalogue.head(499), archive, LIMITS)

    _, taken = settle(ChoosyEncoder(ways=(quick,)))

    assert taken.precision == "float32"
    assert quick.embedded == 0
    assert store.fidelity("colours")["why"] == "it takes 500 images to judge another, and there are 498"


def test_few_images_are_enough_to_judge_what_was_asked_for_by_name(settle, archive, catalogue, store):
    settle.sample = Sample(catalogue.head(40), archive, LIMITS)

    _, taken = settle(ChoosyEncoder(ways=(way("bfloat16"),), asked_for=True))

    assert taken.precision == "bfloat16"
    assert store.fidelity("colours")["images"] == len(list(settle.sample.pictures(40))) == 39


def test_images_that_cannot_be_decoded_judge_nothing(settle, archive, catalogue, store):
    """As if each were over the limit of pixels: the run is to record that, and not to end here."""
    settle.sample = Sample(catalogue, archive, Limits(10**7, 1))

    _, taken = settle(ChoosyEncoder(ways=(way("bfloat16"),)))
    _, asked_for = settle(ChoosyEncoder(ways=(way("float16"),), asked_for=True), "other")

    assert (taken.precision, asked_for.precision) == ("float32", "float16")
    assert store.fidelity("colours")["why"] == "it takes 500 images to judge another, and there are 0"
    assert store.fidelity("other")["overlap"] is None


def test_a_candidate_that_the_machine_has_no_memory_for_is_left_out(settle):
    class Hungry(RoughEncoder):
        def encode_images(self, images):
            raise RuntimeError(f"out of memory, for {len(images)} images")

    _, taken = settle(ChoosyEncoder(ways=(Hungry(precision="int8"), way("bfloat16"))))

    assert taken.precision == "bfloat16"
    assert settle.said[2] == "int8 is left out: out of memory, for 64 images"


def test_a_candidate_that_cannot_be_made_is_left_out(settle):
    class Missing(RoughEncoder):
        def make_ready(self, pictures, say):
            say("looking for the runtime")
            assert len(list(pictures())) == 300
            raise ModelError("There is no such runtime.")

    model = ChoosyEncoder(ways=(Missing(precision="int8"), way("bfloat16")))

    _, taken = settle(model)

    assert taken.precision == "bfloat16"
    assert settle.said[2:4] == ["looking for the runtime", "int8 is left out: There is no such runtime."]


def test_what_was_chosen_is_chosen_for_good(settle, archive, catalogue):
    quick = way("bfloat16")
    space, taken = settle(ChoosyEncoder(ways=(quick,)))
    embed_partition("00of1", catalogue, archive, taken, space, limits=LIMITS)
    before = quick.embedded
    settle.said.clear()

    again = settle(ChoosyEncoder(ways=(way("int8"), quick)))

    assert (again[0].fingerprint, again[1]) == (quick.fingerprint, quick)
    assert settle.said == []
    assert quick.embedded == before


def test_as_long_as_nothing_is_settled_another_way_may_be_asked_for(settle, store):
    """A run that was interrupted, or asked for something that cannot be, has made the space by then."""
    store.open_space("colours", way("float16"))

    space, taken = settle(ChoosyEncoder(ways=(way("bfloat16"),), asked_for=True))

    assert (taken.precision, space.fingerprint) == ("bfloat16", taken.fingerprint)
    with pytest.raises(StoreError, match="Space colours holds vectors of mean-colour"):
        store.open_space("colours", way("float16"))


def test_what_was_made_for_the_space_is_asked_for_again(settle, store):
    @dataclass
    class Made(RoughEncoder):
        asked: str = ""

        def make_ready(self, pictures, say):
            del pictures, say
            self.made = "00000000000000a1"

        def made_as(self, made):
            self.asked = made
            return self

    model = ChoosyEncoder(ways=(Made(precision="int8", fingerprint="int8000000000000"),))

    _, taken = settle(model)

    assert store.fidelity("colours")["made"] == "00000000000000a1"
    assert taken.asked == "00000000000000a1"


def test_a_space_that_has_vectors_from_before_stays_as_it_is(settle, store, archive, catalogue):
    """As one made by a version that knew no other precision."""
    model = ChoosyEncoder(ways=(way("bfloat16"),))
    space = store.open_space("colours", model)
    embed_partition("00of1", catalogue.head(3), archive, model, space, limits=LIMITS)

    again, taken = settle(model)

    assert (again.fingerprint, taken) == (model.fingerprint, model)
    assert store.fidelity("colours") is None


def test_who_settles_a_space_second_heeds_the_first(store, settle):
    model = ChoosyEncoder(ways=(way("bfloat16"), way("float16")))
    store.open_space("colours", model)
    store.settle_space("colours", model.ways[1], {"precision": "float16"})

    space = store.settle_space("colours", model.ways[0], {"precision": "bfloat16"})

    assert space.fingerprint == model.ways[1].fingerprint
    assert settle(model)[1] is model.ways[1]


def test_a_space_of_another_precision_than_was_asked_for_is_refused_with_both_named(settle):
    settle(ChoosyEncoder(ways=(way("bfloat16"),)))

    with pytest.raises(StoreError) as caught:
        settle(way("float16"))

    assert "fingerprint bfloat1600000000" in str(caught.value)
    assert "float16000000000" in str(caught.value)


# --- A real model, of the kind that loses its neighbours ---


SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}


def overlap_in_int8(folder: Path, pictures: list[Image.Image], *, outliers: bool) -> float:
    model = make_clip(
        folder / "clip",
        outliers=outliers,
        vision={**SHAPE, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8},
        text={**SHAPE, "num_hidden_layers": 1},
        dimension=64,
    )
    quick = ClipEncoder(str(model), "cpu", "int8", folder=folder / "made once")
    quick.make_ready(lambda: pictures[:100], print)
    return compare(quick, embed(quick.reference, pictures), pictures).overlap


def test_vectors_of_int8_models_that_were_made_of_other_pictures_are_not_mixed(tmp_path, pictures):
    """What a model becomes in few digits depends on the pictures that it was made with; its fingerprint does not."""
    model = make_clip(
        tmp_path / "clip",
        vision={**SHAPE, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        text={**SHAPE, "num_hidden_layers": 1},
        dimension=64,
    )
    said: list[str] = []

    def int8(folder: str, made: str = "", of: Sequence[Image.Image] = ()) -> ClipEncoder:
        encoder = ClipEncoder(str(model), "cpu", "int8", folder=tmp_path / folder).made_as(made)
        encoder.make_ready(lambda: of, said.append)
        return encoder

    first, second = int8("here", of=pictures[:40]), int8("here", of=pictures[40:60])
    there = int8("there", of=pictures[:40])

    assert first.fingerprint == second.fingerprint
    assert first.made == there.made != second.made
    assert len(said) == 3
    # The one that was asked for is found, and needs no pictures.
    again = int8("here", first.made)
    assert np.array_equal(again.encode_images(pictures[:5]), first.encode_images(pictures[:5]))
    assert again.device == "cpu"
    # Or made of the same pictures.
    assert int8("elsewhere", first.made, pictures[:40]).made == first.made
    # Else it has to be copied.
    with pytest.raises(ModelError) as caught:
        int8("nowhere", first.made, pictures[40:60])
    root = tmp_path / "nowhere" / first.fingerprint
    remedy = "Copy that folder from the state folder of the machine that made them, or embed into another space with "
    assert str(caught.value) == (
        f"The vectors were made by the int8 model {first.made}, which is not in {root}, and what the catalogue's "
        f"images make here is another one, {second.made}: their vectors cannot be mixed. {remedy}--space (ABO_SPACE)."
    )
    with pytest.raises(ModelError) as caught:
        int8("empty", first.made)
    assert str(caught.value) == (
        f"The vectors were made by the int8 model {first.made}, which is not in "
        f"{tmp_path / 'empty' / first.fingerprint}. {remedy}--space (ABO_SPACE)."
    )


def test_int8_loses_the_neighbours_of_a_model_with_outliers_and_the_gate_notices(tmp_path, sample):
    """Random weights flatter int8; trained vision transformers have channels many times as large as the others."""
    with Archive.open(sample.archive, tmp_path) as drawn:
        pictures = list(Sample(read_catalogue(drawn, min_side=1000).kept, drawn, LIMITS).pictures(150))

    plain = overlap_in_int8(tmp_path / "plain", pictures, outliers=False)
    outlying = overlap_in_int8(tmp_path / "outlying", pictures, outliers=True)

    assert outlying < min(plain, OVERLAP) - 0.1
    assert not Fidelity("int8", "", len(pictures), 1.0, 1.0, outlying).is_true
