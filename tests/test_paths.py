"""Paths and predictions: conversions against each other, the ends of Gaussian data, numbers of Stable Diffusion and FLUX."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.recorded_ddim import runs
from unigrpo_jax.models.paths import RECTIFIED, VariancePreserving, estimates, scaled_linear, target
from unigrpo_jax.models.schedule import diffusion_times, resolution_shift, timesteps
from unigrpo_jax.rollout.step_rules import CPS, DDIM, ODE, DanceSDE, FlowSDE, StepRule

DIFFUSION = scaled_linear(0.00085, 0.012, 1000)
PATHS = {"flow": RECTIFIED, "diffusion": DIFFUSION}
PREDICTIONS = ("velocity", "noise", "v", "data")
NOISELESS = [FlowSDE(noise_level=0.0), DanceSDE(noise_level=0.0), DDIM(eta=0.0), CPS(noise_level=0.0)]
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def by_hand(path, t):
    """alpha and sigma in float64."""
    if path is RECTIFIED:
        return 1 - t, t
    kept = np.prod(1 - np.float64(path.betas[: round(t * len(path.betas))]))
    return np.sqrt(kept), np.sqrt(1 - kept)


def numbers(seed, count=2, shape=(2, 3, 4)):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


@each_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [0.021, 0.5, 0.902])
def test_what_a_network_should_say_gives_data_and_noise_back(path, prediction, t):
    data, noise = numbers(0)
    alpha, sigma = by_hand(path, t)
    x = np.float32(alpha * data + sigma * noise)
    found = estimates(path, prediction, x, target(path, prediction, data, noise, t), t)
    for name, wanted in {"data": data, "noise": noise, "velocity": noise - data}.items():
        np.testing.assert_allclose(getattr(found, name), wanted, atol=2e-4, err_msg=name)  # 1 / alpha and 1 / sigma magnify


@each_path
@pytest.mark.parametrize("first, second", itertools.permutations(PREDICTIONS, 2))
def test_one_prediction_turned_into_another_means_the_same(path, first, second):
    """Of outputs that are no true prediction of anything."""
    x, output = numbers(1)
    alpha, sigma = by_hand(path, 0.5)
    one = estimates(path, first, x, output, 0.5)
    np.testing.assert_allclose(alpha * one.data + sigma * one.noise, x, atol=1e-5)
    two = estimates(path, second, x, target(path, second, one.data, one.noise, 0.5), 0.5)
    np.testing.assert_allclose(two.data, one.data, atol=1e-5)
    np.testing.assert_allclose(two.noise, one.noise, atol=1e-5)


def test_an_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="'score'. There are: velocity, noise, v, data"):
        estimates(RECTIFIED, "score", *numbers(0), 0.5)
    with pytest.raises(ValueError, match="'score'. There are: velocity, noise, v, data"):
        target(RECTIFIED, "score", *numbers(0), 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        VariancePreserving((0.1, 1.0))


# ---- rules


@each_path
@pytest.mark.parametrize("rule", NOISELESS, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("t, t_next", [(0.902, 0.802), (0.102, 0.001)])
def test_without_noise_every_rule_is_the_noiseless_one_to_the_last_bit(path, rule, t, t_next):
    x, output = numbers(2)
    given = (x, output, t, t_next, 0.9, path, "velocity" if path is RECTIFIED else "noise")
    mean, std = jax.jit(rule.transition, static_argnums=(5, 6))(*given)
    wanted, _ = jax.jit(ODE().transition, static_argnums=(5, 6))(*given)
    np.testing.assert_array_equal(mean, wanted)
    assert std == 0
    (alpha, sigma), (alpha_next, sigma_next) = by_hand(path, t), by_hand(path, t_next)
    data, noise = (x - t * output, x + (1 - t) * output) if path is RECTIFIED else ((x - sigma * output) / alpha, output)
    np.testing.assert_allclose(wanted, alpha_next * data + sigma_next * noise, atol=1e-5)


@each_path
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_replaces_noise_by_fresh_noise(path, eta):
    x, output = numbers(3)
    t, t_next = 0.602, 0.502
    (alpha, sigma), (alpha_next, sigma_next) = by_hand(path, t), by_hand(path, t_next)
    mean, std = DDIM(eta=eta).transition(x, output, t, t_next, 0.9, path, "noise")
    wanted = eta * sigma_next / sigma * np.sqrt(sigma**2 - (alpha * sigma_next / alpha_next) ** 2)
    np.testing.assert_allclose(std, wanted, rtol=1e-5)
    data = (x - sigma * output) / alpha
    np.testing.assert_allclose(mean, alpha_next * data + np.sqrt(sigma_next**2 - wanted**2) * output, atol=1e-5)


def end(path, rule: StepRule, times, data_mean, data_std):
    """Mean and variance that a perfect network's samples end with, exactly, for Gaussian data in one dimension.

    x_t is N(alpha m, alpha^2 s^2 + sigma^2), and the perfect estimate E[data | x_t] is linear in x_t.  So is a transition,
    x' = A x + b + std eps; A and b are read off the rule at x = 0 and x = 1.  It starts as the path's own marginal.
    """
    x = jnp.asarray([[[0.0]], [[1.0]]])

    @jax.jit
    def sample(times, moments):
        def move(moments, pair):
            t, t_next = pair
            alpha, sigma = path.coefficients(t)
            slope = alpha * data_std**2 / (alpha**2 * data_std**2 + sigma**2)
            data = data_mean + slope * (x - alpha * data_mean)
            mean, std = rule.transition(x, data, t, t_next, times[1], path, "data")
            A, b = (mean[1] - mean[0])[0, 0], mean[0, 0, 0]
            return (A * moments[0] + b, A**2 * moments[1] + std**2), None

        return jax.lax.scan(move, moments, (times[:-1], times[1:]))[0]

    alpha, sigma = by_hand(path, float(times[0]))
    start = (jnp.float32(alpha * data_mean), jnp.float32(alpha**2 * data_std**2 + sigma**2))
    return [float(z) for z in sample(jnp.asarray(times), start)]


@pytest.mark.parametrize(
    "rule",
    [ODE(), DDIM(eta=0.5), DDIM(eta=1.0), CPS(noise_level=0.05), FlowSDE(noise_level=0.8), DanceSDE(noise_level=0.3)],
    ids=lambda rule: type(rule).__name__,
)
@pytest.mark.parametrize("data_mean, data_std", [(1.5, 0.5), (-0.5, 1.2)])
@each_path
def test_many_steps_end_in_the_data(path, rule, data_mean, data_std):
    """A rule whose noise does not shrink with the step, CPS, ends near it only for little noise."""
    times = timesteps(1000, 3.0) if path is RECTIFIED else np.arange(1000, -1, -1, dtype=np.float32) / np.float32(1000)
    mean, variance = end(path, rule, times, data_mean, data_std)
    near = 0.1 if isinstance(rule, CPS) else 0.01
    assert abs(mean - data_mean) < near * max(1, abs(data_mean))
    assert abs(variance - data_std**2) < 2 * near * data_std**2


# ---- schedules


def test_times_of_a_diffusion():
    np.testing.assert_allclose(diffusion_times(5, 20, offset=1), np.array([18, 14, 10, 6, 2, 1]) / 20)
    np.testing.assert_allclose(diffusion_times(5, 20, offset=0, to_data=True), np.array([17, 13, 9, 5, 1, 0]) / 20)
    np.testing.assert_allclose(diffusion_times(5, 20, "trailing", to_data=True), np.array([20, 16, 12, 8, 4, 0]) / 20)
    np.testing.assert_allclose(diffusion_times(4, 4, "trailing"), np.array([4, 3, 2, 1, 1]) / 4)
    np.testing.assert_allclose(diffusion_times(6, 20, offset=1), np.array([17, 14, 11, 8, 5, 2, 1]) / 20)  # 20 // 6 = 3
    thirty = diffusion_times(30, 1000) * 1000
    np.testing.assert_allclose(thirty[:-1] - 1, [*range(958, 0, -33)], atol=1e-3)
    for steps, spacing, offset, words in (
        (3, "trailing", 0, "must divide the 20 steps .* use 2 or 4"),
        (0, "leading", 0, "from 1 to the 20 steps"),
        (21, "leading", 0, "from 1 to the 20 steps"),
        (5, "leading", 4, "below 20 // 5 = 4"),
    ):
        with pytest.raises(ValueError, match=words):
            diffusion_times(steps, 20, spacing, offset=offset)


def test_fluxs_schedules(fixtures, assert_close):
    found = dict(np.load(fixtures / "flux" / "schedule.npz"))
    settings = json.loads((fixtures / "flux" / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    ends = [(settings[f"{which}_image_seq_len"], settings[f"{which}_shift"]) for which in ("base", "max")]
    names = [name.removesuffix("_mu") for name in found if name.endswith("_mu")]
    assert names
    for name in names:
        steps, tokens = (int(part.strip("stepq")) for part in name.split("_"))
        shift = resolution_shift(tokens, *ends)
        np.testing.assert_allclose(np.log(shift), found[f"{name}_mu"], rtol=1e-6)
        assert_close(timesteps(steps, shift), found[f"{name}_sigmas"], name=name)


# ---- the public programs


def test_dance_grpos_transitions_of_flux(fixtures, assert_close):
    found = dict(np.load(fixtures / "flux" / "dance.npz"))
    times, rule = timesteps(len(found["v"]), float(found["shift"])), DanceSDE(noise_level=float(found["eta"]))
    assert_close(times, found["sigmas"])
    for i, v in enumerate(found["v"]):
        mean, std = rule.transition(found["x"][i], v, times[i], times[i + 1], times[1])
        assert_close(mean, found["mean"][i], name=f"mean {i}")
        assert_close(std, found["std"][i], name=f"std {i}")
        log_prob = rule.log_prob(found["x"][i + 1], found["mean"][i], std)
        np.testing.assert_allclose(log_prob, found["log_prob"][i], atol=1e-3)


def test_ddim_of_stable_diffusion(fixtures, assert_close):
    """Table, times, means, deviations and log-probabilities, from the recorded states and predictions of the noise."""
    found = dict(np.load(fixtures / "sd" / "ddim.npz"))
    settings = json.loads((fixtures / "sd" / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    count = settings["num_train_timesteps"]
    path = scaled_linear(settings["beta_start"], settings["beta_end"], count)
    alpha, _ = path.coefficients(np.arange(1, count + 1) / np.float32(count))
    assert_close(alpha**2, found["alphas_cumprod"])
    steps, checked = len(found["timesteps"]), 0
    for to_data, kind in ((False, "a1F"), (True, "a1T")):
        times = diffusion_times(steps, count, settings["timestep_spacing"], settings["steps_offset"], to_data)
        np.testing.assert_array_equal(np.round(times[:-1] * count).astype(int) - 1, found["timesteps"])
        assert_close(path.coefficients(times[:-1])[0] ** 2, found[f"{kind}_alpha_t"])
        assert_close(path.coefficients(times[1:])[0] ** 2, found[f"{kind}_alpha_prev"])
        for run, _, eta, _ in (run for run in runs(found) if run.to_data == to_data and run.eta):
            rule = DDIM(eta=eta)
            states = np.concatenate([found["init_latents"][None], found[f"{run}_latents"]])
            for i in range(steps):
                t, t_next = times[i], times[i + 1]
                if f"{run}_eps" in found:
                    mean, std = rule.transition(states[i], found[f"{run}_eps"][i], t, t_next, t, path, "noise")
                    assert_close(mean, found[f"{run}_mean"][i], name=f"{run} mean {i}")
                    checked += 1
                _, std = rule.transition(states[i], states[i], t, t_next, t, path, "noise")
                np.testing.assert_allclose(std, found[f"{run}_std"][i], rtol=1e-4, atol=1e-7)
                if i < len(found[f"{run}_log_prob"]):
                    log_prob = rule.log_prob(states[i + 1], found[f"{run}_mean"][i], std)
                    np.testing.assert_allclose(log_prob, found[f"{run}_log_prob"][i], atol=1e-3)
    assert checked
