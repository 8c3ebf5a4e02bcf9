"""HunyuanVideo as a painter: a rectified flow's velocity, tokens of one frame and 2 x 2 latent pixels, shifted times.

A video's latents are [B, frames, h, w, channels], its grid (frames, rows, columns), and a picture is a video of one frame.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.computing import Computing
from unigrpo_jax.models.building.first_frame import ClipPainter, VideoCondition
from unigrpo_jax.models.building.flat import Params
from unigrpo_jax.models.building.flow_painter import FlowPainter
from unigrpo_jax.models.building.patches import patchify_planes, unpatchify_planes
from unigrpo_jax.models.hunyuan_video.axes import AXES
from unigrpo_jax.models.hunyuan_video.condition import beside_first
from unigrpo_jax.models.hunyuan_video.flops import evaluation
from unigrpo_jax.models.hunyuan_video.transformer import PATCH, HunyuanVideoTransformer
from unigrpo_jax.models.schedule import FlowShift
from unigrpo_jax.models.work import Evaluation

SIDE = PATCH[1]  # latent pixels along the side of a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class HunyuanVideo(ClipPainter, FlowPainter):
    """The verbs of the transformer.

    Attributes:
      downsample_time: frames for each latent frame after the first, which is one frame's.
    """

    transformer: HunyuanVideoTransformer
    shift: FlowShift = FlowShift(shift=7.0)
    guidance_scale: float = 6.0
    downsample_time: int = 4

    axes: ClassVar = AXES

    @property
    def begins(self) -> bool:
        """Whether it goes on from a picture."""
        return self.transformer.from_picture

    @property
    def needs_picture(self) -> bool:
        """Whether it does nothing else."""
        return self.transformer.from_picture

    def evaluation(self, latents: int, text: int) -> Evaluation:
        """What one evaluation costs (`flops.evaluation`)."""
        return evaluation(self.transformer, latents, text)

    def predict(
        self, params: Params, x_BNC, t_B, grid: tuple[int, int, int], condition: VideoCondition, to_B=None
    ) -> jax.Array:
        """As `TextPainter.predict`; ValueError, too, where a picture is missing, of another size, or read by nothing."""
        first, (_, rows, columns) = condition.first, grid
        if self.transformer.from_picture and first is None:
            raise ValueError("there is no first frame to go on from; a network from image to video needs a picture.")
        if not self.transformer.from_picture and first is not None:
            raise ValueError("a network from text to video reads no picture; use one from image to video (32 channels in).")
        self.check_first(first, rows, columns)
        return super().predict(params, x_BNC, t_B, grid, condition, to_B)

    def outputs(
        self, params: Params, x_BNC, t_B, grid: tuple[int, int, int], condition: VideoCondition, way: Computing, to_B=None
    ):
        """The velocity."""
        states, mask = condition.states, condition.mask
        mask = jnp.ones(states.shape[:2], bool) if mask is None else mask
        x = x_BNC if condition.first is None else beside_first(x_BNC, condition.first)
        told = jnp.full(t_B.shape, 1000 * self.guidance_scale)
        gap = None if to_B is None else 1000 * (t_B - to_B)
        return self.transformer(params, x, 1000 * t_B, states, mask, condition.pooled, grid, told, way, gap)

    def grid(self, height: int, width: int, frames: int = 1, fps: float = 24.0) -> tuple[int, int, int]:
        """Latent tokens (frames, rows, columns); ValueError where they do not fill the video."""
        later, rest = divmod(frames - 1, self.downsample_time)
        if later < 0 or rest:
            near = max(0, round((frames - 1) / self.downsample_time)) * self.downsample_time + 1
            raise ValueError(f"a video of {frames} frames cannot be drawn: their number must be 1 more than a multiple of "
                             f"{self.downsample_time}; use {near}.")  # fmt: skip
        return 1 + later, *self._grid(height, width, SIDE * self.downsample, SIDE * self.downsample)

    def to_tokens(self, latent_BFHWC):
        """Squares frame by frame and row by row, in planes."""
        b, frames = latent_BFHWC.shape[:2]
        tokens = patchify_planes(latent_BFHWC.reshape(b * frames, *latent_BFHWC.shape[2:]), SIDE)
        return tokens.reshape(b, -1, tokens.shape[-1])

    def to_latent(self, tokens_BNC, grid: tuple[int, int, int]):
        """Back to [B, frames, h, w, channels]."""
        (b, _, channels), (frames, *square) = tokens_BNC.shape, grid
        latent = unpatchify_planes(tokens_BNC.reshape(b * frames, -1, channels), tuple(square), SIDE)
        return latent.reshape(b, frames, *latent.shape[1:])
