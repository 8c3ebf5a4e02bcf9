"""The decision process as data: what a rollout writes and an update reads.

An episode is a prompt and a list of segments on one growing context: thinking (tokens are the actions), then drawing
(denoising transitions are the actions).  Arrays have the batch of episodes B first; the episodes of a prompt's group
stand next to each other.
"""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TokenBlock:
    """Text blocks, padded to one length.

    Attributes:
      tokens: int32 [B, L].
      valid: bool [B, L], False on padding.
    """

    tokens: jax.Array
    valid: jax.Array


@flax.struct.dataclass
class Thinking:
    """Sampled text.

    Attributes:
      tokens: int32 [B, M], the actions; the last one of a chain is the stop token unless the chain was truncated.
      mask: bool [B, M], where an action was taken.
      log_probs: float32 [B, M], of the actions at sampling time, under softmax(logits / temperature); 0 elsewhere.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array


@flax.struct.dataclass
class Drawing:
    """A sampled image: the stochastic transitions of the window, and what came out.

    Attributes:
      steps: int32 [B, W], indices of the window's transitions in the schedule.
      x: float32 [B, W, N, C], the latent before each of them.
      noise: float32 [B, W, N, C], the eps that was drawn.
      mean: float32 [B, W, N, C], the transition's mean at sampling time.
      latent: float32 [B, N, C], the clean latent tokens that the image was decoded from.
      image: uint8 [B, height, width, 3].
      finite: bool [B], whether everything on the way to the image was a finite number, its episode's thinking included.
    """

    steps: jax.Array
    x: jax.Array
    noise: jax.Array
    mean: jax.Array
    latent: jax.Array
    image: jax.Array
    finite: jax.Array


Segment = Thinking | Drawing


@flax.struct.dataclass
class Episodes:
    """A batch of finished episodes.

    Attributes:
      prompt: the text block that was read first.
      segments: what was done then, in order.
      goals: what a differentiable reward asks of each image, arrays [B, ...]; None where none is followed.
    """

    prompt: TokenBlock
    segments: tuple[Segment, ...]
    goals: Any = None

    @property
    def thinking(self) -> Thinking | None:
        """The last thinking segment, or None."""
        return next((s for s in reversed(self.segments) if isinstance(s, Thinking)), None)

    @property
    def drawing(self) -> Drawing:
        """The last drawing segment, whose image is judged."""
        return next(s for s in reversed(self.segments) if isinstance(s, Drawing))
