"""LTX-2's autoencoder between clips and latents, never trained here.

Its parameters are the tensors of diffusers' AutoencoderKLLTX2Video under their names and in their layout (convolutions
[out, in, frames, height, width]), as a flat dict; `latents_mean` and `latents_std`, by which latents are normalised, are two
of them.  Always float32.

Clips are float32 [B, frames, height, width, 3] in [-1, 1]; latents [B, 1 + (frames - 1) / every, height / downsample,
width / downsample, channels].  The first frame is a latent of its own, so that a picture is a clip, and may be given without
an axis of frames.

Where resolution changes, pixels are moved into channels or out of them, both behind a convolution and past it.  Norms look
at one pixel alone.  A causal half looks at no later frame: beyond the clip, its convolutions see the first frame again.
Others see as many frames on both sides, beyond the clip its first and its last.  At the sides of frames there are zeros, or
the mirrored pixels.

In tiles of frames, each frame stands where it stands in the whole.  (diffusers' class drops a later tile's last frame
instead of its first, so that all frames from there on are one too late.)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from unigrpo_jax.models.autoencoders import tiles
from unigrpo_jax.models.autoencoders.normalised import as_encoded, branch, normalised, pixel_norm, statistics_shapes
from unigrpo_jax.models.autoencoders.pixels import latent_size
from unigrpo_jax.models.autoencoders.tiles import Tiles
from unigrpo_jax.models.building.flat import convolution, convolution_shapes

EPS = 1e-8  # of every norm
KERNEL = 3  # of every convolution, along every axis
LOG_VARIANCE = (-30.0, 20.0)  # where it is clipped

Step = tuple[int, int, int]  # along frames, rows and columns
Convolve = Callable[[str, jax.Array], jax.Array]  # (name, x) -> y


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One change of resolution.

    Attributes:
      blocks: residual blocks, in the encoder before the change, in the decoder after it.
      width: channels after the change.
      step: by how much frames, rows and columns are divided, or in the decoder multiplied.
      past: whether pixels are moved past the convolution, too; in the encoder they always are.
    """

    blocks: int
    width: int
    step: Step
    past: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Half:
    """Encoder or decoder.

    Attributes:
      width: channels of the first convolution.
      levels: in the order in which they come.
      middle: residual blocks at the deep end.
      causal: whether no later frame is looked at.
      edges: what lies beyond a frame's sides, "constant" (zeros) or "reflect" (mirrored; a single row is repeated).
    """

    width: int
    levels: tuple[Level, ...]
    middle: int
    causal: bool
    edges: str

    @property
    def step(self) -> Step:
        """That of all levels together."""
        return tuple(math.prod(sizes) for sizes in zip(*(level.step for level in self.levels), strict=True))

    @property
    def convolve(self):
        """(params, name, x) -> y, with what this half sees beyond a clip."""
        return functools.partial(_convolution, causal=self.causal, edges=self.edges)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LTXVideoAutoencoder:
    """Sizes, and the verbs `encode` and `decode`.

    Attributes:
      channels: of the latent.
      patch: pixels along the side of the square that lies in the channels of the first and the last convolution.
      encoder: from clips to latents; its first convolution has as many channels as the latent.
      decoder: back; both have the same `step`.
      scale: latents are scale * (z - mean) / std.
      time_tiles: how clips are cut into tiles of frames; None is never.
      side_tiles: how frames are cut, in pixels; None is never.
    """

    channels: int
    patch: int
    encoder: Half
    decoder: Half
    scale: float = 1.0
    time_tiles: Tiles | None = None
    side_tiles: Tiles | None = None

    @property
    def every(self) -> int:
        """Frames of a latent, but the first."""
        return self.encoder.step[0]

    @property
    def downsample(self) -> int:
        """Pixels along the side of a latent pixel."""
        return self.patch * self.encoder.step[1]

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip's latent; ValueError names the nearest clips where there is none."""
        return latent_size(frames, height, width, self.every, self.downsample)

    def encode(self, params, clip_BTHWC, keys_B: jax.Array | None = None):
        """Latents of clips: the posterior's mean, or a sample where there is a key for each; ValueError as `latent_size`."""
        mean, log_variance = self.moments(params, clip_BTHWC)
        if keys_B is None:
            return normalised(params, mean, self.scale)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys_B)
        return normalised(params, mean + jnp.exp(0.5 * log_variance) * noise, self.scale)

    def moments(self, params, clip_BTHWC):
        """Mean of the posterior, before it is normalised, and one log-variance for all its channels, [..., 1].

        ValueError as `latent_size`.
        """
        clip_BTHWC = clip_BTHWC if clip_BTHWC.ndim == 5 else clip_BTHWC[:, None]
        self.latent_size(*clip_BTHWC.shape[1:4])
        in_latents = lambda cut, by: (cut, cut.divided(by))
        both = self._in_tiles(functools.partial(self._encoded, params), clip_BTHWC, in_latents)
        return both[..., :-1], jnp.clip(both[..., -1:], *LOG_VARIANCE)

    def decode(self, params, latent_BTHWC):
        """Clips of latents, not clipped."""
        in_pixels = lambda cut, by: (cut.divided(by), cut)
        z = as_encoded(params, latent_BTHWC, self.scale)
        return self._in_tiles(functools.partial(self._decoded, params), z, in_pixels)

    def _in_tiles(self, function, x, units):
        """`function` of the tiles of x; `units` makes (read, written) of `Tiles`."""
        times = self.time_tiles and units(self.time_tiles, self.every)
        return tiles.over_clip(function, x, times, self.side_tiles and units(self.side_tiles, self.downsample))

    def _encoded(self, params, clip):
        convolve = functools.partial(self.encoder.convolve, params)
        h = convolve("encoder.conv_in", _squares_to_channels(clip, self.patch))
        for number, level in enumerate(self.encoder.levels):
            name = f"encoder.down_blocks.{number}"
            h = _blocks(convolve, name, h, level.blocks)
            h = _downsampled(convolve, f"{name}.downsamplers.0.conv", h, level)
        return _last(convolve, "encoder", _blocks(convolve, "encoder.mid_block", h, self.encoder.middle))

    def _decoded(self, params, z):
        convolve = functools.partial(self.decoder.convolve, params)
        h = _blocks(convolve, "decoder.mid_block", convolve("decoder.conv_in", z), self.decoder.middle)
        for number, level in enumerate(self.decoder.levels):
            name = f"decoder.up_blocks.{number}"
            h = _upsampled(convolve, f"{name}.upsamplers.0.conv", h, level)
            h = _blocks(convolve, name, h, level.blocks)
        return _channels_to_squares(_last(convolve, "decoder", h), self.patch)

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter, which are its own."""
        return (name,)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file and its shape."""
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        pixels = 3 * self.patch**2
        yield from statistics_shapes(self.channels)
        yield from _shapes_of("encoder.conv_in", pixels, self.encoder.width)
        width = self.encoder.width
        for number, level in enumerate(self.encoder.levels):
            name = f"encoder.down_blocks.{number}"
            yield from _blocks_shapes(name, width, level.blocks)
            yield from _shapes_of(f"{name}.downsamplers.0.conv", width, level.width // math.prod(level.step))
            width = level.width
        yield from _blocks_shapes("encoder.mid_block", width, self.encoder.middle)
        yield from _shapes_of("encoder.conv_out", width, self.channels + 1)
        width = self.decoder.width
        yield from _shapes_of("decoder.conv_in", self.channels, width)
        yield from _blocks_shapes("decoder.mid_block", width, self.decoder.middle)
        for number, level in enumerate(self.decoder.levels):
            name = f"decoder.up_blocks.{number}"
            yield from _shapes_of(f"{name}.upsamplers.0.conv", width, level.width * math.prod(level.step))
            yield from _blocks_shapes(name, level.width, level.blocks)
            width = level.width
        yield from _shapes_of("decoder.conv_out", width, pixels)


def _convolution(params, name: str, x, causal: bool, edges: str):
    name, side = f"{name}.conv", (KERNEL // 2, KERNEL // 2)
    frames = (KERNEL - 1, 0) if causal else side
    x = jnp.pad(x, ((0, 0), frames, (0, 0), (0, 0), (0, 0)), mode="edge")
    x = jnp.pad(x, ((0, 0), (0, 0), side, side, (0, 0)), mode=edges)
    return convolution(params, name, x, padding=0)


def _shapes_of(name: str, width: int, out: int):
    return convolution_shapes(f"{name}.conv", width, out, KERNEL, axes=3)


def _blocks(convolve: Convolve, name: str, x, count: int):
    """Residual blocks, one after the other."""
    for block in range(count):
        x = x + branch(convolve, f"{name}.resnets.{block}", x, EPS)
    return x


def _blocks_shapes(name: str, width: int, count: int):
    for block in range(count):
        for convolution_name in ("conv1", "conv2"):
            yield from _shapes_of(f"{name}.resnets.{block}.{convolution_name}", width, width)


def _last(convolve: Convolve, half: str, x):
    return convolve(f"{half}.conv_out", jax.nn.silu(pixel_norm(x, EPS)))


def _downsampled(convolve: Convolve, name: str, x, level: Level):
    """Fewer pixels of more channels; past the convolution, groups of channels become their means.

    The first frames are there once more in front, so that a clip's own first one ends up alone.
    """
    x = jnp.concatenate([x[:, : level.step[0] - 1], x], axis=1)
    past = _to_channels(x, level.step)
    past = past.reshape(*past.shape[:-1], level.width, -1).mean(-1)
    return _to_channels(convolve(name, x), level.step) + past


def _upsampled(convolve: Convolve, name: str, x, level: Level):
    """More pixels of fewer channels, of the first frame only its last; past the convolution, channels are repeated."""
    alone = level.step[0] - 1
    h = _to_space(convolve(name, x), level.step)[:, alone:]
    if not level.past:
        return h
    past = _to_space(x, level.step)[:, alone:]
    return h + jnp.tile(past, (1, 1, 1, 1, level.width // past.shape[-1]))


def _to_channels(x, step: Step):
    """Blocks of `step` pixels moved into channels; of these, (channel, frame, row, column), the column changes fastest."""
    batch, *sizes, channels = x.shape
    (f, h, w), (frames, rows, columns) = step, (size // by for size, by in zip(sizes, step, strict=True))
    x = x.reshape(batch, frames, f, rows, h, columns, w, channels)
    return x.transpose(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, frames, rows, columns, channels * f * h * w)


def _to_space(x, step: Step):
    """The inverse of `_to_channels`."""
    batch, frames, rows, columns, channels = x.shape
    f, h, w = step
    x = x.reshape(batch, frames, rows, columns, channels // (f * h * w), f, h, w)
    return x.transpose(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, frames * f, rows * h, columns * w, -1)


def _squares_to_channels(clip, side: int):
    """As `_to_channels` of squares, but of these channels the row changes fastest."""
    turned = jnp.swapaxes(clip, 2, 3)
    return jnp.swapaxes(_to_channels(turned, (1, side, side)), 2, 3)


def _channels_to_squares(x, side: int):
    """The inverse of `_squares_to_channels`."""
    turned = jnp.swapaxes(x, 2, 3)
    return jnp.swapaxes(_to_space(turned, (1, side, side)), 2, 3)
