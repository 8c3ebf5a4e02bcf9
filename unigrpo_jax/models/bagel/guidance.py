"""Text classifier-free guidance with BAGEL's renormalisation, for evaluation only: a guided episode is not linear.

    u = v_text + s (v - v_text),    guided = u * clip(|v| / (|u| + 1e-8), renorm_min, 1)

v is the velocity upon the whole context, v_text upon the context without the prompt and the thinking.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """Scale, interval and renormalisation.

    Attributes:
      scale: s; at most 1 is no guidance.
      interval: guidance acts where interval[0] < t <= interval[1], t after the shift.
      renorm: norms over all tokens and channels of one image ("global"), or per token ("channel", "text_channel"; the two
        differ only where image guidance is added).
      renorm_min: lower bound of the factor; 1 turns the renormalisation off.
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    renorm: Literal["global", "channel", "text_channel"] = "global"
    renorm_min: float = 0.0

    @property
    def active(self) -> bool:
        """Whether a second pass is needed at all."""
        return self.scale > 1

    def apply(self, v_BNC, v_text_BNC, t) -> jax.Array:
        """The guided velocity [B, N, C] at the scalar time t."""
        u = v_text_BNC + self.scale * (v_BNC - v_text_BNC)
        axes = (1, 2) if self.renorm == "global" else (2,)
        norm = lambda x: jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
        guided = u * jnp.clip(norm(v_BNC) / (norm(u) + 1e-8), self.renorm_min, 1.0)
        low, high = self.interval
        return jnp.where((t > low) & (t <= high), guided, v_BNC)
