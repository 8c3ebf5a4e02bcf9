"""DiffusionNFT (arXiv 2509.16117): a drawing is pulled to what was better than others, and pushed from what was worse.

    f+ = f_old + beta (f_theta - f_old)        f- = f_old - beta (f_theta - f_old)
    r  = (1 + clip(A / Z, -1, 1)) / 2
    L  = Z / beta * mean [ r D(f+) + (1 - r) D(f-) ]
    D(f) = mean_d (data_f - data)^2 / sg(mean_d |data_f - data|)

over noisy versions x_t of what was drawn; data_f is the estimate of the data that a prediction f means at x_t, which is
linear in it, so that f+ and f- may be any prediction on any path; D holds the paper's weight of noise levels, whose divisor
carries no gradient and is at least 1e-5.  A is the advantage within the group, whatever `learning.advantage` divides it by.
Z is 5 as in the authors' program (github.com/NVlabs/DiffusionNFT), and so is the factor Z, so that where f_theta = f_old the
gradient is A times that of D.  There a drawing of advantage 0 has none; elsewhere it pulls to f_old.

The old policy samples.  It is an average of the trained one's weights, old <- eta old + (1 - eta) trained after iteration i,
with eta = min(old_growth * i, old_decay).  The thinking, where it is trained, learns by its clipped ratio to the old policy,
and `text/log_prob_gap` is then the distance between the two.
"""

import dataclasses

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing
from unigrpo_jax.learning.forward_process import ForwardPolicy
from unigrpo_jax.learning.policy import FlowView
from unigrpo_jax.models.paths import estimates

SMALLEST = 1e-5  # of the divisor, as in the authors' program


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionNFT(ForwardPolicy):
    """The contrast of two implicit policies."""

    def compared(self, drawing: Drawing, view: FlowView):
        """The network's outputs [B, W, N, C] of each modality."""
        return view.output

    def _learned(self, drawing: Drawing, advantage_B, known, new, old, x, data):
        c, flow, t = self.config.nft, self.policy.flow, self.times(drawing)
        share_B = 0.5 + 0.5 * jnp.clip(advantage_B / c.limit, -1.0, 1.0)
        estimate = lambda output: estimates(flow.path, flow.prediction, x, output, t).data
        start, step = estimate(old), c.beta * (estimate(new) - estimate(old))

        def distance(guess) -> jax.Array:  # [B]
            error = guess - data[:, None]
            size_BW = jax.lax.stop_gradient(jnp.maximum(jnp.mean(jnp.abs(error), axis=(2, 3)), SMALLEST))
            return jnp.mean(jnp.mean(error**2, axis=(2, 3)) / size_BW, axis=1)

        positive_B, negative_B = distance(start + step), distance(start - step)
        loss_B = share_B * positive_B + (1 - share_B) * negative_B
        metrics = {
            "positive_share": jnp.mean(share_B),
            "positive_loss": jnp.mean(known(positive_B)),
            "negative_loss": jnp.mean(known(negative_B)),
            "old_mse": jnp.mean(known((new - old) ** 2)),
        }
        return c.limit / c.beta * jnp.mean(known(loss_B)), metrics
