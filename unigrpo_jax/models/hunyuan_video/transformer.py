"""The transformer of HunyuanVideo: a video's latents and its refined text in two streams, then in one.

The blocks are those of `building.two_streams`.  What is the family's own comes before them: tokens of PATCH latents have
places in time, height and width, and a small transformer first looks over the text, told the time and the text's mean.  A
text is padded on the right, and no token of video or text sees the padding.

Letters: B videos, L text tokens, N latent tokens, D width.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.building.computing import PLAIN, Computing
from unigrpo_jax.models.building.flat import Params, Shapes, layer_norm, linear, linear_shapes, norm_shapes, of_stack
from unigrpo_jax.models.building.two_streams import EPS, MLP, TwoStreams, modulation, rotary, told, told_shapes

PATCH = (1, 2, 2)  # latents of a token: frames, rows, columns
TEXT = "context_embedder"
REFINER, REFINER_TOLD = f"{TEXT}.token_refiner.refiner_blocks", f"{TEXT}.time_text_embed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HunyuanVideoTransformer(TwoStreams):
    """Sizes, and the pass; a token's places are its frame, its row and its column.

    Attributes:
      refiner: blocks that look over the text.
      theta: base of the rotary angles.
      from_picture: whether beside each noisy token it is given one of a picture's latents (SkyReels-V1).
    """

    refiner: int
    theta: float = 256.0
    from_picture: bool = False

    @property
    def inputs(self) -> int:
        """Numbers of a token that is given."""
        return self.channels * (2 if self.from_picture else 1)

    def __call__(
        self,
        params: Params,
        x_BNC,
        time_B,
        text_BLD,
        mask_BL,
        pooled_BP,
        grid: tuple[int, int, int],
        scale_B=None,
        way: Computing = PLAIN,
        gap_B=None,
    ):
        """Velocity v = noise - data, float32 [B, N, channels].

        Args:
          params: the parameters.
          x_BNC: latent tokens [B, N, inputs], N of `grid`, frame by frame and row by row; inside a token the channels of
            noisy latents, then those of the picture's, each a plane of PATCH.
          time_B: 1000 times the flow's, from 1000 for noise to 0.
          text_BLD: the text's states.
          mask_BL: bool, its tokens that are no padding: the first ones, at least one.
          pooled_BP: the state that stands for the whole text.
          grid: latent tokens (frames, rows, columns).
          scale_B: 1000 times the scale of guidance, where `guidance`; else it is not read.
          way: of computing.
          gap_B: 1000 times t minus the time of arrival, where there is a `second_time`; None leaves it out.  What looks over
            the text is not told.
        """
        dtype, cut = x_BNC.dtype, way.tokens
        condition = self.condition(params, time_B, pooled_BP.astype(dtype), scale_B, gap_B)
        mask_BL = cut.filled(mask_BL)
        text = self.refined(params, cut.entering(text_BLD.astype(dtype)), mask_BL, time_B, way)
        video = self.embedded(params, cut.entering(x_BNC))
        turn = rotary(grid, text.shape[1], self.axes, self.theta, np.float32)
        return self.velocity(params, text, video, condition, turn, way, mask_BL)

    def embedded(self, params: Params, x_BNC):
        """Tokens [B, N, D]: the file's convolution, whose stride is its kernel and whose weight lies as a token does."""
        name = "x_embedder.proj"
        kernel = params[f"{name}.weight"]
        flat = {f"{name}.weight": kernel.reshape(kernel.shape[0], -1), f"{name}.bias": params[f"{name}.bias"]}
        return linear(flat, name, x_BNC)

    def refined(self, params: Params, text_BLD, mask_BL, time_B, way: Computing = PLAIN):
        """The text after it was looked over, [B, L, D]; what stands at padding is read by nothing."""
        condition = told(params, REFINER_TOLD, time_B, _mean(text_BLD, mask_BL))
        h = linear(params, f"{TEXT}.proj_in", text_BLD)
        block = way.block(lambda p, *streams: self.refiner_block(p, *streams, mask_BL, way), scanned=True)
        return jax.lax.scan(lambda h, p: (block(p, h, condition), None), h, of_stack(params, REFINER))[0]

    def refiner_block(self, p: Params, h, condition, mask_BL, way: Computing = PLAIN):
        """Attention among the text's tokens and an MLP; the condition says their gates alone."""
        gate, gate_mlp = modulation(p, "norm_out.linear", condition, 2, way)
        own = layer_norm(p, "norm1", h, EPS)
        q, k, v = (linear(p, f"attn.to_{which}", own).reshape(*h.shape[:2], self.heads, -1) for which in "qkv")
        h = h + gate * linear(p, "attn.to_out.0", way.attention(q, k, v, mask_BL).reshape(h.shape))
        wide = jax.nn.silu(linear(p, "ff.net.0.proj", layer_norm(p, "norm2", h, EPS)))
        return h + gate_mlp * linear(p, "ff.net.2", wide)

    def stacks(self) -> dict[str, tuple[int, Shapes]]:
        """The scanned blocks, {their name: (layers, parameters of one)}."""
        return {REFINER: (self.refiner, self._refiner_shapes()), **super().stacks()}

    def entrance(self) -> Shapes:
        """Of latents and text, but for the refiner's blocks."""
        yield "x_embedder.proj.weight", (self.width, self.inputs // math.prod(PATCH), *PATCH)
        yield "x_embedder.proj.bias", (self.width,)
        yield from told_shapes(REFINER_TOLD, self.width, self.text_width, guidance=False)
        yield from linear_shapes(f"{TEXT}.proj_in", self.text_width, self.width)

    def _refiner_shapes(self) -> Shapes:
        width = self.width
        for name in ("norm1", "norm2"):
            yield from norm_shapes(name, width)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from linear_shapes(f"attn.{name}", width, width)
        yield from linear_shapes("ff.net.0.proj", width, MLP * width)
        yield from linear_shapes("ff.net.2", MLP * width, width)
        yield from linear_shapes("norm_out.linear", width, 2 * width)


def _mean(text_BLD, mask_BL):
    """Of the states that are no padding, taken in float32."""
    weight = mask_BL[..., None].astype(jnp.float32)
    return (jnp.sum(weight * text_BLD.astype(jnp.float32), axis=1) / jnp.sum(weight, axis=1)).astype(text_BLD.dtype)
