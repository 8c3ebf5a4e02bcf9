"""The worlds of motion as the training loop sees them: their prompts, and that judge and reward say what the rules say."""

import dataclasses

import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, RolloutConfig, RunConfig
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.protocol import NotDrawn, RewardBatch
from unigrpo_jax.worlds.motion.animate import given_scene
from unigrpo_jax.worlds.motion.drawing import render
from unigrpo_jax.worlds.motion.requirement import from_metadata
from unigrpo_jax.worlds.motion.staging import stage
from unigrpo_jax.worlds.world import load_world

WORLDS = ("shapes_motion", "shapes_animate")
N = 24


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    """Its name, and the world."""
    return request.param, load_world((request.param,))


def batch(prompts, clips) -> RewardBatch:
    return RewardBatch(prompts=[p.text for p in prompts], metadata=[p.metadata for p in prompts], videos=clips, fps=8.0,
                       thinking=[""] * len(prompts))  # fmt: skip


def categories(prompts) -> list[str]:
    return [p.metadata["category"] for p in prompts]


def test_held_out_prompts_take_the_categories_in_turn_and_no_key_is_trained_on(world):
    name, own = world
    asked, trained = own.evaluation(N), own.train(0).batch(0, 500)
    assert len(set(categories(asked)[:6])) == 6 and categories(asked) == categories(asked)[:6] * (N // 6)
    assert {p.metadata["key"] for p in asked}.isdisjoint(p.metadata["key"] for p in trained)
    assert all((p.picture is not None) == (name == "shapes_animate") for p in (*asked, *trained))
    assert [p.text for p in own.evaluation(6)] == [p.text for p in asked[:6]]
    assert own.train(0).batch(0, 12) != own.train(1).batch(0, 12)
    assert len(own.longest) == 1 and len(own.longest[0]) >= 500


def test_its_rules_read_clips_of_its_size_alone(world):
    clip = RolloutConfig(frames=9)
    world[1].check_size(clip)
    with pytest.raises(ConfigError, match="read clips, but one frame is drawn; set rollout.frames to 9"):
        world[1].check_size(dataclasses.replace(clip, frames=1))
    with pytest.raises(ConfigError, match="24 x 24"):
        world[1].check_size(dataclasses.replace(clip, image_height=32, image_width=32))


def test_the_judge_and_the_reward_of_the_shapes_say_what_the_rules_say(world):
    """Right clips as staged, and such as stand still at their first frame; the picture is kept or another one is."""
    name, own = world
    asked, rng = own.evaluation(6), np.random.default_rng(0)
    if name == "shapes_motion":
        right = np.stack([render(stage(rng, from_metadata(p.metadata))) for p in asked])
    else:  # what the picture shows, in motion, is known to whoever staged it; at rest it is right in no category
        right = np.stack([np.repeat(p.picture()[None], 9, 0) for p in asked])
    clips = np.concatenate([right, np.repeat(right[:, :1], 9, 1), np.zeros_like(right)])
    judged = own.judge(batch(asked * 3, clips))
    names = {"exact", "graded", "content", "motion", "smoothness"} | ({"first_frame"} if name == "shapes_animate" else set())
    assert set(judged.scores) == names and len(judged.verdicts) == 18
    np.testing.assert_array_equal(judged.correct, judged.scores["exact"] == 1)
    if name == "shapes_motion":
        assert judged.correct.tolist() == [True] * 6 + [False] * 12
    else:
        assert not judged.correct.any()
        np.testing.assert_array_equal(judged.scores["first_frame"][:12], 1)
        assert (judged.scores["first_frame"][12:] < 1).all()
    np.testing.assert_array_equal(judged.scores["content"][6:12], 1)
    np.testing.assert_array_equal(judged.scores["graded"][12:], 0)
    reward = load_reward("shapes", RunConfig(prompts=(name,), rollout=RolloutConfig(frames=9)))
    found = reward(batch(asked * 3, clips))
    assert set(found) == {"graded"} and found["graded"].dtype == np.float32
    np.testing.assert_allclose(found["graded"], judged.scores["graded"], rtol=1e-6)


def test_images_are_no_clips_for_its_reward(world):
    asked = world[1].evaluation(1)
    images = RewardBatch(prompts=[asked[0].text], metadata=[asked[0].metadata], thinking=[""],
                         images=np.zeros((1, 24, 24, 3), np.uint8))  # fmt: skip
    with pytest.raises(NotDrawn, match="batch.videos|draws images"):
        load_reward("shapes", RunConfig(prompts=(world[0],)))(images)


def test_a_right_clip_of_a_given_picture_is_exact():
    world = load_world(("shapes_animate",))
    still = [p for p in world.evaluation(30) if p.metadata["category"] == "direction"][0]
    moving = given_scene(still.metadata).movers[0]
    axis, sign = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}[still.metadata["objects"][0]["direction"]]
    velocity = tuple(float(sign) if i == axis else 0.0 for i in range(2))
    scene = dataclasses.replace(given_scene(still.metadata), movers=(dataclasses.replace(moving, velocity=velocity),))
    clip = render(scene)
    room = sign * 8 + moving.start[axis]
    assert world.judge(batch([still], clip[None])).correct[0] == (0 <= room <= 18)
