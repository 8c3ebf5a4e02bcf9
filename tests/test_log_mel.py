"""Log-mel spectrograms: a tone by hand, loudness, silence, length, ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.autoencoders.log_mel import LogMel, triangles

RATE, WINDOW = 16000, 1024
MEL = LogMel()


def tone(hertz, amplitude=0.5, seconds=0.5):
    """A sine, float32 [1, S, 1]."""
    time = np.arange(int(RATE * seconds)) / RATE
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)[None, :, None]


def slaney(hertz):
    return hertz / (200 / 3) if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def height(bin_, hertz, bins=64):
    """Of a bin's triangle of area 1 at a frequency, from corners at equal steps of mels."""
    mels = [slaney(RATE / 2) * (bin_ + i) / (bins + 1) for i in range(3)]
    low, top, high = (m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in mels)
    return max(0, min((hertz - low) / (top - low), (high - hertz) / (high - top))) * 2 / (high - low)


@pytest.mark.parametrize("line", [16, 64, 200])  # 250, 1000 and 3125 Hz
def test_a_tone_is_what_a_hann_window_makes_of_it_in_each_triangle(line):
    """Of amplitude A its line has A N / 4 and each neighbour half of that; all other lines have nothing."""
    hertz = RATE / WINDOW * np.array([line - 1, line, line + 1])
    magnitude = 0.5 * WINDOW / 4 * np.array([0.5, 1, 0.5])
    expected = [sum(m * height(b, h) for m, h in zip(magnitude, hertz, strict=True)) for b in range(64)]
    middle = np.asarray(MEL(tone(hertz[1])))[0, 10:-10, :, 0]
    heard = np.array(expected) > 1e-2
    assert 2 <= heard.sum() <= 6
    np.testing.assert_allclose(np.exp(middle), np.broadcast_to(expected, middle.shape), rtol=2e-3, atol=1e-4)


def test_ten_times_as_loud_is_ln_10_more():
    loud, quiet = (np.asarray(MEL(tone(440, amplitude))) for amplitude in (0.8, 0.08))
    heard = quiet > np.log(1e-3)
    np.testing.assert_allclose((loud - quiet)[heard], np.log(10), atol=1e-3)


def test_silence_is_the_floor_and_has_a_gradient_of_zero():
    silence = jnp.zeros((1, 2000, 2))
    mel, slope = MEL(silence), jax.grad(lambda x: jnp.sum(MEL(x)))(silence)
    np.testing.assert_allclose(mel, np.log(1e-5), rtol=1e-6)
    assert mel.shape == (1, 1 + 2000 // 160, 64, 2) and not np.asarray(slope).any()


def test_channels_and_batches_are_apart():
    both = np.concatenate([tone(300), tone(2000)], axis=-1)
    mel = np.asarray(MEL(np.concatenate([both, 0.5 * both])))
    np.testing.assert_allclose(mel[0, :, :, 1], np.asarray(MEL(tone(2000)))[0, :, :, 0], atol=1e-4)
    assert mel.shape[0] == 2 and mel[0, 5, :, 0].argmax() < mel[0, 5, :, 1].argmax()


def test_triangles_have_an_area_of_one_and_cover_the_spectrum():
    bank = triangles(RATE, 16, WINDOW)
    assert bank.shape == (513, 16) and bank.dtype == np.float32
    np.testing.assert_allclose(bank.sum(0) * RATE / WINDOW, 1, atol=0.02)
    assert bank[1:-1].any(1).all()


def test_a_sound_shorter_than_half_a_window_is_refused():
    with pytest.raises(ValueError, match="512 samples is too short for windows of 1024, .* it needs more than 512"):
        MEL(jnp.zeros((1, 512, 1)))
    assert MEL(jnp.zeros((1, 513, 1))).shape == (1, 4, 64, 1)
