"""LTX-2's vocoder: from log-mel spectrograms to sound, never trained here (HiFi-GAN's generator, arXiv 2010.05646).

Its parameters are the tensors of diffusers' LTX2Vocoder under their names and in their layout (convolutions [out, in, time],
transposed ones [in, out, time]), as a flat dict.  Always float32.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.flat import (
    convolution,
    convolution_shapes,
    transposed_convolution,
    transposed_convolution_shapes,
)

KERNEL = 7  # of the first and the last convolution
LAST_SLOPE = 0.01  # of the last leaky ReLU, where all others have `slope`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One change of resolution: a transposed convolution that halves the channels.

    Attributes:
      factor: samples after it for each before it.
      kernel: of the convolution, at least `factor`.
    """

    factor: int
    kernel: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocoder:
    """Sizes, and the verb `waveform`.

    Attributes:
      inputs: bins of the spectrogram times its channels.
      width: channels of the first convolution.
      stages: in the order in which they come.
      blocks: kernel, an odd number, and dilations of each residual block of a stage; what they give is averaged.
      sides: channels of sound.
      rate: samples per second.
      slope: of the leaky ReLUs below 0.
    """

    inputs: int
    width: int
    stages: tuple[Stage, ...]
    blocks: tuple[tuple[int, tuple[int, ...]], ...]
    sides: int = 2
    rate: int = 24000
    slope: float = 0.1

    def samples(self, frames: int) -> int:
        """Of the sound that a spectrogram of so many frames becomes."""
        for stage in self.stages:
            frames = stage.factor * (frames - 1) + stage.kernel - 2 * _padding(stage)
        return frames

    def waveform(self, params, mel_BTMC):
        """Sound [B, samples, sides] in [-1, 1] of spectrograms [B, frames, bins, channels]; ValueError for others."""
        batch, frames, bins, channels = mel_BTMC.shape
        if bins * channels != self.inputs:
            raise ValueError(f"this vocoder takes {self.inputs} numbers a frame, but these spectrograms have {bins} bins of "
                             f"{channels} channels, which are {bins * channels}.")  # fmt: skip
        h = jnp.swapaxes(mel_BTMC, 2, 3).reshape(batch, frames, self.inputs)
        h = convolution(params, "conv_in", h)
        for number, stage in enumerate(self.stages):
            h = jax.nn.leaky_relu(h, self.slope)
            h = transposed_convolution(params, f"upsamplers.{number}", h, stage.factor, _padding(stage))
            first = number * len(self.blocks)
            given = [self._block(params, f"resnets.{first + i}", h, own) for i, (_, own) in enumerate(self.blocks)]
            h = sum(given) / len(given)
        return jnp.tanh(convolution(params, "conv_out", jax.nn.leaky_relu(h, LAST_SLOPE)))

    def _block(self, params, name: str, x, dilations: tuple[int, ...]):
        for number, dilation in enumerate(dilations):
            h = convolution(params, f"{name}.convs1.{number}", jax.nn.leaky_relu(x, self.slope), dilation=dilation)
            x = x + convolution(params, f"{name}.convs2.{number}", jax.nn.leaky_relu(h, self.slope))
        return x

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter, which are its own."""
        return (name,)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file and its shape."""
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from convolution_shapes("conv_in", self.inputs, self.width, KERNEL, axes=1)
        width = self.width
        for number, stage in enumerate(self.stages):
            yield from transposed_convolution_shapes(f"upsamplers.{number}", width, width // 2, stage.kernel)
            width //= 2
            for i, (kernel, dilations) in enumerate(self.blocks):
                for convs in ("convs1", "convs2"):
                    for own in range(len(dilations)):
                        name = f"resnets.{number * len(self.blocks) + i}.{convs}.{own}"
                        yield from convolution_shapes(name, width, width, kernel, axes=1)
        yield from convolution_shapes("conv_out", width, self.sides, KERNEL, axes=1)


def _padding(stage: Stage) -> int:
    return (stage.kernel - stage.factor) // 2
