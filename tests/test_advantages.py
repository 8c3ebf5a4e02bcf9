"""Advantages against their formulas in float64 and against the public systems."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unigrpo_jax.learning.advantages import combine, extremes, group_advantages, zero_variance_share

REWARDS = hnp.arrays(np.float32, (3, 6), elements=st.floats(-10, 10, width=32))


def rewards(seed=0, shape=(4, 5)):
    return np.random.default_rng(seed).normal(2, 3, shape).astype(np.float32)


@pytest.mark.parametrize("ddof", [0, 1])
def test_group_std_matches_the_formula_by_hand(ddof):
    R = np.float64(rewards())
    by_hand = [(row - row.mean()) / (np.sqrt(((row - row.mean()) ** 2).sum() / (len(row) - ddof)) + 1e-8) for row in R]
    np.testing.assert_allclose(group_advantages(rewards(), ddof=ddof), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ddof", [0, 1])
def test_global_std_matches_the_formula_by_hand(ddof):
    R = np.float64(rewards())
    scale = np.sqrt(((R - R.mean()) ** 2).sum() / (R.size - ddof)) + 1e-4
    by_hand = np.clip((R - R.mean(axis=1, keepdims=True)) / scale, -5, 5)
    np.testing.assert_allclose(group_advantages(rewards(), "global_std", ddof=ddof), by_hand, rtol=1e-5, atol=1e-6)


def test_none_only_subtracts_the_mean():
    R = np.float64(rewards())
    np.testing.assert_allclose(group_advantages(rewards(), "none"), R - R.mean(1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_global_std_is_clipped_to_five_and_the_others_are_not():
    winner = np.zeros((1, 60), np.float32)
    winner[0, 7] = 1  # one out of 60 has the z-score sqrt(59) = 7.7
    assert group_advantages(winner, "global_std").max() == 5
    assert group_advantages(winner, "global_std", limit=math.inf).max() > 7
    assert group_advantages(winner, "group_std").max() > 7
    assert group_advantages(100 * winner, "none").max() > 90
    assert group_advantages(winner, "group_std", limit=2.0).max() == 2


@pytest.mark.parametrize("normalisation", ["group_std", "global_std", "none"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.7, 1e-30, 1e6])
@pytest.mark.parametrize("jit", [False, True])
def test_a_constant_group_is_exactly_zero(normalisation, value, jit):
    """The float32 mean of 24 times 0.1 is not 0.1; with epsilon = 1e-8 that difference would become an advantage."""
    R = rewards(shape=(2, 24))
    R[1] = value
    function = lambda R: group_advantages(R, normalisation)
    advantages = (jax.jit(function) if jit else function)(R)
    np.testing.assert_array_equal(advantages[1], np.zeros(24))
    assert np.all(np.isfinite(advantages)) and np.any(np.asarray(advantages[0]) != 0)


@settings(deadline=None, max_examples=40)
@given(REWARDS)
def test_any_finite_rewards_give_finite_centred_advantages(R):
    A = np.asarray(group_advantages(R))
    assert A.dtype == np.float32 and np.all(np.isfinite(A))
    assert np.all(np.abs(A) <= math.sqrt(R.shape[1] - 1) * 1.001)  # the largest z-score of six numbers
    assert np.all(np.abs(A.sum(axis=1)) < 1e-3)
    constant = R.max(axis=1) == R.min(axis=1)
    assert np.all(A[constant] == 0)


@settings(deadline=None, max_examples=25)
@given(R=REWARDS, shift=st.integers(-8, 8), scale=st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_group_std_forgets_offset_and_scale(R, shift, scale):
    R = np.round(R * 16) / 16  # so that adding and scaling is exact in float32
    np.testing.assert_allclose(group_advantages(R * scale + shift), group_advantages(R), rtol=1e-4, atol=1e-5)


def test_groups_do_not_see_each_other():
    R = rewards(shape=(3, 8))
    changed = R.copy()
    changed[2] = rewards(9, (8,))
    np.testing.assert_array_equal(group_advantages(R)[:2], group_advantages(changed)[:2])


def test_agrees_with_the_public_systems(fixtures, assert_close):
    """verl-omni with both of its stds (unbiased, + 1e-4), and the paper's population std."""
    recorded = dict(np.load(fixtures / "peers" / "advantages.npz"))
    index, flat = recorded.pop("prompt_index"), recorded.pop("rewards")
    rows = [np.flatnonzero(index == prompt) for prompt in np.unique(index)]
    R = np.stack([flat[row] for row in rows])
    ours = {
        "verl_omni_globalstd_True": group_advantages(R, "global_std", ddof=1),
        "verl_omni_globalstd_False": group_advantages(R, "group_std", epsilon=1e-4, ddof=1),
        "paper_group_population_std_eps1e-8": group_advantages(R),
    }
    assert set(ours) == set(recorded)
    for name, advantages in ours.items():
        assert_close(advantages, np.stack([recorded[name][row] for row in rows]), name=name)


def test_several_rewards_add_their_advantages_not_themselves():
    correct, pretty = rewards(1), 1000 * rewards(2)
    A = combine({"correct": correct, "pretty": pretty}, {"correct": 1.0, "pretty": 0.5})
    z = lambda R: (R - R.mean(1, keepdims=True)) / R.std(1, keepdims=True)
    np.testing.assert_allclose(A, z(np.float64(correct)) + 0.5 * z(np.float64(pretty)), rtol=1e-4, atol=1e-5)


def test_a_reward_of_weight_zero_is_only_looked_at():
    A = combine({"a": rewards(1), "b": rewards(2)}, {"b": 0.0, "a": 2.0}, "none")
    np.testing.assert_array_equal(A, 2 * group_advantages(rewards(1), "none"))


def test_refuses_rewards_and_weights_of_different_names():
    with pytest.raises(ValueError, match=r"\['a'\].*\['a', 'b'\]"):
        combine({"a": rewards()}, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="at least one"):
        combine({}, {})


def test_refuses_an_unknown_normalisation_and_a_group_without_std():
    with pytest.raises(ValueError, match="'std'.*group_std, global_std, none"):
        group_advantages(rewards(), "std")
    with pytest.raises(ValueError, match="ddof = 1"):
        group_advantages(rewards(shape=(4, 1)), ddof=1)


def test_zero_variance_share_counts_constant_groups():
    R = rewards(shape=(4, 6))
    assert zero_variance_share(R) == 0
    R[0], R[3] = 0.1, 0.7
    assert zero_variance_share(R) == 0.5
    assert zero_variance_share(np.zeros((3, 2), np.float32)) == 1


def test_the_best_and_the_worst_of_each_group_are_kept_in_their_order():
    A = np.array([[0.1, -2, 3, 0.5, -1], [5, 5, 4, 5, 4]])
    assert extremes(A, 1, 2).tolist() == [1, 2, 4, 5, 7, 9]
    assert extremes(A, 2, 0).tolist() == [2, 3, 5, 6]  # of equals the earlier is the better one
    assert extremes(A, 0, 1).tolist() == [1, 9]
    assert extremes(A, 3, 2).tolist() == list(range(10))


@pytest.mark.parametrize(("best", "worst"), [(0, 0), (3, 3)])
def test_no_more_than_a_group_can_be_kept(best, worst):
    with pytest.raises(ValueError, match="take from 1 to 5"):
        extremes(np.zeros((2, 5)), best, worst)
