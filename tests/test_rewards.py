"""Reward functions: how they are found, and that nothing but one finite number per episode passes."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, JudgingConfig, LearningConfig, RolloutConfig, RunConfig
from unigrpo_jax.rewards.judging import ABSTAINED, Judging, RewardError, hold_to_protocol
from unigrpo_jax.rewards.load import load_reward, load_rewards
from unigrpo_jax.rewards.protocol import ABSTAIN, RewardBatch
from unigrpo_jax.training.trainer import OwnEpisodes, Trainer

IMAGES = np.zeros((3, 2, 2, 3), np.uint8)
BATCH = RewardBatch(prompts=["a", "b", "c"], metadata=[{}] * 3, images=IMAGES, thinking=[""] * 3)


@pytest.mark.parametrize("values", [[1, 0, 2], np.array([1.0, 0, 2]), jnp.array([1.0, 0, 2]), (True, False, 2)])
def test_a_bare_array_is_one_component(values):
    result = hold_to_protocol(values, "m:f", 3)
    assert list(result) == ["reward"] and result["reward"].dtype == np.float32
    np.testing.assert_array_equal(result["reward"], [1, 0, 2])


def test_components_keep_their_names_and_values():
    result = hold_to_protocol({"x": [1, 2, 3], "y": np.zeros(3)}, "m:f", 3)
    np.testing.assert_array_equal(result["x"], [1, 2, 3])
    np.testing.assert_array_equal(result["y"], [0, 0, 0])


def test_a_number_that_is_not_finite_counts_as_not_judged():
    result = hold_to_protocol({"x": [np.inf, 1, np.nan]}, "m:f", 3)
    np.testing.assert_array_equal(result["x"], [np.nan, 1, np.nan])


@pytest.mark.parametrize(
    "values",
    [[1, ABSTAIN, np.nan], (1.0, None, np.inf), np.array([1, None, np.nan], object),
     np.where([True, False, True], [1, 5, np.nan], ABSTAIN), np.ma.array([1, 7, np.nan], mask=[0, 1, 0])],
    ids=str,
)  # fmt: skip
def test_to_abstain_is_neither_a_number_nor_a_failure(values):
    np.testing.assert_array_equal(hold_to_protocol({"x": values}, "m:f", 3)["x"], [1, ABSTAINED, np.nan])


@pytest.mark.parametrize(
    "result, words",
    [
        ({"x": [0, 1]}, ["shape [2]", "got 3 episodes", "must return [3]"]),
        (np.zeros((3, 1)), ["shape [3, 1]", "must return [3]"]),
        (1.0, ["shape []", "must return [3]"]),
        (None, ["must return [3]"]),
        ({"x": ["a", "b", "c"]}, ["no numbers", "'x'"]),
        ({"x": [[1], [1, 2], 3]}, ["no numbers", "'x'"]),
        ({}, ["no component"]),
    ],
)
def test_anything_else_is_an_error_that_names_the_function(result, words):
    with pytest.raises(RewardError) as caught:
        hold_to_protocol(result, "my_module:score", 3)
    for word in ["my_module:score", *words]:
        assert word in str(caught.value)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module in the current folder."""
    (tmp_path / "user_reward.py").write_text("weight = 2\ndef score(batch):\n    return [0] * len(batch.prompts)\n")
    (tmp_path / "user_broken.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)


def test_a_function_in_the_current_folder_is_found(module):
    assert load_reward("user_reward:score", RunConfig())(BATCH) == [0, 0, 0]
    assert list(load_rewards(RunConfig(rewards=("shapes", "user_reward:score")))) == ["shapes", "user_reward:score"]


@pytest.mark.parametrize(
    "name, words",
    [
        ("shape", ["'shape'", "neither one of", "shapes", "did you mean shapes?"]),
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
        load_reward(name, RunConfig())
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_rewards_must_be_named_once_and_at_all():
    with pytest.raises(ConfigError, match="rewards is empty; give --rewards package.module:function"):
        load_rewards(RunConfig(rewards=()))
    with pytest.raises(ConfigError, match="names one twice"):
        load_rewards(RunConfig(rewards=("shapes", "shapes")))
    with pytest.raises(ConfigError, match="shapes takes no argument"):
        load_rewards(RunConfig(rewards=("shapes:x",)))


def judged(reward, learning: LearningConfig):
    """Advantages [B] and metrics of one group of three episodes."""
    config = RunConfig(learning=learning, rollout=RolloutConfig(prompts_per_iteration=1), judging=JudgingConfig(retries=0))
    trainer = Trainer.__new__(Trainer)
    trainer._token = (1, 1)
    judging = Judging({"score": reward}, config.judging)
    trainer.parts = types.SimpleNamespace(config=config, judging=judging, world=types.SimpleNamespace(judge=None))
    own = OwnEpisodes(rows=np.arange(3), batches=(BATCH,), tokens=np.zeros(3, int), finite=np.ones(3, bool))
    return trainer.judge(own, {"time/rollout_text": 1.0, "time/rollout_flow": 1.0})


def test_a_weight_of_a_component_that_the_reward_does_not_return_is_refused():
    learning = LearningConfig(group_size=3, reward_weights={"x": 2.0, "z": 1.0})
    with pytest.raises(ConfigError, match="reward_weights names z, but the reward returns x, y"):
        judged(lambda batch: {"x": [1, 2, 3], "y": [0, 0, 0]}, learning)
