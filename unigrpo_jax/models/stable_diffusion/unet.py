"""The U-Net of Stable Diffusion 1.x: pixels of a latent on several scales, which look at each other and at a text.

Its parameters are the tensors of `unet/diffusion_pytorch_model.safetensors` under their own names and in their own layout,
a flat dict.  Pixels are [B, height, width, channels].  It computes in the dtype of its input; norms, softmax and time are
float32.
"""

import dataclasses

import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.computing import PLAIN, Computing
from unigrpo_jax.models.building.flat import (
    Params,
    Shapes,
    convolution,
    convolution_shapes,
    doubled,
    group_norm,
    layer_norm,
    linear,
    linear_shapes,
    norm_shapes,
    of_stack,
    sinusoid,
)

RESIDUAL_EPS, ATTENTION_EPS, LAYER_EPS = 1e-5, 1e-6, 1e-5  # of the norms of residual blocks, attentions and their layers
# Linear maps of every pixel and of the text's tokens: those of times and the convolutions are none.
INT8 = r".*\.transformer_blocks\.\d+\.(?:attn\d\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2))"
MLP = 4  # hidden width of an attention's MLP over its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet:
    """Sizes, and the pass.

    Attributes:
      channels: of the latent.
      widths: channels of each scale, from the finest.
      attends: of each scale, whether its blocks look at each other's pixels and at the text.
      blocks: residual blocks per scale on the way down; one more on the way up.
      heads: of every attention.
      text_width: width of the text's states.
      groups: of every GroupNorm.
    """

    channels: int
    widths: tuple[int, ...]
    attends: tuple[bool, ...]
    blocks: int
    heads: int
    text_width: int
    groups: int

    def __call__(self, params: Params, x_BHWC, step_B, text_BLD, way: Computing = PLAIN):
        """The noise in a latent, [B, h, w, channels], float32.

        Args:
          params: the parameters.
          x_BHWC: the latent; sides are multiples of 2 ** (scales - 1).
          step_B: steps of the diffusion, counted from 0, as numbers.
          text_BLD: the text's states.
          way: of computing.
        """
        dtype, last = x_BHWC.dtype, len(self.widths) - 1
        time, text = self.time(params, step_B, dtype), text_BLD.astype(dtype)
        residual, look = way.block(self.residual), way.block(lambda p, x, text: self.attention(p, x, text, way))

        def block(name: str, number: int, h, attends: bool):
            h = residual(of_stack(params, f"{name}.resnets.{number}"), h, time)
            return look(of_stack(params, f"{name}.attentions.{number}"), h, text) if attends else h

        h = convolution(params, "conv_in", x_BHWC)
        skips = [h]
        for scale in range(last + 1):
            for number in range(self.blocks):
                h = block(f"down_blocks.{scale}", number, h, self.attends[scale])
                skips.append(h)
            if scale < last:
                h = convolution(params, f"down_blocks.{scale}.downsamplers.0.conv", h, stride=2)
                skips.append(h)
        h = block("mid_block", 0, h, True)
        h = block("mid_block", 1, h, False)
        for up, scale in enumerate(reversed(range(last + 1))):
            for number in range(self.blocks + 1):
                h = block(f"up_blocks.{up}", number, jnp.concatenate([h, skips.pop()], axis=-1), self.attends[scale])
            if scale:
                h = convolution(params, f"up_blocks.{up}.upsamplers.0.conv", doubled(h))
        h = jax.nn.silu(group_norm(params, "conv_norm_out", h, self.groups, RESIDUAL_EPS))
        return convolution(params, "conv_out", h).astype(jnp.float32)

    def time(self, params: Params, step_B, dtype=jnp.float32):
        """Embedding [B, 4 widths[0]] of steps: their sinusoid and two layers."""
        h = sinusoid(step_B, self.widths[0]).astype(dtype)
        return linear(params, "time_embedding.linear_2", jax.nn.silu(linear(params, "time_embedding.linear_1", h)))

    def residual(self, p: Params, x, time):
        """Two convolutions, between them the time, beside the way around them; `p` are this block's own parameters."""
        norm = lambda which, h: jax.nn.silu(group_norm(p, which, h, self.groups, RESIDUAL_EPS))
        h = convolution(p, "conv1", norm("norm1", x))
        h = h + linear(p, "time_emb_proj", jax.nn.silu(time))[:, None, None]
        h = convolution(p, "conv2", norm("norm2", h))
        return h + (convolution(p, "conv_shortcut", x) if "conv_shortcut.weight" in p else x)

    def attention(self, p: Params, x, text, way: Computing = PLAIN):
        """Pixels as tokens: they see each other, then the text, then an MLP with a gate."""
        h = group_norm(p, "norm", x, self.groups, ATTENTION_EPS)
        h = convolution(p, "proj_in", h).reshape(x.shape[0], -1, x.shape[-1])
        layer = of_stack(p, "transformer_blocks.0")
        norm = lambda which, h: layer_norm(layer, which, h, LAYER_EPS)
        seen = norm("norm1", h)
        h = h + self._look(layer, "attn1", seen, seen, way)
        h = h + self._look(layer, "attn2", norm("norm2", h), text, way)
        wide, gate = jnp.split(linear(layer, "ff.net.0.proj", norm("norm3", h)), 2, axis=-1)
        h = h + linear(layer, "ff.net.2", wide * jax.nn.gelu(gate, approximate=False))
        return x + convolution(p, "proj_out", h.reshape(x.shape))

    def _look(self, p: Params, name: str, h_BND, seen_BLD, way: Computing):
        """What tokens see of others, in heads."""
        heads = lambda which, x: linear(p, f"{name}.{which}", x).reshape(*x.shape[:2], self.heads, -1)
        attended = way.attention(heads("to_q", h_BND), heads("to_k", seen_BLD), heads("to_v", seen_BLD))
        return linear(p, f"{name}.to_out.0", attended.reshape(h_BND.shape))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file and its shape."""
        return dict(self._shapes())

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's name of a parameter: its own."""
        return (name,)

    def _shapes(self) -> Shapes:
        first, last = self.widths[0], len(self.widths) - 1
        yield from convolution_shapes("conv_in", self.channels, first, 3)
        yield from linear_shapes("time_embedding.linear_1", first, 4 * first)
        yield from linear_shapes("time_embedding.linear_2", 4 * first, 4 * first)
        width, skips = first, [first]
        for scale, out in enumerate(self.widths):
            for block in range(self.blocks):
                yield from self._block_shapes(f"down_blocks.{scale}", block, width, out, self.attends[scale])
                width = out
                skips.append(out)
            if scale < last:
                yield from convolution_shapes(f"down_blocks.{scale}.downsamplers.0.conv", out, out, 3)
                skips.append(out)
        yield from self._block_shapes("mid_block", 0, width, width, True)
        yield from self._residual_shapes("mid_block.resnets.1", width, width)
        for up, scale in enumerate(reversed(range(last + 1))):
            out = self.widths[scale]
            for block in range(self.blocks + 1):
                yield from self._block_shapes(f"up_blocks.{up}", block, width + skips.pop(), out, self.attends[scale])
                width = out
            if scale:
                yield from convolution_shapes(f"up_blocks.{up}.upsamplers.0.conv", out, out, 3)
        yield from norm_shapes("conv_norm_out", first)
        yield from convolution_shapes("conv_out", first, self.channels, 3)

    def _block_shapes(self, name: str, block: int, width: int, out: int, attends: bool) -> Shapes:
        yield from self._residual_shapes(f"{name}.resnets.{block}", width, out)
        if attends:
            yield from self._attention_shapes(f"{name}.attentions.{block}", out)

    def _residual_shapes(self, name: str, width: int, out: int) -> Shapes:
        yield from norm_shapes(f"{name}.norm1", width)
        yield from convolution_shapes(f"{name}.conv1", width, out, 3)
        yield from linear_shapes(f"{name}.time_emb_proj", 4 * self.widths[0], out)
        yield from norm_shapes(f"{name}.norm2", out)
        yield from convolution_shapes(f"{name}.conv2", out, out, 3)
        if width != out:
            yield from convolution_shapes(f"{name}.conv_shortcut", width, out, 1)

    def _attention_shapes(self, name: str, width: int) -> Shapes:
        yield from norm_shapes(f"{name}.norm", width)
        yield from convolution_shapes(f"{name}.proj_in", width, width, 1)
        yield from convolution_shapes(f"{name}.proj_out", width, width, 1)
        name = f"{name}.transformer_blocks.0"
        for norm in ("norm1", "norm2", "norm3"):
            yield from norm_shapes(f"{name}.{norm}", width)
        for look, seen in (("attn1", width), ("attn2", self.text_width)):
            for which, size in (("to_q", width), ("to_k", seen), ("to_v", seen)):
                yield from linear_shapes(f"{name}.{look}.{which}", size, width, bias=False)
            yield from linear_shapes(f"{name}.{look}.to_out.0", width, width)
        yield from linear_shapes(f"{name}.ff.net.0.proj", width, 2 * MLP * width)
        yield from linear_shapes(f"{name}.ff.net.2", MLP * width, width)
