"""Classifier-free guidance (arXiv 2207.12598), with BAGEL's renormalisation or without; a guided episode is not linear.

    u = v_text + s (v - v_text),    w = v_image + r (u - v_image) where r > 1, else u
    guided = w * clip(|v| / (|w| + 1e-8), renorm_min, 1)

v is the velocity upon the whole context, v_text upon the context without the last text and the thinking, v_image upon
the context without images and thinking.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp


class Guiding(Protocol):
    """What a sampler asks of a guidance; frozen and hashable."""

    @property
    def active(self) -> bool:
        """Whether another pass is needed."""

    def acts(self, t) -> jax.Array:
        """Whether it acts at time t."""

    def guided(self, predict: Callable[[Any], Any], x, t, output, condition, others: Sequence[Any]) -> Any:
        """The guided output, like x.

        Args:
          predict: condition -> the network's output for x at time t.
          x: the latent, a pytree of modalities [B, N, C].
          t: the time, [].
          output: the network's upon `condition`.
          condition: what is drawn upon.
          others: the one without the last text and the thinking, and the one without images and the thinking.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """Scales, interval and renormalisation.

    Attributes:
      text: s; at most 1 is no guidance at all, whatever `image` says.
      image: r; at most 1 leaves the second term out.
      interval: guidance acts where interval[0] < t <= interval[1], t after the shift.
      renorm: norms over all tokens and channels of one image ("global") or per token ("channel"); "text_channel"
        renormalises u per token before the image term, and not after it; "none" leaves w as it is.
      renorm_min: lower bound of the factor; 1 turns the renormalisation off.
    """

    text: float
    image: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    renorm: Literal["global", "channel", "text_channel", "none"] = "global"
    renorm_min: float = 0.0

    @property
    def active(self) -> bool:
        """Whether a second pass is needed."""
        return self.text > 1

    @property
    def with_image(self) -> bool:
        """Whether a third pass is needed."""
        return self.active and self.image > 1

    @property
    def passes(self) -> int:
        """Evaluations of the network in one transition."""
        return 1 + self.active + self.with_image

    def acts(self, t) -> jax.Array:
        """Whether t lies in the interval."""
        low, high = self.interval
        return (t > low) & (t <= high)

    def guided(self, predict, x, t, output, condition, others):
        """As `Guiding.guided`, of each modality for itself."""
        return jax.tree.map(self.apply, output, *map(predict, others[: 1 + self.with_image]))

    def apply(self, v_BNC, v_text_BNC, v_image_BNC=None) -> jax.Array:
        """The guided velocity [B, N, C]; `v_image_BNC` is read where `with_image`."""
        u = v_text_BNC + self.text * (v_BNC - v_text_BNC)
        if self.renorm == "text_channel":
            u = self._renormalised(u, v_BNC)
        w = v_image_BNC + self.image * (u - v_image_BNC) if self.with_image else u
        return w if self.renorm in ("text_channel", "none") else self._renormalised(w, v_BNC)

    def _renormalised(self, x, v):
        axes = (1, 2) if self.renorm == "global" else (2,)
        norm = lambda a: jnp.sqrt(jnp.sum(a**2, axis=axes, keepdims=True))
        return x * jnp.clip(norm(v) / (norm(x) + 1e-8), self.renorm_min, 1.0)
