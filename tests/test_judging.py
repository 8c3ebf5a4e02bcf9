"""How rewards are called: time limits, retries, memory, several at once, and what becomes of episodes nobody judged."""

import asyncio
import dataclasses
import threading
import time
import types

import jax
import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, EvaluationConfig, JudgingConfig, LearningConfig, RolloutConfig, RunConfig
from unigrpo_jax.learning.advantages import group_advantages
from unigrpo_jax.rewards.judging import ABSTAINED, Judging, RewardError
from unigrpo_jax.rewards.protocol import ABSTAIN, Reward, RewardBatch
from unigrpo_jax.training.evaluation import Evaluator, _Call, by_category
from unigrpo_jax.training.trainer import OwnEpisodes, Trainer
from unigrpo_jax.worlds.prompt import Prompt

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


@pytest.mark.parametrize("identity", ["", "some"])
def test_who_abstains_is_not_asked_again(identity):
    def answer(call, batch):
        return {"x": [ABSTAIN if p == "a" else np.nan if p == "b" and call == 1 else 1.0 for p in batch.prompts]}

    reward = Recording(answer)
    reward.identity = identity
    judging = Judging({"r": reward}, QUICK)
    assert judging(batch("a", "b", "c"))["x"].tolist() == [ABSTAINED, 1, 1]
    assert reward.asked == [["a", "b", "c"], ["b"]]
    judging(batch("a"))
    assert len(reward.asked) == (2 if identity else 3), "that it abstained is remembered"


def test_a_group_is_judged_again_as_a_whole():
    """Each call gives 100 more; one episode of the second group fails at first."""

    def answer(call, batch):
        return {"x": [np.nan if p == "d" and call == 1 else ord(p) + 100.0 * (call > 1) for p in batch.prompts]}

    reward, asked = Recording(answer), dataclasses.replace(batch(*"abcd"), group=np.array([7, 3, 7, 3]))
    reward.identity = ""
    assert Judging({"r": reward}, QUICK)(asked)["x"].tolist() == [97, 198, 99, 200]
    assert reward.asked == [["a", "b", "c", "d"], ["b", "d"]]
    alone = Recording(answer)  # with an identity, by which a number depends on its episode alone
    assert Judging({"r": alone}, QUICK)(asked)["x"].tolist() == [97, 98, 99, 200]
    assert alone.asked == [["a", "b", "c", "d"], ["d"]]


def test_a_second_try_in_which_more_fails_is_not_taken():
    """Of a group of four one fails, then two, then one."""
    fails = ["d", "ab", "c"]
    answer = lambda call, batch: {"x": [np.nan if p in fails[call - 1] else float(call) for p in batch.prompts]}
    reward, asked = Recording(answer), dataclasses.replace(batch(*"abcd"), group=np.zeros(4, int))
    reward.identity = ""
    np.testing.assert_array_equal(Judging({"r": reward}, QUICK)(asked)["x"], [3, 3, np.nan, 3])


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


class Wordless(Exception):
    def __str__(self):
        raise self


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyboardInterrupt(), "KeyboardInterrupt"), (SystemExit(3), "SystemExit: 3"), (MemoryError(), "MemoryError"),
     (asyncio.CancelledError(), "CancelledError"), (Wordless(), "Wordless"),
     (BaseExceptionGroup("two", [SystemExit()]), "BaseExceptionGroup: two")],
)  # fmt: skip
def test_whatever_a_reward_raises_is_its_failure(error, words):
    def answer(call, batch):
        raise error

    with pytest.raises(RewardError, match=f"the reward function r raised {words}.*, after 2 retries$"):
        Judging({"r": Recording(answer)}, QUICK)(batch("a"))


def test_who_forgets_to_return_is_told_so():
    with pytest.raises(RewardError, match="the reward function r returned None; it got 1 episodes and must return"):
        Judging({"r": lambda batch: None}, QUICK)(batch("a"))


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


def judged(rewards_PG, learning: LearningConfig | None = None, finite=None, **settings):
    """Advantages [P, G] and metrics of a trainer whose reward gives these numbers, or several of them by name."""
    rewards = rewards_PG if isinstance(rewards_PG, dict) else {"r": rewards_PG}
    named = {name: np.asarray(x) for name, x in rewards.items()}
    prompts, group = next(iter(named.values())).shape
    config = RunConfig(
        learning=dataclasses.replace(learning or LearningConfig(), group_size=group),
        rollout=RolloutConfig(prompts_per_iteration=prompts),
        judging=JudgingConfig(retries=0, **settings),
    )
    trainer = Trainer.__new__(Trainer)
    trainer._token = (1, 1)
    reward = lambda batch: {name: x.reshape(-1) for name, x in named.items()}
    both = types.SimpleNamespace(grid=lambda *size: size, latent_shape=lambda grid: {"video": (7, 4), "audio": (5, 3)})
    trainer.parts = types.SimpleNamespace(
        config=config, judging=Judging({"score": reward}, config.judging), world=types.SimpleNamespace(judge=None),
        loaded=types.SimpleNamespace(network=both),
    )  # fmt: skip
    size = prompts * group
    finite = np.ones(size, bool) if finite is None else np.asarray(finite).reshape(-1)
    own = OwnEpisodes(np.arange(size), (batch(*["p"] * size),), np.zeros(size, int), finite)
    advantages, metrics = trainer.judge(own, {"time/rollout_text": 1.0, "time/rollout_flow": 1.0})
    return jax.tree.map(lambda x: x.reshape(prompts, group), advantages), metrics


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
    with pytest.raises(RewardError, match="score gave no finite number for 2 of 2 groups"):
        judged([[1, np.nan], [1, 2]], finite=[[1, 1], [1, 0]])
    with pytest.raises(RewardError, match="the rollout gave no finite number for 2 of 2 groups"):
        judged([[1, 3], [1, 2]], finite=[[0, 1], [1, 0]])


def test_too_many_dropped_groups_stop_the_run():
    with pytest.raises(RewardError, match="score gave no finite number for 2 of 3 groups, more than.*max_dropped = 0.5"):
        judged([[1, np.nan], [np.nan, 2], [1, 2]])
    judged([[1, np.nan], [np.nan, 2], [1, 2]], max_dropped=0.7)
    with pytest.raises(RewardError, match="2 of 2 groups"):
        judged([[1, np.nan], [np.nan, 2]], max_dropped=0.99)


def test_two_rewards_for_two_kinds_of_prompts_drop_nothing_and_teach_each_as_if_alone():
    own = np.array([[1.0, 2, 4], [3, 1, 3], [0, 5, 1], [2, 2, 9]])
    kinds = {"a": [0, 2], "b": [1, 3]}
    both = {name: np.where(np.isin(range(4), rows)[:, None], own, ABSTAIN) for name, rows in kinds.items()}
    advantages, metrics = judged(both)
    np.testing.assert_allclose(advantages, by_hand(own), rtol=1e-5)
    assert metrics["reward/dropped_share"] == 0 and metrics["reward/mean"] == pytest.approx(own.mean())
    assert metrics["reward/a/abstained_share"] == metrics["reward/b/abstained_share"] == 0.5
    assert metrics["reward/a/mean"] == pytest.approx(own[kinds["a"]].mean())
    assert "reward/r/abstained_share" not in judged([[1, 2, 4]])[1]
    summed, _ = judged(both, LearningConfig(combine="rewards"))
    np.testing.assert_allclose(summed, by_hand(own), rtol=1e-5)
    by_batch, _ = judged(both, LearningConfig(advantage="global_std"))
    for rows in kinds.values():  # each component by the std of the groups that it applies to
        x = own[rows]
        np.testing.assert_allclose(by_batch[rows], (x - x.mean(1, keepdims=True)) / (x.std() + 1e-4), rtol=1e-5)


def test_a_reward_that_abstains_for_a_part_of_a_group_is_left_out_of_all_of_it():
    whole, part = [[1.0, 2, 4], [1, 5, 3]], np.array([[ABSTAIN, 9, 1], [2.0, 2, 8]], object)
    advantages, metrics = judged({"whole": whole, "part": part})
    np.testing.assert_allclose(advantages, [by_hand(whole)[0], by_hand(whole)[1] + by_hand([[2, 2, 8]])[0]], rtol=1e-5)
    assert metrics["reward/part/abstained_share"] == 0.5 and metrics["reward/dropped_share"] == 0


def test_a_group_that_all_abstain_from_is_dropped_and_counted_but_stops_nothing():
    none = [[ABSTAIN] * 3] * 2
    advantages, metrics = judged({"r": np.array([*none, [1, 2, 4]], object)})
    np.testing.assert_allclose(advantages, [[0] * 3] * 2 + [by_hand([[1, 2, 4]])[0]], rtol=1e-5)
    assert metrics["reward/dropped_share"] == metrics["reward/r/abstained_share"] == pytest.approx(2 / 3)
    for learning in (LearningConfig(), LearningConfig(combine="rewards"), LearningConfig(advantage="global_std")):
        advantages, metrics = judged({"r": np.array(none, object)}, learning)
        assert not advantages.any() and metrics["reward/dropped_share"] == 1 and "reward/mean" not in metrics


def test_a_failure_is_no_abstention():
    with pytest.raises(RewardError, match="2 of 2 groups.*returns ABSTAIN of unigrpo_jax.rewards.protocol"):
        judged({"r": np.array([[np.nan, 1], [2, np.nan]]), "other": np.array([[ABSTAIN] * 2] * 2, object)})


def evaluated(**components):
    """The held-out table and the verdicts of four prompts of two categories, whose rewards give these numbers."""
    evaluator, count = Evaluator.__new__(Evaluator), 4
    evaluator.prompts = [Prompt(text="p", metadata={"category": c}) for c in "aabb"]
    evaluator._config, evaluator._world = EvaluationConfig(images_per_prompt=1), types.SimpleNamespace(judge=None)
    rewards = {name: lambda batch, name=name, x=x: {name: x} for name, x in components.items()}
    evaluator._judging = Judging(rewards, JudgingConfig(retries=0))
    episodes = batch(*["p"] * count)
    found = evaluator._judge([_Call(np.arange(count), (episodes,), count, (episodes.media,))])
    return found.table, [sample.verdict for sample in found.samples], found.scores


def test_a_category_called_overall_does_not_stand_for_the_mean_of_all():
    table = by_category({"x": np.array([1.0, 0.0, 0.0, 0.0])}, ["overall", "a", "a", ""])
    assert table == {"x": {"overall": 0.25, "overall (category)": 1.0, "a": 0.0}}


def test_the_held_out_table_is_the_mean_over_what_was_judged():
    table, verdicts, scores = evaluated(x=[0.5, 0.25, ABSTAIN, ABSTAIN], y=[ABSTAIN] * 4)
    assert table["x"] == {"overall": 0.375, "a": 0.375} and table["y"] == {}
    assert verdicts[0] == "x 0.500, y abstains" and verdicts[3] == "x abstains, y abstains"
    np.testing.assert_array_equal(scores["x"], [0.5, 0.25, np.nan, np.nan])
    with pytest.raises(RewardError, match="no finite number for 3 of 4 held-out images"):
        evaluated(x=[np.nan, np.nan, np.nan, ABSTAIN], y=[1, 1, 1, 1])
    with pytest.raises(RewardError, match="every reward abstained from all of 4 held-out images"):
        evaluated(x=[ABSTAIN] * 4)


TWO = {"big": [[10.0, 20, 60], [0, 90, 0]], "small": [[0.3, 0.1, 0.2], [0.5, 0.5, 0.1]]}


def by_hand(R) -> np.ndarray:
    """(R - mean) / std of each row, float64."""
    R = np.asarray(R, np.float64)
    return (R - R.mean(1, keepdims=True)) / (R.std(1, keepdims=True) + 1e-8)


def test_several_rewards_add_their_advantages_or_themselves():
    weights = {"big": 0.1, "small": 2.0}
    advantages, metrics = judged(TWO, LearningConfig(reward_weights=weights))
    np.testing.assert_allclose(advantages, 0.1 * by_hand(TWO["big"]) + 2 * by_hand(TWO["small"]), rtol=1e-5)
    summed = 0.1 * np.array(TWO["big"]) + 2 * np.array(TWO["small"])
    advantages, metrics = judged(TWO, LearningConfig(reward_weights=weights, combine="rewards"))
    np.testing.assert_allclose(advantages, by_hand(summed), rtol=1e-5)
    assert metrics["reward/mean"] == pytest.approx(summed.mean())
    assert metrics["reward/big/mean"] == pytest.approx(30) and metrics["reward/small/mean"] == pytest.approx(1.7 / 6)


def test_each_modality_has_the_advantages_of_its_own_components():
    """And metrics of its own: big is alike in no group; of one reward nothing is said by modality."""
    advantages, metrics = judged(TWO, LearningConfig(credit_by={"big": "video", "small": "video,audio"}))
    np.testing.assert_allclose(advantages["audio"], by_hand(TWO["small"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(advantages["video"], by_hand(TWO["big"]) + by_hand(TWO["small"]), rtol=1e-5, atol=1e-6)
    assert metrics["flow_audio/advantage_std"] == pytest.approx(1) and metrics["flow_video/advantage_zero_share"] == 0
    assert not any("advantage" in name for name in judged(TWO)[1])
    with pytest.raises(ConfigError, match="learning.credit_by gives small to no modality"):
        judged(TWO, LearningConfig(credit_by={"big": "video"}))


def test_a_threshold_makes_a_reward_binary_and_its_curve_stays():
    advantages, metrics = judged(TWO, LearningConfig(reward_thresholds={"big": 20.0}, reward_weights={"small": 0.0}))
    np.testing.assert_allclose(advantages, by_hand([[0, 1, 1], [0, 1, 0]]), rtol=1e-5)
    assert metrics["reward/mean"] == pytest.approx(0.5) and metrics["reward/big/mean"] == pytest.approx(30)


def test_a_component_of_weight_zero_is_only_looked_at():
    """Where it was not judged nothing is dropped, and its curve is that of the others."""
    named = {"used": [[1.0, 3], [4, 2]], "seen": [[np.nan, 1.0], [np.nan, 2.0]]}
    advantages, metrics = judged(named, LearningConfig(reward_weights={"seen": 0.0}))
    np.testing.assert_allclose(advantages, by_hand(named["used"]), rtol=1e-5)
    assert metrics["reward/dropped_share"] == 0 and metrics["reward/seen/mean"] == 1.5
    with pytest.raises(ConfigError, match="0 for every component"):
        judged(named, LearningConfig(reward_weights={"seen": 0.0, "used": 0.0}))


def test_an_unknown_threshold_is_refused():
    with pytest.raises(ConfigError, match="learning.reward_thresholds names large, but the reward returns big, small"):
        judged(TWO, LearningConfig(reward_thresholds={"large": 1.0}))
