"""Methods that learn from noisy versions of what was drawn, and not from the sampler's transitions.

    x_t = alpha_t data + sigma_t noise

`data` is the latent that a rollout ended with, however it was sampled, so that no noise is needed in its transitions.  Times
are drawn uniformly from the sampler's own schedule, without its end, as many per drawing as the window has transitions; with
their noises they are a function of (seed, iteration), and the same for every policy that is asked about them.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.learning import losses, modalities
from unigrpo_jax.learning.objective import FlowAnchor, Objective
from unigrpo_jax.learning.policy import FlowView
from unigrpo_jax.models.paths import target
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import FlowSampler


def matching(flow: FlowSampler, drawing: Drawing, output, t_BW11) -> Any:
    """Flow-matching losses float32 [B] of a network's outputs at noisy versions of what was drawn, one for each modality.

    The mean over a latent's numbers and its versions of (output - target)^2, in what the network predicts.

    Args:
      flow: path and prediction.
      drawing: its latent, and the noises of its versions.
      output: the network's, [B, W, N, C] of each modality.
      t_BW11: where the versions lie, float32 [B, W, 1, 1].
    """
    wanted = lambda data, noise: target(flow.path, flow.prediction, data[:, None], noise, t_BW11)
    error = lambda output, data, noise: jnp.mean((output - wanted(data, noise)) ** 2, axis=(1, 2, 3))
    return jax.tree.map(error, output, drawing.latent, drawing.noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardProcess(Objective):
    """The loss of a batch of episodes whose drawings are looked at through fresh noise.

    Attributes:
      seed: of the run, for times and noises.
    """

    seed: int

    def prepare(self, episodes: Episodes, step) -> Episodes:
        """Replaces a drawing's window by fresh noisy versions of its latent; each row has its own randomness."""
        key = randomness.stream_key(self.seed, step, randomness.FORWARD)
        times = self.policy.flow.times()

        def noisy(index, drawing: Drawing) -> Drawing:
            rows, width = drawing.steps.shape
            keys = randomness.sample_keys(jax.random.fold_in(key, index), jnp.arange(rows))
            steps = jax.vmap(lambda k: jax.random.randint(k, (width,), 0, self.policy.flow.steps))(keys)
            noise = randomness.normal_like(keys, 0, drawing.x)
            alpha, sigma = (part[:, :, None, None] for part in self.policy.flow.path.coefficients(times[steps]))
            x = jax.tree.map(lambda data, noise: alpha * data[:, None] + sigma * noise, drawing.latent, noise)
            return drawing.replace(steps=steps.astype(jnp.int32), x=x, noise=noise)

        segments = (noisy(i, s) if isinstance(s, Drawing) else s for i, s in enumerate(episodes.segments))
        return episodes.replace(segments=tuple(segments))

    def times(self, drawing: Drawing) -> jax.Array:
        """Where the noisy versions lie, float32 [B, W, 1, 1]."""
        return self.policy.flow.times()[drawing.steps][:, :, None, None]

    def matching(self, drawing: Drawing, output) -> Any:
        """`matching` of what a network says of the noisy versions."""
        return matching(self.policy.flow, drawing, output, self.times(drawing))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardPolicy(ForwardProcess, abc.ABC):
    """Those that compare the trained policy with the old one, by what both say of the noisy versions.

    The leash, the velocity MSE to the reference, is that of the noisy versions, too.
    """

    def _flow(self, drawing: Drawing, view: FlowView, anchor: FlowAnchor, advantage_B, on_policy, moved, goals):
        new = self.compared(drawing, view)
        old = self._old(anchor.old, new, on_policy)
        held = self._held(anchor.reference, view.output, moved)
        matching = self.matching(drawing, view.output)
        known = lambda value: jnp.where(drawing.finite.reshape(-1, *(1,) * (value.ndim - 1)), value, 0.0)
        total, metrics = jnp.zeros(()), {}
        weights = modalities.weights(drawing.x, self.config)
        parts = (weights, advantage_B, matching, view.output, held, new, old, drawing.x, drawing.latent)
        for name, (weight, own_B, error, output, reference, *own) in modalities.by_modality(drawing.x, *parts).items():
            value, measured = self._learned(drawing, own_B, known, *own)
            total = total + weight * self.config.flow_weight * value
            measured |= {"loss": value, "matching_loss": jnp.mean(known(error))}
            if reference is not None:
                mse = jnp.mean(known(jax.vmap(losses.velocity_mse, in_axes=1, out_axes=1)(output, reference)))
                measured["velocity_mse"], total = mse, total + weight * self.config.mse_weight * mse
            metrics |= {f"{name}/{metric}": x for metric, x in measured.items()}
        return total, metrics

    @abc.abstractmethod
    def _learned(
        self, drawing: Drawing, advantage_B, known: Callable[[jax.Array], jax.Array], new, old, x, data
    ) -> tuple[jax.Array, dict]:
        """One modality's loss [] and metrics.

        Args:
          drawing: with its noisy versions.
          advantage_B: float32 [B].
          known: values [B, ...] -> the same with 0 where an episode is blank.
          new: what `compared` makes of the trained policy.
          old: the same of the old policy, a constant.
          x: float32 [B, W, N, C], the noisy versions.
          data: float32 [B, N, C], what was drawn.
        """
