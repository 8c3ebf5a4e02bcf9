"""Dynamic sampling: which groups take whose place, what is measured, and what is asked of a trainer."""

import types

import jax
import numpy as np

from unigrpo_jax.training.programs import groups_of
from unigrpo_jax.training.resampling import by_episode, collect, over_rollouts, replaced, teaching

ALIKE = [0.0, 0.0]


def test_groups_teach_where_some_advantage_is_not_zero():
    assert teaching(np.array([0.0, 0, 1, -1, 0, 0]), 2).tolist() == [False, True, False]
    by_segment = np.zeros((4, 1, 2))
    by_segment[3, 0, 1] = 0.5  # of one drawing alone
    assert teaching(by_segment, 2).tolist() == [False, True]
    by_modality = {"audio": np.array([0.0, 0, 0, 0, 1, 2]), "video": np.array([1.0, 0, 0, 0, 0, 0])}
    assert teaching(by_modality, 2).tolist() == [True, False, True]


def test_the_first_places_that_teach_nothing_take_the_first_fresh_groups_that_do():
    kept, fresh = np.array([True, False, False, True]), np.array([False, True, True, True])
    assert replaced(kept, fresh).tolist() == [0, 5, 6, 3]
    assert replaced(kept, np.array([False, False, False, True])).tolist() == [0, 7, 2, 3]
    assert replaced(np.ones(2, bool), np.ones(2, bool)).tolist() == [0, 1]
    assert by_episode(np.array([2, 0]), 3).tolist() == [6, 7, 8, 0, 1, 2]


def test_metrics_are_means_seconds_sums_and_speeds_those_of_all_seconds():
    """8 images in 1 s and 8 in 3 s are 4 a second; 30 tokens in 1 s and 10 in 1 s are 20."""
    first = {"time/rollout_text": 0.5, "time/rollout_flow": 0.5, "images_per_second": 8.0, "reward/mean": 1.0}
    second = {"time/rollout_text": 1.0, "time/rollout_flow": 2.0, "images_per_second": 8 / 3, "reward/mean": 0.5}
    found = over_rollouts([first, second | {"judge/exact": 0.25}])
    assert found == {"time/rollout_text": 1.5, "time/rollout_flow": 2.5, "images_per_second": 4.0, "reward/mean": 0.75,
                     "judge/exact": 0.25}  # fmt: skip
    tokens = lambda rate: {"time/rollout_text": 1.0, "time/rollout_flow": 9.0, "tokens_per_second": rate}
    assert over_rollouts([tokens(30.0), tokens(10.0)])["tokens_per_second"] == 20


def test_groups_of_two_batches_make_a_batch():
    first = {"a": np.arange(6), "b": np.arange(12).reshape(6, 2)}
    second = jax.tree.map(lambda x: x + 100, first)
    found = groups_of(first, second, np.array([0, 5, 4]), size=2)
    assert found["a"].tolist() == [0, 1, 104, 105, 102, 103]
    assert found["b"].tolist() == [[0, 1], [2, 3], [108, 109], [110, 111], [104, 105], [106, 107]]


class Drawn:
    """A trainer whose rollouts have these advantages; an episode is (rollout, number)."""

    def __init__(self, rollouts, resample: int):
        self._rollouts, self.asked = rollouts, []
        rollout = types.SimpleNamespace(resample=resample)
        config = types.SimpleNamespace(rollout=rollout, learning=types.SimpleNamespace(group_size=2))
        self.parts = types.SimpleNamespace(config=config)

    def sample(self, state, step, number):
        self.asked.append((state, step, number))
        count = len(self._rollouts[number])
        return [(number, n) for n in range(count)], number, {"time/rollout_text": 1.0}

    def judge(self, own, times):
        return np.array(self._rollouts[own], np.float32), {"reward/mean": float(own)}

    def replace(self, episodes, others, groups):
        both = [*episodes, *others]
        return [both[row] for row in by_episode(groups, 2)]


class DrawnBoth(Drawn):
    """Of two modalities; the second one's advantages are those of the first where they are positive."""

    def judge(self, own, times):
        found, metrics = super().judge(own, times)
        return {"audio": found, "video": np.maximum(found, 0)}, metrics


def collected(rollouts, resample):
    trainer = Drawn(rollouts, resample)
    return trainer, *collect(trainer, "state", 7, trainer.judge)


def test_sampling_goes_on_until_all_groups_teach():
    """Of three groups two are alike; the second rollout fills one place, the third the other, and no fourth is needed."""
    rollouts = [[*ALIKE, 1, -1, *ALIKE], [*ALIKE, *ALIKE, 2, -2], [3, -3, 4, -4, *ALIKE], [5, -5] * 3]
    trainer, episodes, advantages, metrics = collected(rollouts, 5)
    assert trainer.asked == [("state", 7, number) for number in range(3)]
    assert episodes == [(1, 4), (1, 5), (0, 2), (0, 3), (2, 0), (2, 1)]
    assert advantages.tolist() == [2, -2, 1, -1, 3, -3] and advantages.dtype == np.float32
    assert metrics == {"time/rollout_text": 3.0, "reward/mean": 1.0, "episodes/sampled": 18, "episodes/teaching": 6}


def test_what_takes_a_place_brings_the_advantages_of_each_modality():
    trainer = DrawnBoth([[*ALIKE, 1, -1], [3, -3, *ALIKE]], 1)
    episodes, advantages, metrics = collect(trainer, "state", 7, trainer.judge)
    assert episodes == [(1, 0), (1, 1), (0, 2), (0, 3)] and metrics["episodes/sampled"] == 8
    assert {name: x.tolist() for name, x in advantages.items()} == {"audio": [3, -3, 1, -1], "video": [3, 0, 1, 0]}


def test_no_more_rollouts_are_made_than_the_setting_allows():
    trainer, episodes, advantages, metrics = collected([[*ALIKE, 1, -1], [*ALIKE, *ALIKE], [1, -1] * 2], 1)
    assert len(trainer.asked) == 2 and episodes == [(0, n) for n in range(4)]
    assert advantages.tolist() == [0, 0, 1, -1]
    assert metrics["episodes/sampled"] == 8 and metrics["episodes/teaching"] == 2


def test_without_resampling_one_rollout_is_taken_as_it_is():
    trainer, episodes, advantages, metrics = collected([[*ALIKE, 1, -1]], 0)
    assert trainer.asked == [("state", 7, 0)] and len(episodes) == 4 and advantages.tolist() == [0, 0, 1, -1]
    assert metrics == {"time/rollout_text": 1.0, "reward/mean": 0.0}
