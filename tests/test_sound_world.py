"""The world of sound as the training loop sees it: its prompts, and that judge and reward say what the rules say."""

import dataclasses

import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, RolloutConfig, RunConfig
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.protocol import NoSound, RewardBatch
from unigrpo_jax.worlds.motion.drawing import render
from unigrpo_jax.worlds.motion.requirement import from_metadata
from unigrpo_jax.worlds.sound.staging import stage
from unigrpo_jax.worlds.sound.synthesis import FPS, RATE, sound
from unigrpo_jax.worlds.world import load_world


@pytest.fixture(scope="module")
def world():
    return load_world(("shapes_sound",))


def batch(prompts, clips, **sounds) -> RewardBatch:
    return RewardBatch(prompts=[p.text for p in prompts], metadata=[p.metadata for p in prompts], videos=clips, fps=FPS,
                       thinking=[""] * len(prompts), **sounds)  # fmt: skip


def test_held_out_prompts_take_the_categories_in_turn_and_no_key_is_trained_on(world):
    asked, trained = world.evaluation(24), world.train(0).batch(0, 500)
    categories = [p.metadata["category"] for p in asked]
    assert len(set(categories[:6])) == 6 and categories == categories[:6] * 4
    assert {p.metadata["key"] for p in asked}.isdisjoint(p.metadata["key"] for p in trained)
    assert world.train(0).batch(0, 12) != world.train(1).batch(0, 12)
    assert len(world.longest) == 1 and len(world.longest[0]) >= 500


def test_its_rules_read_clips_of_its_size_alone(world):
    clip = RolloutConfig(frames=9, frames_per_second=8.0)
    world.check_size(clip)
    with pytest.raises(ConfigError, match="read clips, but one frame is drawn; set rollout.frames to 9"):
        world.check_size(dataclasses.replace(clip, frames=1))
    with pytest.raises(ConfigError, match="24 x 24"):
        world.check_size(dataclasses.replace(clip, image_height=32, image_width=32))
    with pytest.raises(ConfigError, match="hear clips of 8 frames per second, but 24 are drawn; set rollout.frames_per"):
        world.check_size(dataclasses.replace(clip, frames_per_second=24.0))


def test_its_rules_hear_sounds_of_its_rate_alone(world):
    world.check_sound(1024)
    for rate, words in ((0, "makes no sound"), (24000, "makes 24000")):
        with pytest.raises(ConfigError, match=f"hear sound of 1024 samples per second, but the model {words}; use a model"):
            world.check_sound(rate)
    load_world(("shapes_motion",)).check_sound(24000)


def test_the_judge_and_the_reward_of_the_shapes_say_what_the_rules_say(world):
    """Right clips as staged with their sound; the same in silence; black ones in silence."""
    asked, rng = world.evaluation(6), np.random.default_rng(0)
    scenes = [stage(rng, from_metadata(p.metadata)) for p in asked]
    clips, sounds = np.stack([render(scene) for scene in scenes]), np.stack([sound(scene) for scene in scenes])
    shown = batch(asked * 3, np.concatenate([clips, clips, np.zeros_like(clips)]), rate=RATE,
                  audio=np.concatenate([sounds, np.zeros_like(sounds), np.zeros_like(sounds)]))  # fmt: skip
    judged = world.judge(shown)
    assert set(judged.scores) == {"exact", "graded", "content", "motion", "smoothness", "pitch", "clicks", "synchrony",
                                  "stereo", "noise"}  # fmt: skip
    np.testing.assert_array_equal(judged.correct, judged.scores["exact"] == 1)
    silent = [p.metadata["category"] == "rest" for p in asked]
    assert judged.correct.tolist() == [True] * 6 + silent + [False] * 6 and sum(silent) == 1
    assert len(judged.verdicts) == 18 and judged.verdicts[0] == "right"
    np.testing.assert_array_equal(judged.scores["graded"][12:], 0)
    found = load_reward("shapes", RunConfig(prompts=("shapes_sound",), rollout=RolloutConfig(frames=9)))(shown)
    assert set(found) == {"graded"} and found["graded"].dtype == np.float32
    np.testing.assert_allclose(found["graded"], judged.scores["graded"], rtol=1e-6)


def test_clips_without_sound_are_none_for_it(world):
    asked = world.evaluation(1)
    with pytest.raises(NoSound, match="batch.audio, but this run draws no sound"):
        world.judge(batch(asked, np.zeros((1, 9, 24, 24, 3), np.uint8)))
