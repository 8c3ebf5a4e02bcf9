"""How a pass over blocks is computed: its attention, where activations lie, and what the backward pass recomputes.

Nothing of it changes what a network says.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax

from unigrpo_jax.models.building import attention
from unigrpo_jax.models.building.token_cut import NOT_CUT, TokenCut

Remat = Literal["none", "full", "dots"]


def _convolutions(primitive, *_, **__) -> bool:
    return primitive is jax.lax.conv_general_dilated_p


# What a block keeps for the backward pass.  A product with weights, a convolution included, has no batch dimension, one
# inside the attention has: scores and mixed values are made again.
KEPT = {
    "full": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _convolutions
    ),
}


@dataclasses.dataclass(frozen=True)
class Computing:
    """The way.

    Attributes:
      hold: applied to activations with the batch first, to hold them to their place on a mesh; None leaves them free.
      attend: the attention, with the signature of `attention.xla`.
      remat: what the backward pass recomputes instead of storing it: "none"; "full", each block from its inputs; "dots",
        each block but its products with weights.
      tokens: how the tokens of a sample lie over devices; only networks read it whose cuts name the axis `sequence`.
    """

    hold: Callable[[jax.Array], jax.Array] | None = None
    attend: Callable[..., jax.Array] = attention.xla
    remat: Remat = "none"
    tokens: TokenCut = NOT_CUT

    def block(self, function: Callable, scanned: bool = False) -> Callable:
        """A block (parameters, *activations with the batch first), its inputs held, made again in the backward pass.

        `scanned` says that a scan runs it, where nothing could be merged with what was computed before.
        """

        held = lambda params, *streams: function(params, *map(self.held, streams))
        if self.remat == "none":
            return held
        return jax.checkpoint(held, prevent_cse=not scanned, policy=KEPT[self.remat])

    def held(self, x):
        """An activation at its place; of a network whose tokens are cut, three axes are those of tokens [B, n, D]."""
        if self.tokens.parts > 1 and x.ndim == 3:
            return self.tokens.hold(x)
        return x if self.hold is None else self.hold(x)

    def attention(self, q_BLHK, k_BSHK, v_BSHK, seen_BS=None):
        """What queries get of keys that they all see, or of those that are `seen_BS`, bool; [B, L, H, K]."""
        return attention.of_all(self.attend, q_BLHK, k_BSHK, v_BSHK, seen_BS)


PLAIN = Computing()
