"""Tiles: cut, computed one by one and blended, against the rule by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.autoencoders import tiles
from unigrpo_jax.models.autoencoders.tiles import Tiles

OVER = {"frames": tiles.over_frames, "sides": tiles.over_sides}


def halved(x):
    """[1, F, H, W, C] by two along the sides and, but for the first frame, along the frames; no tile is like the whole."""
    batch, frames, height, width, channels = x.shape
    y = x.reshape(batch, frames, height // 2, 2, width // 2, 2, channels).mean((3, 5))
    later = y[:, 1:].reshape(batch, frames // 2, 2, *y.shape[2:]).mean(2)
    joined = (jnp if isinstance(x, jax.Array) else np).concatenate([y[:, :1], later], 1)
    return joined - 2 * joined.mean((1, 2, 3, 4), keepdims=True)


def frames_by_hand(x, size, stride):
    """diffusers' rule, frame by frame: `size` and `stride` in frames of x; latents are half as many."""
    row = []
    for start in range(0, x.shape[1], stride):
        tile = halved(x[:, start : start + size + 1])
        row.append(tile[:, 1:] if start else tile)
    out = [row[0][:, : stride // 2 + 1]]
    for before, tile in zip(row[:-1], row[1:], strict=True):
        overlap = min((size - stride) // 2, before.shape[1], tile.shape[1])
        for i in range(overlap):
            tile[:, i] = before[:, i - overlap] * (1 - i / overlap) + tile[:, i] * (i / overlap)
        out.append(tile[:, : stride // 2])
    return np.concatenate(out, 1)


def sides_by_hand(x, size, stride):
    """diffusers' rule, row by row: a tile is changed where it stands, first by the one above, then by the one before it."""
    rows = [[halved(x[:, :, i : i + size, j : j + size]) for j in range(0, x.shape[3], stride)]
            for i in range(0, x.shape[2], stride)]  # fmt: skip
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            if i:
                above = rows[i - 1][j]
                overlap = min((size - stride) // 2, above.shape[2], tile.shape[2])
                for y in range(overlap):
                    tile[:, :, y] = above[:, :, y - overlap] * (1 - y / overlap) + tile[:, :, y] * (y / overlap)
            if j:
                before = row[j - 1]
                overlap = min((size - stride) // 2, before.shape[3], tile.shape[3])
                for z in range(overlap):
                    tile[:, :, :, z] = before[:, :, :, z - overlap] * (1 - z / overlap) + tile[:, :, :, z] * (z / overlap)
    return np.concatenate([np.concatenate([tile[:, :, : stride // 2, : stride // 2] for tile in row], 3) for row in rows], 2)


@pytest.mark.parametrize(
    ("axis", "shape", "size", "stride"),
    [
        ("frames", (17, 4, 2), 8, 6),
        ("frames", (9, 4, 2), 8, 6),  # the second tile ends where the first one does
        ("frames", (13, 2, 2), 8, 6),  # of the last frame alone nothing is kept
        ("frames", (15, 2, 2), 4, 4),  # no overlap
        ("frames", (15, 2, 2), 8, 2),  # three tiles lie over each other
        ("sides", (3, 20, 14), 8, 6),
        ("sides", (1, 8, 12), 8, 4),  # rows are cut, too, where only columns need it
        ("sides", (1, 14, 10), 4, 4),
        ("sides", (1, 12, 12), 8, 2),
    ],
)
def test_tiles_are_blended_by_hand(axis, shape, size, stride):
    x = np.random.default_rng(0).normal(size=(1, *shape, 2)).astype(np.float32)
    read = Tiles(size=size, stride=stride)
    out = jax.jit(lambda x: OVER[axis](halved, x, read, read.divided(2)))(x)
    expected = {"frames": frames_by_hand, "sides": sides_by_hand}[axis](x, size, stride)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("axis", OVER)
def test_of_what_looks_at_one_pixel_alone_tiles_are_the_whole_and_so_are_their_gradients(axis):
    """So weights sum to one, and every tile is blended with its neighbour at the same place."""
    x = jax.random.normal(jax.random.key(0), (2, 11, 7, 5, 3))
    over = jax.jit(lambda x: OVER[axis](jnp.sin, x, Tiles(size=4, stride=3), Tiles(size=4, stride=3)))
    out, slope = jax.value_and_grad(lambda x: jnp.sum(over(x) ** 2))(x)
    np.testing.assert_allclose(over(x), np.sin(x), atol=1e-6)
    np.testing.assert_allclose(out, np.sum(np.sin(x) ** 2), rtol=1e-5)
    np.testing.assert_allclose(slope, np.sin(2 * x), atol=1e-5)


@pytest.mark.parametrize("axis", OVER)
def test_what_is_no_larger_than_a_tile_is_computed_whole(axis):
    seen = []
    OVER[axis](seen.append, np.zeros((1, 5, 6, 6, 2)), Tiles(size=6, stride=4), Tiles(size=3, stride=2))
    assert [x.shape for x in seen] == [(1, 5, 6, 6, 2)]


def test_tiles_of_one_size_are_traced_once():
    seen = []
    count = lambda x: seen.append(x.shape) or x
    tiles.over_frames(count, jnp.zeros((1, 30, 2, 2, 1)), Tiles(size=4, stride=3), Tiles(size=4, stride=3))
    assert sorted(seen) == [(1, 3, 2, 2, 1), (1, 5, 2, 2, 1)]


def test_memory_is_one_tiles_and_so_is_that_of_a_gradient():
    def wide(x):  # 64 numbers a pixel in between
        return jnp.tanh(x @ jnp.ones((1, 64))) @ jnp.ones((64, 1))

    def temporary(function):
        x = jax.ShapeDtypeStruct((1, 2, 176, 176, 1), jnp.float32)
        return jax.jit(function).lower(x).compile().memory_analysis().temp_size_in_bytes

    cut = Tiles(size=64, stride=48)  # four sizes of tiles, of an eighth of the whole at most
    in_tiles = lambda x: tiles.over_sides(wide, x, cut, cut)
    slope = lambda function: jax.grad(lambda x: jnp.sum(function(x) ** 2))
    assert temporary(in_tiles) < temporary(wide) / 4
    assert temporary(slope(in_tiles)) < temporary(slope(wide)) / 4


@pytest.mark.parametrize(("size", "stride"), [(4, 5), (4, 0), (0, 0), (4, -1)])
def test_tiles_that_leave_gaps_are_refused(size, stride):
    with pytest.raises(ValueError, match="leave gaps; a stride is from 1 to the size"):
        Tiles(size=size, stride=stride)


def test_tiles_that_are_no_whole_latents_are_refused():
    with pytest.raises(ValueError, match="tiles of 16 every 10 are no whole latents; both are multiples of 4"):
        Tiles(size=16, stride=10).divided(4)
