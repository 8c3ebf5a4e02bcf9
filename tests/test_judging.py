"""How rewards are called: time limits, retries, memory, several at once, and what becomes of episodes nobody judged."""

import threading
import time
import types

import numpy as np
import pytest

from unigrpo_jax.config import JudgingConfig, LearningConfig, RolloutConfig, RunConfig
from unigrpo_jax.learning.advantages import group_advantages
from unigrpo_jax.rewards.judging import Judging, RewardError
from unigrpo_jax.rewards.protocol import Reward, RewardBatch
from unigrpo_jax.training.trainer import OwnEpisodes, Trainer

QUICK = JudgingConfig(retries=2, backoff_seconds=0.01, timeout_seconds=5.0)


def batch(*prompts: str) -> RewardBatch:
    images = np.stack([np.full((2, 2, 3), ord(p[0]), np.uint8) for p in prompts])
    return RewardBatch(prompts=prompts, metadata=[{}] * len(prompts), images=images, thinking=[""] * len(prompts))


class Recording:
    """A reward that remembers what it was asked, and answers by a function of the call's number and the batch."""

    cost, identity = "host", "recording"

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, batch):
        self.asked.append(list(batch.prompts))
        return self.answer(len(self.asked), batch)


def letters(call, batch):
    return {"x": [float(ord(p[0])) for p in batch.prompts]}


def test_an_object_with_a_cost_and_an_identity_is_a_reward():
    assert isinstance(Recording(letters), Reward)


def test_several_rewards_run_beside_each_other():
    meeting = threading.Barrier(2, timeout=20)
    both = lambda name: lambda batch: (meeting.wait(), {name: [1.0]})[1]
    found = Judging({"a": both("x"), "b": both("y")}, QUICK)(batch("p"))
    assert {name: values.tolist() for name, values in found.items()} == {"x": [1.0], "y": [1.0]}


def test_two_rewards_may_not_name_a_component_alike():
    one = lambda batch: {"x": [1.0]}
    with pytest.raises(RewardError, match="b returned 'x', as another one does"):
        Judging({"a": one, "b": one}, QUICK)(batch("p"))


def test_only_episodes_that_were_not_judged_are_asked_again():
    def answer(call, batch):
        return {"x": [np.nan if p == "b" and call < 3 else float(ord(p)) for p in batch.prompts]}

    reward = Recording(answer)
    assert Judging({"r": reward}, QUICK)(batch("a", "b", "c"))["x"].tolist() == [97, 98, 99]
    assert reward.asked == [["a", "b", "c"], ["b"], ["b"]]


def test_what_is_never_judged_stays_nan():
    reward = Recording(lambda call, batch: {"x": [np.nan if p == "b" else 1.0 for p in batch.prompts]})
    np.testing.assert_array_equal(Judging({"r": reward}, QUICK)(batch("a", "b"))["x"], [1, np.nan])
    assert reward.asked == [["a", "b"], ["b"], ["b"]]


def test_a_reward_that_raises_is_tried_again_after_growing_pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def answer(call, batch):
        if call < 3:
            raise OSError("no disk")
        return letters(call, batch)

    assert Judging({"r": Recording(answer)}, QUICK)(batch("a"))["x"].tolist() == [97]
    assert pauses == [0.01, 0.02]


def test_a_reward_that_always_raises_is_one_error_that_names_it():
    def answer(call, batch):
        raise OSError("no disk")

    with pytest.raises(RewardError, match="the reward function r raised OSError: no disk, after 2 retries"):
        Judging({"r": Recording(answer)}, QUICK)(batch("a"))


def test_a_reward_that_hangs_is_left_behind():
    forever = threading.Event()
    hanging = Recording(lambda call, batch: forever.wait() or letters(call, batch))
    settings = JudgingConfig(retries=1, backoff_seconds=0.01, timeout_seconds=0.1)
    try:
        with pytest.raises(RewardError, match="r took longer than judging.timeout_seconds = 0.1, after 1 retries"):
            Judging({"r": hanging}, settings)(batch("a"))
        assert len(hanging.asked) == 2
    finally:
        forever.set()


def test_a_reward_that_hangs_once_is_asked_again():
    forever = threading.Event()
    hanging = Recording(lambda call, batch: (call == 1 and forever.wait(), letters(call, batch))[1])
    settings = JudgingConfig(retries=1, backoff_seconds=0.01, timeout_seconds=0.5)
    try:
        assert Judging({"r": hanging}, settings)(batch("a"))["x"].tolist() == [97]
    finally:
        forever.set()


def test_a_broken_protocol_is_not_tried_again():
    reward = Recording(lambda call, batch: {"x": [1.0, 2.0]})
    with pytest.raises(RewardError, match="must return \\[1\\]"):
        Judging({"r": reward}, QUICK)(batch("a"))
    assert len(reward.asked) == 1


def test_the_same_episode_is_judged_once():
    reward = Recording(letters)
    judging = Judging({"r": reward}, QUICK)
    assert judging(batch("b", "a", "b"))["x"].tolist() == [98, 97, 98]
    assert judging(batch("a", "c"))["x"].tolist() == [97, 99]
    assert reward.asked == [["b", "a"], ["c"]]


@pytest.mark.parametrize("change", ["prompts", "metadata", "images", "thinking"])
def test_an_episode_that_differs_in_anything_is_another_one(change):
    import dataclasses

    reward = Recording(letters)
    judging, first = Judging({"r": reward}, QUICK), batch("a")
    other = {"prompts": ["b"], "metadata": [{"x": 1}], "images": first.images + 1, "thinking": ["t"]}[change]
    judging(first)
    judging(dataclasses.replace(first, **{change: other}))
    assert len(reward.asked) == 2


def test_what_was_not_judged_is_not_remembered_and_memory_is_bounded():
    settings = JudgingConfig(retries=0, remembered=2)
    reward = Recording(lambda call, batch: {"x": [np.nan if call == 1 else 1.0 for _ in batch.prompts]})
    judging = Judging({"r": reward}, settings)
    for prompts in ("a", "a", "b", "c", "a"):  # the third and fourth push the first out
        judging(batch(prompts))
    assert reward.asked == [["a"], ["a"], ["b"], ["c"], ["a"]]


def test_a_plain_function_is_asked_every_time():
    asked = []
    judging = Judging({"f": lambda batch: asked.append(1) or {"x": [1.0]}}, QUICK)
    judging(batch("a"))
    judging(batch("a"))
    assert len(asked) == 2


def test_a_reward_on_the_devices_runs_in_the_thread_that_waits():
    class OnDevice(Recording):
        cost = "device"

    seen = []
    judging = Judging({"d": OnDevice(lambda call, b: seen.append(threading.current_thread()) or letters(call, b))}, QUICK)
    finish = judging.start(batch("a"))
    assert not seen
    finish()
    assert seen == [threading.current_thread()]


def judged(rewards_PG, finite=None, **settings):
    """Advantages [P, G] and metrics of a trainer whose reward gives these numbers."""
    rewards_PG = np.asarray(rewards_PG, np.float32)
    prompts, group = rewards_PG.shape
    config = RunConfig(
        learning=LearningConfig(group_size=group),
        rollout=RolloutConfig(prompts_per_iteration=prompts),
        judging=JudgingConfig(retries=0, **settings),
    )
    trainer = Trainer.__new__(Trainer)
    reward = lambda batch: rewards_PG.reshape(-1)
    trainer.parts = types.SimpleNamespace(
        config=config, judging=Judging({"score": reward}, config.judging), world=types.SimpleNamespace(judge=None)
    )
    size = prompts * group
    finite = np.ones(size, bool) if finite is None else np.asarray(finite).reshape(-1)
    own = OwnEpisodes(np.arange(size), batch(*["p"] * size), np.zeros(size, int), finite)
    advantages, metrics = trainer.judge(own, {"time/rollout_text": 1.0, "time/rollout_flow": 1.0})
    return advantages.reshape(prompts, group), metrics


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_group_with_an_episode_that_was_not_judged_teaches_nothing_and_is_counted(bad):
    advantages, metrics = judged([[1, 2, 4], [1, bad, 3], [5, 5, 2]])
    whole = np.asarray(group_advantages(np.float32([[1, 2, 4], [5, 5, 2]])))
    np.testing.assert_array_equal(advantages, [whole[0], [0, 0, 0], whole[1]])
    assert metrics["reward/dropped_share"] == pytest.approx(1 / 3)
    assert metrics["reward/mean"] == pytest.approx(np.mean([1, 2, 4, 5, 5, 2]))


def test_a_group_with_an_episode_that_is_not_finite_is_dropped_like_one_that_was_not_judged():
    advantages, metrics = judged([[1, 2, 4], [1, 9, 3], [5, 5, 2]], finite=[[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    whole = np.asarray(group_advantages(np.float32([[1, 2, 4], [5, 5, 2]])))
    np.testing.assert_array_equal(advantages, [whole[0], [0, 0, 0], whole[1]])
    assert metrics["reward/dropped_share"] == pytest.approx(1 / 3)
    assert metrics["rollout/nonfinite_share"] == pytest.approx(1 / 9)
    assert metrics["reward/mean"] == pytest.approx(np.mean([1, 2, 4, 5, 5, 2]))
    assert judged([[1, 2, 4]])[1]["rollout/nonfinite_share"] == 0
    with pytest.raises(RewardError, match=r"2 of 2 groups .* or that was not finite \(1 episodes\)"):
        judged([[1, np.nan], [1, 2]], finite=[[1, 1], [1, 0]])


def test_too_many_dropped_groups_stop_the_run():
    with pytest.raises(RewardError, match="2 of 3 groups hold an episode that no reward judged.*max_dropped = 0.5"):
        judged([[1, np.nan], [np.nan, 2], [1, 2]])
    judged([[1, np.nan], [np.nan, 2], [1, 2]], max_dropped=0.7)
    with pytest.raises(RewardError, match="2 of 2 groups"):
        judged([[1, np.nan], [np.nan, 2]], max_dropped=0.99)
