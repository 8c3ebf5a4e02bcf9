"""Image statistics by hand."""

import numpy as np
import pytest

from tests.scenes import random_scene
from unigrpo_jax.training.image_statistics import colour_entropy, diversity, edge_density, grid_energy, statistics
from unigrpo_jax.worlds.shapes.drawing import render


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


def clean_renders(count=40):
    rng = np.random.default_rng(0)
    return np.stack([render(random_scene(rng, 1 + n % 4)) for n in range(count)])


def test_clean_renders_have_no_energy_at_the_period_of_a_token():
    for token in ((4, 4), (2, 2), (8, 4)):
        np.testing.assert_array_equal(grid_energy(clean_renders(), token), 0)


@pytest.mark.parametrize("amplitude", [2, 4, 10])
def test_a_faint_grid_on_renders_has_the_energy_of_its_pattern(amplitude):
    """Whatever is drawn upon it: a pattern of 4 x 4 pixels in levels of 255, of which the eye sees the smallest no more."""
    rng = np.random.default_rng(1)
    pattern = amplitude * rng.integers(0, 2, (4, 4, 3)).astype(np.uint8)
    images = np.maximum(clean_renders(), np.tile(pattern, (6, 6, 1)))
    expected = np.mean((pattern - pattern.mean(axis=(0, 1))) ** 2) / 255**2
    np.testing.assert_allclose(grid_energy(images, (4, 4)), expected, rtol=1e-6)
    np.testing.assert_allclose(grid_energy(images / 255, (4, 4)), expected, rtol=1e-6)


def test_energy_of_another_period_is_none_of_the_tokens():
    """Objects, one bright token, and stripes of three pixels."""
    stripes = np.zeros((1, 24, 24, 3), np.uint8)
    stripes[:, ::3] = 90
    assert grid_energy(stripes, (4, 4))[0] == 0 < grid_energy(stripes, (3, 3))[0]
    one = np.zeros((1, 24, 24, 3), np.uint8)
    one[:, 4:8, 8:10] = 255
    assert grid_energy(one, (4, 4))[0] == 0


def test_tokens_that_do_not_divide_the_image_are_refused():
    with pytest.raises(ValueError, match="tokens of 5 x 4 pixels do not divide"):
        grid_energy(np.zeros((1, 24, 24, 3), np.uint8), (5, 4))


def test_the_energy_is_measured_where_a_token_is_larger_than_a_pixel():
    images = clean_renders(2)
    assert "image/grid_energy" not in statistics({"image": images})
    assert statistics({"image": images}, (4, 4))["image/grid_energy"].tolist() == [0, 0]
    clip = statistics({"video": images[None]}, (4, 4))
    assert list(clip) == ["image/edge_density", "image/colour_entropy", "image/grid_energy", "video/frame_difference"]


def test_diversity_is_the_distance_to_a_prompts_other_drawings():
    """Levels 0, 0, 102 of one prompt: squares 0 and 0.4^2; of a clip the same, and alone there is nothing to compare."""
    levels = np.array([0, 102, 255, 0, 255], np.uint8)
    group = np.array([3, 3, 8, 3, 9])
    wanted = [np.sqrt(0.16 / 2), 0.4, np.nan, np.sqrt(0.16 / 2), np.nan]
    for shape, medium in (((5, 2, 3, 3), "image"), ((5, 4, 2, 3, 3), "video")):
        drawn = np.broadcast_to(levels.reshape(5, *(1,) * (len(shape) - 1)), shape)
        np.testing.assert_allclose(diversity({medium: drawn}, group), wanted)
    same = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8).repeat(2, axis=0)
    assert diversity({"image": same}, np.zeros(2, int)).tolist() == [0, 0]
