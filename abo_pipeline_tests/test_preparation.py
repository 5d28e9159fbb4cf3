"""Our way to a model's pixels beside the model's own, on every kind of picture that an archive holds."""

import numpy as np
import pytest
from PIL import Image

from abo_pipeline.archive import Archive
from abo_pipeline.decoding import decode
from abo_pipeline.encoder import ClipEncoder
from abo_pipeline.errors import ImageError
from abo_pipeline.preparation import Preparation
from abo_pipeline.sample import Sample


@pytest.fixture(scope="module")
def pictures(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """All of the drawn archive that can be decoded: awkward ones are among them."""
    found = []
    with Archive.open(sample.archive, tmp_path_factory.mktemp("index")) as archive:
        for row in archive.index.iter_rows(named=True):
            try:
                found.append(decode(archive.read_at(row["offset"], row["size"]), max_pixels=10**8))
            except ImageError:
                continue
    assert len(found) > 150
    return found


def processor(**changes):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(**changes)


def pixels_of(preparation: Preparation, picture: Image.Image) -> np.ndarray:
    return preparation.prepare(picture).numpy().astype(int)


def differences(picture: Image.Image, **size) -> np.ndarray:
    """What the model's processor makes of it, in whole numbers, less what we do."""
    plain = processor(do_rescale=False, do_normalize=False, **size)
    theirs = plain(picture, return_tensors="np")["pixel_values"][0].astype(int)
    ours = pixels_of(Preparation.of(processor(**size)), picture)
    assert ours.shape == theirs.shape, picture.size
    return np.abs(ours - theirs)


def test_pixels_are_within_two_of_the_models_own(pictures):
    assert max(differences(picture).max() for picture in pictures) <= 2
    assert np.mean([differences(picture).mean() for picture in pictures]) < 0.02


SHAPES = [(1, 16), (16, 1), (2, 2), (22, 256), (256, 22), (223, 500), (224, 224), (225, 224), (333, 1000), (64, 1024)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("side", [60, 224])
def test_noise_of_any_shape_is_within_two_of_the_models_own(height, width, side):
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)

    off = differences(Image.fromarray(noise), size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    assert off.max() <= 2


def test_a_crop_smaller_than_what_was_scaled_is_its_middle():
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (300, 400, 3), dtype=np.uint8))

    off = differences(noise, size={"shortest_edge": 101}, crop_size={"height": 60, "width": 60})

    assert off.max() <= 2


def test_every_picture_has_the_vector_of_the_reference(pictures, encoder: ClipEncoder):
    ours, theirs = encoder.encode_images(pictures), encoder.reference.encode_images(pictures)

    cosines = (ours * theirs).sum(axis=1)

    assert cosines.min() >= 0.9999


def test_an_array_is_prepared_as_its_picture_is_and_neither_is_changed(pictures):
    preparation = Preparation.of(processor())
    arrays = [np.array(picture) for picture in pictures]

    prepared = preparation.batch(arrays, len(arrays))

    assert prepared.equal(preparation.batch(iter(pictures), len(pictures) + 5))
    # Not even where a picture of the right size is not scaled, and shares its memory with what was prepared.
    prepared.zero_()
    assert [array.tobytes() for array in arrays] == [picture.tobytes() for picture in pictures]


def test_normalised_pixels_are_those_of_the_models_processor(pictures):
    import torch

    preparation = Preparation.of(processor())
    squares = [
        Image.fromarray(pixels_of(preparation, picture).astype(np.uint8).transpose(1, 2, 0)) for picture in pictures[:8]
    ]

    ours = preparation.normalised(preparation.batch(squares, len(squares)), torch.float32)

    theirs = processor()(squares, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"resample": 2},
        {"do_center_crop": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"crop_size": {"height": 224, "width": 200}},
        {"crop_size": {"height": 256, "width": 256}},
        {"size": {"height": 224, "width": 224}},
    ],
)
def test_what_is_prepared_otherwise_is_left_to_the_models_own(change):
    assert Preparation.of(processor(**change)) is None


def test_what_is_no_image_processor_is_left_alone():
    assert Preparation.of(None) is None
    assert Preparation.of("a string") is None
