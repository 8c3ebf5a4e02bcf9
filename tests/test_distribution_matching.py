"""Distribution matching: both losses and their gradients by hand in float64, and a student of a mixture of Gaussians."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import distilling, tiny
from unigrpo_jax.config import DistillationConfig, LearningConfig
from unigrpo_jax.learning.distribution_matching import SMALLEST, DistributionMatching, matched
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.paths import RECTIFIED, scaled_linear
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.step_rules import CPS

RNG = np.random.default_rng(0)
B, K = 4, 3
SHAPES = {"audio": (2, 3), "video": (5, 1)}
LATENT = {name: RNG.normal(size=(B, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
STATES = {name: RNG.normal(size=(B, K, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
TEXT = RNG.normal(size=(B, 1)).astype(np.float32)
FINITE = np.array([True, True, False, True])
KEYS = randomness.sample_keys(jax.random.key(5), jnp.arange(B))
STUDENT, FAKE, TEACHER = 0.7, 0.9, 1.3
WEIGHTS, FLOW_WEIGHT, GUIDED = {"audio": 2.0}, 0.6, Guidance(text=2.5, interval=(0.3, 1.0), renorm="none")
PATHS = {"velocity": (RECTIFIED, (1.0, 0.75, 0.5, 0.0)), "noise": (scaled_linear(0.01, 0.3, 20), (1.0, 0.75, 0.5, 0.05))}


@dataclasses.dataclass(frozen=True)
class Halves(distilling.Plane):
    """An output for each modality, upon a condition of one number."""

    def predict(self, params, x, t_B, grid, condition, to_B=None):
        t, gap = t_B[:, None, None], 0.0 if to_B is None else (t_B - to_B)[:, None, None]
        return {name: params["w"] * jnp.sin(own) + condition[:, :, None] * t + 0.1 * gap for name, own in x.items()}


@dataclasses.dataclass(frozen=True)
class Noises(Halves):
    """The same on a diffusion."""

    path, prediction = PATHS["noise"][0], "noise"


def halves(kind: str, two_times: bool = False) -> DistributionMatching:
    path, schedule = PATHS[kind]
    config = LearningConfig(method="dmd2", flow_weight=FLOW_WEIGHT, modality_weights=WEIGHTS,
                            distillation=DistillationConfig(noise_range=(0.1, 0.9), steps=(K,)))  # fmt: skip
    model = (Halves if kind == "velocity" else Noises)(two_times=two_times)
    flow = dataclasses.replace(distilling.sampler(K), schedule=schedule, path=path, prediction=kind)
    own = distilling.policy(flow, model)
    teacher = dataclasses.replace(own, flow=dataclasses.replace(flow, guidance=GUIDED))
    return DistributionMatching(student=own, teacher=teacher, config=config, shift=3.0)


def batch():
    states, steps = jax.tree.map(jnp.asarray, STATES), jnp.tile(jnp.arange(K), (B, 1))
    drawn = distilling.drawing(LATENT["audio"]).replace(latent=LATENT, x=states, steps=steps, finite=jnp.asarray(FINITE))
    return distilling.episodes(drawn).replace(prompt=jnp.asarray(TEXT))


def coefficients(kind: str, t: float) -> tuple[float, float]:
    if kind == "velocity":
        return 1 - t, t
    kept = np.concatenate([[1.0], np.cumprod(1 - np.linspace(0.01**0.5, 0.3**0.5, 20) ** 2)])[round(t * 20)]
    return np.sqrt(kept), np.sqrt(1 - kept)


def data(kind: str, x, output, t: float):
    alpha, sigma = coefficients(kind, t)
    return x - sigma * output if kind == "velocity" else (x - sigma * output) / alpha


@functools.cache
def numbers(kind: str):
    """The chosen states, levels and noises as they were drawn."""
    use = lambda number: jax.vmap(jax.random.fold_in, (0, None))(KEYS, number)
    step = [int(jax.random.randint(key, (), 0, K)) for key in use(1)]
    level = np.asarray(halves(kind).levels(use(2)), np.float64)
    noise = randomness.normal_like(KEYS, 3, LATENT)
    return step, level, jax.tree.map(lambda x: np.asarray(x, np.float64), noise)


def by_hand(kind: str, gap: float = 0.0):
    """The student's loss, its gradient by w, and the fake score's loss at w = FAKE, as sums over samples in float64."""
    step, level, noise = numbers(kind)
    schedule, student, slope = PATHS[kind][1], 0.0, 0.0
    found = {name: np.zeros(B) for name in SHAPES}
    errors = []
    for name in SHAPES:
        for b in np.flatnonzero(FINITE):
            t, s, eps = schedule[step[b]], level[b], noise[name][b]
            x, c = STATES[name][b, step[b]].astype(np.float64), float(TEXT[b, 0])
            x_g = data(kind, x, STUDENT * np.sin(x) + c * t + 0.1 * gap * t, t)
            alpha, sigma = coefficients(kind, s)
            x_s = alpha * x_g + sigma * eps
            without, upon = TEACHER * np.sin(x_s), TEACHER * np.sin(x_s) + c * s
            x_r = data(kind, x_s, without + 2.5 * (upon - without) if s > 0.3 else upon, s)
            said = FAKE * np.sin(x_s) + c * s
            x_f = data(kind, x_s, said, s)
            g = (x_f - x_r) / max(np.mean(np.abs(x_g - x_r)), SMALLEST)
            found[name][b] = 0.5 * np.mean(g**2)
            h = 1e-6
            moved = data(kind, x, (STUDENT + h) * np.sin(x) + c * t + 0.1 * gap * t, t)
            weight = FLOW_WEIGHT * WEIGHTS.get(name, 1.0) / B
            student += weight * found[name][b]
            slope += weight * np.mean(g * (moved - x_g) / h)
            wanted = eps - x_g if kind == "velocity" else eps
            errors.append(WEIGHTS.get(name, 1.0) * np.mean((said - wanted) ** 2) / B)
    return student, slope, sum(errors)


@functools.cache
def found(kind: str, two_times: bool = False):
    objective, nested = halves(kind, two_times), lambda w: {"w": jnp.float32(w)}
    loss = lambda w: objective({"w": w}, nested(FAKE), nested(TEACHER), batch(), KEYS)
    fake = lambda w: objective.fake_loss({"w": w}, nested(STUDENT), batch(), KEYS)
    both = lambda own, other: (jax.value_and_grad(loss, has_aux=True)(own), jax.value_and_grad(fake, has_aux=True)(other))
    return tiny.jit(both)(jnp.float32(STUDENT), jnp.float32(FAKE))


@pytest.mark.parametrize("kind", PATHS)
def test_the_losses_and_the_gradient_by_hand(kind):
    """Guidance inside its interval alone, a Z of each sample and modality, and nothing of an episode that is blank."""
    ((loss, _), slope), ((fake, _), _) = found(kind)
    expected = by_hand(kind)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-4)
    np.testing.assert_allclose(slope, expected[1], rtol=1e-3)
    np.testing.assert_allclose(fake, expected[2], rtol=1e-4)


def test_a_student_of_two_times_is_asked_for_the_whole_way():
    ((loss, _), slope), _ = found("velocity", True)
    expected = by_hand("velocity", gap=1.0)
    np.testing.assert_allclose([loss, slope], expected[:2], rtol=1e-3)
    assert abs(loss - by_hand("velocity")[0]) > 1e-3 * abs(loss)


def test_the_fake_score_learns_to_draw_what_the_student_does():
    """Along its own parameter alone: the other way, through what the student drew, is not taken."""
    objective = halves("velocity")
    loss = lambda w: objective.fake_loss({"w": jnp.float32(FAKE)}, {"w": w}, batch(), KEYS)[0]
    assert tiny.jit(jax.grad(loss))(jnp.float32(STUDENT)) == 0 and abs(found("velocity")[1][1]) > 0.01


def test_the_gradient_is_exactly_0_where_fake_and_teacher_agree():
    x_g, x_r = (jnp.asarray(a, jnp.float32) for a in RNG.normal(size=(2, B, 5, 2)))
    gradient = tiny.jit(jax.grad(lambda x, fake: jnp.sum(matched(x, x_r, fake)[0])))
    assert not np.any(gradient(x_g, x_r)) and np.any(gradient(x_g, x_r + 1e-3))


def test_a_sample_whose_drawing_is_the_teachers_own_has_a_finite_gradient():
    x = jnp.ones((1, 3, 2))
    gradient = jax.grad(lambda x_g: jnp.sum(matched(x_g, x, x + 1e-4)[0]))(x)
    np.testing.assert_allclose(gradient, np.full((1, 3, 2), 1e-4 / SMALLEST / 6), rtol=1e-2)


def test_levels_are_uniform_before_the_schedules_shift():
    """t = 3 u / (1 + 2 u), u uniform in the range."""
    t = np.asarray(halves("velocity").levels(randomness.sample_keys(jax.random.key(1), jnp.arange(4000))), np.float64)
    u = np.sort(t / (3 - 2 * t))
    np.testing.assert_allclose(u, np.linspace(0.1, 0.9, 4000), atol=0.03)
    t = np.asarray(halves("noise").levels(randomness.sample_keys(jax.random.key(1), jnp.arange(500)))) * 20
    np.testing.assert_allclose(t, np.round(t), atol=1e-4)


def test_a_student_draws_in_one_step_nearly_as_its_teacher_in_many():
    """Sliced Wasserstein distance to samples of 64 steps, whose own distance to others of them is 0.04."""
    real = distilling.sampled({}, jax.random.key(1), distilling.sampler(64), 4096).latent[:, 0]
    flow, model = distilling.sampler(1, CPS(noise_level=1.0)), distilling.Plane(two_times=False)
    config = distilling.settings("dmd2", fake_lr=3e-3, steps=(1,))
    drawn = lambda params, key, batch: distilling.sampled(params, jax.random.key(key), flow, batch)
    distance = lambda params: distilling.sliced_wasserstein(real, drawn(params, 3, 4096).latent[:, 0])
    update = tiny.jit(distilling.program(dataclasses.replace(config, denoising_lr=1e-3), flow, model=model).__call__)
    state = distilling.start(config)
    assert distance(state.trained) > 1.2
    for i in range(150):
        state, metrics = update(state, {}, {}, distilling.episodes(drawn(state.trained, 10 + i, 256)), None)
    assert metrics["update/skipped"] == 0
    assert distance(state.trained) < 0.7
