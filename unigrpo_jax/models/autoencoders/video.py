"""HunyuanVideo's autoencoder between clips and latents, never trained here.

Its parameters are the tensors of diffusers' AutoencoderKLHunyuanVideo under their names and in their layout (convolutions
[out, in, frames, height, width]), as a flat dict.  Always float32.

Clips are float32 [B, frames, height, width, 3] in [-1, 1], latents [B, 1 + (frames - 1) / 4, height / 8, width / 8,
channels]: the first frame is a latent of its own, so that a picture is a clip, and every 4 more are another.  A picture
may also be given without an axis of frames, [B, height, width, 3], and its latent has one all the same.  Convolutions
and attention look at no later frame; the norms take their statistics over all frames together, so the first latent depends
on later ones.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from unigrpo_jax.models.autoencoders import tiles
from unigrpo_jax.models.autoencoders.pixels import latent_size
from unigrpo_jax.models.autoencoders.tiles import Tiles
from unigrpo_jax.models.building.flat import convolution, convolution_shapes, group_norm, linear, linear_shapes, norm_shapes

EPS = 1e-6  # of every GroupNorm
FRAMES = 4  # of a latent, but the first
LOG_VARIANCE = (-30.0, 20.0)  # where it is clipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoAutoencoder:
    """Sizes, and the verbs `encode` and `decode`.

    Attributes:
      widths: channels of each level; at least three, and as many as `downsample` has factors of two.
      blocks: residual blocks per level; the decoder has one more.
      channels: of the latent.
      scale: latents are scale * z.
      groups: of every GroupNorm.
      downsample: pixels along the side of a latent pixel, a power of two.
      time_tiles: how clips are cut into tiles of frames; None is never.
      side_tiles: how frames are cut, in pixels; None is never.
    """

    widths: tuple[int, ...]
    blocks: int
    channels: int
    scale: float = 0.476986
    groups: int = 32
    downsample: int = 8
    time_tiles: Tiles | None = Tiles(size=16, stride=12)
    side_tiles: Tiles | None = None

    @property
    def steps(self) -> tuple[tuple[int, int, int], ...]:
        """By how much frames, rows and columns are divided after each level of the encoder, multiplied in the decoder.

        Both count levels from where they begin: sides as early as possible, frames in the last levels but one.
        """
        last, halved = len(self.widths) - 1, self.downsample.bit_length() - 1
        sides = [2 if level < halved else 1 for level in range(last + 1)]
        return tuple((2 if last - 2 <= level < last else 1, side, side) for level, side in enumerate(sides))

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip's latent; ValueError names the nearest clips where there is none."""
        return latent_size(frames, height, width, FRAMES, self.downsample)

    def encode(self, params, clip_BTHWC, keys_B: jax.Array | None = None):
        """Latents of clips: the posterior's mean, or a sample where there is a key for each; ValueError as `latent_size`."""
        mean, log_variance = self.moments(params, clip_BTHWC)
        if keys_B is None:
            return self.sample(mean, log_variance, 0.0)
        return self.sample(mean, log_variance, jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys_B))

    def sample(self, mean, log_variance, noise):
        """scale * (mean + exp(log_variance / 2) * noise)."""
        return self.scale * (mean + jnp.exp(0.5 * log_variance) * noise)

    def moments(self, params, clip_BTHWC):
        """Mean and log-variance of the posterior, each like a latent, before the scale; ValueError as `latent_size`."""
        clip_BTHWC = clip_BTHWC if clip_BTHWC.ndim == 5 else clip_BTHWC[:, None]
        self.latent_size(*clip_BTHWC.shape[1:4])
        whole = functools.partial(self._encoded, params)
        in_latents = lambda cut, by: (cut, cut.divided(by))
        mean, log_variance = jnp.split(self._in_tiles(whole, clip_BTHWC, in_latents), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def decode(self, params, latent_BTHWC):
        """Clips of latents, not clipped."""
        whole = functools.partial(self._decoded, params)
        in_pixels = lambda cut, by: (cut.divided(by), cut)
        return self._in_tiles(whole, latent_BTHWC / self.scale, in_pixels)

    def _in_tiles(self, function, x, units):
        """`function` of the tiles of x; `units` makes (read, written) of `Tiles`."""
        times = self.time_tiles and units(self.time_tiles, FRAMES)
        return tiles.over_clip(function, x, times, self.side_tiles and units(self.side_tiles, self.downsample))

    def _encoded(self, params, clip):
        h = _causal(params, "encoder.conv_in", clip)
        for level, step in enumerate(self.steps):
            for block in range(self.blocks):
                h = self._residual(params, f"encoder.down_blocks.{level}.resnets.{block}", h)
            if max(step) > 1:
                h = _causal(params, f"encoder.down_blocks.{level}.downsamplers.0.conv", h, step)
        h = self._last(params, "encoder", self._middle(params, "encoder.mid_block", h))
        return convolution(params, "quant_conv", h)

    def _decoded(self, params, z):
        h = _causal(params, "decoder.conv_in", convolution(params, "post_quant_conv", z))
        h = self._middle(params, "decoder.mid_block", h)
        for level, step in enumerate(self.steps):
            for block in range(self.blocks + 1):
                h = self._residual(params, f"decoder.up_blocks.{level}.resnets.{block}", h)
            if max(step) > 1:
                h = _causal(params, f"decoder.up_blocks.{level}.upsamplers.0.conv", _enlarged(h, step))
        return self._last(params, "decoder", h)

    def _norm(self, params, name: str, x):
        return group_norm(params, name, x, self.groups, EPS)

    def _residual(self, params, name: str, x):
        h = _causal(params, f"{name}.conv1", jax.nn.silu(self._norm(params, f"{name}.norm1", x)))
        h = _causal(params, f"{name}.conv2", jax.nn.silu(self._norm(params, f"{name}.norm2", h)))
        shortcut = f"{name}.conv_shortcut"
        return h + (_causal(params, shortcut, x) if f"{shortcut}.conv.weight" in params else x)

    def _middle(self, params, name: str, x):
        """Residual block, one head of attention over the pixels of all frames up to one's own, residual block."""
        x = self._residual(params, f"{name}.resnets.0", x)
        batch, frames, height, width, channels = x.shape
        attention, pixels = f"{name}.attentions.0", height * width
        h = self._norm(params, f"{attention}.group_norm", x)
        project = lambda p: linear(params, f"{attention}.{p}", h).reshape(batch, frames * pixels, 1, channels)
        q, k, v = map(project, ("to_q", "to_k", "to_v"))
        # Frame by frame: half the scores, and memory of one frame's.
        of_frame = lambda f, end: jax.nn.dot_product_attention(q[:, f * pixels : end], k[:, :end], v[:, :end])
        attended = jnp.concatenate([of_frame(f, (f + 1) * pixels) for f in range(frames)], axis=1)
        x = x + linear(params, f"{attention}.to_out.0", attended.reshape(x.shape))
        return self._residual(params, f"{name}.resnets.1", x)

    def _last(self, params, half: str, x):
        return _causal(params, f"{half}.conv_out", jax.nn.silu(self._norm(params, f"{half}.conv_norm_out", x)))

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter, which are its own."""
        return (name,)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file and its shape."""
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        first, *_, deep = self.widths
        yield from _causal_shapes("encoder.conv_in", 3, first)
        yield from _causal_shapes("decoder.conv_in", self.channels, deep)
        for half, levels, resampler, widths, blocks in (
            ("encoder", "down_blocks", "downsamplers", self.widths, self.blocks),
            ("decoder", "up_blocks", "upsamplers", self.widths[::-1], self.blocks + 1),
        ):
            size = widths[0]
            for level, (out, step) in enumerate(zip(widths, self.steps, strict=True)):
                name = f"{half}.{levels}.{level}"
                for block in range(blocks):
                    yield from _residual_shapes(f"{name}.resnets.{block}", size, out)
                    size = out
                if max(step) > 1:
                    yield from _causal_shapes(f"{name}.{resampler}.0.conv", out, out)
            for block in range(2):
                yield from _residual_shapes(f"{half}.mid_block.resnets.{block}", deep, deep)
            yield from norm_shapes(f"{half}.mid_block.attentions.0.group_norm", deep)
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                yield from linear_shapes(f"{half}.mid_block.attentions.0.{projection}", deep, deep)
            yield from norm_shapes(f"{half}.conv_norm_out", size)
        yield from _causal_shapes("encoder.conv_out", deep, 2 * self.channels)
        yield from _causal_shapes("decoder.conv_out", first, 3)
        yield from convolution_shapes("quant_conv", 2 * self.channels, 2 * self.channels, 1, axes=3)
        yield from convolution_shapes("post_quant_conv", self.channels, self.channels, 1, axes=3)


def _causal(params, name: str, x, stride: int | tuple[int, int, int] = 1):
    """A convolution that sees no later frame; beyond the clip are its first frame and the pixels at its edges again."""
    name = f"{name}.conv"
    kernel = params[f"{name}.weight"].shape[-1]
    side = (kernel // 2, kernel // 2)
    padded = jnp.pad(x, ((0, 0), (kernel - 1, 0), side, side, (0, 0)), mode="edge")
    return convolution(params, name, padded, stride, padding=0)


def _enlarged(x, step: tuple[int, int, int]):
    """Every pixel so many times along each axis, but the first frame once along the frames."""
    frames, *sides = step
    for axis, times in enumerate(sides, 2):
        x = jnp.repeat(x, times, axis=axis)
    return jnp.concatenate([x[:, :1], jnp.repeat(x[:, 1:], frames, axis=1)], axis=1)


def _causal_shapes(name: str, width: int, out: int, kernel: int = 3):
    return convolution_shapes(f"{name}.conv", width, out, kernel, axes=3)


def _residual_shapes(name: str, width: int, out: int):
    yield from norm_shapes(f"{name}.norm1", width)
    yield from _causal_shapes(f"{name}.conv1", width, out)
    yield from norm_shapes(f"{name}.norm2", out)
    yield from _causal_shapes(f"{name}.conv2", out, out)
    if width != out:
        yield from _causal_shapes(f"{name}.conv_shortcut", width, out, 1)
