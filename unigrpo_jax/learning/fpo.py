"""Flow policy optimization (FPO, arXiv 2507.21053): PPO's clip, of a ratio of likelihoods that depends on no sampler.

    r = exp(L_old - L_theta),    L = mean over (t, noise) of |f(x_t, t) - target(data, noise, t)|^2

L, the flow-matching loss of what was drawn, bounds its negative log-likelihood (an evidence lower bound, up to constants and
the weights of the noise levels); both policies are asked about the same draws of (t, noise).  Losses are averaged over the
draws before the exponential, and over a latent's numbers, as the paper's authors do (github.com/akanazawa/fpo), whose draws
are 8 and whose clip range is 0.05.  With one optimizer step per iteration r is exactly 1, and its gradient is that of the
advantage-weighted flow-matching loss.

With `text_weight` 0 this is FPO; with the token ratio beside it, of the same advantage, it is UniFPO.
"""

import dataclasses

import jax.numpy as jnp

from unigrpo_jax.episode import Drawing
from unigrpo_jax.learning import losses
from unigrpo_jax.learning.forward_process import ForwardPolicy
from unigrpo_jax.learning.policy import FlowView


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowPolicyOptimization(ForwardPolicy):
    """The clipped surrogate of a drawing's flow-matching ratio."""

    def compared(self, drawing: Drawing, view: FlowView):
        """The flow-matching losses [B] of each modality."""
        return self.matching(drawing, view.output)

    def _learned(self, drawing: Drawing, advantage_B, known, new, old, x, data):
        clip = self.config.flow_clip
        log_ratio = known(old - new)
        metrics = losses.ratio_statistics(log_ratio, *losses.clip_fractions(log_ratio, advantage_B, clip, clip))
        return jnp.mean(losses.flow_loss(log_ratio, advantage_B, clip, clip)), metrics
