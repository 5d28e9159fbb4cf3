"""The small CLIP as the pipeline meets it: loaded by SentenceTransformer, offline, and right about what it sees."""

# ruff: noqa: S311 - drawings are no secrets

from random import Random

import numpy as np
import pytest

from abo_pipeline.sample import SMALL_CLIP
from abo_pipeline.sample.drawing import Subject, draw_product
from abo_pipeline.sample.train import DIMENSION, Plan, main, measure, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def small_clip():
    return _loaded(SMALL_CLIP)


def _loaded(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def _drawn(code, variant, color, pattern="plain", seed=1):
    return draw_product(Subject(code, variant, color, pattern), Random(seed))


def test_it_embeds_texts_and_pictures_of_every_mode_as_vectors_of_one_size(small_clip):
    chair = _drawn("CHAIR", "office", "red")

    texts = small_clip.encode(["a red chair", "", "Ünbekannte Wörter 椅子 🪑", "chair " * 200])
    images = small_clip.encode([chair, chair.convert("L"), chair.resize((30, 300))])

    assert (texts.shape, images.shape) == ((4, DIMENSION), (3, DIMENSION))
    assert texts.dtype == images.dtype == np.float32
    assert np.isfinite(texts).all()
    assert np.isfinite(images).all()


def test_it_computes_in_32_bits_though_it_is_stored_in_16(small_clip):
    from safetensors.numpy import load_file

    stored = load_file(SMALL_CLIP / "0_CLIPModel" / "model.safetensors")

    assert {str(weight.dtype) for weight in stored.values()} == {"float16"}
    assert {str(weight.dtype) for weight in small_clip.parameters()} == {"torch.float32"}


def test_the_order_and_size_of_batches_change_no_vector(small_clip):
    pictures = [_drawn("SHIRT", "polo", color) for color in ("red", "blue", "green", "white", "black")]

    together = small_clip.encode(pictures, batch_size=5)
    alone = np.concatenate([small_clip.encode([picture]) for picture in pictures[::-1]])[::-1]

    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("red leather office chair", ("CHAIR", "office", "red", "plain")),
        ("blue mug", ("DRINKING_CUP", "mug", "blue", "plain")),
        ("a pair of brown boots", ("BOOT", "ankle", "brown", "plain")),
        ("striped shirt", ("SHIRT", "tshirt", "teal", "striped")),
        ("Grey COUCH", ("SOFA", "sofa", "grey", "plain")),
        ("yellow umbrella with polka dots", ("UMBRELLA", "stick", "yellow", "dotted")),
    ],
)
def test_natural_phrases_find_their_picture_among_near_misses(small_clip, query, expected):
    pictures = {
        subject: _drawn(*subject)
        for subject in [
            ("CHAIR", "office", "red", "plain"),
            ("CHAIR", "office", "blue", "plain"),
            ("CHAIR", "dining", "red", "plain"),
            ("SOFA", "sofa", "grey", "plain"),
            ("SOFA", "sofa", "red", "plain"),
            ("DRINKING_CUP", "mug", "blue", "plain"),
            ("DRINKING_CUP", "mug", "red", "plain"),
            ("VASE", "classic", "blue", "plain"),
            ("BOOT", "ankle", "brown", "plain"),
            ("SHOES", "loafer", "brown", "plain"),
            ("SHIRT", "tshirt", "teal", "striped"),
            ("SHIRT", "tshirt", "teal", "plain"),
            ("UMBRELLA", "stick", "yellow", "dotted"),
            ("UMBRELLA", "stick", "yellow", "plain"),
        ]
    }

    scores = small_clip.similarity(small_clip.encode([query]), small_clip.encode(list(pictures.values())))[0]

    assert list(pictures)[int(scores.argmax())] == expected


def test_precision_at_10_on_drawings_of_a_fresh_seed_is_at_least_0_8(capsys):
    precision = measure(SMALL_CLIP, seed=4242, each=12)

    with capsys.disabled():
        print(f"\nsmall CLIP: precision@10 {precision.overall:.3f}")  # noqa: T201 - the figure is the test's news
    assert precision.overall >= 0.8
    assert min(precision.by_type.values()) >= 0.5
    assert min(precision.by_color.values()) >= 0.5


def test_it_is_small_and_its_card_says_how_well_it_does():
    files = [path for path in SMALL_CLIP.rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert "Precision@10" in (SMALL_CLIP / "README.md").read_text(encoding="utf-8")


def test_training_anew_gives_a_folder_that_loads(tmp_path):
    lines = []

    folder = train(tmp_path / "clip", Plan(pictures=24, steps=3, batch=12), report=lines.append)

    model = _loaded(folder)
    vectors = model.encode(["a red chair"]), model.encode([_drawn("CHAIR", "office", "red")])
    assert [vector.shape for vector in vectors] == [(1, DIMENSION), (1, DIMENSION)]
    assert any(line.startswith("step 3 of 3: ") for line in lines)


def test_the_command_line_refuses_to_train_to_nowhere(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])

    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err
