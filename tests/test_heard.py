"""Sound as a picture: when it begins, and which frequencies it has when."""

import numpy as np
import pytest

from unigrpo_jax.training import heard
from unigrpo_jax.training.heard import ROWS, Heard, onsets, picture, spectrogram

RATE = 4000


def voice(*begins: float, seconds=0.75, hertz=500, rate=RATE, loud=0.5) -> np.ndarray:
    """Stereo silence in which a tone of a tenth of a second begins on the right at each of these seconds."""
    t = np.arange(round(seconds * rate)) / rate
    out = np.zeros((len(t), 2), np.float32)
    for begin in begins:
        on = (t >= begin) & (t < begin + 0.1)
        out[on, 1] += (loud * np.sin(2 * np.pi * hertz * t[on])).astype(np.float32)
    return out


@pytest.mark.parametrize("rate", [1024, 4000, 24000])
@pytest.mark.parametrize("begins", [(), (0.25,), (0.1, 0.3, 0.6)])
def test_a_sound_begins_where_it_gets_louder(begins, rate):
    found = onsets(voice(*begins, rate=rate, hertz=300), rate)
    assert len(found) == len(begins) and np.abs(found - begins).max(initial=0) <= 0.011


def test_what_was_there_from_the_start_or_swells_slowly_does_not_begin_and_what_jumps_on_a_tone_does():
    t = np.arange(RATE)[:, None] / RATE
    tone = np.sin(2 * np.pi * 500 * t)
    assert not len(onsets((0.3 * tone).astype(np.float32), RATE))
    assert not len(onsets((0.01 * 10 ** (1.5 * t) * tone).astype(np.float32), RATE))  # 30 decibels in a second
    louder = np.where(t < 0.5, 0.1, 0.4) * tone  # by 12 decibels
    np.testing.assert_allclose(onsets(louder.astype(np.float32), RATE), [0.5], atol=0.011)
    assert not len(onsets(np.zeros((3, 1), np.float32), RATE)), "shorter than a hundredth of a second"


def mel(hertz):
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


@pytest.mark.parametrize("rate, hertz", [(4000, 1300), (24000, 440), (24000, 9000), (1024, 200)])
def test_a_tone_is_bright_in_its_band_while_it_sounds_and_as_loud_as_it_is(rate, hertz):
    found = spectrogram(voice(0.3, rate=rate, hertz=hertz), rate, 75)  # a column a hundredth of a second
    row = int(mel(hertz) / mel(rate / 2) * ROWS)
    assert found.shape == (ROWS, 75) and found.min() >= heard.QUIET
    assert found[:, 35].argmax() == row and found[row, 35] == pytest.approx(20 * np.log10(0.5), abs=0.5)
    assert (found[:, :26] == heard.QUIET).all() and (found[:, 45:] == heard.QUIET).all()


def test_a_picture_has_ticks_above_and_low_frequencies_below():
    samples = voice(0.3, hertz=200) + voice(0.6, hertz=1800)
    made = picture(samples, RATE, 302)
    assert made.shape == (heard.TICKS + heard.ROW * ROWS, 302, 3) and made.dtype == np.uint8
    ticks = made[: heard.TICKS]
    assert sorted(set(np.flatnonzero((ticks != 236).any((0, 2))).tolist())) == [120, 121, 241, 242]  # 0.3 and 0.6 of 0.75 s
    bright = made[heard.TICKS :].astype(int).sum(-1)
    assert bright[-15, 140] > 300 > bright[5, 140] and bright[2, 260] > 300 > bright[-15, 260]
    assert (made[heard.TICKS :, :90] == 0).all(), "silence is black"
    short = picture(np.zeros((1, 1), np.float32), 8000, 10)
    assert short.shape == made[:, :10].shape and (short[heard.TICKS :] == 0).all()


def test_what_is_said_of_a_sound():
    found = Heard.of(voice(0.25, 0.5), RATE)
    assert found == Heard(rate=RATE, onsets=(0.25, 0.5)) == Heard.from_words(found.words)
    assert found.caption == "Onsets at 0.25, 0.5 s; spectrogram up to 2 kHz."
    assert Heard(rate=24000, onsets=()).caption == "No onsets; spectrogram up to 12 kHz."
    many = Heard(rate=8000, onsets=tuple(range(20))).caption
    assert many.startswith("Onsets at 0, 1, 2, 3, 4, 5, 6, 7, ... s;")
