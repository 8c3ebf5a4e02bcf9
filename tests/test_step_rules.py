"""Transitions of every step rule against the papers' formulas in float64, and against the public systems."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo_jax.rollout.step_rules import CPS, ODE, DanceSDE, FlowSDE, StepRule, step_rule

RULES = ["ode", "flow_sde", "dance_sde", "cps"]
SCHEDULE = [3 * u / (1 + 2 * u) for u in np.linspace(1, 0, 26)]  # the paper's: 25 transitions, shift 3
PEER_RULES = {"unirl_flow": FlowSDE, "unirl_dance": DanceSDE, "unirl_cps": CPS, "flowgrpo": FlowSDE}


def by_hand(name, a, x, v, t, t_next, t_second):
    """The formulas as the papers print them, float64."""
    x, v, dt = np.float64(x), np.float64(v), t_next - t
    if name == "ode":
        return x + v * dt, 0.0
    if name == "cps":
        std = t_next * np.sin(a * np.pi / 2)
        return (1 - t_next) * (x - t * v) + np.sqrt(t_next**2 - std**2) * (x + (1 - t) * v), std
    sigma = a * np.sqrt(t / (1 - (t_second if t == 1 else t))) if name == "flow_sde" else a
    return x + (v + sigma**2 / (2 * t) * (x + (1 - t) * v)) * dt, sigma * np.sqrt(-dt)


def latents(seed, count=2, shape=(3, 4, 5)):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(count)]


def close(actual, reference, rtol=2e-6):
    reference = np.asarray(reference, np.float64)
    np.testing.assert_allclose(np.asarray(actual, np.float64), reference, rtol=0, atol=rtol * np.max(np.abs(reference)))


# ---- the formulas


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("noise_level", [0.0, 0.3, 0.8, 1.0, 1.3])
@pytest.mark.parametrize("index", [0, 1, 12, 24])
def test_transition_matches_the_formula_by_hand(name, noise_level, index):
    x, v = latents(index)
    times = [np.float32(t) for t in (SCHEDULE[index], SCHEDULE[index + 1], SCHEDULE[1])]
    mean, std = step_rule(name, noise_level).transition(x, v, *times)
    mean_by_hand, std_by_hand = by_hand(name, noise_level, x, v, *map(float, times))
    assert mean.shape == x.shape and std.shape == () and mean.dtype == std.dtype == jnp.float32
    close(mean, mean_by_hand)
    np.testing.assert_allclose(std, std_by_hand, rtol=2e-6, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(RULES),
    noise_level=st.floats(0, 1),
    t=st.floats(0.02, 0.98),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 100),
)
def test_transition_matches_the_formula_at_any_time(name, noise_level, t, fraction, seed):
    x, v = latents(seed)
    t, t_next = np.float32(t), np.float32(t * fraction)
    mean, std = step_rule(name, noise_level).transition(x, v, t, t_next, np.float32(0.99))
    mean_by_hand, std_by_hand = by_hand(name, noise_level, x, v, float(t), float(t_next), 0.99)
    close(mean, mean_by_hand, rtol=1e-5)
    np.testing.assert_allclose(std, std_by_hand, rtol=1e-5, atol=1e-6)


def test_the_papers_first_transitions():
    """25 transitions, shift 3, a = 0.8: the standard deviations as tabulated to five digits."""
    x, v = latents(0)
    rule = FlowSDE(noise_level=0.8)
    stds = [rule.transition(x, v, SCHEDULE[i], SCHEDULE[i + 1], SCHEDULE[1])[1] for i in range(5)]
    np.testing.assert_allclose(stds, [0.80000, 0.81657, 0.58140, 0.47794, 0.41665], atol=6e-6)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("noise_level", [0.3, 0.7, 0.8])
@pytest.mark.parametrize("t_second", [0.0, 72 / 73, 0.999])
def test_first_transition_of_a_schedule_has_std_equal_to_the_noise_level(jit, noise_level, t_second):
    """sigma^2 (-dt) = a^2 / (1 - t_1) (1 - t_1) = a^2: equal to the last bit, not only close."""
    x, v = latents(0)
    transition = FlowSDE(noise_level=noise_level).transition
    _, std = (jax.jit(transition) if jit else transition)(x, v, 1.0, t_second, t_second)
    assert std == np.float32(noise_level)


@pytest.mark.parametrize("rule", [FlowSDE(noise_level=0.0), DanceSDE(noise_level=0.0), CPS(noise_level=0.0)])
@pytest.mark.parametrize("index", [0, 7, 24])
def test_zero_noise_is_the_euler_step(rule, index):
    x, v = latents(1)
    times = [np.float32(t) for t in (SCHEDULE[index], SCHEDULE[index + 1], SCHEDULE[1])]
    mean, std = rule.transition(x, v, *times)
    assert std == 0
    close(mean, np.float64(x) + np.float64(v) * (float(times[1]) - float(times[0])))
    np.testing.assert_array_equal(mean, ODE().transition(x, v, *times)[0])


@pytest.mark.parametrize("name", RULES)
def test_computes_in_float32_from_bfloat16(name):
    x, v = (jnp.asarray(z, jnp.bfloat16) for z in latents(2))
    mean, std = step_rule(name, 0.8).transition(x, v, 0.5, 0.4, 0.9)
    close(mean, by_hand(name, 0.8, x, v, 0.5, 0.4, 0.9)[0])
    assert mean.dtype == std.dtype == step_rule(name, 0.8).log_prob(x, mean, std).dtype == jnp.float32


# ---- log-probabilities


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde"])
def test_log_prob_is_the_mean_gaussian_log_density(name):
    mean, eps = latents(3)
    x_next = mean + np.float32(0.6) * eps
    log_prob = step_rule(name, 0.8).log_prob(x_next, mean, jnp.float32(0.6))
    std, error = float(np.float32(0.6)), np.float64(x_next) - np.float64(mean)
    density = -0.5 * (error / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    assert log_prob.shape == (3,)
    close(log_prob, [density[b].sum() / density[b].size for b in range(3)])


def test_log_prob_of_cps_is_the_bare_squared_error():
    mean, x_next = latents(4)
    log_prob = CPS(noise_level=0.8).log_prob(x_next, mean, jnp.float32(0.0))
    close(log_prob, [-np.mean((np.float64(x_next[b]) - np.float64(mean[b])) ** 2) for b in range(3)])


@pytest.mark.parametrize("name", ["ode", "flow_sde", "dance_sde"])
def test_a_transition_without_noise_counts_zero_with_zero_gradient(name):
    mean, x_next = latents(5)
    value, gradient = jax.value_and_grad(lambda m: step_rule(name, 0.0).log_prob(x_next, m, jnp.float32(0)).sum())(mean)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(mean))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("noise_level", [0.0, 0.8, 1.0])
def test_values_and_gradients_are_finite_at_both_ends(name, noise_level):
    """Through traced times, with respect to the velocity and the times."""
    x, v, eps = latents(6, 3)
    rule = step_rule(name, noise_level)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def log_prob(v, t, t_next, t_second):
        mean, std = rule.transition(x, v, t, t_next, t_second)
        return rule.log_prob(jax.lax.stop_gradient(mean + std * eps) + 0.1, mean, std).sum()

    for index in (0, 1, 24):
        value, gradients = log_prob(v, SCHEDULE[index], SCHEDULE[index + 1], SCHEDULE[1])
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize("name", ["flow_sde", "dance_sde", "cps"])
@pytest.mark.parametrize("index", [0, 1, 23])
def test_gradient_of_the_log_prob_against_finite_differences(name, index):
    """Central differences of the formula by hand in float64, along one direction."""
    x, v, eps, direction = latents(7, 4)
    rule, a = step_rule(name, 0.8), 0.8
    times = [float(np.float32(t)) for t in (SCHEDULE[index], SCHEDULE[index + 1], SCHEDULE[1])]
    mean, std = by_hand(name, a, x, v, *times)
    x_next = np.float32(mean + std * eps)

    def reference(v):
        mean, std = by_hand(name, a, x, v, *times)
        scale = 1 if name == "cps" else 2 * std**2
        return np.sum(np.mean(-((x_next - mean) ** 2) / scale, axis=(1, 2)))

    h = 1e-5
    expected = (reference(v + h * np.float64(direction)) - reference(v - h * np.float64(direction))) / (2 * h)
    gradient = jax.grad(lambda v: rule.log_prob(x_next, *rule.transition(x, v, *times)).sum())(v)
    np.testing.assert_allclose(np.sum(np.float64(gradient) * direction), expected, rtol=1e-4, atol=1e-6)


# ---- the distribution that a whole trajectory ends in


def trajectory_moments(rule, steps, data_mean, data_std):
    """Mean and variance of the latent after every transition, exactly, for Gaussian data in one dimension.

    x_t is N((1-t) m, (1-t)^2 s^2 + t^2), and the perfect velocity E[noise - data | x_t] is linear in x_t.  So is the
    transition, x' = A x + b + std eps; A and b are read off the rule at x = 0 and x = 1.
    """
    u = np.linspace(1, 0, steps + 1)
    times = np.float32(3 * u / (1 + 2 * u))
    x = jnp.asarray([[[0.0]], [[1.0]]])

    @jax.jit
    def sample(times):
        def move(moments, pair):
            t, t_next = pair
            slope = (t - (1 - t) * data_std**2) / ((1 - t) ** 2 * data_std**2 + t**2)
            v = -data_mean + slope * (x - (1 - t) * data_mean)
            mean, std = rule.transition(x, v, t, t_next, times[1])
            A, b = (mean[1] - mean[0])[0, 0], mean[0, 0, 0]
            moments = (A * moments[0] + b, A**2 * moments[1] + std**2)
            return moments, moments

        return jax.lax.scan(move, (jnp.float32(0), jnp.float32(1)), (times[:-1], times[1:]))[1]

    means, variances = map(np.float64, sample(jnp.asarray(times)))
    t = np.float64(times[1:])
    return means, variances, (1 - t) * data_mean, (1 - t) ** 2 * data_std**2 + t**2


@pytest.mark.parametrize("rule", [ODE(), FlowSDE(noise_level=0.8), FlowSDE(noise_level=0.3), DanceSDE(noise_level=0.3)])
def test_many_steps_keep_the_flows_marginals(rule):
    """The score term balances the noise: mean and variance on the way to the data are the flow's, as for the ODE."""
    means, variances, flow_means, flow_variances = trajectory_moments(rule, 2500, data_mean=1.5, data_std=0.5)
    np.testing.assert_allclose(means, flow_means, atol=2e-3)
    half = len(means) // 2  # the jump of size a at t = 1 is forgotten, slowly, in the first steps
    np.testing.assert_allclose(variances[half:], flow_variances[half:], rtol=1e-2)
    np.testing.assert_allclose(variances[-1], 0.5**2, rtol=5e-3)


@pytest.mark.parametrize("noise_level", [0.0, 0.3, 0.8, 1.0])
def test_cps_keeps_the_marginals_of_a_single_image_in_any_number_of_steps(noise_level):
    means, variances, flow_means, flow_variances = trajectory_moments(CPS(noise_level=noise_level), 7, 1.5, 0.0)
    np.testing.assert_allclose(means, flow_means, atol=1e-5)
    np.testing.assert_allclose(variances, flow_variances, atol=1e-5)


# ---- the public systems


@pytest.fixture(scope="module")
def peer_steps(fixtures):
    return dict(np.load(fixtures / "peers" / "sde_steps.npz"))


def all_transitions(rule, peer):
    """The rule at every recorded state: means [T, B, N, C], stds [T]."""
    transition = jax.jit(rule.transition)
    sigmas = peer["sigmas"]
    steps = [
        transition(peer["x"][i], peer["v"][i], sigmas[i], sigmas[i + 1], sigmas[1]) for i in range(len(sigmas) - 1)
    ]
    return (np.stack(z) for z in zip(*steps, strict=True))


def test_agrees_with_the_public_systems(peer_steps, assert_close):
    """UniRL, Flow-GRPO and DanceGRPO: every recorded array, at every recorded noise level."""
    peer = peer_steps
    dt = np.diff(np.float64(peer["sigmas"]))
    parsed = {name: re.fullmatch(r"(\w+)_eta([0-9.e-]+)_(\w+)", name) for name in peer}
    families = {(m[1], m[2]) for m in parsed.values() if m and m[1] in PEER_RULES}
    assert families, "no recorded step rule was recognised"
    checked = {"sigmas", "x", "v", "eps"}

    def check(name, actual):
        if name in peer:
            assert_close(actual, peer[name], name=name)
            checked.add(name)

    for system, eta in sorted(families):
        rule, prefix = PEER_RULES[system](noise_level=float(eta)), f"{system}_eta{eta}"
        means, stds = all_transitions(rule, peer)
        nexts = means + stds[:, None, None, None] * peer["eps"]
        # Flow-GRPO's log-prob was recorded for UniRL's next latents.
        x_next = peer.get(f"{prefix}_next", peer.get(f"unirl_flow_eta{eta}_next"))
        log_prob = jax.jit(jax.vmap(rule.log_prob))(x_next, means, stds)
        check(f"{prefix}_mean", means)
        check(f"{prefix}_std", stds)
        check(f"{prefix}_next", nexts)
        check(f"{prefix}_logp", log_prob)
        check(f"{prefix}_sigma_t", stds / np.sqrt(-dt))
        if system == "unirl_dance" and f"dancegrpo_eta{eta}_logp" in peer:
            count = len(peer[f"dancegrpo_eta{eta}_logp"])
            check(f"dancegrpo_eta{eta}_logp", log_prob[:count])
    assert checked == set(peer)


# ---- choosing a rule and a window


def test_step_rule_finds_every_rule_by_name():
    assert step_rule("ode", 0.8) == ODE()
    assert step_rule("flow_sde", 0.8) == FlowSDE(noise_level=0.8)
    assert step_rule("dance_sde", 0.3) == DanceSDE(noise_level=0.3)
    assert step_rule("cps", 0.5) == CPS(noise_level=0.5)
    assert all(isinstance(step_rule(name, 0.5), StepRule) and hash(step_rule(name, 0.5)) for name in RULES)


def test_step_rule_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="'sde'.*ode, flow_sde, dance_sde, cps"):
        step_rule("sde", 0.8)


@pytest.mark.parametrize(("name", "noise_level"), [("flow_sde", -0.1), ("dance_sde", -1.0), ("cps", 2.1)])
def test_refuses_an_impossible_noise_level(name, noise_level):
    with pytest.raises(ValueError, match="noise_level"):
        step_rule(name, noise_level)
