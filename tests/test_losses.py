"""Losses and regularisers against float64 by hand, finite differences and the public systems."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo_jax.learning.losses import (
    clip_fractions,
    clipped_surrogate,
    flow_loss,
    k3_kl,
    latent_kl,
    log_ratio,
    masked_mean,
    ratio_norm,
    text_loss,
    velocity_mse,
)
from unigrpo_jax.rollout.step_rules import FlowSDE


def normal(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def surrogate_by_hand(log_ratio, A, low, high):
    r = np.exp(np.float64(log_ratio))
    return np.maximum(-A * r, -A * np.minimum(np.maximum(r, 1 - low), 1 + high))


def log_density(x, mean, std):
    """Mean over the dimensions of the Gaussian log-density, float64 [B]."""
    x, mean = np.float64(x), np.float64(mean)
    return np.mean(-((x - mean) ** 2) / (2 * std**2) - np.log(std) - 0.5 * np.log(2 * np.pi), axis=(1, 2))


# ---- the clipped surrogate


@settings(deadline=None, max_examples=60)
@given(
    log_ratio=st.floats(-3, 3, width=32),
    A=st.floats(-4, 4, width=32),
    low=st.sampled_from([1e-6, 0.002, 0.2]),
    high=st.sampled_from([1e-6, 0.002, 0.28]),
)
def test_surrogate_is_the_pessimistic_one_of_ratio_and_clipped_ratio(log_ratio, A, low, high):
    value = clipped_surrogate(log_ratio, A, low, high)
    np.testing.assert_allclose(value, surrogate_by_hand(log_ratio, A, low, high), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("A", [-2.3, -0.1, 0.0, 0.7, 3.1])
@pytest.mark.parametrize("clip", [1e-6, 0.2])
def test_on_policy_the_loss_is_exactly_minus_the_advantage_with_the_policy_gradient(A, clip):
    A = np.float32(A)
    value, gradient = jax.value_and_grad(lambda z: clipped_surrogate(z, A, clip, clip))(jnp.float32(0))
    assert value == -A and gradient == -A


@pytest.mark.parametrize(
    ("excess", "A", "slope"),
    [(0.997e-6, 1, -1), (1.003e-6, 1, 0), (-9e-6, 1, -1), (-0.997e-6, -1, 1), (-1.003e-6, -1, 0), (9e-6, -1, 1)],
)
def test_the_clip_is_sharp_at_the_flows_range(excess, A, slope):
    """1 + 0.997e-6 and 1 + 1.003e-6 are one float32 number: only r - 1 tells which side of 1e-6 it is on."""
    gradient = jax.grad(lambda z: clipped_surrogate(z, jnp.float32(A), 1e-6, 1e-6))(jnp.float32(excess))
    np.testing.assert_allclose(gradient, slope, rtol=2e-5)


def test_asymmetric_clip_ranges():
    log_ratios = np.log(np.float32([0.7, 0.85, 1.0, 1.25, 1.4]))
    np.testing.assert_allclose(
        clipped_surrogate(log_ratios, np.ones(5), 0.2, 0.3), [-0.7, -0.85, -1, -1.25, -1.3], rtol=1e-6
    )
    np.testing.assert_allclose(
        clipped_surrogate(log_ratios, -np.ones(5), 0.2, 0.3), [0.8, 0.85, 1, 1.25, 1.4], rtol=1e-6
    )


def test_clip_fractions_count_what_has_no_gradient():
    log_ratios, A = normal(0, 8, 9, scale=0.4), normal(1, 8, 9)
    above, below = clip_fractions(log_ratios, A, 0.2, 0.3)
    r = np.exp(np.float64(log_ratios))
    np.testing.assert_allclose(above, np.mean((A > 0) & (r > 1.3)), rtol=1e-6)
    np.testing.assert_allclose(below, np.mean((A < 0) & (r < 0.8)), rtol=1e-6)
    slopes = jax.vmap(jax.grad(lambda z, A: clipped_surrogate(z, A, 0.2, 0.3)))(log_ratios.ravel(), A.ravel())
    np.testing.assert_allclose(above + below, np.mean(np.asarray(slopes) == 0), rtol=1e-6)


def test_clip_fractions_of_masked_entries():
    log_ratios, A = np.float32([[1, 1, -1, -1]]), np.float32([[1, -1, 1, -1]])
    assert clip_fractions(log_ratios, A, 0.2, 0.2) == (0.25, 0.25)
    assert clip_fractions(log_ratios, A, 0.2, 0.2, mask=np.array([[1, 1, 0, 0]])) == (0.5, 0)
    assert clip_fractions(log_ratios, A[:, :1], 0.2, 0.2) == (0.5, 0)
    assert clip_fractions(np.zeros(4), A[0], 1e-6, 1e-6) == (0, 0)


# ---- text


def text_batch(seed=0, B=4, L=7):
    rng = np.random.default_rng(seed)
    mask = np.arange(L) < rng.integers(1, L, (B, 1))
    return normal(seed, B, L) - 2, normal(seed + 1, B, L, scale=0.2), mask, normal(seed + 2, B)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.01, 0.01), (0.2, 0.28)])
def test_text_loss_is_each_sequences_mean_over_its_tokens(low, high):
    old, change, mask, A = text_batch()
    new = old + change
    by_hand = []
    for b in range(len(A)):
        tokens = [surrogate_by_hand(float(new[b, k]) - float(old[b, k]), A[b], low, high) for k in np.where(mask[b])[0]]
        by_hand.append(sum(tokens) / len(tokens))
    loss = text_loss(new, old, mask, A, low, high)
    assert loss.shape == (4,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, by_hand, rtol=1e-5)


@pytest.mark.parametrize("junk", [0.0, 1e4, -1e4, np.inf, -np.inf, np.nan])
def test_masked_positions_change_nothing(junk):
    old, change, mask, A = text_batch()
    new = old + change
    value_and_grad = jax.jit(jax.value_and_grad(lambda new, old: text_loss(new, old, mask, A, 0.2, 0.2).sum()))
    value, gradient = value_and_grad(new, old)
    junk_value, junk_gradient = value_and_grad(np.where(mask, new, junk), np.where(mask, old, 1.0))
    assert value == junk_value
    np.testing.assert_array_equal(gradient, junk_gradient)
    assert np.all(np.asarray(gradient)[~mask] == 0)


def test_a_sequence_without_tokens_contributes_zero():
    old, change, mask, A = text_batch()
    mask = mask.copy()
    mask[1] = False
    value, gradient = jax.value_and_grad(lambda new: text_loss(new, old, mask, A, 0.2, 0.2)[1])(old + change)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(old))


def test_on_policy_text_loss_is_exactly_minus_the_advantage():
    old, _, mask, A = text_batch()
    A = np.float32([1, -0.5, 2, 0.25])  # sums of these are exact, whatever the length
    np.testing.assert_array_equal(text_loss(old, old, mask, A, 0.2, 0.2), -A)


def test_gradient_of_the_text_loss_against_finite_differences():
    old, change, mask, A = text_batch(5)
    new = old + change

    def by_hand(new):
        loss = np.where(mask, surrogate_by_hand(new - np.float64(old), np.float64(A)[:, None], 0.2, 0.2), 0)
        return np.mean(loss.sum(1) / mask.sum(1))

    gradient = jax.grad(lambda new: text_loss(new, old, mask, A, 0.2, 0.2).mean())(new)
    for b, k in np.ndindex(*new.shape):
        h = np.zeros(new.shape)
        h[b, k] = 1e-6
        expected = (by_hand(np.float64(new) + h) - by_hand(np.float64(new) - h)) / 2e-6
        np.testing.assert_allclose(gradient[b, k], expected, rtol=1e-4, atol=1e-6)


# ---- flow: the two log-ratios


def transition_means(seed, shape=(3, 8, 16), distance=1e-3):
    eps, old, change = normal(seed, *shape), normal(seed + 1, *shape), normal(seed + 2, *shape, scale=distance)
    return eps, old, old + change


@pytest.mark.parametrize("distance", [1.0, 1e-1, 1e-3])
@pytest.mark.parametrize("std", [0.1, 0.4, 0.8])
def test_closed_forms_equal_the_difference_of_two_log_densities(distance, std):
    """In float64 by hand, where the subtraction is harmless; the next latent is the rollout's, mean_old + std eps."""
    eps, old, new = transition_means(0, distance=distance)
    x_next = np.float64(old) + std * np.float64(eps)
    log_r = log_density(x_next, new, std) - log_density(x_next, old, std)
    dmu = np.float64(old) - np.float64(new)
    normalised = std * (log_r + np.mean(dmu**2, axis=(1, 2)) / (2 * std**2))
    np.testing.assert_allclose(log_ratio(eps, old, new, std), log_r, rtol=2e-4)
    np.testing.assert_allclose(ratio_norm(eps, old, new), normalised, rtol=2e-4)


def test_every_sample_may_have_its_own_std():
    eps, old, new = transition_means(4)
    stds = np.float32([0.2, 0.5, 0.9])
    for function in (lambda *a, std: log_ratio(*a, std), lambda eps, old, new, std: latent_kl(new, old, std)):
        alone = [function(eps[b : b + 1], old[b : b + 1], new[b : b + 1], std=stds[b])[0] for b in range(3)]
        np.testing.assert_allclose(function(eps, old, new, std=stds), alone, rtol=1e-5)


def test_closed_form_of_cps():
    """log r = -(x' - new)^2 + (x' - old)^2 is 2 std^2 times the Gaussian one."""
    eps, old, new = transition_means(3, distance=0.1)
    std = 0.7
    x_next = np.float64(old) + std * np.float64(eps)
    by_hand = np.mean((x_next - old) ** 2 - (x_next - new) ** 2, axis=(1, 2))
    np.testing.assert_allclose(2 * std**2 * log_ratio(eps, old, new, std), by_hand, rtol=2e-4)


def test_the_closed_form_resolves_1e_8_where_the_subtraction_does_not():
    """A hundredth of the clip range 1e-6; log-densities of size 1 come in float32 steps of 1.2e-7."""
    eps, old, new = transition_means(7, shape=(8, 64, 64), distance=3e-6)
    std = np.float32(0.8)
    exact = np.mean(-np.float64(eps) * (np.float64(old) - np.float64(new)), axis=(1, 2))
    assert 1e-9 < np.median(np.abs(exact)) < 1e-7
    np.testing.assert_allclose(ratio_norm(eps, old, new), exact, rtol=0, atol=1e-10)
    rule, x_next = FlowSDE(noise_level=0.8), old + std * eps
    subtracted = rule.log_prob(x_next, new, std) - rule.log_prob(x_next, old, std)
    spread = np.mean((np.float64(old) - np.float64(new)) ** 2, axis=(1, 2)) / (2 * std**2)
    assert np.max(np.abs(std * (np.float64(subtracted) + spread) - exact)) > 5e-8


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), std=st.floats(0.05, 2))
def test_on_policy_the_log_ratios_are_exactly_zero(seed, std):
    eps, mean, _ = transition_means(seed)
    np.testing.assert_array_equal(ratio_norm(eps, mean, mean), np.zeros(3))
    np.testing.assert_array_equal(log_ratio(eps, mean, mean, std), np.zeros(3))
    A = normal(seed, 3)
    np.testing.assert_array_equal(flow_loss(ratio_norm(eps, mean, mean), A, 1e-6, 1e-6), -A)


def test_ratio_norm_does_not_know_the_transition_std_and_has_zero_mean():
    """Over the rollout's noise: log r itself has the mean -mean(dmu^2) / (2 std^2), which RatioNorm takes away."""
    eps = normal(11, 4000, 2, 3)
    old, new = np.broadcast_to(normal(12, 1, 2, 3), eps.shape), np.broadcast_to(normal(13, 1, 2, 3), eps.shape)
    ratios = np.float64(ratio_norm(eps, old, new))
    assert abs(ratios.mean()) < 5 * ratios.std() / np.sqrt(4000)
    spread = np.mean(np.float64(old - new)[0] ** 2)
    plain = np.float64(log_ratio(eps, old, new, 0.5))
    np.testing.assert_allclose(plain, ratios / 0.5 - spread / (2 * 0.5**2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", [1e-6, 1.0])
def test_gradient_of_the_flow_loss_against_finite_differences(clip):
    """From the velocity through the mean of the transition to the loss; float64 by hand."""
    x, v_old, eps = normal(20, 3, 4, 5), normal(21, 3, 4, 5), normal(22, 3, 4, 5)
    v_new, A, direction = v_old + normal(23, 3, 4, 5, scale=1e-3), np.float32([1.5, -0.5, 0.3]), normal(24, 3, 4, 5)
    t, t_next, a = 0.9, 0.85, 0.8

    def mean_by_hand(v):
        sigma2 = a**2 * t / (1 - t)
        return x + (v + sigma2 / (2 * t) * (x + (1 - t) * v)) * (t_next - t)

    def by_hand(v):
        ratio = np.mean(-eps * (mean_by_hand(np.float64(v_old)) - mean_by_hand(v)), axis=(1, 2))
        return surrogate_by_hand(ratio, np.float64(A), clip, clip).mean()

    def loss(v):
        rule = FlowSDE(noise_level=a)
        mean_old, mean_new = (rule.transition(x, z, t, t_next, 0.99)[0] for z in (v_old, v))
        return flow_loss(ratio_norm(eps, mean_old, mean_new), A, clip, clip).mean()

    h = 1e-5 * np.float64(direction)
    expected = (by_hand(v_new + h) - by_hand(v_new - h)) / 2e-5
    actual = np.sum(np.float64(jax.grad(loss)(v_new)) * direction)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-8)


def test_flow_loss_takes_a_factor_per_transition():
    ratios, A = normal(0, 5, scale=1e-3), normal(1, 5)
    np.testing.assert_allclose(
        flow_loss(ratios, A, 1e-6, 1e-6, weight=1 / 0.04), 25 * surrogate_by_hand(ratios, A, 1e-6, 1e-6), rtol=2e-6
    )


def test_agrees_with_the_public_systems(fixtures, assert_close):
    """verl-omni's GRPO-Guard loss, value and gradient: ours over B samples with the weight 1 / -dt."""
    peer = dict(np.load(fixtures / "peers" / "ratio_norm.npz"))
    rule, t_second = FlowSDE(noise_level=float(peer["eta"])), float(peer["sigma_max"])
    cases = [m for m in (re.fullmatch(r"step(\d+)_clip([0-9.e-]+)_loss_over_mean_dt", name) for name in peer) if m]
    assert len({m[2] for m in cases}) > 1, "fewer than two clip ranges were recognised"
    for match in cases:
        step, clip = match[1], float(match[2])
        get = lambda name, step=step: peer[f"step{step}_{name}"]
        t, t_next = float(get("sigma")), float(get("sigma_next"))
        mean_old, std = rule.transition(get("x"), get("v_old"), t, t_next, t_second)

        def loss(v_new, get=get, clip=clip, mean_old=mean_old, t=t, t_next=t_next):
            mean_new, _ = rule.transition(get("x"), v_new, t, t_next, t_second)
            ratios = ratio_norm(get("eps"), mean_old, mean_new)
            return flow_loss(ratios, np.clip(get("adv"), -5, 5), clip, clip, weight=1 / (t - t_next)).mean()

        value, gradient = jax.value_and_grad(loss)(get("v_new"))
        assert_close(value, get(f"clip{match[2]}_loss_over_mean_dt"), name=match[0])
        assert_close(gradient, get(f"clip{match[2]}_grad"), name=f"step{step}_clip{match[2]}_grad")

        mean_new, _ = rule.transition(get("x"), get("v_new"), t, t_next, t_second)
        assert_close(rule.log_prob(get("next"), mean_old, std), get("logp_old"), name=f"step{step}_logp_old")
        assert_close(rule.log_prob(get("next"), mean_new, std), get("logp_new"), name=f"step{step}_logp_new")
        subtracted = np.float64(get("logp_new")) - np.float64(get("logp_old"))  # good to some 1e-7 only
        ours = log_ratio(get("eps"), mean_old, mean_new, std)
        np.testing.assert_allclose(ours, subtracted, rtol=0, atol=1e-6 * max(1, np.max(np.abs(get("logp_old")))))


# ---- regularisers


def test_velocity_mse_and_latent_kl_by_hand():
    new, ref = normal(0, 3, 4, 5), normal(1, 3, 4, 5)
    squares = [np.mean((np.float64(new[b]) - np.float64(ref[b])) ** 2) for b in range(3)]
    np.testing.assert_allclose(velocity_mse(new, ref), squares, rtol=1e-5)
    np.testing.assert_allclose(latent_kl(new, ref, 0.3), np.array(squares) / (2 * 0.3**2), rtol=1e-5)
    np.testing.assert_array_equal(velocity_mse(new, new), np.zeros(3))


def test_latent_kl_is_the_expected_log_ratio():
    """KL = E[log p_new - log p_ref] over x' ~ p_new: with antithetic noise the linear term cancels exactly."""
    new, ref, eps = normal(2, 3, 4, 5), normal(3, 3, 4, 5), normal(4, 3, 4, 5)
    pairs = [np.float64(new) + sign * 0.6 * eps for sign in (1, -1)]
    expected = np.mean([log_density(x, new, 0.6) - log_density(x, ref, 0.6) for x in pairs], axis=0)
    np.testing.assert_allclose(latent_kl(new, ref, 0.6), expected, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(new=st.floats(-8, 0, width=32), ref=st.floats(-8, 0, width=32))
def test_k3_by_hand_and_never_negative(new, ref):
    value, d = k3_kl(np.float32(new), np.float32(ref)), ref - new
    np.testing.assert_allclose(value, np.exp(d) - d - 1, rtol=1e-5, atol=1e-6)
    assert value >= -1e-9


def test_the_gradient_of_k3_depends_on_the_reference_and_that_of_k1_does_not():
    new, refs = jnp.float32(-1.0), jnp.float32([-3.0, -1.5, -1.0, -0.5])
    k3 = np.array([jax.grad(k3_kl)(new, ref) for ref in refs])
    k1 = np.array([jax.grad(lambda new, ref: new - ref)(new, ref) for ref in refs])
    np.testing.assert_allclose(k3, 1 - np.exp(np.float64(refs) + 1), rtol=1e-5)
    assert k3[2] == 0 and len(set(k3)) == 4
    assert set(k1) == {1.0}


def test_k3_is_exactly_zero_at_equality_and_quadratic_around_it():
    assert k3_kl(np.float32(-1.3), np.float32(-1.3)) == 0
    new, ref = np.float32(-0.25), np.float32(-0.25 + 2**-12)
    np.testing.assert_allclose(k3_kl(new, ref), (2**-12) ** 2 / 2, rtol=1e-3)


def test_masked_mean_over_some_all_and_no_entries():
    values, mask = np.float32([[1, 2, np.nan], [np.inf, 5, 6], [7, 8, 9]]), np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(masked_mean(values, mask, axis=1), [1.5, 5.5, 0])
    assert masked_mean(values, mask) == 3.5
    assert masked_mean(values, np.zeros((3, 3))) == 0


def test_everything_is_float32_from_bfloat16():
    x, y = (jnp.asarray(normal(seed, 2, 3, 4), jnp.bfloat16) for seed in (0, 1))
    results = [ratio_norm(x, x, y), log_ratio(x, x, y, 0.5), velocity_mse(x, y), latent_kl(x, y, 0.5), k3_kl(x, y)]
    results += [clipped_surrogate(x, y, 0.2, 0.2), text_loss(x[0], y[0], x[0] > 0, x[0, :, 0], 0.2, 0.2)]
    assert {result.dtype for result in results} == {jnp.dtype("float32")}
