"""What painters share whose network is one of two streams: a rectified flow's velocity, shifted times, told guidance."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from unigrpo_jax.models.building.second_time import NAME
from unigrpo_jax.models.building.two_streams import DOUBLE, SINGLE, TwoStreams
from unigrpo_jax.models.building.two_times import TimedPainter
from unigrpo_jax.models.paths import RECTIFIED
from unigrpo_jax.models.schedule import FlowShift, timesteps


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowPainter(TimedPainter):
    """The verbs of a flow; its parameters are flat, under the file's names, blocks stacked.

    Attributes:
      transformer: the network.
      shift: of the sampler's times, where a run does not say another.
      guidance_scale: what a network is told that was distilled from guidance; else it is not read.
    """

    transformer: TwoStreams
    shift: FlowShift = FlowShift()
    guidance_scale: float = 3.5

    path, prediction = RECTIFIED, "velocity"
    # Of every token's maps; modulations are made once a sample.
    int8_modules: ClassVar = rf"(?:{DOUBLE}|{SINGLE})\.(?:attn\..*|ff(?:_context)?\..*|proj_mlp|proj_out)"
    # As in diffusion transformers (arXiv 2212.09748): blocks are not modulated, with gates shut, and the output is 0.
    zero_at_start: ClassVar = (
        rf"proj_out|(?:.*\.)?norm_out\.linear|.*\.(?:norm|norm1|norm1_context)\.linear|.*\.{NAME}\.linear_2"
    )

    def times(self, steps: int, shift: float, grid: tuple[int, ...]) -> np.ndarray:
        """A sampler's times, float32 [steps + 1]; shift 0 is what `shift` says for this grid."""
        return timesteps(steps, shift) if shift else self.shift.times(steps, math.prod(grid))

    def cuts(self) -> dict[str, dict[str, int]]:
        """Sizes that an axis of a mesh must divide, {axis of the mesh: {what is cut: size}}."""
        return self.transformer.cuts()
