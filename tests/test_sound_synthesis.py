"""The sound of moving scenes: tones, clicks and sides against numbers worked out by hand; and what is heard of them."""

import numpy as np
import pytest

from tests.sound_clips import hissing
from unigrpo_jax.worlds.motion.scene import Mover, MovingScene
from unigrpo_jax.worlds.sound.hearing import hear
from unigrpo_jax.worlds.sound.synthesis import FPS, FRAME, PITCHES, RATE, Click, Score, gains, play, score, sound

SECONDS = np.arange(9 * FRAME) / RATE + 0.5 / RATE  # the middle of each sample


def scene(*movers: tuple, walls: str = "reflect") -> MovingScene:
    """Of (`red circle`, start, velocity) each."""
    return MovingScene(tuple(Mover(*name.split(), start, velocity) for name, start, velocity in movers), walls)


def heard(samples: np.ndarray):
    return hear(samples[None].astype(np.float32), RATE, len(samples) // FRAME)[0]


def test_a_frame_is_an_eighth_of_a_second_and_pitches_are_in_hertz():
    assert (RATE, FRAME, FPS) == (1024, 128, 8)
    assert {shape: 8 * k for shape, k in PITCHES.items()} == {"circle": 128, "square": 192, "triangle": 256, "cross": 320}


@pytest.mark.parametrize("shape, hertz", [("circle", 128), ("square", 192), ("triangle", 256), ("cross", 320)])
def test_a_shape_in_the_middle_is_one_tone_without_a_seam_on_both_sides(shape, hertz):
    """cos(2 pi f s) of a fifth, and half of its power on each side; straight up at x = 9, the middle of 18."""
    wave = 0.2 * np.cos(2 * np.pi * hertz * SECONDS) * np.sqrt(0.5)
    found = sound(scene((f"red {shape}", (16.0, 9.0), (-1.5, 0.0))))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack([wave, wave], 1), atol=1e-6)


def test_what_is_at_rest_is_silent_and_what_stops_is_silent_then():
    """At 14 with 1.5 a frame the wall is met at 2 2/3: the tone sounds in the six blocks until 3."""
    assert not sound(scene(("red circle", (3, 3), (0, 0)))).any()
    stopped = score(scene(("red circle", (3.0, 14.0), (0.0, 1.5)), walls="stop"))
    assert stopped.sounding[:, 0].tolist() == [True] * 6 + [False] * 12
    assert stopped.clicks == (Click(5, 18.0),)  # 2 * 2 2/3 = 5 1/3


def test_left_is_heard_left_and_right_right():
    """From wall to wall, 2 pixels a frame: block 4 is from frame 2 to 2 1/2, where x is 4.5 in the middle of it."""
    right = sound(scene(("red square", (5.0, 0.0), (0.0, 2.0))))
    block = right[4 * 64 : 5 * 64]
    np.testing.assert_allclose(np.sqrt(np.square(block).sum(0)), 0.2 * np.sqrt(32) * np.array(
        [np.cos(np.pi / 8), np.sin(np.pi / 8)]), atol=1e-6)  # fmt: skip
    assert np.square(right[:64, 0]).sum() > 100 * np.square(right[:64, 1]).sum()
    left = sound(scene(("red square", (5.0, 18.0), (0.0, -2.0))))
    np.testing.assert_allclose(left[:, ::-1], right, atol=1e-6)
    np.testing.assert_allclose(gains(np.array([0.0, 9.0, 18.0])), [[1, 0], [0.5**0.5] * 2, [0, 1]], atol=1e-12)


def test_a_bounce_clicks_once_where_and_when_it_happens_and_louder_than_tones():
    bounced = scene(("red circle", (5.0, 14.0), (0.0, 1.5)))
    found, tone = sound(bounced), play(Score(**vars(score(bounced)) | {"clicks": ()}))
    click = np.abs(found - tone)
    assert click.argmax() // 2 // 64 == 5 and click[:, 1].max() == pytest.approx(0.6, rel=1e-5) and click[:, 0].max() < 1e-6
    assert np.flatnonzero(click.sum(1) > 1e-6).tolist() == list(range(5 * 64, 5 * 64 + 13))
    assert np.abs(found).max() <= 1


def test_a_turn_that_takes_an_object_back_to_where_it_was_is_no_pause():
    """At 17.875 by 1 a frame the wall is met at 1/8: at 1/4 it is where it began."""
    assert score(scene(("red circle", (5.0, 17.875), (0.0, 1.0)))).sounding.all()


# --- what is heard ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [0.0, 1.0, 2.5])
def test_a_tone_of_any_phase_is_heard_as_loud_as_it_is_and_nothing_else_is(phase):
    left, right = (0.2 * gain * np.cos(2 * np.pi * 256 * SECONDS + phase) for gain in (np.cos(0.3), np.sin(0.3)))
    found = heard(np.stack([left, right], 1))
    np.testing.assert_allclose(found.levels, np.tile([0, 0, 1, 0], (9, 1)), atol=1e-5)
    np.testing.assert_allclose(found.angles[:, 2], 0.3, atol=1e-5)
    assert found.clicks == () and found.noise.max() < 1e-5


def test_clicks_are_heard_when_and_where_they_are():
    music = Score(np.array([24, 40]), np.ones((18, 2), bool), np.full((18, 2), 6.0), (Click(11, 18.0), Click(4, 3.0)))
    found = heard(hissing(play(music), 0.02))
    assert [click.time for click in found.clicks] == pytest.approx([2, 5.5], abs=0.1)
    assert [click.angle for click in found.clicks] == pytest.approx([np.pi / 12, np.pi / 2], abs=0.12)
    np.testing.assert_allclose(found.levels, np.tile([0, 1, 0, 1], (9, 1)), atol=0.15)


def test_a_strange_tone_a_hiss_and_a_constant_are_noise():
    """Of 224 Hz, between two pitches; a root mean square of 0.1 each."""
    wave = 0.1 * np.sqrt(2) * np.cos(2 * np.pi * 224 * SECONDS)
    for mono in (wave, np.random.default_rng(0).normal(0, 0.1, len(SECONDS)), np.full(len(SECONDS), 0.1)):
        found = heard(np.stack([mono, mono], 1))
        assert found.clicks == () and 0.07 < found.noise.min() <= found.noise.max() < 0.12
        assert found.levels.max() < 0.5


def test_what_is_not_finite_is_endless_noise():
    for bad in (np.nan, np.inf):
        samples = np.zeros((9 * FRAME, 2))
        samples[300, 1] = bad
        found = heard(samples)
        assert np.isinf(found.noise).tolist() == [False] * 2 + [True] + [False] * 6 and not found.levels.any()


@pytest.mark.parametrize("sounds, rate", [
    (np.zeros((1, 1152, 1), np.float32), 1024), (np.zeros((1, 1152, 2)), 1024), (np.zeros((1, 1151, 2), np.float32), 1024),
    (np.zeros((1, 1152, 2), np.float32), 16000),
])  # fmt: skip
def test_other_sounds_are_refused(sounds, rate):
    with pytest.raises(ValueError, match=r"9 frames is float32 \[B, 1152, 2\] in 1024 samples a second, got float"):
        hear(sounds, rate, 9)


def test_no_sounds_are_heard_as_none():
    assert hear(np.zeros((0, 1152, 2), np.float32), RATE, 9) == []
