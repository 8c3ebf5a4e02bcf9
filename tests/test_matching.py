"""A student that learns from rewards and is held to its teacher: its update by hand, and what the teacher keeps of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import distilling, tiny
from unigrpo_jax.config import ConfigError, DistillationConfig, LearningConfig, RunConfig
from unigrpo_jax.config_checks import check
from unigrpo_jax.learning.distribution_matching import DistributionMatching
from unigrpo_jax.learning.fake_score import Matching
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import denoise
from unigrpo_jax.rollout.step_rules import CPS

STEPS, WINDOW = 3, 2  # the last transition has no noise
FLOW = distilling.sampler(STEPS, CPS(noise_level=0.9))
TEACHER = DistillationConfig(teacher="the teacher", fake_lr=1e-3, fake_steps=2)
HELD = LearningConfig(matching_weight=0.3, mse_weight=0.0, denoising_lr=1e-3, flow_clip=0.2, distillation=TEACHER)


def of(learning=None, **changes) -> LearningConfig:
    taught = dataclasses.replace(TEACHER, **changes.pop("d", {}))
    return dataclasses.replace(learning or HELD, distillation=taught, **changes)


def matching(config: LearningConfig) -> Matching:
    own = distilling.policy(FLOW)
    teacher = dataclasses.replace(own, model=dataclasses.replace(own.model, two_times=False))
    whole = dataclasses.replace(config, flow_weight=1.0)
    return Matching(objective=DistributionMatching(student=own, teacher=teacher, config=whole, shift=1.0), seed=5)


def program(config: LearningConfig, objective=None) -> UpdateProgram:
    own = objective or Objective(policy=distilling.policy(FLOW), config=config)
    return UpdateProgram(objective=own, config=config, matching=matching(config) if config.matching_weight else None)


@functools.partial(jax.jit, static_argnums=2)
def drawn(params, key, batch: int):
    """Episodes of a student of two times."""
    keys, window = randomness.sample_keys(key, jnp.arange(batch)), jnp.arange(WINDOW)
    x = randomness.normal(keys, 99, (1, 2))
    latent, (states, noise, mean) = denoise(distilling.Plane(), params, jnp.zeros((batch, 1)), x, keys, window, FLOW)
    own = distilling.drawing(latent, states, jnp.broadcast_to(window, (batch, WINDOW)))
    return distilling.episodes(own.replace(noise=noise, mean=mean))


def moved(seed: int = 1) -> dict:
    """A student that is no longer its teacher."""
    out = 0.3 * np.random.default_rng(seed).standard_normal((distilling.HIDDEN, 2)).astype(np.float32)
    return jax.tree.map(jnp.asarray, distilling.fresh() | {"out": out})


def state_of(config: LearningConfig, params: dict, score: dict | None = None):
    """With a fake score that begins as the teacher, whose network says nothing."""
    score = jax.tree.map(jnp.asarray, distilling.fresh() if score is None else score)
    return new_state(params, config, distilling.Plane.trained_by, score)


@dataclasses.dataclass(frozen=True)
class Pull(Objective):
    """A loss whose gradient is known, in the place of the rewards' side: each parameter to 0.5."""

    def __call__(self, params, episodes, anchors, advantage_B, on_policy, moved=True):
        loss = sum(0.5 * jnp.sum((x - 0.5) ** 2) for x in jax.tree.leaves(params))
        return loss, {"loss": loss}


def test_the_step_is_that_of_both_losses_upon_the_fake_score_that_went_before():
    """An Adam whose epsilon is far above any gradient steps along it."""
    config = of(adam_eps=1e3, denoising_lr=1.0, max_grad_norm=1e9)
    params, held, advantages = moved(), matching(config), jnp.asarray([1.0, -1.0, 0.5, -0.5])
    pull = Pull(policy=distilling.policy(FLOW), config=config)
    episodes, state = drawn(params, jax.random.key(3), 4), state_of(config, params, moved(2))
    new, metrics = tiny.jit(program(config, pull).__call__)(state, {}, {}, episodes, advantages)
    keys = held.keys(0, 0)
    assert len(keys) == 1 + config.distillation.fake_steps
    loss = lambda p: held.objective(p, new.fake.trained, {}, episodes, randomness.sample_keys(keys[0], jnp.arange(4)))[0]
    value, slope = tiny.jit(jax.value_and_grad(loss))(params)
    assert max(np.abs(x).max() for x in slope.values()) > 1e-2
    for path, x in params.items():
        g = np.asarray(x, np.float64) - 0.5 + config.matching_weight * np.asarray(slope[path], np.float64)
        np.testing.assert_allclose((new.trained[path] - x) * -1e3, g, atol=2e-3 * max(np.abs(g).max(), 1), err_msg=path)
    np.testing.assert_allclose(metrics["matching/loss"], value, rtol=1e-4)
    assert all(np.any(np.asarray(x) != moved(2)[path]) for path, x in new.fake.trained.items())
    assert metrics["fake/loss"] > 0 and metrics["update/skipped"] == 0


def test_where_the_fake_score_is_the_teacher_nothing_holds():
    """Bit for bit the update without; where it has learned, another one."""
    params, advantages = moved(), jnp.asarray([1.0, -1.0, 0.5, -0.5])
    episodes, found = drawn(params, jax.random.key(3), 4), []
    for config in (of(d={"fake_lr": 0.0}), of(matching_weight=0.0), of(d={"fake_lr": 1e-2})):
        new, _ = tiny.jit(program(config).__call__)(state_of(config, params), {}, {}, episodes, advantages)
        found.append(np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(new.trained)]))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.any(found[0] != found[2])


def test_micro_batches_change_nothing():
    params, advantages = moved(), jnp.asarray([1.0, -1.0, 0.5, -0.5])
    episodes, found = drawn(params, jax.random.key(3), 4), []
    for micro in (1, 2):
        config = of(micro_batches=micro, adam_eps=1.0)
        new, _ = tiny.jit(program(config).__call__)(state_of(config, params), {}, {}, episodes, advantages)
        found.append(jax.tree.leaves((new.trained, new.fake.trained)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_the_teacher_keeps_what_a_reward_would_lose():
    """A reward for one of the teacher's five places: learned with and without, and with it the others are not given up."""
    real = distilling.sampled({}, jax.random.key(1), distilling.sampler(32), 2048).latent[:, 0]
    near = lambda x: -jnp.linalg.norm(x - jnp.asarray(distilling.MEANS[:1], jnp.float32), axis=1)
    rewards, distances = [], []
    for weight in (0.0, 0.3):
        config = of(matching_weight=weight, d={"fake_lr": 3e-3})
        state = state_of(config, jax.tree.map(jnp.asarray, distilling.fresh()))
        update = tiny.jit(program(config).__call__)
        for i in range(60):
            episodes = drawn(state.trained, jax.random.key(10 + i), 256)
            reward = near(episodes.drawing.latent[:, 0])
            state, _ = update(state, {}, {}, episodes, (reward - jnp.mean(reward)) / jnp.std(reward))
        latent = drawn(state.trained, jax.random.key(3), 2048).drawing.latent[:, 0]
        rewards.append(float(jnp.mean(near(latent))))
        distances.append(distilling.sliced_wasserstein(real, latent))
    assert near(real).mean() < -2 < -1.5 < min(rewards) and distances[1] < 0.7 * distances[0]


def refused(learning: LearningConfig, **rollout) -> str:
    config = RunConfig(learning=learning)
    with pytest.raises(ConfigError) as error:
        check(dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, **rollout)))
    return str(error.value)


@pytest.mark.parametrize("learning, said", [
    (of(d={"teacher": None}), "no teacher is named; give its folder by --learning.distillation.teacher"),
    (of(matching_weight=0.0), "is read where learning.matching_weight = 0 is above 0"),
    (of(matching_weight=-1.0), "learning.matching_weight = -1"),
    (of(method="best_of_n", best=1), "stands beside learning.method = 'grpo' alone"),
    (of(method="dmd2", matching_weight=0.0, group_size=1), "is what the run begins with; name it by --model.path"),
    (of(mse_weight=0.1), "learning.mse_weight hold to the start of the run"),
    (of(leash_times=(0.5,)), "learning.leash_times hold to the start of the run"),
    (of(reference="none"), "learning.reference = 'none' keeps no teacher"),
    (of(flow_weight=0.0), "trains no drawing"),
    (of(d={"fake_steps": 0}), "it must be at least 1"),
    (of(d={"time_std": 2.0}), "learning.distillation.time_std = 2.0 is not read by learning.matching_weight = 0.3, which"),
    (of(d={"steps": (4,)}), "learning.distillation.steps = 4 is not read by learning.matching_weight = 0.3, whose student"),
    (of(d={"again": True}), "learning.distillation.again = True is not read"),
])  # fmt: skip
def test_what_cannot_be_is_one_sentence(learning, said):
    assert said in refused(learning)


def test_a_student_is_not_guided():
    assert "use 1, and learning.distillation.guidance 2 for the teacher" in refused(HELD, guidance=2.0)
