"""Distribution matching distillation (DMD2, arXiv 2405.14867), without its adversarial loss.

    x_s = alpha_s stop(x_g) + sigma_s eps
    Z   = max(mean_d |x_g - x_r|, 1e-5),      g = (x_f - x_r) / Z
    student's loss     1/2 mean_d (x_g - stop(x_g - g))^2
    fake score's loss  mean_d (f(x_s, s) - target(stop(x_g), eps, s))^2

x_g is the student's estimate of the data at one of the states of its own drawing in few steps, chosen at random (the
authors' backward simulation): the states before it were made without a gradient.  x_r and x_f are the data estimates at x_s
of the frozen, guided teacher and of the fake score, which begins as the teacher and learns what the student draws; where
they agree the student's gradient is 0.  s is uniform in `noise_range` and then shifted as the sampler's times are.  Z is a
sample's own.  Several modalities share each s and state, and have Z and loss each for itself, added by their weights.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from unigrpo_jax.config import LearningConfig
from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.learning import modalities
from unigrpo_jax.learning.noise_levels import shifted
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.models.paths import estimates, target
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.dialogue import Dialogue

SMALLEST = 1e-5  # of Z


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionMatching:
    """Both losses of a batch of the student's drawings, whose windows hold the states of all their transitions.

    Attributes:
      student: with the sampler of its few steps, and without guidance.
      teacher: the same, guided as the teacher is, of a network that is told one time.
      config: `distillation`, weights of modalities.
      shift: of the schedule, as `Painter.times` takes it.
    """

    student: Policy
    teacher: Policy
    config: LearningConfig
    shift: float

    def __call__(self, params, fake, reference, episodes: Episodes, keys_B) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The student's loss [] and metrics.

        Args:
          params: the student's.
          fake: the fake score's.
          reference: the teacher's.
          episodes: B episodes that the student drew.
          keys_B: of states, noise levels and noises, one per episode.
        """
        drawn = self.drawn(params, episodes, keys_B)
        s_B, _, x_s = self._noisy(drawn, keys_B)
        taught, own = self.teacher.drawn_upon(reference, episodes), self.student.drawn_upon(fake, episodes)
        real = self._data(x_s, self.teacher.output(reference, x_s, s_B, taught.full, taught.without_text), s_B)
        made = self._data(x_s, self._score(fake, x_s, s_B, own), s_B)
        total, metrics, finite_B = jnp.zeros(()), {}, episodes.drawing.finite
        known = lambda value_B: jnp.mean(jnp.where(finite_B, value_B, 0.0))
        parts = (modalities.weights(drawn, self.config), drawn, real, made)
        for name, (weight, x_g, x_r, x_f) in modalities.by_modality(drawn, *parts).items():
            loss_B, push_B, distance_B = matched(x_g, x_r, x_f)
            total = total + weight * known(loss_B)
            metrics |= {f"{name}/loss": known(loss_B), f"{name}/push": known(push_B), f"{name}/distance": known(distance_B)}
        total = self.config.flow_weight * total
        return total, metrics | {"loss": total}

    def fake_loss(self, fake, params, episodes: Episodes, keys_B) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The fake score's loss [] upon what the student of `params` draws, and metrics."""
        drawn = jax.lax.stop_gradient(self.drawn(params, episodes, keys_B))
        s_B, noise, x_s = self._noisy(drawn, keys_B)
        own, flow = self.student.drawn_upon(fake, episodes), self.student.flow
        output = self._score(fake, x_s, s_B, own)
        wanted = lambda data, noise: target(flow.path, flow.prediction, data, noise, s_B[:, None, None])
        error = lambda output, data, noise: jnp.mean((output - wanted(data, noise)) ** 2, axis=(1, 2))
        error_B = modalities.added(jax.tree.map(error, output, drawn, noise), self.config)
        loss = jnp.mean(jnp.where(episodes.drawing.finite, error_B, 0.0))
        return loss, {"loss": loss}

    def drawn(self, params, episodes: Episodes, keys_B) -> Any:
        """x_g of each modality, float32 [B, N, C]: the student's estimate of the data at one of its states."""
        drawing, model, flow = episodes.drawing, self.student.model, self.student.flow
        step_B = jax.vmap(lambda key: jax.random.randint(key, (), 0, drawing.steps.shape[1]))(_use(keys_B, 1))
        x, t_B = _state(drawing, step_B), flow.times()[drawing.steps[jnp.arange(len(step_B)), step_B]]
        upon = self.student.drawn_upon(params, episodes).full
        if self.student.context_gradient == "stop":
            upon = jax.lax.stop_gradient(upon)
        to = {"to_B": jnp.zeros_like(t_B)} if model.two_times else {}
        return self._data(x, model.predict(params, x, t_B, flow.grid, upon, **to), t_B)

    def levels(self, keys_B) -> jax.Array:
        """Noise levels s, float32 [B]."""
        low, high = self.config.distillation.noise_range
        s_B = jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys_B)
        return shifted(s_B, self.student.model, self.shift, self.student.flow.grid)

    def _noisy(self, drawn, keys_B) -> tuple[jax.Array, Any, Any]:
        """s [B], noise and x_s, without a gradient."""
        s_B, noise = self.levels(_use(keys_B, 2)), randomness.normal_like(keys_B, 3, drawn)
        alpha, sigma = (part[:, None, None] for part in self.student.flow.path.coefficients(s_B))
        mixed = lambda data, noise: alpha * jax.lax.stop_gradient(data) + sigma * noise
        return s_B, noise, jax.tree.map(mixed, drawn, noise)

    def _score(self, fake, x_s, s_B, own: Dialogue) -> Any:
        return self.teacher.model.predict(fake, x_s, s_B, self.student.flow.grid, own.full)

    def _data(self, x, output, t_B) -> Any:
        flow, t = self.student.flow, t_B[:, None, None]
        return jax.tree.map(lambda x, output: estimates(flow.path, flow.prediction, x, output, t).data, x, output)


def matched(x_g, x_r, x_f) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The student's loss, the mean of |g|, and mean |x_g - x_r|, [B] each, of one modality's [B, N, C].

    No gradient but that of x_g counts.
    """
    x_r, x_f, still = jax.lax.stop_gradient((x_r, x_f, x_g))
    distance_B = jnp.mean(jnp.abs(still - x_r), axis=(1, 2))
    g = (x_f - x_r) / jnp.maximum(distance_B, SMALLEST)[:, None, None]
    # x_g - stop(x_g - g) is g itself, which no rounding of the difference may touch: 0 where both agree.
    loss_B = jnp.mean(0.5 * (g + (x_g - still)) ** 2, axis=(1, 2))
    return loss_B, jnp.mean(jnp.abs(g), axis=(1, 2)), distance_B


def _use(keys_B, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


def _state(drawing: Drawing, step_B) -> Any:
    """The states [B, N, C] before the named of a drawing's kept transitions."""
    return jax.tree.map(lambda x: x[jnp.arange(len(step_B)), step_B], drawing.x)
