"""ReFL: the reward's own gradient through the last steps of drawing (ImageReward, arXiv 2304.05977), beside the token ratio.

    x_0 = x_t - t v_theta(x_t, t | prompt, thinking),    L_flow = -mean R(decode(x_0), prompt)

(x_0 on a rectified flow; on another path whatever the network estimates of the data.)

The states x_t are those of the rollout's window, and no gradient goes through how they were reached.  The thinking is
trained by its clipped ratio, as in UniGRPO, and the velocity MSE is the same leash.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.learning.objective import FlowAnchor, Objective
from unigrpo_jax.learning.policy import FlowView
from unigrpo_jax.models.paths import estimates


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardGradient(Objective):
    """The loss of a batch of episodes whose `goals` are known.

    Attributes:
      decode: latent tokens [B, N, C] -> images [B, H, W, 3] in [-1, 1].
      score: (goals, images in [0, 1]) -> rewards float32 [B].
    """

    decode: Callable[[Any], jax.Array]
    score: Callable[[Any, jax.Array], jax.Array]

    def signal(self, episodes: Episodes, advantage_B) -> jax.Array:
        """Whether some image is known, since the reward's gradient needs no advantage; or some advantage is not 0."""
        return jnp.any(advantage_B != 0) | jnp.any(episodes.drawing.finite)

    def _flow(self, drawing: Drawing, view: FlowView, anchor: FlowAnchor, advantage_B, on_policy, moved, goals):
        c, flow = self.config, self.policy.flow
        t = flow.times()[drawing.steps][:, :, None, None]
        clean = estimates(flow.path, flow.prediction, drawing.x, view.output, t).data
        judge = lambda tokens_BNC: self.score(goals, jnp.clip(self.decode(tokens_BNC) * 0.5 + 0.5, 0.0, 1.0))
        reward_BW = jax.vmap(judge, in_axes=1, out_axes=1)(clean)
        known = lambda value_BW: jnp.where(drawing.finite[:, None], value_BW, 0.0)
        reward = jnp.mean(known(reward_BW))
        total, metrics = -c.flow_weight * reward, {"flow/reward": reward}
        held, leash = self._held(anchor.reference, view.output, moved), self._held(anchor.leash, view.leash, moved)
        for name, weight, mse in self._leashes(drawing.finite, view.output, held, view.leash, leash):
            metrics[f"flow/{name}"], total = mse, weight * mse + total
        return total, metrics
