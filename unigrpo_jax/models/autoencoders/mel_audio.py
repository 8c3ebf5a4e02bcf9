"""LTX-2's autoencoder between log-mel spectrograms and latents, never trained here.

Its parameters are the tensors of diffusers' AutoencoderKLLTX2Audio under their names and in their layout (convolutions
[out, in, time, bins]), as a flat dict; `latents_mean` and `latents_std`, by which latents are normalised, are two of them.
Always float32.

Spectrograms are float32 [B, frames, bins, sides], `log_mel` of a sound with so many channels, rate / hop frames a second.
Latents are packed: [B, L, numbers], number c * (bins / 4) + m for channel c and bin m.  A latent is 4 frames, but the first
is one: of 4 L - 3 frames there are L latents, and of these 4 L - 3 frames.  Convolutions look at no later frame; norms look
at one place alone.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from unigrpo_jax.models.autoencoders.normalised import as_encoded, branch, normalised, pixel_norm, statistics_shapes
from unigrpo_jax.models.building.flat import convolution, convolution_shapes, doubled

EPS = 1e-6  # of every norm
LEVELS, EVERY = 3, 4  # frames and bins are halved after each level but the last
LOG_VARIANCE = (-30.0, 20.0)  # where it is clipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelAutoencoder:
    """Sizes, and the verbs `encode` and `decode`.

    Attributes:
      width: channels of the first level.
      multipliers: channels of the three levels, in multiples of `width`.
      blocks: residual blocks per level; the decoder has one more.
      channels: of a latent that is not packed.
      sides: channels of sound, 2 for stereo.
      bins: of the spectrogram, a multiple of 4.
      rate: samples per second of the sound that it is made of.
      hop: samples from one frame to the next.
    """

    width: int
    multipliers: tuple[int, int, int]
    blocks: int
    channels: int
    sides: int = 2
    bins: int = 64
    rate: int = 16000
    hop: int = 160

    @property
    def numbers(self) -> int:
        """Of a packed latent."""
        return self.channels * self.bins // EVERY

    @property
    def latents_per_second(self) -> float:
        """How many of them a second of sound has."""
        return self.rate / self.hop / EVERY

    def latents(self, seconds: float) -> int:
        """How many latents are drawn for a clip of so many seconds; at least one."""
        return max(1, round(seconds * self.latents_per_second))

    def frames(self, latents: int) -> int:
        """Of the spectrogram that so many latents become."""
        return EVERY * (latents - 1) + 1

    def encode(self, params, mel_BTMC, keys_B: jax.Array | None = None):
        """Packed latents of spectrograms: the posterior's mean, or a sample where there is a key for each.

        ValueError where they have other bins or channels.
        """
        mean, log_variance = self.moments(params, mel_BTMC)
        if keys_B is None:
            return normalised(params, _packed(mean))
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys_B)
        return normalised(params, _packed(mean + jnp.exp(0.5 * log_variance) * noise))

    def moments(self, params, mel_BTMC):
        """Mean and log-variance of the posterior, [B, L, bins / 4, channels] each, before they are packed and normalised.

        Frames above 4 L - 3, up to three, are part of one more latent.  ValueError as `encode`.
        """
        if mel_BTMC.shape[2:] != (self.bins, self.sides):
            raise ValueError(f"this autoencoder takes spectrograms of {self.bins} bins and {self.sides} channels, "
                             f"not of {' and '.join(map(str, mel_BTMC.shape[2:]))}.")  # fmt: skip
        convolve = functools.partial(_causal, params)
        h = convolve("encoder.conv_in", mel_BTMC)
        for level in range(LEVELS):
            for block in range(self.blocks):
                h = _residual(params, f"encoder.down.{level}.block.{block}", h)
            if level < LEVELS - 1:
                h = jnp.pad(h, ((0, 0), (2, 0), (0, 1), (0, 0)))
                h = convolution(params, f"encoder.down.{level}.downsample.conv", h, stride=2, padding=0)
        mean, log_variance = jnp.split(_last(convolve, "encoder", _middle(params, "encoder", h)), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def decode(self, params, latent_BLN):
        """Spectrograms [B, 4 L - 3, bins, sides] of packed latents."""
        z = as_encoded(params, latent_BLN)
        z = jnp.swapaxes(z.reshape(*z.shape[:2], self.channels, self.bins // EVERY), 2, 3)
        convolve = functools.partial(_causal, params)
        h = _middle(params, "decoder", convolve("decoder.conv_in", z))
        for level in reversed(range(LEVELS)):
            for block in range(self.blocks + 1):
                h = _residual(params, f"decoder.up.{level}.block.{block}", h)
            if level:
                h = convolve(f"decoder.up.{level}.upsample.conv", doubled(h))[:, 1:]
        return _last(convolve, "decoder", h)

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter, which are its own."""
        return (name,)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file and its shape."""
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        widths = [self.width * m for m in self.multipliers]
        deep = widths[-1]
        yield from statistics_shapes(self.numbers)
        yield from _causal_shapes("encoder.conv_in", self.sides, self.width)
        size = self.width
        for level, out in enumerate(widths):
            for block in range(self.blocks):
                yield from _residual_shapes(f"encoder.down.{level}.block.{block}", size, out)
                size = out
            if level < LEVELS - 1:
                yield from convolution_shapes(f"encoder.down.{level}.downsample.conv", size, size, 3)
        yield from _causal_shapes("decoder.conv_in", self.channels, deep)
        for half in ("encoder", "decoder"):
            for block in (1, 2):
                yield from _residual_shapes(f"{half}.mid.block_{block}", deep, deep)
        yield from _causal_shapes("encoder.conv_out", deep, 2 * self.channels)
        for level in reversed(range(LEVELS)):
            for block in range(self.blocks + 1):
                yield from _residual_shapes(f"decoder.up.{level}.block.{block}", size, widths[level])
                size = widths[level]
            if level:
                yield from _causal_shapes(f"decoder.up.{level}.upsample.conv", size, size)
        yield from _causal_shapes("decoder.conv_out", size, self.sides)


def _causal(params, name: str, x):
    """A convolution over frames and bins that sees no later frame; beyond the spectrogram are zeros."""
    name = f"{name}.conv"
    side = params[f"{name}.weight"].shape[-1]
    x = jnp.pad(x, ((0, 0), (side - 1, 0), (side // 2, side // 2), (0, 0)))
    return convolution(params, name, x, padding=0)


def _residual(params, name: str, x):
    shortcut = f"{name}.nin_shortcut"
    past = _causal(params, shortcut, x) if f"{shortcut}.conv.weight" in params else x
    return past + branch(functools.partial(_causal, params), name, x, EPS)


def _middle(params, half: str, x):
    return _residual(params, f"{half}.mid.block_2", _residual(params, f"{half}.mid.block_1", x))


def _last(convolve, half: str, x):
    return convolve(f"{half}.conv_out", jax.nn.silu(pixel_norm(x, EPS)))


def _packed(z_BLMC):
    """[B, L, C * M] of latents, number c * M + m."""
    return jnp.swapaxes(z_BLMC, 2, 3).reshape(*z_BLMC.shape[:2], math.prod(z_BLMC.shape[2:]))


def _causal_shapes(name: str, width: int, out: int, side: int = 3):
    return convolution_shapes(f"{name}.conv", width, out, side)


def _residual_shapes(name: str, width: int, out: int):
    yield from _causal_shapes(f"{name}.conv1", width, out)
    yield from _causal_shapes(f"{name}.conv2", out, out)
    if width != out:
        yield from _causal_shapes(f"{name}.nin_shortcut", width, out, 1)
