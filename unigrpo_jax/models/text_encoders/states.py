"""What frozen text encoders say of texts: what a painter draws upon where it does not read words itself."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TextStates:
    """A pytree with the batch first: arrays of the host as a codec makes it, of devices as a painter's condition.

    Attributes:
      states: [B, L, D], one vector a token.
      pooled: [B, P], one vector a text; None where a network reads none.
      mask: bool [B, L], true for a token and false for padding, which comes last; None where a network reads padding, too.
      audio: [B, L, A], one vector a token for what is heard, beside `states` for what is seen; None where nothing is heard.
      empty: the same of the empty text, B rows of it, for guidance; None where nothing is guided.
    """

    states: Any
    pooled: Any = None
    mask: Any = None
    audio: Any = None
    empty: "TextStates | None" = None

    def repeat(self, times: int) -> "TextStates":
        """Every sample `times` times in a row."""
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), self)
