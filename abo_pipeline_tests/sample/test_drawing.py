"""Drawings: the same ones from the same seed, for everything that can be drawn."""

# ruff: noqa: S311 - drawings are no secrets

from random import Random

import pytest
from PIL import ImageStat

from abo_pipeline.sample.captions import COLOR_WORDS, PATTERN_WORDS, Caption, caption
from abo_pipeline.sample.drawing import COLORS, PATTERNS, Subject, draw_product, picture_size, random_subject
from abo_pipeline.sample.foreign import COLOR_NAMES, PRODUCT_NAMES
from abo_pipeline.sample.products import PRODUCTS


@pytest.mark.parametrize("code", PRODUCTS)
def test_every_variant_is_drawn_at_the_size_asked_for_and_the_same_each_time(code):
    for variant in PRODUCTS[code].variants:
        subject = Subject(code, variant, "red", "striped")

        first = draw_product(subject, Random("a"), size=(120, 160))
        again = draw_product(subject, Random("a"), size=(120, 160))
        other = draw_product(subject, Random("b"), size=(120, 160))

        assert (first.mode, first.size) == ("RGB", (120, 160))
        assert first.tobytes() == again.tobytes()
        assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("color", COLORS)
def test_a_picture_has_much_of_the_color_it_is_said_to_have(color):
    subject = Subject("CELLULAR_PHONE_CASE", "case", color)

    picture = draw_product(subject, Random(1), size=(128, 128))

    middle = ImageStat.Stat(picture.crop((58, 62, 70, 74))).median
    assert max(abs(seen - meant) for seen, meant in zip(middle, COLORS[color], strict=True)) <= 64


def test_picture_size_foresees_the_size_of_the_drawing_and_keeps_half_of_them_square():
    seen = []
    for seed in range(60):
        subject = random_subject(Random(seed))
        foreseen = picture_size(subject, Random(seed))
        assert draw_product(subject, Random(seed)).size == foreseen
        seen.append(foreseen)

    assert {max(size) for size in seen} == {256}
    assert all(min(size) >= 153 for size in seen)
    assert 20 <= seen.count((256, 256)) <= 45


def test_a_caption_fits_its_subject_and_not_one_that_differs_in_what_it_claims():
    rng = Random(3)
    for _ in range(300):
        subject = random_subject(rng)
        said = caption(subject, rng)
        assert said.fits(subject)
        assert said.text == said.text.strip()
        assert "{" not in said.text

    red_chair = Caption("a red chair", product_type="CHAIR", color="red")
    subjects = [
        Subject("CHAIR", "office", "red"),
        Subject("CHAIR", "dining", "red", "dotted"),
        Subject("CHAIR", "office", "blue"),
        Subject("SOFA", "sofa", "red"),
    ]
    assert [red_chair.fits(subject) for subject in subjects] == [True, True, False, False]


def test_every_type_color_and_pattern_has_its_words():
    assert set(COLOR_WORDS) == set(COLOR_NAMES) == set(COLORS)
    assert set(PATTERN_WORDS) == set(PATTERNS)
    assert set(PRODUCT_NAMES) == set(PRODUCTS)
    assert all(set(product.popular) <= set(COLORS) for product in PRODUCTS.values())
