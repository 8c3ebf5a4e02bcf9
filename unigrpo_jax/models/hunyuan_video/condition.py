"""What a video is drawn upon: a text, and where it goes on from a picture, the latents of its first frame."""

from typing import Any

import flax.struct
import jax.numpy as jnp

from unigrpo_jax.models.text_encoders.states import TextStates


@flax.struct.dataclass
class VideoCondition(TextStates):
    """A pytree with the batch first.

    Attributes:
      first: [B, M, C], latent tokens of the first frame, M of a frame; None where there is no picture.
    """

    first: Any = None


def upon(text: TextStates, first_BMC) -> VideoCondition:
    """A text, and the first frame or None."""
    return VideoCondition(states=text.states, pooled=text.pooled, mask=text.mask, first=first_BMC)


def beside_first(x_BNC, first_BMC):
    """Noisy tokens and the picture's, [B, N, 2 C]: the first frame's beside the first frame, zeros beside all others."""
    zeros = ((0, 0), (0, x_BNC.shape[1] - first_BMC.shape[1]), (0, 0))
    return jnp.concatenate([x_BNC, jnp.pad(first_BMC.astype(x_BNC.dtype), zeros)], axis=-1)
