"""FLUX.1 as a painter: a rectified flow's velocity, tokens that are squares of 2 x 2 latent pixels, shifted times."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.building.computing import Computing
from unigrpo_jax.models.building.flat import Params
from unigrpo_jax.models.building.text_painter import TextPainter
from unigrpo_jax.models.flux.axes import AXES
from unigrpo_jax.models.flux.flops import evaluation
from unigrpo_jax.models.flux.transformer import MLP, FluxTransformer
from unigrpo_jax.models.paths import RECTIFIED
from unigrpo_jax.models.schedule import FlowShift, timesteps
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.models.work import Evaluation

PATCH = 2  # latent pixels along the side of a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flux(TextPainter):
    """The verbs of the transformer; its parameters are flat, under the file's names, blocks stacked.

    Attributes:
      transformer: the network.
      shift: of the sampler's times, where a run does not say another.
      guidance_scale: what a network is told that was distilled from guidance; else it is not read.
      floor_time: feed floor(1000 t) / 1000 for t, as DanceGRPO (arXiv 2505.07818) does.
    """

    transformer: FluxTransformer
    shift: FlowShift = FlowShift()
    guidance_scale: float = 3.5
    floor_time: bool = False

    path, prediction = RECTIFIED, "velocity"
    axes: ClassVar = AXES
    # As in diffusion transformers (arXiv 2212.09748): blocks are not modulated, with gates shut, and the output is 0.
    zero_at_start: ClassVar = r"proj_out|norm_out\.linear|.*\.(?:norm|norm1|norm1_context)\.linear"

    @property
    def network(self) -> FluxTransformer:
        """What has the parameters."""
        return self.transformer

    def evaluation(self, latents: int, text: int) -> Evaluation:
        """What one evaluation costs (`flops.evaluation`)."""
        return evaluation(self.transformer, latents, text)

    def outputs(self, params: Params, x_BNC, t_B, grid: tuple[int, int], condition: TextStates, way: Computing):
        """The velocity."""
        time = jnp.floor(1000 * t_B) / 1000 if self.floor_time else t_B
        told = jnp.full(t_B.shape, self.guidance_scale)
        return self.transformer(params, x_BNC, time, condition.states, condition.pooled, grid, told, way)

    def times(self, steps: int, shift: float, grid: tuple[int, int]) -> np.ndarray:
        """A sampler's times, float32 [steps + 1]; shift 0 is what `shift` says for this grid."""
        return timesteps(steps, shift or self.shift.of(grid[0] * grid[1]))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Latent tokens (rows, columns); ValueError where they do not fill the image."""
        return self._grid(height, width, PATCH * self.downsample, PATCH * self.downsample)

    def to_tokens(self, latent_BHWC):
        """Squares row by row; inside a token (channel, row, column), column fastest."""
        b, h, w, c = latent_BHWC.shape
        x = latent_BHWC.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, c)
        return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, -1, PATCH * PATCH * c)

    def to_latent(self, tokens_BNC, grid: tuple[int, int]):
        """Back to [B, h, w, channels]."""
        x = tokens_BNC.reshape(tokens_BNC.shape[0], *grid, -1, PATCH, PATCH)
        x = x.transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(x.shape[0], PATCH * grid[0], PATCH * grid[1], -1)

    def cuts(self) -> dict[str, dict[str, int]]:
        """Sizes that an axis of a mesh must divide, {axis of the mesh: {what is cut: size}}."""
        n = self.transformer
        return {"fsdp": {"width": n.width}, "tensor": {"heads": n.heads, "MLP": MLP * n.width}}
