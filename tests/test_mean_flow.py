"""MeanFlow: the target by central differences in float64, the loss by hand, and a student of a mixture of Gaussians."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import distilling, tiny
from unigrpo_jax.config import DistillationConfig, LearningConfig
from unigrpo_jax.learning.mean_flow import MeanFlow, averaged, with_errors
from unigrpo_jax.learning.update import new_state
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.rollout import randomness

B, W, N, C = 3, 4, 2, 2
RNG = np.random.default_rng(0)
WAY = RNG.normal(size=(C, C))


def average(x, t, s):
    """A smooth u [B, N, C] of each argument, for jax and for numpy in float64."""
    t, s = t[:, None, None], s[:, None, None]
    np_or_jnp = jnp if isinstance(x, jax.Array) else np
    return np_or_jnp.sin(x @ WAY.astype(x.dtype) + 2 * t) + s * t**2 * x


def test_the_target_is_that_of_central_differences_in_float64():
    """v - (t - s) du/dt, along (v, 1, 0), step by step by hand."""
    x, v = RNG.normal(size=(2, B, N, C))
    t, s = np.array([0.9, 0.5, 0.7]), np.array([0.1, 0.45, 0.0])
    h = 1e-5
    slope = (average(x + h * v, t + h, s) - average(x - h * v, t - h, s)) / (2 * h)
    single = lambda *arrays: (jnp.asarray(a, jnp.float32) for a in arrays)
    u, target = averaged(average, *single(x, t, s, v))
    np.testing.assert_allclose(u, average(x, t, s), atol=1e-5)
    np.testing.assert_allclose(target, v - (t - s)[:, None, None] * slope, atol=1e-4)
    assert np.abs(np.asarray(target) - v).max() > 0.1  # the derivative counts


def test_where_both_times_are_one_the_target_is_the_velocity_itself():
    x, v = (jnp.asarray(a, jnp.float32) for a in RNG.normal(size=(2, B, N, C)))
    t = jnp.asarray([0.9, 0.5, 0.1])
    assert np.asarray(averaged(average, x, t, t, v)[1]).tobytes() == np.asarray(v).tobytes()


@dataclasses.dataclass(frozen=True)
class Halves(distilling.Plane):
    """Two modalities with a velocity each, upon a condition of one number."""

    def predict(self, params, x, t_B, grid, condition, to_B=None):
        t = t_B[:, None, None]
        to = t if to_B is None else to_B[:, None, None]
        sign = {"audio": 1.0, "video": -1.0}
        return {name: params["w"] * jnp.sin(own) + condition[:, :, None] * t + sign[name] * (t - to) * own
                for name, own in x.items()}  # fmt: skip


W_STUDENT, W_TEACHER, TEXT = 0.7, 1.3, np.array([[0.3], [-0.2], [0.5]])
SETTINGS = DistillationConfig(weight_power=0.5, weight_floor=0.02, equal_share=0.5)
WEIGHTS = {"audio": 2.0}


def halves(window_steps: str = "batched") -> MeanFlow:
    config = LearningConfig(method="mean_flow", distillation=SETTINGS, flow_weight=0.6, modality_weights=WEIGHTS)
    own = dataclasses.replace(distilling.policy(distilling.sampler(4), Halves()), window_steps=window_steps)
    guided = dataclasses.replace(own.flow, guidance=Guidance(text=2.5, interval=(0.0, 0.6), renorm="none"))
    return MeanFlow(student=own, teacher=dataclasses.replace(own, flow=guided), config=config, versions=W)


LATENT = {"audio": RNG.normal(size=(B, 2, 3)).astype(np.float32), "video": RNG.normal(size=(B, 5, 1)).astype(np.float32)}
KEYS = randomness.sample_keys(jax.random.key(5), jnp.arange(B))


def batch():
    drawn = dataclasses.replace(distilling.drawing(LATENT["audio"]), latent=LATENT, finite=jnp.array([True, False, True]))
    return dataclasses.replace(distilling.episodes(drawn), prompt=jnp.asarray(TEXT, jnp.float32))


@functools.cache
def found(window_steps: str = "batched"):
    loss = lambda w: halves(window_steps)({"w": w}, {"w": jnp.float32(W_TEACHER)}, batch(), KEYS)
    return tiny.jit(jax.value_and_grad(loss, has_aux=True))(jnp.float32(W_STUDENT))


def drawn_numbers():
    """Times and noises as they were drawn, float64."""
    t, s = halves().times(jax.vmap(jax.random.fold_in, (0, None))(KEYS, 1))
    like = jax.tree.map(lambda x: np.zeros((B, W, *x.shape[1:]), np.float32), LATENT)
    noise = randomness.normal_like(KEYS, 0, like)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), (t, s, noise))


def by_hand(w: float, targets_of: float = W_STUDENT):
    """The loss with weights and targets of `targets_of` and u of w: what the gradient is of."""
    t, s, noise = drawn_numbers()
    total, errors = 0.0, {}
    for name, sign in (("audio", 1.0), ("video", -1.0)):
        losses = np.zeros((B, W))
        errors[name] = np.zeros((B, W))
        for b in (0, 2):
            for k in range(W):
                tt, ss, e = t[b, k], s[b, k], noise[name][b, k]
                x = (1 - tt) * LATENT[name][b].astype(np.float64) + tt * e
                v = W_TEACHER * np.sin(x) + TEXT[b, 0] * tt
                if tt <= 0.6:
                    without = W_TEACHER * np.sin(x)
                    v = without + 2.5 * (v - without)
                u = lambda w, x=x, tt=tt, ss=ss, b=b, sign=sign: w * np.sin(x) + TEXT[b, 0] * tt + sign * (tt - ss) * x
                slope = targets_of * np.cos(x) * v + TEXT[b, 0] + sign * x + sign * (tt - ss) * v
                target = v - (tt - ss) * slope
                scale = (np.mean((u(targets_of) - target) ** 2) + 0.02) ** 0.5
                errors[name][b, k] = np.mean((u(w) - target) ** 2)
                losses[b, k] = errors[name][b, k] / scale
        total += WEIGHTS.get(name, 1.0) * losses.mean()
    return 0.6 * total, errors, t == s


def test_the_loss_by_hand():
    """Guidance inside its interval alone, a weight of each state and modality, and nothing of an episode that is blank."""
    (loss, metrics), _ = found()
    metrics = with_errors(metrics)
    expected, errors, equal = by_hand(W_STUDENT)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    known = np.array([True, False, True])[:, None]
    assert 0 < equal[[0, 2]].mean() < 1
    for name in LATENT:
        np.testing.assert_allclose(metrics[f"flow_{name}/velocity_error"], errors[name][equal & known].mean(), rtol=1e-4)
        np.testing.assert_allclose(metrics[f"flow_{name}/average_error"], errors[name][~equal & known].mean(), rtol=1e-4)


def test_the_gradient_is_that_of_u_alone():
    """Central differences of the loss whose targets and weights stay; the other way through the target is not taken."""
    h = 1e-5
    expected = (by_hand(W_STUDENT + h)[0] - by_hand(W_STUDENT - h)[0]) / (2 * h)
    np.testing.assert_allclose(found()[1], expected, rtol=1e-3)


def test_states_one_after_the_other_are_learned_as_together():
    np.testing.assert_allclose(found("scanned")[0][0], found()[0][0], rtol=1e-5)
    np.testing.assert_allclose(found("scanned")[1], found()[1], rtol=1e-4)


def test_micro_batches_change_nothing_that_is_measured():
    """Pieces of two states, with as many of each kind as it happens."""
    episodes, measured = distilling.episodes(distilling.drawing(jnp.asarray(RNG.normal(size=(8, 1, 2)), jnp.float32))), []
    student = distilling.fresh() | {"out": RNG.normal(size=(distilling.HIDDEN, 2)).astype(np.float32)}
    for micro in (1, 4):
        config = dataclasses.replace(distilling.settings("mean_flow", equal_share=0.5), micro_batches=micro)
        state = new_state(jax.tree.map(jnp.asarray, student), config, distilling.Plane.trained_by)
        measured.append(tiny.jit(distilling.program(config).__call__)(state, {}, {}, episodes, None)[1])
    assert measured[0].keys() == measured[1].keys() >= {"flow/velocity_error", "flow/average_error", "flow/loss"}
    for name, value in measured[0].items():
        np.testing.assert_allclose(measured[1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_times_are_a_sorted_pair_and_equal_as_often_as_asked(share):
    config = LearningConfig(distillation=DistillationConfig(equal_share=share, time_mean=0.3, time_std=0.5))
    objective = dataclasses.replace(halves(), config=config, versions=8)
    t, s = (np.asarray(x) for x in objective.times(randomness.sample_keys(jax.random.key(0), jnp.arange(4000))))
    assert ((s <= t) & (t < 1) & (s > 0)).all()
    assert abs((t == s).mean() - share) < 0.02
    if share == 0.0:
        logits = np.sort(np.log(np.stack([t, s]) / (1 - np.stack([t, s]))).ravel())
        assert abs(logits.mean() - 0.3) < 0.02 and abs(logits.std() - 0.5) < 0.02
        assert len(np.unique(t)) > 0.99 * t.size  # none is shared by design


def test_a_student_draws_in_one_step_nearly_as_its_teacher_in_many():
    """Sliced Wasserstein distance to samples of 64 steps, whose own distance to others of them is 0.04."""
    real = distilling.sampled({}, jax.random.key(1), distilling.sampler(64), 4096).latent
    distance = lambda params, steps: distilling.sliced_wasserstein(
        real[:, 0], distilling.jumped(params, jax.random.key(3), steps, 4096)
    )
    config = distilling.settings("mean_flow", equal_share=0.25, time_mean=0.0, time_std=1.6)
    update, state = tiny.jit(distilling.program(config).__call__), distilling.start(config)
    assert distance(state.trained, 1) > 1.2 and distance(state.trained, 2) > 0.4
    for i in range(200):
        rows = (np.arange(256) + i * 256) % 4096
        state, metrics = update(state, {}, {}, distilling.episodes(distilling.drawing(real[rows])), None)
    assert metrics["update/skipped"] == 0
    assert distance(state.trained, 1) < 0.6 and distance(state.trained, 2) < 0.3
