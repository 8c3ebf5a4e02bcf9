"""The cosine transform of a sound's blocks: it is one, it loses nothing, and what it makes of tones, clicks and noise."""

import numpy as np
import pytest

from unigrpo_jax.models.autoencoders.sound_blocks import BlockAutoencoder
from unigrpo_jax.worlds.motion.scene import Mover, MovingScene
from unigrpo_jax.worlds.sound.synthesis import BLOCK, sound

BLOCKS = BlockAutoencoder(BLOCK)


def test_what_is_encoded_is_decoded_to_a_millionth_and_has_the_same_size():
    x = np.random.default_rng(0).uniform(-1, 1, (3, 1152, 2)).astype(np.float32)
    latents = BLOCKS.encode({}, x)
    assert latents.shape == (3, 18, 128) == (3, BLOCKS.latents(1152), BLOCKS.numbers) and BLOCKS.shapes() == {}
    np.testing.assert_allclose(BLOCKS.decode({}, latents), x, atol=1e-6)
    np.testing.assert_allclose(np.square(latents).sum(), np.square(x).sum(), rtol=1e-5)
    noise = np.random.default_rng(1).normal(size=(1, 5, 128)).astype(np.float32)
    np.testing.assert_allclose(BLOCKS.encode({}, BLOCKS.decode({}, noise)), noise, atol=4e-6)


def test_it_is_the_formula_by_hand():
    x = np.random.default_rng(2).normal(size=(1, 8, 2)).astype(np.float32)
    found = np.asarray(BlockAutoencoder(4).encode({}, x))
    for block, channel, k in np.ndindex(2, 2, 4):
        own = sum(float(x[0, 4 * block + n, channel]) * np.cos(np.pi * k * (n + 0.5) / 4) for n in range(4))
        assert found[0, block, 4 * channel + k] == pytest.approx(own * np.sqrt((1 if k == 0 else 2) / 4), abs=1e-5)


def test_a_tone_of_the_world_of_sound_is_one_number_a_block_and_side():
    """A square is 24 half cycles; a fifth has 0.2 sqrt(32), and in the middle of the picture half of the power on a side."""
    latents = np.asarray(BLOCKS.encode({}, sound(MovingScene((Mover("red", "square", (16.0, 9.0), (-1.5, 0.0)),)))[None]))[0]
    assert np.argwhere(np.abs(latents) > 1e-5).tolist() == [[block, n] for block in range(18) for n in (24, 64 + 24)]
    np.testing.assert_allclose(latents[:, [24, 88]], 0.2 * np.sqrt(32) * np.sqrt(0.5), rtol=1e-5)


def test_sounds_and_latents_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="a sound of 100 samples has no latents, .*; use 64 or 128 samples."):
        BLOCKS.encode({}, np.zeros((1, 100, 2), np.float32))
    with pytest.raises(ValueError, match="use 64 samples."):
        BLOCKS.latents(0)
    with pytest.raises(ValueError, match=r"\[B, S, 2\]"):
        BLOCKS.encode({}, np.zeros((1, 64, 1), np.float32))
    with pytest.raises(ValueError, match=r"\[B, L, 128\]"):
        BLOCKS.decode({}, np.zeros((1, 2, 64), np.float32))
