"""The flow schedule against its formula, the paper's numbers and the public systems."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo_jax.models.schedule import FlowShift, timesteps


def test_the_first_times_of_the_papers_setting():
    """25 transitions, shift 3: worked out with exact fractions, t = 3u / (1 + 2u), u = (25 - k) / 25."""
    times = timesteps(25, 3.0)
    assert times.shape == (26,) and times.dtype == np.float32
    np.testing.assert_allclose(times[:5], [1, 72 / 73, 69 / 71, 66 / 69, 63 / 67], rtol=1e-6)
    np.testing.assert_allclose(times[:5], [1.0, 0.98630, 0.97183, 0.95652, 0.94030], atol=5e-6)


@settings(deadline=None, max_examples=60)
@given(steps=st.integers(1, 200), shift=st.floats(0.2, 20))
def test_runs_from_exactly_one_to_exactly_zero_and_only_downwards(steps, shift):
    times = timesteps(steps, shift)
    assert times.shape == (steps + 1,) and times.dtype == np.float32
    assert times[0] == 1 and times[-1] == 0
    assert np.all(np.diff(times) < 0)


@settings(deadline=None, max_examples=30)
@given(steps=st.integers(1, 100), shift=st.floats(0.2, 20))
def test_follows_the_formula(steps, shift):
    by_hand = [shift * (k / steps) / (1 + (shift - 1) * (k / steps)) for k in range(steps, -1, -1)]
    np.testing.assert_allclose(timesteps(steps, shift), by_hand, rtol=1e-6)


def test_shift_one_is_even():
    np.testing.assert_array_equal(timesteps(4, 1.0), np.float32([1, 0.75, 0.5, 0.25, 0]))


def test_agrees_with_the_public_systems(fixtures, assert_close):
    """UniRL's schedule; its shift follows from the second time: t = s u / (1 + (s - 1) u) solved for s."""
    sigmas = np.load(fixtures / "peers" / "sde_steps.npz")["sigmas"]
    steps = len(sigmas) - 1
    t, u = np.float64(sigmas[1]), 1 - 1 / steps
    assert_close(timesteps(steps, t * (1 - u) / (u * (1 - t))), sigmas)


def test_bagels_count_of_times_is_one_more_than_the_transitions(fixtures, assert_close):
    recorded = np.load(fixtures / "bagel" / "euler.npz")
    times = timesteps(int(recorded["num_timesteps"]) - 1, float(recorded["timestep_shift"]))
    assert_close(times, recorded["timesteps_full"])
    assert len(recorded["t_used"]) == int(recorded["num_timesteps"]) - 1


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (-1, 3.0), (5, 0.0), (5, -1.0), (5, float("nan")), (5, 1e9),
                                             (5, 1e-300), (5, float("inf"))])  # fmt: skip
def test_refuses_what_is_no_schedule(steps, shift):
    with pytest.raises(ValueError, match="steps|shift"):
        timesteps(steps, shift)


def test_a_scheduler_files_shift_that_is_none_is_refused_as_one():
    with pytest.raises(ValueError, match="shift = inf: 5 steps from 1 to 0 fall together; use a shift nearer to 1"):
        timesteps(5, FlowShift(line=((256, 1000.0), (4096, 1000.0))).of(64))
