"""Principal components, compared with numpy's decomposition of all vectors at once."""

import numpy as np
import pytest

from abo_pipeline.projection import fit
from abo_pipeline_tests.library import DIMENSION, clip

ROWS = 500


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clip().images(ROWS)


def test_components_are_of_length_1_and_at_right_angles(vectors):
    components = fit([vectors], 20).components

    assert components.shape == (20, DIMENSION)
    np.testing.assert_allclose(components @ components.T, np.eye(20), atol=1e-9)


def test_the_variance_along_the_components_descends(vectors):
    variances = fit([vectors], DIMENSION)(vectors).var(axis=0)

    assert (np.diff(variances) <= 1e-9).all()


@pytest.mark.parametrize("d", [1, 10, DIMENSION])
def test_components_and_their_share_are_those_of_numpys_svd(vectors, d):
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)

    found = fit([vectors], d)

    np.testing.assert_allclose(np.abs(np.sum(found.components * directions[:d], axis=1)), 1, atol=1e-6)
    assert found.share == pytest.approx((lengths[:d] ** 2).sum() / (lengths**2).sum(), abs=1e-9)


def test_blocks_make_no_difference(vectors):
    at_once, in_blocks = fit([vectors], 10), fit(np.split(vectors, [1, 7, 300]), 10)

    np.testing.assert_allclose(in_blocks.components, at_once.components, atol=1e-8)
    np.testing.assert_allclose(in_blocks.mean, at_once.mean, atol=1e-12)


def test_all_components_together_lose_nothing(vectors):
    projection = fit([vectors], DIMENSION)

    back = projection(vectors) @ projection.components + projection.mean

    assert projection.share == pytest.approx(1)
    np.testing.assert_allclose(back, vectors, atol=1e-6)


def test_distances_between_projected_vectors_are_never_longer(vectors):
    projected = fit([vectors], 10)(vectors)

    distances, before = (np.linalg.norm(each[:-1] - each[1:], axis=1) for each in (projected, vectors))
    assert (distances <= before + 1e-6).all()


def test_the_sign_of_a_component_is_fixed(vectors):
    components = fit([vectors], 10).components

    assert (components[np.arange(10), np.abs(components).argmax(axis=1)] > 0).all()


def test_vectors_that_are_all_the_same_have_nothing_to_lose():
    projection = fit([np.ones((5, 4), np.float32)], 2)

    assert projection.share == 1
    np.testing.assert_allclose(projection.components @ projection.components.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(projection(np.ones((1, 4), np.float32)), 0, atol=1e-6)
