"""The leash beside the window: the velocity MSE at states made of a drawing's own clean latent, at `leash_times`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sft import settings
from tests import oracle, tiny
from unigrpo_jax.config import LearningConfig, RolloutConfig, RunConfig
from unigrpo_jax.config_checks import check
from unigrpo_jax.episode import Drawing
from unigrpo_jax.models import tree
from unigrpo_jax.models.paths import scaled_linear
from unigrpo_jax.models.schedule import diffusion_times

TIMES, WEIGHT = (0.25, 0.5625, 0.9), 0.7
START = tiny.params()
TRAINED, REFERENCE = tiny.nearby(START, 0.02), tiny.nearby(START, 0.03, seed=8)


@functools.cache
def compiled():
    """(params, reference, episodes, moved) -> ((loss, metrics), gradients) of the leash alone."""
    alone = {"text_weight": 0.0, "flow_weight": 0.0, "mse_weight": 0.0}
    objective = tiny.objective(leash_times=TIMES, leash_weight=WEIGHT, **alone)

    def run(params, reference, episodes, moved):
        anchors = objective.anchors(START, reference, episodes, own_start=True)
        return jax.value_and_grad(objective, has_aux=True)(params, episodes, anchors, tiny.advantages(), True, moved)

    return tiny.jit(run)


def leash(params) -> float:
    """The mean squared error at TIMES by the float64 oracle; the three times take the window's two noises in turn."""
    latents, found = np.asarray(tiny.episodes().drawing.latent, np.float64), []
    reference = oracle.to64(REFERENCE)
    for row in range(tiny.EPISODES):
        e = oracle.episode(tiny.episodes(), row)
        for t, slot in zip(TIMES, (0, 1, 0), strict=True):
            x = (1 - t) * latents[row] + t * e.noise[slot]
            own, held = (oracle.forward(p, e.prompt + e.thought(), x, t)[1] for p in (params, reference))
            found.append(np.mean((own - held) ** 2))
    return float(np.mean(found))


def test_the_loss_and_its_gradient_are_those_of_the_formula():
    (loss, metrics), grads = compiled()(TRAINED, REFERENCE, tiny.episodes(), True)
    exact = leash(oracle.to64(TRAINED))
    np.testing.assert_allclose(metrics["flow/leash_mse"], exact, rtol=1e-4)
    np.testing.assert_allclose(loss, WEIGHT * exact, rtol=1e-4)
    rng, flat, step = np.random.default_rng(3), tree.flatten(oracle.to64(TRAINED)), 1e-5
    direction = {path: rng.standard_normal(x.shape) for path, x in flat.items()}
    norm = np.sqrt(sum(np.sum(x**2) for x in direction.values()))
    moved = lambda h: leash(tree.unflatten({path: x + h / norm * direction[path] for path, x in flat.items()}))
    slope = WEIGHT * (moved(step) - moved(-step)) / (2 * step)
    found = sum(np.sum(np.asarray(g, np.float64) * direction[path]) for path, g in tree.flatten(grads).items()) / norm
    assert abs(slope) > 1e-5
    np.testing.assert_allclose(found, slope, rtol=1e-3, atol=1e-7)


def test_weights_that_have_not_moved_are_pulled_nowhere():
    (loss, metrics), grads = compiled()(START, START, tiny.episodes(), False)
    assert float(loss) == float(metrics["flow/leash_mse"]) == 0
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_a_blank_episode_counts_with_nothing():
    drawing = tiny.episodes().drawing
    ill = drawing.replace(finite=drawing.finite.at[3].set(False), latent=drawing.latent.at[3].set(1e3))
    (_, found), _ = compiled()(TRAINED, REFERENCE, tiny.episodes().replace(segments=(tiny.episodes().thinking, ill)), True)
    (_, whole), _ = compiled()(TRAINED, REFERENCE, tiny.episodes(), True)
    assert 0 < float(found["flow/leash_mse"]) < float(whole["flow/leash_mse"])


def test_a_state_of_the_window_gives_what_the_window_gives():
    """Windows made of the clean latents at the first times: there the two errors are of the same states."""
    batch = tiny.episodes()
    times, drawing = tiny.policy().flow.times(), batch.drawing
    steps = jnp.broadcast_to(jnp.array([1, 3]), drawing.steps.shape)
    t = times[steps][:, :, None, None]
    x = (1 - t) * drawing.latent[:, None] + t * drawing.noise
    same = batch.replace(segments=(batch.thinking, drawing.replace(steps=steps, x=x)))
    policy = dataclasses.replace(tiny.policy(), leash_times=tuple(np.asarray(times)[[1, 3]].tolist()))
    seen = tiny.jit(policy.view)(TRAINED, same)[-1]
    np.testing.assert_allclose(seen.leash, seen.output, atol=2e-6)
    assert seen.mean.shape == seen.output.shape == drawing.x.shape


def test_on_a_diffusion_the_states_lie_on_its_path():
    path = scaled_linear(0.00085, 0.012, 1000)
    flow = dataclasses.replace(
        tiny.policy().flow, path=path, prediction="noise", schedule=tuple(diffusion_times(5, 1000).tolist())
    )
    policy = dataclasses.replace(tiny.policy(), flow=flow, leash_times=(0.3, 1.0))
    rng = np.random.default_rng(0)
    latent, noise = {"a": rng.standard_normal((2, 3, 4))}, {"a": rng.standard_normal((2, 1, 3, 4))}
    drawing = Drawing(steps=jnp.zeros((2, 1), jnp.int32), x=noise, noise=noise, mean=noise, latent=latent, media={},
                      finite=jnp.ones(2, bool))  # fmt: skip
    x, t = policy._evaluated(drawing, jnp.full((2, 1), 0.8))
    np.testing.assert_allclose(t, [[0.8, 0.3, 1.0]] * 2)
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    for slot, step in ((1, 300), (2, 1000)):
        by_hand = kept[step - 1] ** 0.5 * latent["a"] + (1 - kept[step - 1]) ** 0.5 * noise["a"][:, 0]
        np.testing.assert_allclose(x["a"][:, slot], by_hand, atol=1e-5)
    np.testing.assert_array_equal(x["a"][:, 0], noise["a"][:, 0].astype(np.float32))


@pytest.mark.parametrize(
    "learning, words",
    [
        ({"leash_times": (0.5, 0.0)}, "learning.leash_times = 0.5 0, but each must be above 0"),
        ({"leash_times": (1.5,)}, "and at most 1, the noise"),
        ({"leash_times": (0.5,), "reference": "none", "mse_weight": 0.0}, "'none' keeps none; use 'device' or 'host'"),
        ({"leash_times": (0.5,), "method": "best_of_n", "best": 1}, "learning.method = 'best_of_n' does not"),
        ({"leash_weight": -1.0}, "learning.leash_weight = -1.0, but it must be 0 or more"),
        ({"leash_weight": 0.5}, "learning.leash_weight = 0.5 weighs the MSEs at learning.leash_times, and these name none"),
    ],
)
def test_what_holds_nothing_is_refused(learning, words):
    with pytest.raises(Exception, match=words.replace(".", r"\.")) as caught:
        check(RunConfig(rollout=RolloutConfig(), learning=LearningConfig(**learning)))
    assert type(caught.value).__name__ == "ConfigError"


@pytest.mark.parametrize("learning", [{}, {"leash_weight": 0.0}, {"leash_weight": 0.5, "leash_times": (0.5,)}])
def test_a_weight_that_says_nothing_or_weighs_something_passes(learning):
    check(RunConfig(learning=LearningConfig(**learning)))


def test_supervised_training_of_a_preset_that_is_held_is_held_by_nothing():
    held = LearningConfig(leash_weight=0.5, leash_times=(0.5,))
    check(dataclasses.replace(settings(RunConfig(learning=held)), data="examples.jsonl"))
