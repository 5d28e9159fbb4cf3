"""A real CLIP of random weights, small enough to be made here, and a model hub on this machine that serves it."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b, sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from abo_pipeline import encoder as module
from abo_pipeline.decoding import DECODING
from abo_pipeline.encoder import SMALL_MODEL, ClipEncoder, encoder_from, where_is
from abo_pipeline.errors import ModelError
from abo_pipeline.machine import cores
from abo_pipeline.preparation import PREPARATION, Preparation
from abo_pipeline.settings import PROJECT_ROOT, Settings
from abo_pipeline.towers import TorchTower
from abo_pipeline_tests.fakes import ColourEncoder

REMEDY = (
    "Give a folder that holds a CLIP model with --model PATH (or ABO_MODEL), "
    "or use the small one that is bundled: --model small-clip."
)

DIMENSION = 24
LONGEST = 77
"""Tokens that CLIP reads, its start and end mark included."""

PICTURES = [
    Image.new("RGB", (50, 20), "red"),
    Image.new("RGB", (224, 224), "blue"),
    Image.radial_gradient("L").convert("RGB"),
    Image.new("RGB", (1, 16), "white"),
    Image.new("RGB", (16, 1), "black"),
]
TEXTS = ["a red chair", "照合", "", "a considerably longer text about a wooden table with four legs", "x"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP in the layout of clip-ViT-B-32 on the model hub; no training, so it means nothing."""
    # What reads these variables does so once, when it is imported.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import torch
        from tokenizers import pre_tokenizers
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LONGEST)
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = CLIPConfig(
        text_config={**shape, **marks, "vocab_size": len(tokens), "max_position_embeddings": LONGEST},
        vision_config={**shape, "image_size": 224, "patch_size": 32},
        projection_dim=DIMENSION,
    )
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    inner = folder / "0_CLIPModel"
    inner.mkdir(parents=True)
    for part in (CLIPModel(config), tokenizer, CLIPImageProcessorPil()):
        part.save_pretrained(inner)
    one = {"idx": 0, "name": "0", "path": inner.name, "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([one]))
    (folder / "config_sentence_transformers.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> ClipEncoder:
    return ClipEncoder(str(tiny_folder), "cpu")


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def text_only(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A BERT: a model that SentenceTransformer loads, and that knows no pictures."""
    assert tiny_folder
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("models") / "bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "chair", "table"]
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder


def refusal(encoder: ClipEncoder) -> str:
    with pytest.raises(ModelError) as caught:
        encoder.encode_texts(["a"])
    return str(caught.value)


# --- Vectors ---


def as_transformers_has_it(folder: Path, inputs: list[Any]) -> np.ndarray:
    """Unit vectors of pictures or texts, one by one, without sentence-transformers."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    inner = folder / "0_CLIPModel"
    model = CLIPModel.from_pretrained(inner).eval()
    tokenizer, prepare = CLIPTokenizer.from_pretrained(inner), CLIPImageProcessorPil.from_pretrained(inner)
    rows = []
    with torch.inference_mode():
        for one in inputs:
            if isinstance(one, str):
                features = model.get_text_features(**tokenizer(one, truncation=True, return_tensors="pt"))
            else:
                features = model.get_image_features(**prepare(one, return_tensors="pt"))
            rows.append(getattr(features, "pooler_output", features)[0].numpy())
    return np.array([row / np.linalg.norm(row) for row in rows])


def test_pictures_become_the_vectors_that_transformers_gives_them(tiny, tiny_folder):
    vectors = tiny.encode_images(PICTURES)

    np.testing.assert_allclose(vectors, as_transformers_has_it(tiny_folder, PICTURES), atol=1e-6)


def test_texts_become_the_vectors_that_transformers_gives_them(tiny, tiny_folder):
    vectors = tiny.encode_texts(TEXTS)

    np.testing.assert_allclose(vectors, as_transformers_has_it(tiny_folder, TEXTS), atol=1e-6)


def test_pictures_and_texts_are_unit_vectors_of_one_space(tiny):
    images, texts = tiny.encode_images(PICTURES), tiny.encode_texts(TEXTS)

    assert (images.shape, texts.shape) == ((len(PICTURES), DIMENSION), (len(TEXTS), DIMENSION))
    assert images.dtype == texts.dtype == np.float32
    assert tiny.dimension == DIMENSION
    np.testing.assert_allclose(np.linalg.norm(np.vstack([images, texts]), axis=1), 1, atol=1e-6)


def test_a_vector_does_not_depend_on_its_batch(tiny):
    images, texts = tiny.encode_images(PICTURES), tiny.encode_texts(TEXTS)

    np.testing.assert_allclose(images, np.vstack([tiny.encode_images([picture]) for picture in PICTURES]), atol=1e-6)
    np.testing.assert_allclose(texts, np.vstack([tiny.encode_texts([text]) for text in TEXTS]), atol=1e-6)


def test_of_nothing_there_are_no_vectors(tiny):
    assert tiny.encode_images([]).shape == tiny.encode_texts([]).shape == (0, DIMENSION)
    assert tiny.encode_images([]).dtype == np.float32


def test_any_sequence_will_do(tiny):
    assert np.array_equal(tiny.encode_images(tuple(PICTURES)), tiny.encode_images(PICTURES))
    assert np.array_equal(tiny.encode_texts(tuple(TEXTS)), tiny.encode_texts(TEXTS))


def test_a_text_is_never_taken_for_the_picture_it_seems_to_name(tiny, tiny_folder, tmp_path):
    picture = tmp_path / "picture.png"
    PICTURES[0].save(picture)
    texts = ["a chair", str(picture), "http://127.0.0.1:9/picture.jpg", "data:image/png;base64,AAAA", "a.wav"]

    vectors = tiny.encode_texts(texts)

    np.testing.assert_allclose(vectors, as_transformers_has_it(tiny_folder, texts), atol=1e-6)


def test_a_picture_without_direction_is_nan_and_no_warning(copy, recwarn):
    from safetensors.numpy import load_file, save_file

    weights = copy / "0_CLIPModel" / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"visual_projection.weight": np.zeros_like(tensors["visual_projection.weight"])}, weights)
    aimless = ClipEncoder(str(copy), "cpu")

    vectors = aimless.encode_images(PICTURES[:2])

    assert vectors.shape == (2, DIMENSION)
    assert np.isnan(vectors).all()
    assert np.isfinite(aimless.encode_texts(["a"])).all()
    assert [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)] == []


# --- The ways to the vectors of pictures ---


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=1)


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.999999), ("bfloat16", 0.999), ("float16", 0.9999)])
def test_every_precision_gives_about_the_vectors_of_the_reference(tiny, tiny_folder, precision, least):
    encoder = ClipEncoder(str(tiny_folder), "cpu", precision)

    vectors = encoder.encode_images(PICTURES)

    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert cosines(vectors, tiny.reference.encode_images(PICTURES)).min() >= least


@pytest.mark.parametrize("pinned", [False, True])
def test_pictures_are_prepared_in_pinned_memory_where_the_tower_fetches_from_that(tiny, monkeypatch, pinned):
    asked = []
    memory = Preparation.memory

    def recorded(preparation: Preparation, count: int, *, pinned: bool = False) -> Any:
        asked.append((count, pinned))
        # Without a GPU there is none that is pinned.
        return memory(preparation, count)

    monkeypatch.setattr(Preparation, "memory", recorded)
    monkeypatch.setattr(TorchTower, "pinned", pinned)

    vectors = tiny.encode_images(PICTURES)

    assert asked == [(len(PICTURES), pinned)]
    assert cosines(vectors, tiny.reference.encode_images(PICTURES)).min() >= 0.999999


def test_pictures_to_search_by_need_no_model_in_few_digits(tiny, tiny_folder, tmp_path):
    int8 = ClipEncoder(str(tiny_folder), "cpu", "int8", folder=tmp_path / "made once")

    vectors = int8.in_single_precision.encode_images(PICTURES)

    assert np.array_equal(vectors, tiny.encode_images(PICTURES))
    assert list(tmp_path.iterdir()) == []


def test_a_thread_of_an_encoder_without_a_tower_has_all_cores_whoever_had_it_before(tiny):
    import torch

    with ThreadPoolExecutor(1) as pool:
        pool.submit(tiny.enter_thread).result()
        alone = pool.submit(torch.get_num_threads).result()
        pool.submit(tiny.reference.enter_thread).result()
        together = pool.submit(torch.get_num_threads).result()

    assert (alone, together) == (1, cores())


def test_a_picture_may_come_as_an_array_whatever_prepares_it(tiny):
    arrays = [np.asarray(picture) for picture in PICTURES]

    for encoder in (tiny, tiny.reference, ColourEncoder()):
        prepared = encoder.prepare(arrays, len(arrays))
        assert np.array_equal(encoder.encode_prepared(prepared), encoder.encode_images(PICTURES))


def test_texts_are_embedded_alike_in_every_precision(tiny):
    texts = tiny.encode_texts(TEXTS)

    assert all(np.array_equal(each.encode_texts(TEXTS), texts) for each in tiny.variants())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_threads_that_embed_at_once_get_what_one_gets(tiny_folder, precision):
    encoder = ClipEncoder(str(tiny_folder), "cpu", precision)
    one_by_one = [encoder.encode_images(PICTURES[: 1 + n % 5]) for n in range(40)]

    with ThreadPoolExecutor(4, initializer=encoder.enter_thread) as pool:
        at_once = list(pool.map(lambda n: encoder.encode_images(PICTURES[: 1 + n % 5]), range(40)))

    for one, other in zip(one_by_one, at_once, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_there_is_a_thread_for_each_core_that_the_process_may_use(tiny):
    assert tiny.workers == len(os.sched_getaffinity(0))
    assert tiny.batch == 16


@pytest.mark.parametrize(
    ("has_bfloat16", "has_openvino", "expected"),
    [
        (True, True, ["int8", "bfloat16", "float32"]),
        (True, False, ["bfloat16", "float32"]),
        (False, True, ["int8", "float32"]),
        (False, False, ["float32"]),
    ],
)
def test_a_new_space_is_proposed_what_this_machine_is_quick_with(
    tiny_folder, tmp_path, monkeypatch, has_bfloat16, has_openvino, expected
):
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr(module.openvino_tower, "is_available", lambda: has_openvino)

    candidates = ClipEncoder(str(tiny_folder), "cpu", folder=tmp_path).candidates()

    assert [each.encoder.precision for each in candidates] == expected
    assert all(each.why for each in candidates)


def test_with_the_models_own_processor_there_is_one_way(tiny, tiny_folder):
    own = ClipEncoder(str(tiny_folder), "cpu", preparation="model")

    (candidate,) = own.candidates()

    assert candidate.encoder.fingerprint == tiny.reference.fingerprint
    np.testing.assert_allclose(
        candidate.encoder.encode_images(PICTURES), as_transformers_has_it(tiny_folder, PICTURES), atol=1e-6
    )
    with pytest.raises(ModelError) as caught:
        ClipEncoder(str(tiny_folder), "cpu", "bfloat16", "model").encode_images(PICTURES)
    assert str(caught.value) == (
        f"{tiny_folder} cannot be computed in bfloat16: sentence-transformers computes it, because it is no CLIP of "
        "the usual preparation, or ABO_PREPARATION is model. Unset ABO_PRECISION."
    )


def test_torchvision_changes_nothing(tiny_folder, monkeypatch):
    """Where it is installed, transformers takes it for CLIP's processor, under the name that is Pillow's elsewhere."""
    from sentence_transformers import SentenceTransformer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    class CLIPImageProcessor(CLIPImageProcessorPil):
        def __call__(self, *_: object, **__: object) -> None:
            raise AssertionError("torchvision was asked")

    model = SentenceTransformer(str(tiny_folder), device="cpu")
    model[0].processor.image_processor = CLIPImageProcessor.from_dict(model[0].processor.image_processor.to_dict())
    monkeypatch.setattr(module, "_from_folder", lambda *_: model)
    loaded = module._load.__wrapped__(str(tiny_folder), "cpu")

    vectors = loaded.encode(PICTURES, normalize_embeddings=True, show_progress_bar=False)

    np.testing.assert_allclose(vectors, as_transformers_has_it(tiny_folder, PICTURES), atol=1e-6)


def test_a_model_that_prepares_pictures_otherwise_keeps_its_own_processor(copy):
    configuration = copy / "0_CLIPModel" / "preprocessor_config.json"
    if not configuration.is_file():
        configuration = copy / "0_CLIPModel" / "processor_config.json"
    settings = json.loads(configuration.read_text())
    (settings.get("image_processor") or settings)["resample"] = 2
    configuration.write_text(json.dumps(settings))
    other = ClipEncoder(str(copy), "cpu")

    vectors = other.encode_images(PICTURES)

    assert [(each.encoder.precision, each.why) for each in other.candidates()] == [
        ("float32", "the model is no CLIP of the usual preparation")
    ]
    np.testing.assert_allclose(vectors, as_transformers_has_it(copy, PICTURES), atol=1e-6)
    assert other.workers == 1


# --- Long texts ---


@pytest.mark.parametrize(
    ("text", "too_long"),
    [
        ("", False),
        ("x", False),
        ("x " * (LONGEST - 2), False),
        ("x " * (LONGEST - 1), True),
        ("x" * (LONGEST - 2), False),
        ("x" * (LONGEST - 1), True),
        ("照" * 25, False),
        ("照" * 26, True),
    ],
)
def test_a_text_is_too_long_by_its_tokens_not_its_words(tiny, text, too_long):
    assert tiny.truncates(text) is too_long


def test_a_model_that_names_no_limit_takes_no_text_for_too_long(copy):
    (copy / "0_CLIPModel" / "tokenizer_config.json").unlink()

    assert ClipEncoder(str(copy), "cpu").truncates("x " * 1000) is False


def test_whether_a_text_is_too_long_is_asked_without_a_warning(tiny, caplog):
    tiny.truncates("x " * 1000)

    assert caplog.records == []


def test_of_a_text_too_long_the_beginning_counts(tiny):
    long = "x y " * 500

    vectors = tiny.encode_texts([long, "x y " * 38])

    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


# --- Where it computes, and what it is called ---


def test_the_device_is_the_one_asked_for_or_the_best_there_is(tiny, tiny_folder):
    import torch

    best = ClipEncoder(str(tiny_folder)).device

    assert tiny.device == "cpu"
    assert best == "cpu" if not torch.cuda.is_available() else best.startswith("cuda")


@pytest.mark.parametrize("device", ["warp-drive", "cuda:99"])
def test_a_device_that_is_not_there_is_not_blamed_on_the_model(tiny_folder, device):
    message = refusal(ClipEncoder(str(tiny_folder), device))

    assert message.startswith(f"The device {device} cannot be used: ")
    assert message.endswith(". Unset ABO_DEVICE to use the best there is.")


def test_the_settings_name_model_and_device(tiny_folder, tiny):
    encoder = encoder_from(Settings.read(model=str(tiny_folder), device="cpu"))

    assert (encoder.model, encoder.device) == (str(tiny_folder), "cpu")
    assert encoder.fingerprint == tiny.fingerprint


def test_where_a_folder_is_needs_no_loading(tiny_folder, copy):
    (copy / "0_CLIPModel" / "model.safetensors").unlink()

    assert where_is(str(tiny_folder)) == str(tiny_folder)
    assert where_is(str(copy)) == str(copy)
    assert where_is(SMALL_MODEL) == "small-clip, bundled"


def test_what_uses_no_vectors_imports_no_torch(tiny_folder):
    script = f"""
import sys
from abo_pipeline.encoder import ClipEncoder, where_is
where_is({str(tiny_folder)!r})
print(ClipEncoder({str(tiny_folder)!r}).fingerprint)
print(sorted({{"torch", "transformers", "sentence_transformers", "matplotlib"}} & set(sys.modules)))
"""

    run = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)

    assert run.stdout == f"{ClipEncoder(str(tiny_folder)).fingerprint}\n[]\n"


# --- The fingerprint ---


def test_the_fingerprint_is_the_same_for_every_instance_and_every_copy(tiny, tiny_folder, copy, monkeypatch):
    monkeypatch.chdir(copy.parent)
    monkeypatch.setenv("HOME", str(copy.parent))
    names = [str(tiny_folder), str(copy), f"{copy}/", "./copy", "copy", "~/copy"]

    fingerprints = {ClipEncoder(name).fingerprint for name in names}

    assert fingerprints == {tiny.fingerprint}
    assert re.fullmatch("[0-9a-f]{16}", tiny.fingerprint)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_the_fingerprint_changes_with_a_single_byte_of_the_model(tiny, copy, name):
    file = copy / "0_CLIPModel" / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)

    assert ClipEncoder(str(copy)).fingerprint != tiny.fingerprint


def test_the_fingerprint_changes_with_a_file_more_less_or_renamed(tiny, copy):
    changed = copy / "0_CLIPModel" / "added_tokens.json"
    fingerprints = [tiny.fingerprint]

    changed.write_text("{}")
    fingerprints.append(ClipEncoder(str(copy)).fingerprint)
    changed.rename(copy / "added_tokens.json")
    fingerprints.append(ClipEncoder(str(copy)).fingerprint)
    (copy / "added_tokens.json").unlink()
    (copy / "modules.json").unlink()
    fingerprints.append(ClipEncoder(str(copy)).fingerprint)

    assert len(set(fingerprints)) == 4


@pytest.mark.parametrize(
    "name",
    ["README.md", "0_CLIPModel/README.md", "LICENSE", ".gitattributes", ".DS_Store", ".cache/download/a.metadata"],
)
def test_the_fingerprint_does_not_change_with_what_is_kept_beside_the_model(tiny, copy, name):
    beside = copy / name
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text("something")
    os.utime(copy / "modules.json", (0, 0))

    assert ClipEncoder(str(copy)).fingerprint == tiny.fingerprint


def test_each_way_to_the_vectors_has_a_fingerprint_of_its_own(tiny):
    variants = tiny.variants()

    assert [(each.precision, each.fingerprint == tiny.fingerprint) for each in variants] == [
        ("float32", True),
        ("bfloat16", False),
        ("float16", False),
        ("int8", False),
        ("float32", False),
    ]
    assert len({each.fingerprint for each in variants}) == 5
    assert variants[-1].fingerprint == tiny.reference.fingerprint
    assert [tiny.matching(each.fingerprint).fingerprint for each in variants] == [each.fingerprint for each in variants]
    assert tiny.matching("0011223344556677") is None


def test_a_space_made_before_there_were_several_ways_is_still_fitted(tiny, tiny_folder):
    """Its fingerprint is over the model's files, the decoding and the precision alone."""
    before = blake2b("\n".join([module._identity(str(tiny_folder)), DECODING, "float32"]).encode(), digest_size=8)

    assert tiny.matching(before.hexdigest()).fingerprint == tiny.reference.fingerprint


def test_a_precision_that_was_asked_for_fits_its_own_spaces_alone(tiny, tiny_folder):
    exact = ClipEncoder(str(tiny_folder), "cpu", "bfloat16")

    assert [each.precision for each in exact.variants()] == ["bfloat16"]
    assert exact.matching(tiny.fingerprint) is None
    assert tiny.matching(exact.fingerprint).fingerprint == exact.fingerprint
    assert [(each.encoder, each.why) for each in exact.candidates()] == [(exact, "ABO_PRECISION is bfloat16")]


def test_the_model_files_are_read_once_for_all_fingerprints(tiny_folder, monkeypatch):
    read: list[str] = []
    identity = module._identity
    monkeypatch.setattr(module, "_identity", lambda model: (read.append(model), identity(model))[1])

    _ = [each.fingerprint for each in ClipEncoder(str(tiny_folder), "cpu").variants()]

    assert read == [str(tiny_folder)]


def test_the_fingerprint_changes_with_the_way_pictures_are_decoded(tiny, tiny_folder, monkeypatch):
    monkeypatch.setattr(module, "DECODING", "rgb-of-tomorrow")

    assert ClipEncoder(str(tiny_folder)).fingerprint != tiny.fingerprint


# --- What is no model ---


def test_a_folder_without_a_model_is_refused_with_the_remedy(tmp_path):
    message = refusal(ClipEncoder(str(tmp_path), "cpu"))

    assert message.startswith(f"{tmp_path} is not a model that SentenceTransformer can load: ")
    assert message.endswith(f". {REMEDY}")


def test_a_model_whose_description_is_broken_is_refused_with_the_reason(copy):
    (copy / "modules.json").write_text("{")

    assert refusal(ClipEncoder(str(copy), "cpu")) == (
        f"{copy} is not a model that SentenceTransformer can load: "
        f"Expecting property name enclosed in double quotes: line 1 column 2 (char 1). {REMEDY}"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_model_of_which_a_part_is_lost_is_refused(copy, name, damage):
    part = copy / "0_CLIPModel" / name
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:100])
    else:
        part.unlink()

    message = refusal(ClipEncoder(str(copy), "cpu"))

    assert message.startswith(f"{copy} is not a model that SentenceTransformer can load: ")
    assert message.endswith(REMEDY)
    assert "\n" not in message


def test_a_model_without_its_tokenizer_is_refused_for_it_would_take_all_texts_for_the_same(copy):
    (copy / "0_CLIPModel" / "tokenizer.json").unlink()

    assert refusal(ClipEncoder(str(copy), "cpu")) == f"The model {copy} lacks its tokenizer's files. {REMEDY}"


def test_a_model_of_texts_alone_is_refused(text_only):
    assert refusal(ClipEncoder(str(text_only), "cpu")) == (
        f"The model {text_only} embeds text, not both image and text. {REMEDY}"
    )


def test_every_member_that_needs_the_model_says_so(text_only):
    encoder = ClipEncoder(str(text_only), "cpu")
    uses = [
        lambda: encoder.device,
        lambda: encoder.dimension,
        lambda: encoder.encode_images(PICTURES),
        lambda: encoder.encode_images([]),
        lambda: encoder.encode_texts(["a"]),
        lambda: encoder.truncates("a"),
    ]

    for use in uses:
        with pytest.raises(ModelError, match="not both image and text"):
            use()


@pytest.mark.parametrize(
    "name", ["./missing", "../missing", "/missing/model", "~/missing", "~no-such-user/model", "a/b/c", "." * 300]
)
def test_what_can_only_be_a_path_and_is_no_folder_is_refused_as_such(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    message = f"There is no model folder {name}. {REMEDY}"

    assert refusal(ClipEncoder(name)) == message
    with pytest.raises(ModelError, match=re.escape(message)):
        _ = ClipEncoder(name).fingerprint
    with pytest.raises(ModelError, match=re.escape(message)):
        where_is(name)


def test_a_file_is_no_model_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()

    assert refusal(ClipEncoder(str(file))) == f"There is no model folder {file}. {REMEDY}"


@pytest.mark.parametrize("name", ["", "two words", "owner/two words", "clip!", "a--b", "x" * 300])
def test_what_can_be_neither_path_nor_hub_name_is_refused_without_a_question_to_the_hub(name):
    message = f"{name!r} is no model folder, and no name that the model hub has. {REMEDY}"

    with pytest.raises(ModelError, match=re.escape(message)):
        _ = ClipEncoder(name).fingerprint
    with pytest.raises(ModelError, match=re.escape(message)):
        where_is(name)


# --- A model hub on this machine ---

REVISION, NEXT_REVISION = "1" * 40, "2" * 40


class Hub:
    """As much of the model hub as loading a model asks for; it can go away and come back at the same address.

    Attributes:
        models: folder and revision of each repository.
        asked: the requests, as ``GET /path``.
        breaks_off: the file that is sent only by half.
    """

    def __init__(self) -> None:
        self.models: dict[str, tuple[Path, str]] = {}
        self.asked: list[str] = []
        self.breaks_off = ""
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        hub = self

        class Handler(_HubHandler):
            def __init__(self, *args: Any) -> None:
                self.hub = hub
                super().__init__(*args)

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.stop()
        yield
        self.start()

    def downloads(self) -> list[str]:
        """The files that were fetched since the last look."""
        asked, self.asked = self.asked, []
        return sorted(request.split("/", 5)[-1] for request in asked if re.match("GET /[^/]+/[^/]+/resolve/", request))


class _HubHandler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        for repository, (folder, revision) in self.hub.models.items():
            if path in (f"/api/models/{repository}", f"/api/models/{repository}/revision/{revision}"):
                return self._answer(json.dumps({"id": repository, "sha": revision, "siblings": []}).encode())
            for named in ("main", revision):
                if path == f"/api/models/{repository}/tree/{named}":
                    return self._answer(json.dumps(_tree(folder)).encode())
                if path.startswith(f"/api/models/{repository}/tree/{named}/"):
                    return self._refuse("EntryNotFound")
                if path.startswith(f"/{repository}/resolve/{named}/"):
                    return self._file(folder / path.split(f"/resolve/{named}/")[1], revision)
        return self._refuse("RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _file(self, file: Path, revision: str) -> None:
        commit = {"X-Repo-Commit": revision}
        if not file.is_file():
            return self._refuse("EntryNotFound", commit)
        headers = commit | {"ETag": f'"{sha1(file.read_bytes(), usedforsecurity=False).hexdigest()}"'}
        return self._answer(file.read_bytes(), headers, by_half=file.name == self.hub.breaks_off)

    def _answer(self, content: bytes, headers: dict[str, str] | None = None, *, by_half: bool = False) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if by_half else content)

    def _refuse(self, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(404)
        for name, value in {"Content-Length": "0", "X-Error-Code": code, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def _tree(folder: Path) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": file.relative_to(folder).as_posix(), "size": file.stat().st_size, "oid": "0" * 40}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]


class Elsewhere:
    """A process of its own that loads models, for the address of the hub and the cache are read once a process.

    Each question is answered as a new process would: what was loaded for the one before is let go.
    """

    script = """
import json, sys
from abo_pipeline import encoder
from abo_pipeline.errors import ModelError
for line in sys.stdin:
    encoder._load.cache_clear()
    model = encoder.ClipEncoder(line.rstrip("\\n"), "cpu")
    answer = {}
    try:
        answer["where"] = encoder.where_is(model.model)
        answer["fingerprint"] = model.fingerprint
        answer["vectors"] = model.encode_texts(["a red chair", "a table"]).tolist()
    except ModelError as error:
        answer["error"] = str(error)
    print(json.dumps(answer), flush=True)
"""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.cache = home / "hub"
        self.hub = hub
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        variables |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.script],
            cwd=PROJECT_ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._watch = threading.Timer(300, self._process.kill)
        self._watch.start()

    def load(self, model: str) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{model}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def snapshot(self, repository: str) -> Path:
        """Where the hub's client keeps the files of a model's one revision."""
        return next((self.cache / f"models--{repository.replace('/', '--')}" / "snapshots").iterdir())

    def close(self) -> None:
        self._watch.cancel()
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    hub = Hub()
    process = Elsewhere(hub, tmp_path_factory.mktemp("home"))
    yield process
    process.close()
    hub.stop()


@pytest.fixture
def offered(elsewhere: Elsewhere, tiny_folder: Path, request: pytest.FixtureRequest) -> str:
    """A repository of the test's own on the hub, with the small model in it."""
    repository = f"example/{sha1(request.node.name.encode(), usedforsecurity=False).hexdigest()}"
    elsewhere.hub.models[repository] = (tiny_folder, REVISION)
    elsewhere.hub.asked.clear()
    return repository


def fingerprint_of(repository: str, revision: str) -> str:
    parts = (f"{repository}@{revision}", DECODING, "float32", PREPARATION)
    return blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def answer_of(tiny: ClipEncoder, repository: str, revision: str = REVISION, *, new: bool = False) -> dict[str, Any]:
    """What loading a model of the hub should give: vectors but for rounding, which the number of threads decides."""
    place = "to be downloaded from the model hub" if new else "on this machine"
    return {
        "where": f"{repository}, revision {revision[:8]}, {place}",
        "fingerprint": fingerprint_of(
            repository if "/" in repository else f"sentence-transformers/{repository}", revision
        ),
        "vectors": pytest.approx(tiny.encode_texts(["a red chair", "a table"]), abs=1e-6),
    }


def files_of(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_a_model_of_the_hub_is_downloaded_and_gives_the_vectors_it_gives_as_a_folder(
    elsewhere, offered, tiny, tiny_folder
):
    answer = elsewhere.load(offered)

    assert answer == answer_of(tiny, offered, new=True)
    assert elsewhere.hub.downloads() == files_of(tiny_folder)


def test_a_model_on_this_machine_asks_the_network_nothing(elsewhere, offered, tiny):
    elsewhere.load(offered)
    elsewhere.hub.asked.clear()

    again = elsewhere.load(offered)

    assert again == answer_of(tiny, offered)
    assert elsewhere.hub.asked == []


def test_a_model_on_this_machine_needs_no_network(elsewhere, offered, tiny):
    elsewhere.load(offered)

    with elsewhere.hub.away():
        answer = elsewhere.load(offered)

    assert answer == answer_of(tiny, offered)


def test_a_newer_revision_on_the_hub_changes_nothing_until_the_model_is_downloaded_anew(
    elsewhere, offered, tiny, tiny_folder
):
    elsewhere.load(offered)
    elsewhere.hub.models[offered] = (tiny_folder, NEXT_REVISION)

    before = elsewhere.load(offered)
    shutil.rmtree(elsewhere.snapshot(offered).parent.parent)
    after = elsewhere.load(offered)

    assert before == answer_of(tiny, offered)
    assert after == answer_of(tiny, offered, NEXT_REVISION, new=True)
    assert before["fingerprint"] != after["fingerprint"]


def test_a_name_without_an_owner_is_one_of_sentence_transformers(elsewhere, tiny, tiny_folder):
    elsewhere.hub.models["sentence-transformers/clip-without-owner"] = (tiny_folder, REVISION)

    short, long = (elsewhere.load(f"{owner}clip-without-owner") for owner in ("", "sentence-transformers/"))

    assert short == answer_of(tiny, "clip-without-owner", new=True)
    assert long == answer_of(tiny, "sentence-transformers/clip-without-owner")


@pytest.mark.parametrize(
    "lost",
    ["modules.json", *(f"0_CLIPModel/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json"))],
)
def test_a_download_that_was_cut_off_is_completed(elsewhere, offered, tiny, lost):
    elsewhere.load(offered)
    elsewhere.hub.downloads()
    link = elsewhere.snapshot(offered) / lost
    file = link.resolve()
    file.with_name(f"{file.name}.incomplete").write_bytes(file.read_bytes()[:100])
    for path in (link, file):
        path.unlink()

    with elsewhere.hub.away():
        without_network = elsewhere.load(offered)
    completed = elsewhere.load(offered)

    assert without_network["error"] == (
        f"The model {offered} is not on this machine, and the model hub cannot be reached. {REMEDY}"
    )
    assert "vectors" not in without_network
    assert completed == answer_of(tiny, offered, new=lost == "modules.json")
    assert elsewhere.hub.downloads() == [lost]


def test_a_download_that_breaks_off_is_an_error_and_goes_on_next_time(elsewhere, offered, tiny):
    elsewhere.hub.breaks_off = "model.safetensors"
    broken = elsewhere.load(offered)
    elsewhere.hub.breaks_off = ""

    whole = elsewhere.load(offered)

    assert broken["error"].startswith(f"The model {offered} cannot be downloaded and loaded: ")
    assert broken["error"].endswith(f" Run again if the connection broke. {REMEDY}")
    assert whole == answer_of(tiny, offered)


def test_a_model_that_the_hub_does_not_know_is_refused_as_such(elsewhere):
    answer = elsewhere.load("example/unknown")

    assert answer == {"error": f"The model hub knows no model example/unknown. {REMEDY}"}


def test_a_hub_that_does_not_answer_is_one_sentence_in_a_moment(elsewhere):
    started = time.perf_counter()

    with elsewhere.hub.away():
        answer = elsewhere.load("clip-nowhere")

    assert answer == {
        "error": f"The model clip-nowhere is not on this machine, and the model hub cannot be reached. {REMEDY}"
    }
    assert time.perf_counter() - started < 15


def test_a_machine_that_is_told_to_stay_offline_does_not_ask_the_hub(elsewhere, offered, tmp_path):
    variables = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": elsewhere.hub.url, "HF_HOME": str(tmp_path)}
    script = f"""
from abo_pipeline.encoder import ClipEncoder
from abo_pipeline.errors import ModelError
try:
    ClipEncoder({offered!r}).fingerprint
except ModelError as error:
    print(error)
"""

    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT_ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout == f"The model {offered} is not on this machine, and the model hub cannot be reached. {REMEDY}\n"
    assert elsewhere.hub.asked == []
