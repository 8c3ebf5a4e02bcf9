"""Drawing: every transition re-derived in float64 from the oracle's velocity, and what is kept of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracle, tiny
from unigrpo_jax.models.autoencoders.pixels import from_uint8, to_uint8
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import in_turn
from unigrpo_jax.rollout.windows import Window

TIMES = oracle.schedule(tiny.ROLLOUT.flow_steps, tiny.ROLLOUT.timestep_shift)
TOKENS, WIDTH = tiny.GRID[0] * tiny.GRID[1], tiny.CONFIG.latent_width


def initial_noise(seed, step):
    """x at t = 1 of every episode: a function of seed, step and global id alone."""
    key = jax.random.key(seed)
    for number in (step, randomness.INITIAL_NOISE):
        key = jax.random.fold_in(key, number)
    draw = lambda i: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), 0), (TOKENS, WIDTH))
    return np.asarray(jax.vmap(draw)(jnp.arange(tiny.EPISODES)), np.float64)


def pixels(x):
    """Latent tokens to uint8, patch by patch, truncated."""
    p, (rows, columns) = tiny.CONFIG.latent_patch, tiny.GRID
    image = np.empty((rows * p, columns * p, 3))
    for n, token in enumerate(x):
        r, c = divmod(n, columns)
        image[r * p : (r + 1) * p, c * p : (c + 1) * p] = token.reshape(p, p, 3)
    return np.floor(np.clip(image / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


def assert_same_image(image, x):
    """Equal but where float32 and float64 fall on two sides of a truncation."""
    difference = np.abs(np.asarray(image, int) - pixels(x))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def window_start(seed, step):
    key = randomness.stream_key(seed, step, randomness.WINDOW)
    return int(Window(size=tiny.ROLLOUT.window_size, range=tiny.ROLLOUT.window_range).draw(key, 0)[0])


@pytest.fixture(scope="module")
def steps():
    """One iteration number for each place of the window."""
    return {window_start(0, step): step for step in reversed(range(30))}


@pytest.mark.parametrize("start", [0, 1, 2])
def test_the_trajectory_from_noise_to_image_is_the_formula_by_hand(steps, start):
    """Euler up to the window, eq. 9 of Flow-GRPO inside it with the kept noise, Euler to the end, truncated pixels."""
    episodes = tiny.episodes(0, steps[start])
    params, x1 = oracle.to64(tiny.params()), initial_noise(0, steps[start])
    for row in range(0, tiny.EPISODES, 3):
        e, x = oracle.episode(episodes, row), x1[row]
        assert e.steps.tolist() == [start, start + 1]
        for step in range(tiny.ROLLOUT.flow_steps):
            _, v = oracle.forward(params, e.prompt + e.thought(), x, TIMES[step])
            t, t_next, k = TIMES[step], TIMES[step + 1], step - start
            if k not in (0, 1):
                x = x + v * (t_next - t)
                continue
            mean, std = oracle.flow_sde(x, v, t, t_next, TIMES[1], tiny.ROLLOUT.noise_level)
            np.testing.assert_allclose(e.x[k], x, atol=1e-4)
            np.testing.assert_allclose(e.mean[k], mean, atol=1e-4)
            x = mean + std * e.noise[k]
            if k == 0:
                np.testing.assert_allclose(e.x[1], e.mean[0] + std * e.noise[0], atol=1e-5)
        assert_same_image(episodes.drawing.image[row], x)


def test_the_noise_is_that_of_seed_step_and_global_id(steps):
    step = steps[1]
    key = randomness.stream_key(0, step, randomness.STEP_NOISE)
    for k, position in enumerate((1, 2)):
        of = lambda i, p=position: jax.random.fold_in(jax.random.fold_in(key, i), p)
        expected = jax.vmap(lambda i, of=of: jax.random.normal(of(i), (TOKENS, WIDTH)))(jnp.arange(tiny.EPISODES))
        np.testing.assert_allclose(tiny.episodes(0, step).drawing.noise[:, k], expected, atol=2e-6)


def test_the_window_is_one_for_the_batch_and_moves_between_iterations(steps):
    assert sorted(steps) == [0, 1, 2]
    for start, step in steps.items():
        drawn = np.asarray(tiny.episodes(0, step).drawing.steps)
        assert (drawn == [start, start + 1]).all() and drawn.shape == (tiny.EPISODES, 2)


@pytest.fixture(scope="module")
def plain():
    """Rollouts without thinking: (ODE everywhere, CPS at every transition)."""
    everywhere = tiny.ROLLOUT.flow_steps
    run = lambda program: tiny.jit(program.__call__)(tiny.params(), {}, tiny.prompts(), 4, 0)
    ode = dataclasses.replace(tiny.rollout_program(thinking=False), window=None)
    cps = tiny.rollout_program(
        thinking=False, step_rule="cps", noise_level=0.6, window_size=everywhere, window_range=(0, everywhere)
    )
    return run(ode), run(cps)


def test_without_a_window_it_is_a_hand_written_euler_loop(plain):
    """And without thinking the image follows the prompt directly."""
    params, x1 = oracle.to64(tiny.params()), initial_noise(4, 0)
    assert plain[0].thinking is None and len(plain[0].segments) == 1
    assert plain[0].drawing.steps.shape == (tiny.EPISODES, 0)
    assert plain[0].drawing.x.shape == (tiny.EPISODES, 0, TOKENS, WIDTH)
    prompt = plain[0].prompt
    for row in range(0, tiny.EPISODES, 3):
        text, x = np.asarray(prompt.tokens[row])[np.asarray(prompt.valid[row])].tolist(), x1[row]
        for t, t_next in zip(TIMES[:-1], TIMES[1:], strict=True):
            x = x + oracle.forward(params, text, x, t)[1] * (t_next - t)
        assert_same_image(plain[0].drawing.image[row], x)


def test_another_rule_at_every_transition(plain):
    """CPS from noise to image; its last transition has no noise."""
    params, x1, d = oracle.to64(tiny.params()), initial_noise(4, 0), plain[1].drawing
    assert (np.asarray(d.steps) == np.arange(tiny.ROLLOUT.flow_steps)).all()
    prompt = plain[1].prompt
    for row in range(0, tiny.EPISODES, 5):
        text, x = np.asarray(prompt.tokens[row])[np.asarray(prompt.valid[row])].tolist(), x1[row]
        for step in range(tiny.ROLLOUT.flow_steps):
            v = oracle.forward(params, text, x, TIMES[step])[1]
            mean, std = oracle.cps(x, v, TIMES[step], TIMES[step + 1], TIMES[1], 0.6)
            np.testing.assert_allclose(d.x[row, step], x, atol=1e-4)
            np.testing.assert_allclose(d.mean[row, step], mean, atol=1e-4)
            x = mean + std * np.asarray(d.noise[row, step], np.float64)
        assert std == 0
        assert_same_image(d.image[row], x)


def test_pixels_are_truncated_not_rounded():
    level = lambda k: 2 * k / 255 - 1
    values = jnp.array([-9.0, -1.0, level(0.999), level(1.001), level(127.99), level(254.99), 1.0, 9.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 127, 254, 255, 255]
    assert to_uint8(from_uint8(jnp.array([0, 255], jnp.uint8))).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("parts", "together", "alive"),
    [(0, 1, 12), (1, 1, 1), (2, 1, 2), (4, 1, 4), (5, 1, 12), (12, 1, 12)]
    + [(1, 4, 4), (1, 5, 4), (1, 99, 12), (2, 3, 6), (2, 5, 6), (4, 2, 4), (4, 3, 12), (1, 0, 1)],
)
def test_in_turn_computes_a_few_elements_of_each_part_at_a_time(parts, together, alive):
    """As many as divide a part; a batch that does not divide is computed at once; the order is kept."""
    seen = []

    def function(x_BN):
        seen.append(x_BN.shape[0])
        return x_BN[:, :1] ** 2

    x = jnp.arange(24.0).reshape(12, 2)
    np.testing.assert_array_equal(in_turn(function, x, parts, together), x[:, :1] ** 2)
    assert set(seen) == {alive}


def test_in_turn_every_device_takes_one_of_its_own():
    """Eight devices with three rows each: a turn holds one row of each device, and nothing moves between them."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    rows = jax.ShapeDtypeStruct((24, 4), jnp.float32, sharding=spread)
    text = jax.jit(lambda x: in_turn(jnp.sin, x, 8), out_shardings=spread).lower(rows).compile().as_text()
    assert '"known_trip_count":{"n":"3"}' in text and "f32[3,8,4]" not in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute"))


def test_noise_of_a_whole_range_is_that_of_a_window_as_wide():
    """Which transitions are kept to be trained changes no latent; what lies outside of the range is without noise."""
    wide = tiny.rollout_program(thinking=False, noise_range=(1, 3), window="contiguous", window_size=1, window_range=(1, 3))
    window = tiny.rollout_program(thinking=False, window="contiguous", window_size=2, window_range=(1, 3))
    sample = lambda program: tiny.jit(program.__call__)(tiny.params(), {}, tiny.prompts(), 0, 0).drawing
    a, b = sample(wide), sample(window)
    np.testing.assert_allclose(a.latent, b.latent, atol=1e-6)
    assert a.x.shape[1] == 1 and b.x.shape[1] == 2
    for row in range(len(a.steps)):
        np.testing.assert_allclose(a.noise[row, 0], b.noise[row, int(a.steps[row, 0]) - 1], atol=0)
