"""Which rounds are rewarded and whose actions get the credit, by hand."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, LearningConfig
from unigrpo_jax.learning import credit
from unigrpo_jax.rewards.judging import ABSTAINED

NAN = np.nan
FIRST = np.array([[0.0, 1.0], [0.2, 0.6], [1.0, 1.0]])
SECOND = np.array([[1.0, 1.0], [0.8, 0.6], [0.0, NAN]])
ALL = np.ones(3, bool)


def settings(**changes):
    return dataclasses.replace(LearningConfig(group_size=2), **changes)


def normalised(x):
    """(x - mean) / (std + 1e-8) of each group of two: -1 and 1, or 0 where both are equal."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / (np.sqrt((centred**2).mean(axis=1, keepdims=True)) + 1e-8)


def test_the_last_image_alone():
    (found,) = credit.rewarded([{"a": FIRST}, {"a": SECOND}], settings())
    np.testing.assert_array_equal(found["a"], SECOND)


def test_every_image_and_what_each_round_gains():
    each = credit.rewarded([{"a": FIRST}, {"a": SECOND}], settings(round_reward="each"))
    np.testing.assert_array_equal([x["a"] for x in each], [FIRST, SECOND])
    first, gain = credit.rewarded([{"a": FIRST}, {"a": SECOND}], settings(round_reward="gain"))
    np.testing.assert_array_equal(first["a"], FIRST)
    np.testing.assert_allclose(gain["a"], [[1, 0], [0.6, 0], [-1, NAN]])


AWAY = ABSTAINED


def test_what_abstains_stays_so_by_thresholds_and_gains():
    learning = settings(reward_thresholds={"a": 0.5})
    (found,) = credit.rewarded([{"a": np.array([[AWAY, 1.0], [NAN, 0.2]])}], learning)
    np.testing.assert_array_equal(found["a"], [[AWAY, 1], [NAN, 0]])
    old, new = np.array([[AWAY, AWAY, 1.0, NAN, AWAY]]), np.array([[AWAY, 1.0, AWAY, 1.0, NAN]])
    _, gain = credit.rewarded([{"a": old}, {"a": new}], settings(round_reward="gain"))
    np.testing.assert_array_equal(gain["a"], [[AWAY, AWAY, AWAY, NAN, AWAY]])


def test_a_component_counts_in_the_rounds_that_it_applies_to():
    """The first group's component abstains in the first round, the second's in both."""
    first, second = np.array([[AWAY, AWAY], [AWAY, 1.0]]), np.array([[0.3, 0.1], [AWAY, AWAY]])
    rounds = [{"a": FIRST[:2], "b": first}, {"a": SECOND[:2], "b": second}]
    learning = settings(round_reward="each")
    rewarded = credit.rewarded(rounds, learning)
    judged, failed = credit.judged_and_failed(rewarded)
    assert judged.tolist() == [True, True] and failed.tolist() == [False, False]
    found, total = credit.advantages(rewarded, judged, learning)
    a = (FIRST + SECOND)[:2]
    np.testing.assert_allclose(found.reshape(2, 2), normalised(a) + [[1, -1], [0, 0]], atol=1e-5)
    np.testing.assert_allclose(total, a + [[0.3, 0.1], [0, 0]])
    found, _ = credit.advantages(rewarded, judged, settings(round_reward="each", credit="round"))
    np.testing.assert_allclose(found[:, 0].reshape(2, 2), normalised(FIRST[:2]), atol=1e-5)
    np.testing.assert_allclose(found[:, 1].reshape(2, 2), normalised(SECOND[:2]) + [[1, -1], [0, 0]], atol=1e-5)


def test_a_group_is_lost_by_what_fails_and_not_by_what_abstains():
    rounds = [{"a": np.array([[1.0, NAN], [AWAY, AWAY], [AWAY, NAN], [1, 2], [AWAY, 1], [AWAY] * 2]),
               "b": np.array([[1.0, 2], [1, 2], [1, 2], [AWAY, AWAY], [NAN, 1], [AWAY] * 2])}]  # fmt: skip
    judged, failed = credit.judged_and_failed(rounds)
    assert judged.tolist() == [False, True, True, True, False, False]
    assert failed.tolist() == [True, False, False, False, True, False]
    assert credit.abstained(rounds[0]) == {"reward/a/abstained_share": pytest.approx(4 / 6),
                                           "reward/b/abstained_share": pytest.approx(2 / 6)}  # fmt: skip


def test_shared_credit_is_the_advantage_of_the_sum():
    judged = np.array([True, True, False])
    rounds = credit.rewarded([{"a": FIRST}, {"a": SECOND}], settings(round_reward="each"))
    found, total = credit.advantages(rounds, judged, settings(round_reward="each"))
    np.testing.assert_allclose(total, (FIRST + SECOND)[:2])
    np.testing.assert_allclose(found, [*normalised((FIRST + SECOND)[:2]).ravel(), 0, 0], atol=1e-5)


def test_each_round_may_have_its_own_credit():
    learning = settings(round_reward="each", credit="round")
    found, total = credit.advantages(
        credit.rewarded([{"a": FIRST}, {"a": SECOND}], learning), ALL & (np.arange(3) < 2), learning
    )
    assert found.shape == (6, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found[:4, 0], normalised(FIRST[:2]).ravel(), atol=1e-5)
    np.testing.assert_allclose(found[:4, 1], [0, 0, 1, -1], atol=1e-5)
    np.testing.assert_array_equal(found[4:], 0)
    np.testing.assert_allclose(total, (FIRST + SECOND)[:2])


def test_gains_with_shared_credit_reward_the_last_image():
    """r_1 + (r_2 - r_1) = r_2."""
    learning = settings(round_reward="gain")
    judged = np.array([True, True, False])
    gains, _ = credit.advantages(credit.rewarded([{"a": FIRST}, {"a": SECOND}], learning), judged, learning)
    last, _ = credit.advantages(credit.rewarded([{"a": FIRST}, {"a": SECOND}], settings()), judged, settings())
    np.testing.assert_allclose(gains, last, atol=1e-5)


def test_weights_and_thresholds_count_in_every_round():
    learning = settings(round_reward="each", reward_weights={"a": 0.5, "c": 0}, reward_thresholds={"b": 0.6})
    rounds = [{"a": FIRST, "b": FIRST, "c": FIRST}, {"a": SECOND, "b": SECOND, "c": SECOND}]
    first, second = credit.rewarded(rounds, learning)
    assert set(first) == {"a", "b"}
    np.testing.assert_array_equal(first["b"], [[0, 1], [0, 1], [1, 1]])
    np.testing.assert_array_equal(second["b"], [[1, 1], [1, 1], [0, NAN]])
    found, total = credit.advantages([first, second], np.array([True, True, False]), learning)
    a, b = (FIRST + SECOND)[:2], np.array([[1, 2], [1, 2]])
    np.testing.assert_allclose(found[:4], (0.5 * normalised(a) + normalised(b)).ravel(), atol=1e-5)
    np.testing.assert_allclose(total, 0.5 * a + b)


def test_what_judges_the_thinking_counts_for_the_thinking_alone():
    """By hand: the thinking's advantage is that of both components added, the drawing's that of the image's."""
    learning = settings(round_reward="each", credit="segment", thought_rewards=("plan",), reward_weights={"plan": 0.5})
    judged = np.array([True, True, False])
    plans = [np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])]
    rounds = [{"a": a, "plan": p} for a, p in zip((FIRST, SECOND), plans, strict=True)]
    found, total = credit.advantages(credit.rewarded(rounds, learning), judged, learning)
    assert found.shape == (6, *credit.advantage_shape(learning, 2)) == (6, 2, 2) and found.dtype == np.float32
    for turn, (image, plan) in enumerate(zip((FIRST, SECOND), plans, strict=True)):
        own, thought = normalised(image[:2]).ravel(), normalised(plan[:2]).ravel()
        np.testing.assert_allclose(found[:4, turn, 0], own + 0.5 * thought, atol=1e-5)
        np.testing.assert_allclose(found[:4, turn, 1], own, atol=1e-5)
    np.testing.assert_array_equal(found[4:], 0)
    np.testing.assert_allclose(total, (FIRST + SECOND + 0.5 * (plans[0] + plans[1]))[:2])


def test_a_drawing_with_no_reward_of_its_own_learns_nothing():
    learning = settings(credit="segment", thought_rewards=("plan",))
    found, _ = credit.advantages(credit.rewarded([{"plan": FIRST}], learning), ALL, learning)
    np.testing.assert_allclose(found[:, 0, 0], normalised(FIRST).ravel(), atol=1e-5)
    np.testing.assert_array_equal(found[:, 0, 1], 0)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, ()),
        ({"round_reward": "each"}, ()),
        ({"credit": "round"}, ()),
        ({"credit": "round", "round_reward": "gain"}, (3,)),
        ({"credit": "segment", "thought_rewards": ("plan",)}, (1, 2)),
        ({"credit": "segment", "thought_rewards": ("plan",), "round_reward": "each"}, (3, 2)),
        ({"credit_by": {"a": "video", "plan": "video"}}, {"audio": (), "video": ()}),
    ],
)
def test_the_shape_of_an_episodes_advantages(changes, shape):
    learning = settings(**changes)
    drawn = ("audio", "video")
    assert credit.advantage_shape(learning, 3, drawn) == shape
    rounds = [{"a": FIRST, "plan": FIRST}] * 3
    found, _ = credit.advantages(credit.rewarded(rounds, learning), ALL, learning, drawn)
    assert jax.tree.map(lambda x: x.shape[1:], found) == shape
    assert all(len(x) == 6 for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"thought_rewards": ("z",), "credit": "segment"}, "thought_rewards names z, but the reward returns a"),
        ({"reward_weights": {"z": 1.0}}, "reward_weights names z, but the reward returns a"),
        ({"reward_thresholds": {"z": 1.0}}, "reward_thresholds names z"),
        ({"reward_weights": {"a": 0.0}}, "is 0 for every component"),
        ({"credit_by": {"a": "video", "z": "audio"}}, "credit_by names z, but the reward returns a"),
    ],
)
def test_components_that_are_not_there(changes, words):
    with pytest.raises(ConfigError, match=words):
        credit.rewarded([{"a": FIRST}], settings(**changes))


THREES = np.array([[0.0, 0.2, 1.0], [1.0, 0.6, 0.5], [0.0, 0.0, 0.0]])
SEEN = {"content": THREES, "motion": THREES[:, ::-1], "fidelity": THREES**2, "synchrony": np.roll(THREES, 1, axis=1)}
MATRIX = {"content": "video", "motion": "video", "fidelity": "audio", "synchrony": "video, audio"}
DRAWN = ("audio", "video")


@pytest.mark.parametrize("combine", ["advantages", "rewards"])
def test_a_components_advantage_goes_to_the_modalities_that_it_names(combine):
    """By hand: the sound's is that of fidelity and synchrony, whatever the others say; the clip's of all but fidelity."""
    weights, judged = {"synchrony": 0.5}, np.array([True, True, False])
    of_three = functools.partial(settings, group_size=3, reward_weights=weights, combine=combine)
    learning = of_three(credit_by=MATRIX)
    found, total = credit.advantages(credit.rewarded([SEEN], learning), judged, learning, DRAWN)
    assert list(found) == list(DRAWN) and found["audio"].dtype == np.float32
    for modality, own in (("audio", ("fidelity", "synchrony")), ("video", ("content", "motion", "synchrony"))):
        added = lambda make, own=own: sum(weights.get(name, 1.0) * make(SEEN[name][:2]) for name in own)
        by_hand = added(normalised) if combine == "advantages" else normalised(added(np.asarray))
        np.testing.assert_allclose(found[modality], [*by_hand.ravel(), 0, 0, 0], atol=1e-5)
    plain, all_of_it = credit.advantages([SEEN], judged, of_three())
    np.testing.assert_array_equal(total, all_of_it)
    other = SEEN | {"content": THREES[::-1], "motion": -THREES}
    again, _ = credit.advantages(credit.rewarded([other], learning), judged, learning, DRAWN)
    np.testing.assert_array_equal(again["audio"], found["audio"])
    assert np.abs(again["video"] - found["video"]).max() > 0.1
    even = of_three(credit_by=dict.fromkeys(SEEN, "audio,video"))
    for x in credit.advantages(credit.rewarded([SEEN], even), judged, even, DRAWN)[0].values():
        np.testing.assert_array_equal(x, plain)  # bit for bit


def test_what_abstains_is_left_out_of_its_own_modality():
    """The first group's sound is judged by nothing, the second's clip neither."""
    learning = settings(credit_by={"content": "video", "fidelity": "audio"})
    rounds = [{"content": np.array([[0.0, 1.0], [AWAY, AWAY]]), "fidelity": np.array([[AWAY, 0.5], [0.5, 0.0]])}]
    judged, _ = credit.judged_and_failed(rounds)
    found, _ = credit.advantages(credit.rewarded(rounds, learning), judged, learning, DRAWN)
    np.testing.assert_allclose(found["video"], [-1, 1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(found["audio"], [0, 0, 1, -1], atol=1e-5)
    metrics = credit.by_modality(found, judged)
    assert metrics["flow_audio/advantage_zero_share"] == metrics["flow_video/advantage_zero_share"] == 0.5
    assert metrics["flow_audio/advantage_std"] == pytest.approx(0.5**0.5)
    assert credit.by_modality(found, np.zeros(2, bool)) == {}


def test_a_component_that_goes_nowhere_is_refused():
    learning = settings(credit_by={"content": "video"})
    with pytest.raises(ConfigError, match="gives fidelity, motion to no modality; .*reward_weights fidelity 0 motion 0.$"):
        credit.rewarded([{"content": FIRST, "fidelity": FIRST, "motion": FIRST}], learning)
    looked_at = dataclasses.replace(learning, reward_weights={"motion": 0.0})
    assert list(credit.rewarded([{"content": FIRST, "motion": FIRST}], looked_at)[0]) == ["content"]


def test_advantages_are_clipped_after_those_of_all_components_were_added():
    """One success among 16, twice: sqrt(15) = 3.873 each, 7.746 together, and the others' -0.516."""
    one = np.zeros((1, 16))
    one[0, 3] = 1.0
    rounds = [{"a": one, "b": one}]
    free, _ = credit.advantages(rounds, np.ones(1, bool), settings(group_size=16))
    np.testing.assert_allclose(free[3], 2 * np.sqrt(15), rtol=1e-5)
    held, _ = credit.advantages(rounds, np.ones(1, bool), settings(group_size=16, advantage_limit=5.0))
    np.testing.assert_array_equal(held, np.clip(free, -5, 5))
    assert held[3] == 5 and held[0] == free[0] == pytest.approx(-2 / np.sqrt(15), rel=1e-5)
