"""Reward functions: how they are found, and that nothing but one finite number per episode passes."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, LearningConfig, RolloutConfig, RunConfig
from unigrpo_jax.rewards.load import RewardError, call_reward, load_reward
from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.training.trainer import OwnEpisodes, Trainer

IMAGES = np.zeros((3, 2, 2, 3), np.uint8)
BATCH = RewardBatch(prompts=["a", "b", "c"], metadata=[{}] * 3, images=IMAGES, thinking=[""] * 3)


def raising(batch):
    raise RuntimeError("no disk")


@pytest.mark.parametrize("values", [[1, 0, 2], np.array([1.0, 0, 2]), jnp.array([1.0, 0, 2]), (True, False, 2)])
def test_a_bare_array_is_one_component(values):
    result = call_reward(lambda batch: values, "m:f", BATCH)
    assert list(result) == ["reward"] and result["reward"].dtype == np.float32
    np.testing.assert_array_equal(result["reward"], [1, 0, 2])


def test_components_keep_their_names_and_values():
    result = call_reward(lambda batch: {"x": [1, 2, 3], "y": np.zeros(3)}, "m:f", BATCH)
    np.testing.assert_array_equal(result["x"], [1, 2, 3])
    np.testing.assert_array_equal(result["y"], [0, 0, 0])


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda b: {"x": [0, 1, np.nan]}, ["nan", "'x'", "episode 2"]),
        (lambda b: {"x": [np.inf, 1, 0]}, ["inf", "'x'", "episode 0"]),
        (lambda b: {"x": [0, 1]}, ["shape [2]", "got 3 episodes", "must return [3]"]),
        (lambda b: np.zeros((3, 1)), ["shape [3, 1]", "must return [3]"]),
        (lambda b: 1.0, ["shape []", "must return [3]"]),
        (lambda b: None, ["must return [3]"]),
        (lambda b: {"x": ["a", "b", "c"]}, ["no numbers", "'x'"]),
        (lambda b: {"x": [[1], [1, 2], 3]}, ["no numbers", "'x'"]),
        (lambda b: {}, ["no component"]),
        (raising, ["RuntimeError: no disk"]),
    ],
)
def test_anything_else_is_an_error_that_names_the_function(function, words):
    with pytest.raises(RewardError) as caught:
        call_reward(function, "my_module:score", BATCH)
    for word in ["my_module:score", *words]:
        assert word in str(caught.value)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module in the current folder."""
    (tmp_path / "user_reward.py").write_text("weight = 2\ndef score(batch):\n    return [0] * len(batch.prompts)\n")
    (tmp_path / "user_broken.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)


def test_a_function_in_the_current_folder_is_found(module):
    assert call_reward(load_reward("user_reward:score"), "user_reward:score", BATCH)["reward"].tolist() == [0, 0, 0]
    assert callable(load_reward("shapes"))


@pytest.mark.parametrize(
    "name, words",
    [
        ("shape", ["'shape'", "neither `shapes` nor package.module:function"]),
        ("user_reward:", ["neither"]),
        (":score", ["neither"]),
        ("user_reward:scores", ["no function called scores", "did you mean score?"]),
        ("user_reward:weight", ["no function called weight"]),
        ("no_such_module:score", ["ModuleNotFoundError", "no_such_module", "current folder"]),
        ("user_broken:score", ["no_such_package"]),
        ("..:score", ["'..:score'"]),
    ],
)
def test_what_is_no_reward_function_is_one_sentence(module, name, words):
    with pytest.raises(ConfigError) as caught:
        load_reward(name)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weight_of_a_component_that_the_reward_does_not_return_is_refused():
    learning = LearningConfig(group_size=3, reward_weights={"x": 2.0, "z": 1.0})
    reward = lambda batch: {"x": [1, 2, 3], "y": [0, 0, 0]}
    world = types.SimpleNamespace(judge=None)
    parts = types.SimpleNamespace(
        config=RunConfig(learning=learning, rollout=RolloutConfig(prompts_per_iteration=1)), reward=reward, world=world
    )
    trainer = Trainer.__new__(Trainer)
    trainer.parts = parts
    own = OwnEpisodes(rows=np.arange(3), batch=BATCH, tokens=np.zeros(3, int))
    with pytest.raises(ConfigError, match="reward_weights names z, but the reward returns x, y"):
        trainer.judge(own, {"time/rollout_text": 1.0, "time/rollout_flow": 1.0})
