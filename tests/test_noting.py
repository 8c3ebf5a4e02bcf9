"""Whether a reward looks at what was asked for."""

import dataclasses

import numpy as np
import pytest

from tests.moving import batch as clips
from unigrpo_jax.config import JudgingConfig, LearningConfig, RunConfig
from unigrpo_jax.rewards.colourfulness import load as colourfulness
from unigrpo_jax.rewards.frames import Frames
from unigrpo_jax.rewards.judging import Judging
from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.training.overview import blind, warnings

BATCH = RewardBatch(prompts=["a", "b"], metadata=[{"n": 1}, {"n": 2}], images=np.zeros((2, 4, 4, 3), np.uint8),
                    thinking=["", ""])  # fmt: skip
CONFIG = RunConfig()

red = lambda batch: {"red": batch.images[..., 0].mean(axis=(1, 2))}
long_words = lambda batch: {"long": [len(prompt) for prompt in batch.prompts]}
wanted = lambda batch: {"wanted": [facts["n"] for facts in batch.metadata]}
cropped = lambda batch: red(dataclasses.replace(batch, images=batch.images[:, :2]))


def judged(batch=BATCH, **rewards) -> Judging:
    judging = Judging(rewards, JudgingConfig(retries=0))
    judging(batch)
    return judging


def test_before_anything_is_judged_nothing_is_said():
    assert blind(CONFIG, Judging({"red": red}, JudgingConfig())) == "" == blind(CONFIG, judged())


@pytest.mark.parametrize("reward", [red, colourfulness("", CONFIG)])
def test_a_reward_of_the_image_alone_is_warned_of(reward):
    words = blind(CONFIG, judged(mine=reward))
    assert words.startswith("Warning: mine looks at neither prompts nor what comes with them") and words.count("\n") == 0


@pytest.mark.parametrize("reward", [long_words, wanted, cropped, lambda batch: red(batch.take(range(2)))])
def test_one_that_looks_at_prompts_or_facts_is_not(reward):
    """Nor one of which it is not known, since it copies all of the batch."""
    assert blind(CONFIG, judged(mine=reward)) == ""


def test_one_that_looks_is_enough_where_it_is_trained_by():
    judging = judged(red=red, long=long_words)
    assert blind(CONFIG, judging) == ""
    unweighted = dataclasses.replace(CONFIG, learning=LearningConfig(reward_weights={"long": 0.0}))
    assert blind(unweighted, judging).startswith("Warning: red looks at")
    taught = dataclasses.replace(CONFIG, learning=LearningConfig(method="sft"))
    assert blind(taught, judged(red=red)) == ""  # examples are learned, whatever is judged


def test_frames_look_where_the_reward_behind_them_does():
    assert blind(CONFIG, judged(clips(2), mine=Frames(red, "my:red"))) != ""
    assert blind(CONFIG, judged(clips(2), mine=Frames(long_words, "my:long"))) == ""


def test_a_reward_gets_the_same_batch():
    seen = []
    judged(mine=lambda batch: seen.append(batch) or red(batch))
    assert isinstance(seen[0], RewardBatch) and seen[0].prompts == ["a", "b"] and seen[0].size == (4, 4)
    np.testing.assert_array_equal(dataclasses.replace(seen[0], prompts=["c", "d"]).images, BATCH.images)


def test_an_average_that_still_holds_much_of_the_start_is_warned_of():
    """0.97^40 = 0.296; a run of few iterations is not judged."""
    of = lambda n, decay: warnings(dataclasses.replace(CONFIG, iterations=n, learning=LearningConfig(ema_decay=decay)))
    assert of(100, 0.97) == of(40, 0.9) == of(40, 0.0) == of(3, 0.97) == []
    (words,) = of(40, 0.97)
    assert words.startswith("Warning: learning.ema_decay = 0.97: after 40 iterations") and "to 30 % the start's" in words
    assert of(40, float(words.removesuffix(" or less.").rsplit(" ", 1)[1])) == []


def test_small_groups_are_warned_of():
    of = lambda **learning: warnings(dataclasses.replace(CONFIG, learning=LearningConfig(**learning)))
    assert of() == of(group_size=8) == of(group_size=1, method="sft") == []
    (words,) = of(group_size=7)
    assert words.startswith("Warning: learning.group_size = 7: ") and "use 8 or more" in words
