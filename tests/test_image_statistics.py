"""Image statistics by hand."""

import numpy as np
import pytest

from unigrpo_jax.training.image_statistics import colour_entropy, edge_density


def test_a_flat_image_has_neither_edges_nor_entropy():
    flat = np.full((2, 5, 7, 3), 93, np.uint8)
    assert edge_density(flat).tolist() == [0, 0] and colour_entropy(flat).tolist() == [0, 0]


def test_a_chessboard_has_all_edges_and_one_bit():
    board = np.indices((4, 4)).sum(axis=0) % 2 * 255
    image = np.repeat(board[None, :, :, None], 3, axis=3).astype(np.uint8)
    np.testing.assert_allclose(edge_density(image), 1.0)
    np.testing.assert_allclose(colour_entropy(image), np.log(2))


def test_edge_density_of_one_step_by_hand():
    """Green's luminance is 0.587: one of three horizontal differences in each row, no vertical one."""
    image = np.zeros((1, 2, 4, 3), np.uint8)
    image[:, :, 2:, 1] = 255
    np.testing.assert_allclose(edge_density(image), 0.587 / 3 / 2)


def test_colour_entropy_of_unequal_shares_by_hand():
    image = np.zeros((1, 2, 4, 3))
    image[0, 0, 0] = (1, 0, 0)
    image[0, 0, 1:3] = (0, 1, 0)
    shares = np.array([1, 2, 5]) / 8
    np.testing.assert_allclose(colour_entropy(image), -(shares * np.log(shares)).sum())


def test_uint8_and_float_agree():
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), np.uint8)
    np.testing.assert_allclose(edge_density(images), edge_density(images / 255))
    np.testing.assert_allclose(colour_entropy(images), colour_entropy(images / 255))


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3)), np.zeros((1, 4, 4, 1)), np.full((1, 4, 4, 3), 2.0)])
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(ValueError, match="images must"):
        colour_entropy(wrong)
