"""Supervised learning from a model's own best episodes: rejection sampling, also called best-of-N (RAFT, arXiv 2304.06767).

    loss = text_weight * mean_k(-log pi(y_k)) + flow_weight * mean (v_theta(x_t, t) - v)^2
    x_t = alpha_t data + sigma_t noise,    v what the network predicts of it, noise - data for a rectified flow

The episodes that are kept were sampled by the frozen start and are the best of their groups; those of a group whose rewards
are all equal have no advantage and count 0.  Times are drawn uniformly from the sampler's own schedule, without its end, as
many per image as the window has transitions.
"""

import dataclasses

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing, Episodes, Thinking
from unigrpo_jax.learning.losses import masked_mean
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import FlowView, TextView
from unigrpo_jax.models.paths import target
from unigrpo_jax.rollout import randomness


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imitation(Objective):
    """The supervised loss of a batch of episodes that are worth imitating.

    Attributes:
      seed: of the run, for times and noises.
    """

    seed: int

    def prepare(self, episodes: Episodes, step) -> Episodes:
        """Replaces a drawing's window by fresh noisy versions of its latent; each row has its own randomness."""
        key = randomness.stream_key(self.seed, step, randomness.IMITATION)
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

    def signal(self, episodes: Episodes, advantage_B) -> jax.Array:
        """Whether some episode is worth imitating."""
        return jnp.any(advantage_B > 0)

    def anchors(self, params, reference, episodes: Episodes, own_start: bool) -> tuple[None, ...]:
        """None for each segment: nothing is compared with another policy."""
        return (None,) * len(episodes.segments)

    def _text(self, thinking: Thinking, view: TextView, anchor, advantage_B, on_policy, moved, goals):
        loss = jnp.mean(self._kept(-masked_mean(view.log_probs, thinking.mask, axis=1), advantage_B))
        length = jnp.sum(thinking.mask, axis=1).astype(jnp.float32)
        entropy = jnp.mean(masked_mean(view.entropy, thinking.mask, axis=1))
        metrics = {"text/loss": loss, "text/entropy": entropy, "text/length": jnp.mean(length)}
        return self.config.text_weight * loss, metrics

    def _flow(self, drawing: Drawing, view: FlowView, anchor, advantage_B, on_policy, moved, goals):
        flow = self.policy.flow
        t = flow.times()[drawing.steps][:, :, None, None]
        wanted = lambda data, noise: target(flow.path, flow.prediction, data[:, None], noise, t)
        error = lambda output, data, noise: jnp.mean((output - wanted(data, noise)) ** 2, axis=(1, 2, 3))
        error_B = sum(jax.tree.leaves(jax.tree.map(error, view.output, drawing.latent, drawing.noise)))
        loss = jnp.mean(self._kept(jnp.where(drawing.finite, error_B, 0.0), advantage_B))
        share = jnp.mean((advantage_B > 0).astype(jnp.float32))
        return self.config.flow_weight * loss, {"flow/loss": loss, "imitation/kept_share": share}

    def _kept(self, loss_B, advantage_B):
        return jnp.where(advantage_B > 0, loss_B, 0.0)
