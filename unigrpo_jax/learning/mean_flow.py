"""MeanFlow (arXiv 2505.13447) as distillation: the student learns the average of the guided teacher's velocity.

    u(x_t, t, s) = 1 / (t - s) * integral of v from s to t,      x_s = x_t - (t - s) u,      u(x, t, t) = v
    u = v - (t - s) du/dt,      d/dt along (dx, dt, ds) = (v, 1, 0)
    target = stop(v - (t - s) du/dt),      L = mean_d (u - target)^2,      loss = L / stop(L + c)^p

x_t = (1 - t) data + t noise of what the teacher drew, and v is the teacher's velocity there, guidance included.  t >= s are
a sorted pair of sigmoid(time_mean + time_std * normal); of `equal_share` of them s = t, where the target is v itself.
du/dt is one forward-mode derivative of the network.  Several modalities share a pair of times, have L, its scale and its
loss each for itself, and are added by their weights.  L is a mean over a latent's numbers, where the authors have a sum, so
that c means the same whatever the latent's size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unigrpo_jax.config import LearningConfig
from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.learning import modalities
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.dialogue import Dialogue

SHARE = "/share"  # of all states those that an error is of


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlow:
    """The loss of a batch of the teacher's drawings.

    Attributes:
      student: without guidance; its network has two times, and a forward-mode derivative.
      teacher: the same, guided as the teacher is, of a network that is told one time.
      config: `distillation`, weights of modalities.
      versions: noisy versions of each drawing.
    """

    student: Policy
    teacher: Policy
    config: LearningConfig
    versions: int

    def __call__(self, params, reference, episodes: Episodes, keys_B) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss [] and metrics, as `with_errors` takes them.

        Args:
          params: the student's.
          reference: the teacher's.
          episodes: B episodes that the teacher drew.
          keys_B: of times and noises, one per episode.
        """
        drawing = episodes.drawing
        own, taught = self.student.drawn_upon(params, episodes), self.teacher.drawn_upon(reference, episodes)
        t_BW, s_BW = self.times(jax.vmap(jax.random.fold_in, (0, None))(keys_B, 1))
        several = lambda x: jax.ShapeDtypeStruct((x.shape[0], self.versions, *x.shape[1:]), jnp.float32)
        noise = randomness.normal_like(keys_B, 0, jax.tree.map(several, drawing.latent))
        t = t_BW[:, :, None, None]
        x = jax.tree.map(lambda data, noise: (1 - t) * data[:, None] + t * noise, drawing.latent, noise)

        def at(x, t_B, s_B):
            v = jax.lax.stop_gradient(self.teacher.output(reference, x, t_B, taught.full, taught.without_text))
            return averaged(self._average(params, own), x, t_B, s_B, v)

        u, target = self._each(at, x, t_BW, s_BW)
        return self._weighed(drawing, u, target, t_BW == s_BW)

    def times(self, keys_B) -> tuple[jax.Array, jax.Array]:
        """t and s <= t, both float32 [B, W] in (0, 1)."""
        c, shape = self.config.distillation, (2, self.versions)
        pair = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape))(keys_B)
        chance = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), shape[1:]))(keys_B)
        t, s = jax.nn.sigmoid(c.time_mean + c.time_std * jnp.stack([jnp.max(pair, axis=1), jnp.min(pair, axis=1)]))
        return t, jnp.where(chance < c.equal_share, t, s)

    def _average(self, params, own: Dialogue) -> Callable[..., Any]:
        """(x, t_B, s_B) -> u."""
        model, grid, condition = self.student.model, self.student.flow.grid, own.full
        if self.student.context_gradient == "stop":
            condition = jax.lax.stop_gradient(condition)
        return lambda x, t_B, s_B: model.predict(params, x, t_B, grid, condition, to_B=s_B)

    def _each(self, at, x, t_BW, s_BW):
        """`at` of each noisy version: together, or one after the other and again in the backward pass."""
        if self.student.window_steps == "batched":
            return jax.vmap(at, in_axes=1, out_axes=1)(x, t_BW, s_BW)
        again = jax.checkpoint(at, prevent_cse=False)
        swapped = lambda tree: jax.tree.map(lambda x: x.swapaxes(0, 1), tree)
        return swapped(jax.lax.map(lambda one: again(*one), swapped((x, t_BW, s_BW))))

    def _weighed(self, drawing: Drawing, u, target, equal_BW) -> tuple[jax.Array, dict[str, jax.Array]]:
        c, total, metrics = self.config.distillation, jnp.zeros(()), {}
        known_B1 = drawing.finite[:, None]
        share = lambda of: jnp.mean((of & known_B1).astype(jnp.float32))
        mean = lambda error, of: jnp.mean(jnp.where(of & known_B1, error, 0.0))
        weights = modalities.weights(u, self.config)
        for name, (weight, u_BWNC, wanted) in modalities.by_modality(u, weights, u, target).items():
            error_BW = jnp.mean((u_BWNC - wanted) ** 2, axis=(2, 3))
            scale = (jax.lax.stop_gradient(error_BW) + c.weight_floor) ** c.weight_power
            loss = jnp.mean(jnp.where(known_B1, error_BW / scale, 0.0))
            total = total + weight * loss
            metrics[f"{name}/loss"] = loss
            for error, of in (("velocity_error", equal_BW), ("average_error", ~equal_BW)):
                metrics |= {f"{name}/{error}": mean(error_BW, of), f"{name}/{error}{SHARE}": share(of)}
        total = self.config.flow_weight * total
        return total, metrics | {"loss": total}


def with_errors(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Replaces means over all states, which average over pieces, by those over the states that an error is of."""
    shares = {name.removesuffix(SHARE): x for name, x in metrics.items() if name.endswith(SHARE)}
    own = {name: metrics[name] / jnp.where(x > 0, x, 1.0) for name, x in shares.items()}
    return {name: x for name, x in (metrics | own).items() if not name.endswith(SHARE)}


def averaged(average: Callable[..., Any], x, t_B, s_B, v) -> tuple[Any, Any]:
    """u(x, t, s), and what it should be: stop(v - (t - s) du/dt); both like x [B, N, C].

    Args:
      average: (x, t_B, s_B) -> u.
      x: the latent at time t, a pytree of modalities.
      t_B: float32 [B].
      s_B: float32 [B], at most t.
      v: the velocity at (x, t), like x.
    """
    u, slope = jax.jvp(average, (x, t_B, s_B), (v, jnp.ones_like(t_B), jnp.zeros_like(s_B)))
    gap = (t_B - s_B)[:, None, None]
    return u, jax.lax.stop_gradient(jax.tree.map(lambda v, slope: v - gap * slope, v, slope))
