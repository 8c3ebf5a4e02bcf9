"""Rewards that hear: the sound of a batch, and what onsets, silence and clipping say of signals made by hand."""

import dataclasses

import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, JudgingConfig, RolloutConfig, RunConfig
from unigrpo_jax.rewards.judging import Judging, RewardError
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.protocol import NoSound, NotDrawn, RewardBatch
from unigrpo_jax.training.evaluation import join

RATE, FPS, FRAMES = 8000, 8.0, 17
SAMPLES = int(RATE * FRAMES / FPS)
ONCE = JudgingConfig(retries=0)


def flashes(*frames: int) -> np.ndarray:
    """A clip that changes at once from dark to bright, and back, at each of these frames: uint8 [17, 4, 4, 3]."""
    bright = sum((np.arange(FRAMES) >= frame).astype(int) for frame in frames) % 2 if frames else np.zeros(FRAMES)
    return np.broadcast_to(200 * bright[:, None, None, None], (FRAMES, 4, 4, 3)).astype(np.uint8)


def clicks(*frames: float, channels: int = 2) -> np.ndarray:
    """A burst of 20 ms in silence at each of these frames: float32 [S, channels]."""
    out = np.zeros((SAMPLES, channels), np.float32)
    for frame in frames:
        begin = round(frame / FPS * RATE)
        out[begin : begin + 160] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(160) / RATE)[:, None]
    return out


def sine(hertz: float) -> np.ndarray:
    """Of amplitude 1, both channels alike."""
    wave = np.sin(2 * np.pi * hertz * (np.arange(SAMPLES) + 0.5) / RATE).astype(np.float32)
    return np.stack([wave, wave], 1)


def batch(clips, sounds, **given) -> RewardBatch:
    names = {"prompts": ["a"] * len(clips), "metadata": [{}] * len(clips), "thinking": [""] * len(clips), "fps": FPS}
    return RewardBatch(videos=np.stack(clips), audio=np.stack(sounds), **names | {"rate": RATE} | given)


def judged(name: str, clips, sounds) -> np.ndarray:
    (values,) = load_reward(name, RunConfig())(batch(clips, sounds)).values()
    return values


def of_sounds(name: str, *sounds) -> np.ndarray:
    return judged(name, [flashes()] * len(sounds), sounds)


# --- batches ------------------------------------------------------------------------------------------------------------


def test_a_batch_of_clips_has_their_sound_and_its_rate():
    made = batch([flashes(), flashes(4)], [clicks(), clicks(4)])
    assert made.audio.shape == (2, SAMPLES, 2) and made.rate == RATE and made.size == (4, 4)
    assert list(made.media) == ["video", "audio"]
    part = made.take([1])
    assert part.rate == RATE and part.audio.shape == (1, SAMPLES, 2) and part.audio.any()
    assert dataclasses.replace(made, prompts=["b", "c"]).audio is made.audio
    both = join([made, part])
    assert both.rate == RATE and both.audio.shape == (3, SAMPLES, 2)
    turned = RewardBatch(prompts=["a"], metadata=[{}], thinking=[""], fps=FPS, rate=RATE,
                         media={"audio": made.audio[:1], "video": made.videos[:1]})  # fmt: skip
    assert turned.size == (4, 4)


def test_a_batch_without_sound_says_so():
    made = RewardBatch(prompts=["a"], metadata=[{}], thinking=[""], videos=flashes()[None], fps=FPS)
    assert made.rate == 0 and not hasattr(made, "audio") and issubclass(NoSound, NotDrawn)
    with pytest.raises(NoSound, match="asked for batch.audio, but this run draws no sound"):
        made.audio  # noqa: B018


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"videos": None, "fps": 0.0, "images": np.zeros((1, 4, 4, 3), np.uint8)},
                                   {"audio": None}])  # fmt: skip
def test_a_sound_has_a_clip_and_a_rate(wrong):
    given = {"videos": flashes()[None], "audio": clicks()[None], "fps": FPS, "rate": RATE} | wrong
    with pytest.raises(ValueError, match="a batch holds sound with videos and its rate"):
        RewardBatch(prompts=["a"], metadata=[{}], thinking=[""], **given)


def test_the_same_clip_with_another_sound_or_rate_is_another_episode():
    asked = []

    def loud(batch):
        asked.extend(batch.audio.max((1, 2)).tolist())
        return {"loud": np.zeros(len(batch.prompts))}

    loud.identity = "loud"
    judging = Judging({"loud": loud}, ONCE)
    for sounds, rate in ((clicks(4), RATE), (clicks(4), RATE), (clicks(5), RATE), (clicks(4), 2 * RATE)):
        judging(batch([flashes()], [sounds], rate=rate))
    assert len(asked) == 3


@pytest.mark.parametrize("name", ["onsets", "silence", "clipping"])
def test_a_run_without_sound_is_one_sentence(name):
    config, silent = RunConfig(), RewardBatch(prompts=["a"], metadata=[{}], thinking=[""], videos=flashes()[None], fps=FPS)
    judging = Judging({name: load_reward(name, config)}, ONCE)
    sentence = f"{name} asked for batch.audio, but this run draws no sound"
    with pytest.raises(RewardError) as caught:
        judging(silent)
    assert str(caught.value) == f"the reward function {sentence}"
    with pytest.raises(ConfigError) as refused:
        judging.check_drawn("a", {}, RolloutConfig(frames=9))
    assert str(refused.value) == f"rewards: {sentence}; leave it out."
    with pytest.raises(ConfigError, match=f"{name} hears the sound of clips, but rollout.frames = 1 draws images"):
        judging.check_drawn("a", {}, RolloutConfig(frames=1))
    with pytest.raises(ConfigError, match=f"{name} takes no argument; leave it out."):
        load_reward(f"{name}:x", config)


def test_where_clips_have_sound_a_reward_that_hears_is_not_refused_and_is_asked_about_silence():
    asked = []
    own = lambda batch: asked.append((batch.audio.shape, batch.rate, batch.audio.any())) or {"own": np.zeros(1)}
    judging = Judging({"onsets": load_reward("onsets", RunConfig()), "own": own}, ONCE)
    judging.check_drawn("a", {}, RolloutConfig(frames=17, frames_per_second=8.0), RATE)
    assert asked == [((1, SAMPLES, 2), RATE, False)]


# --- onsets -------------------------------------------------------------------------------------------------------------


def test_sounds_that_begin_when_the_picture_changes_are_in_synchrony():
    assert judged("onsets", [flashes(4, 9, 12)] * 2, [clicks(4, 9, 12), clicks(4.3, 8.8, 12)]) == pytest.approx([1, 1])


@pytest.mark.parametrize("lag", [-3, -1, 1, 2, 4])
def test_a_delay_costs_a_fifth_a_frame(lag):
    """Half a second is 4 frames: 1 - |lag| / 5."""
    (found,) = judged("onsets", [flashes(8)], [clicks(8 + lag)])
    assert found == pytest.approx(1 - abs(lag) / 5, abs=0.02)


def test_sounds_at_other_times_and_no_sounds_are_not_in_synchrony():
    steady = np.full((SAMPLES, 2), 0.3, np.float32)
    found = judged("onsets", [flashes(2, 12)] * 2 + [flashes(4), flashes()] * 1,
                   [np.zeros((SAMPLES, 2), np.float32), steady, clicks(13), clicks(4)])  # fmt: skip
    assert found.tolist() == pytest.approx([0, 0, 0, 0], abs=1e-9)


def test_of_many_motions_those_with_a_sound_count():
    """Two of four, and a sound with none: less than all, more than nothing."""
    some, worse = judged("onsets", [flashes(3, 7, 10, 14)] * 2, [clicks(3, 10), clicks(3, 5)])
    assert 0.2 < worse < some < 0.9


def test_noise_under_the_clicks_and_one_channel_alone_change_little():
    rng = np.random.default_rng(0)
    hiss = clicks(4, 9, 12) + rng.normal(0, 0.01, (SAMPLES, 2)).astype(np.float32)
    left = clicks(4, 9, 12) * np.float32([1, 0])
    assert min(judged("onsets", [flashes(4, 9, 12)] * 2, [hiss, left])) > 0.9


# --- silence and clipping -----------------------------------------------------------------------------------------------


def test_the_share_that_is_not_silent():
    """All, a half, a burst of 20 of 2125 ms, too soft by far (-80 dB), nothing."""
    tone = 0.3 * sine(440)
    half = tone.copy()
    half[SAMPLES // 2 :] = 0
    found = of_sounds("silence", tone, half, clicks(4), tone * np.float32(1e-4), np.zeros_like(tone))
    assert found.tolist() == pytest.approx([1, 0.5, 2 / 213, 0, 0], abs=5e-3)


def test_the_share_that_is_not_clipped():
    """A sine of amplitude 2 is beyond 1 for two thirds of the time; one below 1 is not cut off, nor is a single sample."""
    wave = sine(10)
    peak = np.zeros_like(wave)
    peak[[5, 7, 100]] = 1.0
    one_side = np.clip(2 * wave, -1, 1) * np.float32([1, 0])
    found = of_sounds("clipping", np.clip(2 * wave, -1, 1), 2 * wave, 0.99 * wave, peak, one_side)
    assert found.tolist() == pytest.approx([1 / 3, 1 / 3, 1, 1, 2 / 3], abs=0.01)


@pytest.mark.parametrize("name", ["onsets", "silence", "clipping"])
def test_a_sound_that_is_not_finite_is_not_judged_and_mono_is(name):
    broken = clicks(4)
    broken[99, 0] = np.nan
    found = judged(name, [flashes(4)] * 2, [broken, clicks(4)])
    assert np.isnan(found).tolist() == [True, False]
    mono = judged(name, [flashes(4)], [clicks(4, channels=1)])
    assert mono == pytest.approx(found[1:])
