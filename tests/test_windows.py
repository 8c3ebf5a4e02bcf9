"""Which transitions are trained: uniform starts, uniform subsets, and a window that moves on with the iterations."""

import itertools

import jax
import numpy as np
import pytest

from tests import tiny
from unigrpo_jax.config import ConfigError, RolloutConfig
from unigrpo_jax.models.paths import scaled_linear
from unigrpo_jax.models.schedule import diffusion_times, timesteps
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import FlowSampler
from unigrpo_jax.rollout.program import check_window
from unigrpo_jax.rollout.step_rules import step_rule
from unigrpo_jax.rollout.windows import Window


def drawn(window: Window, count: int = 3000) -> np.ndarray:
    """The windows of many keys, [count, W]."""
    keys = jax.random.split(jax.random.key(0), count)
    windows = np.asarray(jax.jit(jax.vmap(lambda key: window.draw(key, 0)))(keys))
    assert windows.shape == (count, window.size) and windows.dtype == np.int32
    return windows


def even(counts: np.ndarray) -> bool:
    """Whether counts are within five standard deviations of each other's mean."""
    return bool(np.all(np.abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean())))


@pytest.mark.parametrize(("size", "range_"), [(3, (0, 5)), (1, (2, 4)), (4, (0, 4)), (2, (3, 10))])
def test_windows_are_contiguous_and_their_starts_uniform(size, range_):
    first, end = range_
    windows = drawn(Window(size=size, range=range_))
    np.testing.assert_array_equal(windows, windows[:, :1] + np.arange(size))
    starts, counts = np.unique(windows[:, 0], return_counts=True)
    np.testing.assert_array_equal(starts, np.arange(first, end - size + 1))
    assert even(counts)


@pytest.mark.parametrize(("size", "range_"), [(3, (0, 5)), (1, (2, 4)), (4, (0, 4)), (2, (3, 7))])
def test_random_windows_are_all_subsets_with_equal_chances(size, range_):
    windows, counts = np.unique(drawn(Window(size=size, range=range_, kind="random")), axis=0, return_counts=True)
    np.testing.assert_array_equal(windows, list(itertools.combinations(range(*range_), size)))
    assert even(counts)


@pytest.mark.parametrize(
    ("stride", "starts"), [(1, [2, 2, 3, 3, 4, 4, 5, 5, 2, 2]), (2, [2, 2, 4, 4, 2, 2]), (3, [2, 2, 5, 5, 2]), (9, [2] * 6)]
)
def test_a_sliding_window_moves_on_and_begins_anew(stride, starts):
    window = Window(size=3, range=(2, 8), kind="sliding", every=2, stride=stride)
    draw = jax.jit(window.draw)
    windows = [draw(jax.random.key(step), step) for step in range(len(starts))]
    np.testing.assert_array_equal(windows, np.array(starts)[:, None] + np.arange(3))


@pytest.mark.parametrize(("size", "range_"), [(6, (0, 5)), (0, (0, 5)), (1, (3, 3)), (1, (-1, 3)), (1, (4, 2))])
def test_refuses_a_window_that_does_not_fit(size, range_):
    with pytest.raises(ValueError, match="window"):
        Window(size=size, range=range_)


def sampled(seed: int = 0, step: int = 0, **changes):
    return tiny.jit(tiny.rollout_program(**changes).__call__)(tiny.params(), {}, tiny.prompts(), seed, step, 0)


def test_the_update_sees_a_window_with_gaps_as_the_rollout_did():
    """The means of the transitions, computed again from the stored states, are those of sampling time."""
    program = tiny.rollout_program(window="random")
    step = next(s for s in range(99) if np.any(np.diff(window_of(program, s)) > 1))
    episodes = sampled(step=step, window="random")
    drawing = episodes.drawing
    np.testing.assert_array_equal(drawing.steps, np.broadcast_to(window_of(program, step), drawing.steps.shape))
    (view,) = [v for v in tiny.view()(tiny.params(), episodes) if hasattr(v, "mean")]
    np.testing.assert_allclose(view.mean, drawing.mean, rtol=0, atol=1e-5)


def window_of(program, step: int) -> np.ndarray:
    """The window of an iteration of seed 0."""
    return np.asarray(program.window.draw(randomness.stream_key(0, step, randomness.WINDOW), step))


def test_shared_noise_begins_all_episodes_of_a_prompt_alike_and_lets_transitions_differ():
    settings = {"window_size": 4, "thinking": False}  # the whole range, from the first transition on
    alone, shared = (sampled(shared_noise=shared, **settings).drawing for shared in (False, True))
    begin = np.asarray(shared.x[:, 0]).reshape(tiny.PROMPTS, tiny.GROUP, -1)
    np.testing.assert_array_equal(begin, np.broadcast_to(begin[:, :1], begin.shape))
    assert len(np.unique(begin[:, 0], axis=0)) == tiny.PROMPTS
    np.testing.assert_array_equal(shared.x[:: tiny.GROUP, 0], alone.x[:: tiny.GROUP, 0])  # that of the group's first one
    np.testing.assert_array_equal(shared.noise, alone.noise)
    assert len(np.unique(np.asarray(alone.x[:, 0]).reshape(tiny.EPISODES, -1), axis=0)) == tiny.EPISODES


def test_a_window_may_hold_the_last_transition_where_that_has_noise():
    """DDIM's last step of a flow ends in the data, without noise; that of Stable Diffusion's spacing does not."""
    config = RolloutConfig(step_rule="ddim", noise_level=1.0, flow_steps=10, window_range=(0, 10))
    flow = tuple(timesteps(10, 3.0).tolist())
    with pytest.raises(ConfigError, match=r"\[0, 10\) holds the schedule's last transition, where ddim has no noise; .* 9"):
        check_window(FlowSampler(schedule=flow, rule=step_rule("ddim", 1.0), grid=(1, 1)), config)
    diffusion = tuple(diffusion_times(10, 1000).tolist())
    path = scaled_linear(0.00085, 0.012, 1000)
    sampler = FlowSampler(schedule=diffusion, rule=step_rule("ddim", 1.0), grid=(1, 1), path=path, prediction="noise")
    check_window(sampler, config)
