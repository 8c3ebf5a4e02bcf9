"""A painter of points in the plane: the velocity of a mixture of Gaussians in closed form, and beside it a small network.

    v(x, t) = E[noise - data | x_t],    data ~ sum_k w_k N(m_k, d^2),    x_t = (1 - t) data + t noise

The teacher's parameters hold no network; a student's network starts at zero, so that it begins as the teacher.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import DistillationConfig, LearningConfig
from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.learning.distillation import Distillation
from unigrpo_jax.learning.distribution_matching import DistributionMatching
from unigrpo_jax.learning.mean_flow import MeanFlow
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.update import new_state
from unigrpo_jax.models.paths import RECTIFIED
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import FlowSampler, denoise
from unigrpo_jax.rollout.step_rules import CPS, ODE
from unigrpo_jax.rollout.thinking import TokenSampler

MEANS = 2.0 * np.array([[np.cos(a), np.sin(a)] for a in 2 * np.pi * np.arange(5) / 5])
WIDTH = 0.15  # of each Gaussian
HIDDEN = 64


def mixture_velocity(x, t):
    """v [B, N, 2] of points x [B, N, 2] at times t [B, 1, 1]."""
    alpha, variance = (1 - t)[..., None], ((1 - t) ** 2 * WIDTH**2 + t**2)[..., None]
    gap = x[:, :, None] - alpha * jnp.asarray(MEANS, jnp.float32)[None, None]  # to each Gaussian
    share = jax.nn.softmax(-jnp.sum(gap**2, axis=3, keepdims=True) / (2 * variance), axis=2)
    data = jnp.asarray(MEANS, jnp.float32)[None, None] + alpha * WIDTH**2 / variance * gap
    return jnp.sum(share * (t[..., None] / variance * gap - data), axis=2)


@dataclasses.dataclass(frozen=True)
class Plane:
    """See above."""

    two_times: bool = True
    thinks = begins = False
    hold, path, prediction = None, RECTIFIED, "velocity"
    trained_by = {"denoising": ".*"}

    def empty(self, batch):
        return jnp.zeros((batch, 1))

    def read(self, params, text, condition):
        return text

    def unread(self, params, text, condition):
        return jnp.zeros_like(text)

    def times(self, steps, shift, grid):
        return timesteps(steps, shift)

    def predict(self, params, x, t_B, grid, condition, to_B=None):
        t = t_B[:, None, None]
        v = mixture_velocity(x, t)
        if "in" not in params:
            return v
        gap = jnp.zeros_like(t) if to_B is None else t - to_B[:, None, None]
        rates = 2.0 ** jnp.arange(4)[None, None]
        waves = [f(rates * time) for time in (t, gap) for f in (jnp.sin, jnp.cos)]
        seen = jnp.concatenate([x, v, *(jnp.broadcast_to(w, (*x.shape[:2], 4)) for w in waves)], axis=2)
        hidden = jax.nn.silu(seen @ params["in"])
        hidden = jax.nn.silu(hidden @ params["middle"] + params["bias"][None, None])
        return v + hidden @ params["out"]


def fresh(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)
    return {"in": normal(20, HIDDEN), "middle": normal(HIDDEN, HIDDEN), "bias": np.zeros(HIDDEN, np.float32),
            "out": np.zeros((HIDDEN, 2), np.float32)}  # fmt: skip


def sampler(steps: int, rule=None) -> FlowSampler:
    return FlowSampler(schedule=tuple(timesteps(steps, 1.0).tolist()), rule=rule or ODE(), grid=(1, 1))


def policy(flow: FlowSampler, model=None) -> Policy:
    return Policy(model=model or Plane(), tokens=TokenSampler(), flow=flow)


def episodes(drawing: Drawing) -> Episodes:
    return Episodes(prompt=jnp.zeros((len(drawing.finite), 1)), segments=(drawing,))


def drawing(latent, x=None, steps=None) -> Drawing:
    batch = latent.shape[0]
    if x is None:
        x, steps = jnp.zeros((batch, 0, *latent.shape[1:])), jnp.zeros((batch, 0), jnp.int32)
    return Drawing(steps=steps, x=x, noise=x, mean=x, latent=latent, media={}, finite=jnp.ones(batch, bool))


def settings(method: str, **changes) -> LearningConfig:
    own = DistillationConfig(**changes)
    return LearningConfig(method=method, distillation=own, group_size=1, denoising_lr=3e-3, ppo_epochs=1, cooldown=(0, 300))


@functools.partial(jax.jit, static_argnums=(2, 3))
def sampled(params, key, flow: FlowSampler, batch: int) -> Drawing:
    """What parameters draw; every transition is kept where the sampler has noise."""
    keys = randomness.sample_keys(key, jnp.arange(batch))
    x = randomness.normal(keys, 99, (1, 2))
    window = jnp.arange(flow.steps if isinstance(flow.rule, CPS) else 0)
    latent, (states, _, _) = denoise(Plane(), params, jnp.zeros((batch, 1)), x, keys, window, flow)
    return drawing(latent, states, jnp.broadcast_to(window, (batch, len(window))))


@functools.partial(jax.jit, static_argnums=(2, 3))
def jumped(params, key, steps: int, batch: int):
    """What a student of two times draws in so many steps, x' = x - (t - t') u(x, t, t'), [batch, 2]."""
    x, times = jax.random.normal(key, (batch, 1, 2)), timesteps(steps, 1.0)
    for t, to in zip(times, times[1:], strict=False):
        at = lambda time: jnp.full(batch, time)
        x = x - (t - to) * Plane().predict(params, x, at(t), (1, 1), None, at(to))
    return x[:, 0]


def sliced_wasserstein(a, b, directions: int = 64) -> float:
    """Mean over directions of the 1-Wasserstein distance of two samples of one size, [n, 2]."""
    angles = np.pi * np.arange(directions) / directions
    ways = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.mean(np.abs(np.sort(np.asarray(a) @ ways, axis=0) - np.sort(np.asarray(b) @ ways, axis=0))))


def program(config: LearningConfig, flow: FlowSampler | None = None, versions: int = 1, model=None) -> Distillation:
    own = policy(flow or sampler(4), model)
    if config.method == "mean_flow":
        objective = MeanFlow(student=own, teacher=own, config=config, versions=versions)
    else:
        objective = DistributionMatching(student=own, teacher=own, config=config, shift=1.0)
    return Distillation(objective=objective, config=config, seed=0)


def start(config: LearningConfig):
    return new_state(jax.tree.map(jnp.asarray, fresh()), config, Plane.trained_by)
