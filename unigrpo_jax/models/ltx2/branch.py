"""One modality's branch of LTX-2: its sizes, its names in the file, and what it does in a block by itself.

Letters: B samples, L text tokens, N tokens of the modality, D its width.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from unigrpo_jax.models.building.computing import Computing
from unigrpo_jax.models.building.flat import Params, Shapes, linear, linear_shapes, normed
from unigrpo_jax.models.ltx2.layers import (
    EPS,
    attention,
    attention_shapes,
    feed_forward,
    feed_forward_shapes,
    rms,
)
from unigrpo_jax.models.ltx2.modulation import CROSS, GATE, OWN, PREFIX, PROMPT, Said, parts, told_shapes
from unigrpo_jax.models.ltx2.rotary import Turn


@dataclasses.dataclass(frozen=True)
class Given:
    """What every block is given of one modality beside its tokens.

    Attributes:
      text: [B, L, D], what it is drawn upon.
      seen: bool [B, L], tokens of the text that are no padding; None where all are.
      said: of times.
      turn: of its tokens among themselves.
      cross_turn: of its tokens where it meets the other modality; None where that is absent.
      own: bool [B, N], its own tokens among others that it was filled up with; None where there are no others.
    """

    text: Any
    seen: Any
    said: Said
    turn: Turn
    cross_turn: Turn | None
    own: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    """Sizes.

    Attributes:
      modality: "video" or "audio".
      channels: numbers in a latent token.
      heads: of its attentions.
      head_dim: width of a head.
      gated: whether each head's result is gated by the token that asks (LTX-2.3).
      times_text: whether its time modulates how it attends to its text (LTX-2.3).
    """

    modality: str
    channels: int
    heads: int
    head_dim: int
    gated: bool = False
    times_text: bool = False

    @property
    def width(self) -> int:
        """D."""
        return self.heads * self.head_dim

    @property
    def prefix(self) -> str:
        """Of its names in the file."""
        return PREFIX[self.modality]

    @property
    def rows(self) -> int:
        """Of its table in a block."""
        return 9 if self.times_text else 6

    def alone(self, p: Params, x_BND, given: Given, way: Computing, unmixed_B=None):
        """A block's attention among its own tokens, then to its text."""
        shift, scale, gate, *_ = self._parts(p, given)
        own = rms(x_BND) * (1 + scale) + shift
        turns = (given.turn, given.turn)
        x = x_BND + gate * attention(p, f"{self.prefix}attn1", self.heads, own, own, way, turns, given.own, unmixed_B)
        query, text, gate = rms(x), given.text, 1
        if self.times_text:
            shift, scale, gate = self._parts(p, given)[6:]
            query = query * (1 + scale) + shift
        if given.said.text is not None:
            shift, scale = parts(p[f"{self.prefix}prompt_scale_shift_table"], given.said.text)
            text = text * (1 + scale) + shift
        return x + gate * attention(p, f"{self.prefix}attn2", self.heads, query, text, way, seen_BS=given.seen)

    def thought_over(self, p: Params, x_BND, given: Given):
        """A block's MLP."""
        shift, scale, gate = self._parts(p, given)[3:6]
        return x_BND + gate * feed_forward(p, f"{self.prefix}ff", rms(x_BND) * (1 + scale) + shift)

    def output(self, params: Params, x_BND, end_BTD):
        """The velocity, float32 [B, N, channels]; `end_BTD` is the time's embedding."""
        table = params[f"{self.prefix}scale_shift_table"].astype(end_BTD.dtype)[None, None]
        shift, scale = (table[:, :, row] + end_BTD for row in range(2))
        h = normed(x_BND, EPS).astype(x_BND.dtype) * (1 + scale) + shift
        return linear(params, f"{self.prefix}proj_out", h).astype(jnp.float32)

    def _parts(self, p: Params, given: Given):
        return parts(p[f"{self.prefix}scale_shift_table"], given.said.own)

    def block_shapes(self, texts_told: bool) -> Shapes:
        """Of what a block holds of this branch alone; `texts_told` says whether texts are modulated."""
        pre, width = self.prefix, self.width
        yield f"{pre}scale_shift_table", (self.rows, width)
        yield f"{self.modality}_a2v_cross_attn_scale_shift_table", (5, width)
        if texts_told:
            yield f"{pre}prompt_scale_shift_table", (2, width)
        for name in ("attn1", "attn2"):
            yield from attention_shapes(f"{pre}{name}", self.heads, width, width, width, self.gated)
        yield from feed_forward_shapes(f"{pre}ff", width)

    def outer_shapes(self, text_width: int | None, texts_told: bool, second_time: bool) -> Shapes:
        """Of what stands before and behind the blocks; `text_width` is None where texts come in this branch's width."""
        pre, width = self.prefix, self.width
        yield from linear_shapes(f"{pre}proj_in", self.channels, width)
        if text_width is not None:
            yield from linear_shapes(f"{pre}caption_projection.linear_1", text_width, width)
            yield from linear_shapes(f"{pre}caption_projection.linear_2", width, width)
        yield from told_shapes(f"{pre}{OWN}", width, self.rows, second_time)
        if texts_told:
            yield from told_shapes(f"{pre}{PROMPT}", width, 2)
        yield from told_shapes(CROSS[self.modality], width, 4)
        yield from told_shapes(GATE[self.modality], width, 1)
        yield f"{pre}scale_shift_table", (2, width)
        yield from linear_shapes(f"{pre}proj_out", width, self.channels)
