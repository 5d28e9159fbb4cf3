"""The benchmarks run, and tell what they measured; how fast anything is, nobody asks here."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from abo_pipeline import fidelity
from abo_pipeline.embedding import Limits
from abo_pipeline.sample import SMALL_CLIP
from abo_pipeline.store.strategies import STRATEGIES
from benchmarks import embedding, loading, searching
from benchmarks.vectors import BLOCK, Clip

pytestmark = pytest.mark.slow

CLIP = Clip(64)

LIMITS = Limits(10**8, 10**8)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def bars(figures: dict) -> list[tuple[str, float, bool]]:
    return [(bar["claim"], bar["bound"], bar["at_most"]) for bar in figures["bars"]]


def test_loading_tells_the_rate_of_each_way_and_what_is_claimed(tmp_path, capsys):
    loading.main(
        ["--rows=300", "--dimension=8", "--orm-rows=100", "--batches", "7", "300", "--rounds=2", f"--out={tmp_path}"]
    )

    figures = read(tmp_path / "loading.json")
    assert {way: len(rates) for way, rates in figures["rows_a_second"].items()} == {
        "copy": 2,
        "ours 7": 2,
        "orm 7": 2,
        "ours 300": 2,
        "orm 300": 2,
    }
    assert bars(figures) == [
        ("stored, times the ORM's rate, 300 rows a transaction", 10.0, False),
        ("stored, times the rate of a bare COPY, 300 rows a transaction", 0.8, False),
    ]
    printed = capsys.readouterr().out
    assert [claim for claim, _, _ in bars(figures) if claim not in printed] == []


def test_searching_tells_of_each_index_at_each_size_and_effort(tmp_path, capsys):
    searching.main(
        ["--rows=1200", "--dimension=16", "--strategies=hnsw,exact", "--peers=numpy, exact", f"--out={tmp_path}"]
    )

    figures = read(tmp_path / "searching.json")
    every = [(by, size) for by in ("ours, hnsw", "ours, exact", "numpy, exact") for size in (1000, 1200)]
    assert [(built["by"], built["size"]) for built in figures["built"]] == every
    assert [
        (searched["ours"]["by"], searched["ours"]["size"], searched["ours"]["kind"]) for searched in figures["searched"]
    ] == [(by, size, kind) for by, size in every[:4] for kind in ("image", "text")]
    efforts = STRATEGIES["hnsw"].efforts(1200)
    assert [(point["by"], point["size"], point["effort"], point["kind"]) for point in figures["points"]] == [
        (by, size, effort, kind)
        for by, size in every
        for kind in ("image", "text")
        for effort in {"ours, hnsw": efforts, "ours, exact": (), "numpy, exact": (0,)}[by]
    ]
    assert {point["recall"] for point in figures["points"] if point["by"] == "numpy, exact"} == {1.0}
    assert [(claim, bound) for claim, bound, _ in bars(figures)] == [
        ("p50 of a search in 1,200, times that of the same SQL", 1.15),
        ("recall@10 of image queries in 1,000", 0.99),
        ("recall@10 of text queries in 1,000", 0.99),
        ("recall@10 of image queries in 1,200", 0.99),
        ("recall@10 of text queries in 1,200", 0.99),
    ]
    assert [bar["claim"] for bar in figures["bars"] if "recall" in bar["claim"] and not bar["holds"]] == []
    printed = capsys.readouterr().out
    assert [claim for claim, _, _ in bars(figures) if claim not in printed] == []
    for size in (1000, 1200):
        with Image.open(tmp_path / f"searching-{size}.png") as picture:
            assert picture.width > picture.height > 500


# --- The vectors ---


def test_embedding_tells_the_rate_of_each_way_and_where_its_time_goes(tmp_path, sample, capsys):
    embedding.main(
        [
            f"--images={sample.archive}",
            f"--model={SMALL_CLIP}",
            "--precisions=float32,bfloat16",
            "--part=20",
            "--rounds=1",
            "--memory=40",
            "--reading=30",
            f"--out={tmp_path}",
        ]
    )

    figures = read(tmp_path / "embedding.json")
    ours = [f"ours, {precision}" for precision in ("float32", "bfloat16")]
    chains = [f"{name}, into Postgres" for name in ours]
    beside = [f"{name}, one busy neighbour" for name in ours]
    assert [way["name"] for way in figures["ways"]] == [
        "the seed's loop",
        "sentence-transformers, bfloat16",
        *ours,
        "forward alone, float32",
        "forward alone, bfloat16",
        *chains,
        "read, decode and prepare alone",
        "the seed's loop, one busy neighbour",
        *beside,
    ]
    assert {len(way["rates"]) for way in figures["ways"]} == {1}
    assert {way["name"] for way in figures["ways"] if way["milliseconds"]} == {*ours, *chains, *beside}
    assert [(each["precision"], each["overlap"] > 0.9) for each in figures["fidelity"]] == [
        ("float32", True),
        ("bfloat16", True),
    ]
    assert [images for images, _ in figures["memory_gb"]] == [40]
    assert bars(figures) == [
        ("ours, bfloat16: times the seed's loop", 2.0, False),
        *(
            bar
            for name in ours
            for bar in [
                (f"{name}: of its forward alone", 0.96, False),
                (f"{name}, into Postgres: of its forward alone", 0.93, False),
                (f"{name}, one busy neighbour: of undisturbed", 0.6, False),
            ]
        ),
        ("memory at the end, GB", 2.5, True),
        ("memory at the end, times that at the first look", 1.05, True),
        ("first vector, s after the process's start", 15.0, True),
        ("index of 30 members, s", 60.0, True),
        ("index of 30 members, MB", 500.0, True),
    ]
    printed = " ".join(capsys.readouterr().out.split())
    assert [claim for claim, _, _ in bars(figures) if claim not in printed] == []
    with Image.open(tmp_path / "embedding.png") as picture:
        assert picture.width > picture.height > 300


def test_on_a_gpu_embedding_claims_images_a_second_and_spares_the_ways_of_others(tmp_path, sample, monkeypatch):
    """As far as that can be seen without one: the ways, their images, and the claim."""
    monkeypatch.setattr(embedding, "kind_of_device", lambda _: "gpu")
    monkeypatch.setattr(embedding, "_SOME", 7)
    given = []
    monkeypatch.setattr(embedding.Embedding, "_opened", lambda _, rows: given.append(len(rows)) or [])

    embedding.main(
        [
            f"--images={sample.archive}",
            f"--model={SMALL_CLIP}",
            "--copies=3",
            "--part=200",
            "--rounds=1",
            f"--out={tmp_path}",
        ]
    )

    figures = read(tmp_path / "embedding.json")
    ours = [f"ours, {precision}" for precision in ("float32", "float16")]
    assert [way["name"] for way in figures["ways"]] == [
        "the seed's loop",
        "sentence-transformers, float16",
        *ours,
        "forward alone, float32",
        "forward alone, float16",
        *(f"{name}, into Postgres" for name in ours),
        "read, decode and prepare alone",
    ]
    assert bars(figures) == [
        ("ours, float16: images/s from the tar to vectors", 10_000.0, False),
        ("first vector, s after the process's start", 15.0, True),
    ]
    assert set(given) == {7}


def test_copies_of_an_image_have_bytes_of_their_own_and_the_same_pixels(tmp_path, sample):
    with embedding.opened(sample.archive, tmp_path) as (archive, catalogue):
        pictures = [each.tobytes() for each in fidelity.Sample(catalogue, archive, LIMITS).pictures(10_000)]

    copied = embedding.multiplied(sample.archive, 3, tmp_path)
    with embedding.opened(copied, tmp_path) as (archive, copies):
        of_copies = [each.tobytes() for each in fidelity.Sample(copies, archive, LIMITS).pictures(10_000)]

    assert len(copies) == copies["digest"].n_unique() == 3 * len(catalogue)
    assert Counter(of_copies) == Counter(3 * pictures)


def test_a_longer_run_begins_with_a_shorter_ones_vectors():
    longer = CLIP.images(BLOCK + 100)

    assert all((CLIP.images(count) == longer[:count]).all() for count in (1, 100, BLOCK, BLOCK + 1))


def test_every_vector_has_length_1_in_single_precision():
    for vectors in (CLIP.images(300), CLIP.like_images(300), CLIP.texts(300)):
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)


def test_a_few_pictures_are_in_it_twice_and_a_few_nearly_so():
    vectors = CLIP.images(BLOCK)
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -1)
    nearest = similarities.max(axis=1)

    assert 0.005 < np.mean(nearest > 1 - 1e-6) < 0.04
    assert 0.02 < np.mean((nearest > 0.98) & (nearest < 1 - 1e-6)) < 0.08


def test_texts_are_far_from_all_pictures_and_farther_from_most():
    vectors = Clip().images(BLOCK)

    texts, images = Clip().texts(50) @ vectors.T, Clip().like_images(50) @ vectors.T

    assert texts.max() < 0.6 < 0.9 < images.max(axis=1).min()
    assert abs(texts.mean() - 0.13) < 0.05
    assert abs(images.mean() - 0.5) < 0.05
