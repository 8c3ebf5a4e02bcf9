"""Supervised learning from a model's own best episodes: rejection sampling, also called best-of-N (RAFT, arXiv 2304.06767).

    loss = text_weight * mean_k(-log pi(y_k)) + flow_weight * mean (v_theta(x_t, t) - v)^2
    x_t = alpha_t data + sigma_t noise,    v what the network predicts of it, noise - data for a rectified flow

The episodes that are kept were sampled by the frozen start and are the best of their groups; those of a group whose rewards
are all equal have no advantage and count 0.
"""

import dataclasses

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing, Episodes, Thinking
from unigrpo_jax.learning.forward_process import ForwardProcess
from unigrpo_jax.learning.losses import masked_mean
from unigrpo_jax.learning.modalities import added
from unigrpo_jax.learning.policy import FlowView, TextView


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imitation(ForwardProcess):
    """The supervised loss of a batch of episodes that are worth imitating."""

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
        error_B = added(self.matching(drawing, view.output), self.config)
        loss = jnp.mean(self._kept(jnp.where(drawing.finite, error_B, 0.0), advantage_B))
        share = jnp.mean((advantage_B > 0).astype(jnp.float32))
        return self.config.flow_weight * loss, {"flow/loss": loss, "imitation/kept_share": share}

    def _kept(self, loss_B, advantage_B):
        return jnp.where(advantage_B > 0, loss_B, 0.0)
