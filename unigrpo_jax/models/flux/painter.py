"""FLUX.1 as a painter: a rectified flow's velocity, tokens that are squares of 2 x 2 latent pixels, shifted times."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from unigrpo_jax.models.building.computing import Computing
from unigrpo_jax.models.building.flat import Params
from unigrpo_jax.models.building.flow_painter import FlowPainter
from unigrpo_jax.models.building.frames import check_image
from unigrpo_jax.models.building.patches import patchify_planes, unpatchify_planes
from unigrpo_jax.models.flux.axes import AXES
from unigrpo_jax.models.flux.flops import evaluation
from unigrpo_jax.models.flux.transformer import FluxTransformer
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.models.work import Evaluation

PATCH = 2  # latent pixels along the side of a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flux(FlowPainter):
    """The verbs of the transformer.

    Attributes:
      floor_time: feed floor(1000 t) / 1000 for t, as DanceGRPO (arXiv 2505.07818) does.
    """

    transformer: FluxTransformer
    floor_time: bool = False

    axes: ClassVar = AXES

    def evaluation(self, latents: int, text: int) -> Evaluation:
        """What one evaluation costs (`flops.evaluation`)."""
        return evaluation(self.transformer, latents, text)

    def outputs(
        self, params: Params, x_BNC, t_B, grid: tuple[int, int], condition: TextStates, way: Computing, to_B=None
    ):
        """The velocity; the gap of two times is not rounded."""
        time = jnp.floor(1000 * t_B) / 1000 if self.floor_time else t_B
        told = jnp.full(t_B.shape, self.guidance_scale)
        gap = None if to_B is None else t_B - to_B
        return self.transformer(params, x_BNC, time, condition.states, condition.pooled, grid, told, way, gap)

    def grid(self, height: int, width: int, frames: int = 1, fps: float = 24.0) -> tuple[int, int]:
        """Latent tokens (rows, columns); ValueError where they do not fill the image, or more than one is asked for."""
        check_image(frames)
        return self._grid(height, width, PATCH * self.downsample, PATCH * self.downsample)

    def to_tokens(self, latent_BHWC):
        """Squares row by row, in planes."""
        return patchify_planes(latent_BHWC, PATCH)

    def to_latent(self, tokens_BNC, grid: tuple[int, int]):
        """Back to [B, h, w, channels]."""
        return unpatchify_planes(tokens_BNC, grid, PATCH)
