"""The tower in 8-bit integers, made of a real CLIP of random weights that is small enough to be made here."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from abo_pipeline import openvino_tower as module
from abo_pipeline.errors import ModelError
from abo_pipeline.openvino_tower import CALIBRATION_IMAGES, OpenVinoTower, digest_of, is_available, is_prepared
from abo_pipeline.preparation import Preparation
from abo_pipeline.settings import PROJECT_ROOT
from abo_pipeline.towers import TorchTower, cores, vision_of

if TYPE_CHECKING:
    from torch import Tensor

SIDE, DIMENSION = 64, 24
PREPARATION = Preparation(SIDE, SIDE, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
FILES = ["export.json", "model.bin", "model.xml"]


def pictures(count: int, seed: int) -> "Tensor":
    """Squares of any colours, each in one half another one."""
    import torch

    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, 3, 1, 1)) + np.zeros((1, 1, SIDE, SIDE))
    pixels[..., SIDE // 2 :] = random.integers(0, 256, (count, 3, 1, 1))
    pixels += random.integers(-20, 20, pixels.shape)
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


class Calibration:
    """Pictures to calibrate with; it counts how often it was asked, and how many it gave."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths
        self.asked = self.given = 0

    def __call__(self) -> "Iterator[Tensor]":
        self.asked += 1
        for seed, length in enumerate(self.lengths):
            self.given += length
            yield pictures(length, seed)


def never() -> "Iterator[Tensor]":
    raise AssertionError("calibrated again")


@pytest.fixture(scope="module")
def vision() -> Any:
    import torch
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
    marks = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(7)
    config = CLIPConfig(
        text_config={**shape, **marks, "vocab_size": 2},
        vision_config={**shape, "image_size": SIDE, "patch_size": 16},
        projection_dim=DIMENSION,
    )
    return vision_of(CLIPModel(config).eval())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vision: Any) -> Path:
    """A tower's folder, to be read."""
    folder = tmp_path_factory.mktemp("towers") / "tiny"
    OpenVinoTower.prepared(folder, vision, PREPARATION, Calibration(*[16] * 20))
    return folder


@pytest.fixture(scope="module")
def tower(folder: Path) -> OpenVinoTower:
    return OpenVinoTower.load(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tower's folder, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1)
    return (some * others).sum(axis=1) / lengths


def refusal(prepare: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        prepare()
    return str(caught.value)


# --- Vectors ---


def test_a_picture_has_nearly_the_direction_that_single_precision_gives_it(tower, vision):
    pixels = pictures(64, seed=99)
    true = TorchTower(vision, PREPARATION, "float32").encode(pixels)

    vectors = tower.encode(pixels)

    assert (vectors.shape, vectors.dtype) == ((64, DIMENSION), np.float32)
    assert cosines(vectors, true).min() > 0.998
    assert cosines(vectors, true).mean() > 0.9995
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.linalg.norm(true, axis=1), rtol=0.05)


def test_it_is_of_8_bits_and_not_single_precision_by_another_name(tower, vision):
    pixels = pictures(16, seed=99)

    assert not np.allclose(tower.encode(pixels), TorchTower(vision, PREPARATION, "float32").encode(pixels), rtol=1e-4)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 16, 33])
def test_a_batch_may_be_of_any_length(tower, length):
    pixels = pictures(33, seed=3)

    vectors = tower.encode(pixels[:length])

    assert vectors.shape == (length, DIMENSION)
    np.testing.assert_allclose(vectors, tower.encode(pixels)[:length], atol=1e-5)


def test_pixels_need_not_lie_together_in_memory(tower):
    pixels = pictures(6, seed=3)

    assert np.array_equal(tower.encode(pixels[::2]), tower.encode(pixels[::2].contiguous()))
    assert np.array_equal(tower.encode(pixels.flip(3)), tower.encode(pixels.flip(3).contiguous()))


def test_vectors_stay_as_they_are_when_the_next_ones_are_made(tower):
    first = tower.encode(pictures(4, seed=1))
    before = first.copy()

    tower.encode(pictures(4, seed=2))

    assert np.array_equal(first, before)


def test_threads_at_once_get_what_one_after_the_other_gets(tower):
    batches = [pictures(length, seed) for seed, length in enumerate([16, 5, 16, 1, 9, 16] * 5)]
    alone = [tower.encode(batch) for batch in batches]

    with ThreadPoolExecutor(4, initializer=tower.enter_thread) as pool:
        together = list(pool.map(tower.encode, batches))

    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_core_is_to_have_a_batch_of_its_own(tower):
    assert (tower.workers, tower.batch) == (cores(), 16)


# --- Its folder ---


def test_a_tower_is_made_once_and_then_loaded(vision, tmp_path):
    folder, calibration = tmp_path / "not" / "yet" / "tower", Calibration(4, 3)
    assert not is_prepared(folder, PREPARATION)

    made = OpenVinoTower.prepared(folder, vision, PREPARATION, calibration)
    loaded = OpenVinoTower.prepared(folder, None, PREPARATION, never)

    assert is_prepared(folder, PREPARATION)
    assert (calibration.asked, calibration.given) == (1, 7)
    assert np.array_equal(made.encode(pictures(5, 1)), loaded.encode(pictures(5, 1)))
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert sorted(path.name for path in folder.parent.iterdir()) in (["tower"], ["tower", "tower.lock"])


def test_it_is_written_down_what_made_the_tower(folder):
    from importlib.metadata import version

    record = json.loads((folder / "export.json").read_text())

    assert record == {
        "made with": {name: version(name) for name in ("openvino", "nncf", "torch", "transformers")},
        "pictures": CALIBRATION_IMAGES,
        "preparation": {"side": SIDE, "shortest_edge": SIDE, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
        "digest": blake2b((folder / "model.bin").read_bytes(), digest_size=8).hexdigest(),
        "sizes": {name: (folder / name).stat().st_size for name in ("model.xml", "model.bin")},
    }


def test_no_more_pictures_are_asked_for_than_are_measured(vision, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CALIBRATION_IMAGES", 6)
    calibration = Calibration(4, 4, 4, 4)

    OpenVinoTower.prepared(tmp_path / "tower", vision, PREPARATION, calibration)

    assert calibration.given == 8
    assert json.loads((tmp_path / "tower" / "export.json").read_text())["pictures"] == 6
    assert CALIBRATION_IMAGES == 300


def test_of_those_who_make_it_at_once_one_does_and_the_others_load_it(vision, tmp_path):
    calibrations = [Calibration(4), Calibration(4), Calibration(4)]

    def prepared(calibration: Calibration) -> OpenVinoTower:
        return OpenVinoTower.prepared(tmp_path / "tower", vision, PREPARATION, calibration)

    with ThreadPoolExecutor(3) as pool:
        towers = list(pool.map(prepared, calibrations))

    assert sum(calibration.asked for calibration in calibrations) == 1
    assert len({each.encode(pictures(3, 1)).tobytes() for each in towers}) == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_what_is_only_a_part_of_a_tower_is_made_anew(copy, vision, name, damage):
    part, calibration = copy / name, Calibration(4)
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-5])
    else:
        part.unlink()

    assert not is_prepared(copy, PREPARATION)
    OpenVinoTower.prepared(copy, vision, PREPARATION, calibration)
    assert calibration.asked == 1
    assert is_prepared(copy, PREPARATION)


def test_what_one_who_was_killed_has_left_is_no_tower_and_in_nobodys_way(vision, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "tower.part")
    assert not is_prepared(tmp_path / "tower", PREPARATION)

    OpenVinoTower.prepared(tmp_path / "tower", vision, PREPARATION, Calibration(4))

    assert not (tmp_path / "tower.part").exists()
    assert json.loads((tmp_path / "tower" / "export.json").read_text())["pictures"] == 4


def test_a_tower_for_pictures_that_are_prepared_otherwise_is_another_one(copy, vision):
    other = Preparation(SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert not is_prepared(copy, other)

    changed = OpenVinoTower.prepared(copy, vision, other, Calibration(100)).encode(pictures(64, seed=99))

    assert (is_prepared(copy, other), is_prepared(copy, PREPARATION)) == (True, False)
    assert cosines(changed, TorchTower(vision, other, "float32").encode(pictures(64, seed=99))).min() > 0.99


def test_towers_of_other_pictures_are_told_apart_and_those_of_the_same_are_not(vision, tmp_path):
    def made_of(name: str, images: int) -> str | None:
        OpenVinoTower.prepared(tmp_path / name, vision, PREPARATION, Calibration(images))
        return digest_of(tmp_path / name)

    digests = [made_of("one", 20), made_of("again", 20), made_of("other", 10)]

    assert digests[0] == digests[1] != digests[2]
    assert re.fullmatch("[0-9a-f]{16}", digests[0])
    assert digest_of(tmp_path / "nowhere") is None


def test_making_a_tower_says_nothing_and_leaves_logging_as_it_was(
    vision, tmp_path, capfd, caplog, recwarn, monkeypatch
):
    import transformers.utils.logging as transformers_logging

    # What transformers warns of once in a process, it would have said when another tower was made; and it writes to
    # the stderr that was there when it was imported.
    transformers_logging.warning_once.cache_clear()
    monkeypatch.setattr(transformers_logging.get_logger(), "handlers", [caplog.handler])
    before, verbosity = logging.getLoggerClass(), transformers_logging.get_verbosity()

    OpenVinoTower.prepared(tmp_path / "tower", vision, PREPARATION, Calibration(4))

    assert (capfd.readouterr(), caplog.messages) == (("", ""), [])
    assert [str(warning.message) for warning in recwarn] == []
    assert (logging.getLoggerClass(), transformers_logging.get_verbosity()) == (before, verbosity)


# --- What is refused ---


def test_a_tower_that_is_not_there_cannot_be_loaded(tmp_path):
    folder = tmp_path / "tower"

    assert refusal(lambda: OpenVinoTower.load(folder)) == (
        f"There is no int8 model in {folder}, or not all of it. Run again to have it made anew."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_without_pictures_is_refused(vision, tmp_path):
    folder = tmp_path / "tower"

    assert refusal(lambda: OpenVinoTower.prepared(folder, vision, PREPARATION, Calibration())) == (
        f"The int8 model in {folder} cannot be made: there are no pictures to make it with. Embed some."
    )


def test_a_folder_that_cannot_be_made_is_refused(vision, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "tower"

    message = refusal(lambda: OpenVinoTower.prepared(folder, vision, PREPARATION, Calibration(4)))

    assert message.startswith(f"The int8 model in {folder} cannot be made: ")
    assert message.endswith(". Give a folder that may be written.")


def test_a_failure_of_the_libraries_is_a_sentence_and_leaves_no_tower(tmp_path):
    folder = tmp_path / "tower"

    message = refusal(lambda: OpenVinoTower.prepared(folder, str, PREPARATION, Calibration(4)))

    assert message.startswith(f"The int8 model in {folder} cannot be made: ")
    assert message.endswith(". Choose another precision.")
    assert "\n" not in message
    assert not folder.exists()


def test_a_tower_that_openvino_cannot_read_is_refused_with_the_reason(copy):
    from importlib.metadata import version

    broken = copy / "model.xml"
    broken.write_bytes(broken.read_bytes().replace(b"<", b"[", 20))

    message = refusal(lambda: OpenVinoTower.load(copy))

    here = version("openvino")
    assert message.startswith(f"The int8 model in {copy}, made with OpenVINO {here}, cannot be loaded by {here}: ")
    assert message.endswith(". Remove the folder to have it made anew.")
    assert "\n" not in message


# --- The packages ---


def in_new_process(script: str, home: Path) -> str:
    variables = {"HOME": str(home), "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT_ROOT,
        env={name: value for name, value in os.environ.items() if name != "CI"} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_without_its_packages_there_is_no_such_precision(package, monkeypatch):
    assert is_available()

    monkeypatch.setitem(sys.modules, package, None)

    assert not is_available()


def test_without_openvino_the_remedy_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)

    assert refusal(lambda: OpenVinoTower.load(folder)) == (
        "int8 needs OpenVINO, and that cannot be imported: import of openvino halted; None in sys.modules. "
        "Run pip install 'abo-pipeline[int8]'."
    )


def test_without_nncf_a_tower_is_loaded_but_not_made(folder, vision, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)

    loaded = OpenVinoTower.prepared(folder, None, PREPARATION, never)

    assert loaded.encode(pictures(2, 1)).shape == (2, DIMENSION)
    assert refusal(lambda: OpenVinoTower.prepared(tmp_path / "tower", vision, PREPARATION, never)) == (
        "int8 needs NNCF to make its model, and that cannot be imported: import of nncf halted; None in sys.modules. "
        "Run pip install 'abo-pipeline[int8]'."
    )


def test_whether_the_packages_are_there_is_asked_without_importing_them(tmp_path):
    script = """
import sys
from abo_pipeline.openvino_tower import is_available
print(is_available(), sorted({"openvino", "nncf", "torch", "transformers"} & set(sys.modules)))
"""

    assert in_new_process(script, tmp_path) == "True []\n"


def test_nothing_is_reported_to_the_makers_of_the_packages(tmp_path):
    # One of them reports nothing where pytest is, and both nothing where CI is: so this is seen in another process.
    script = f"""
import socket, sys
from pathlib import Path

def ask(*_):
    print("asks the network")
    raise OSError

socket.getaddrinfo = socket.socket.connect = ask

import torch
from transformers import CLIPModel
from abo_pipeline.openvino_tower import OpenVinoTower
from abo_pipeline.preparation import Preparation
from abo_pipeline.sample import SMALL_CLIP
from abo_pipeline.towers import vision_of

preparation = Preparation(60, 60, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
vision = vision_of(CLIPModel.from_pretrained(SMALL_CLIP / "0_CLIPModel"))
noise = torch.randint(0, 256, (2, 3, 60, 60), dtype=torch.uint8)
tower = OpenVinoTower.prepared(Path({str(tmp_path / "tower")!r}), vision, preparation, lambda: iter([noise]))
print(tower.encode(noise).shape, [name for name in sys.modules if name.startswith(("openvino_telemetry.", "pytest"))])
"""

    assert in_new_process(script, tmp_path) == "(2, 128) []\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["tower"]
