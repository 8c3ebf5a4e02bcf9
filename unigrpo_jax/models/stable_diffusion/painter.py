"""Stable Diffusion 1.x as a painter: a diffusion's noise, tokens that are pixels of a latent, DDIM's times."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.building.computing import Computing
from unigrpo_jax.models.building.flat import Params
from unigrpo_jax.models.building.frames import check_image
from unigrpo_jax.models.building.text_painter import TextPainter
from unigrpo_jax.models.paths import Path, Prediction
from unigrpo_jax.models.schedule import DiffusionSchedule
from unigrpo_jax.models.stable_diffusion.axes import AXES
from unigrpo_jax.models.stable_diffusion.flops import evaluation
from unigrpo_jax.models.stable_diffusion.unet import INT8, MLP, UNet
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.models.work import Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion(TextPainter):
    """The verbs of a U-Net; its parameters are flat, under the file's names.

    Attributes:
      unet: the network.
      path: the diffusion that it was trained on.
      prediction: what it says of a latent on it.
      schedule: how a sampler's times are spaced; its K steps are the path's.
    """

    unet: UNet
    path: Path
    prediction: Prediction = "noise"
    schedule: DiffusionSchedule = DiffusionSchedule()

    axes: ClassVar = AXES
    int8_modules: ClassVar = INT8
    # As in the original: each block starts as nothing beside its way around, and so does the whole.
    zero_at_start: ClassVar = r"conv_out|.*\.resnets\.\d+\.conv2|.*\.attentions\.\d+\.proj_out"

    @property
    def network(self) -> UNet:
        """What has the parameters."""
        return self.unet

    def evaluation(self, latents: int, text: int) -> Evaluation:
        """What one evaluation costs (`flops.evaluation`)."""
        return evaluation(self.unet, latents, text)

    def outputs(self, params: Params, x_BNC, t_B, grid: tuple[int, int], condition: TextStates, way: Computing):
        """The U-Net counts its K steps from 0: it is fed k - 1 at t = k / K."""
        step = jnp.round(t_B * self.schedule.train_steps) - 1
        noise = self.unet(params, self.to_latent(x_BNC, grid), step, condition.states, way)
        return self.to_tokens(noise)

    def times(self, steps: int, shift: float, grid: tuple[int, int]) -> np.ndarray:
        """A sampler's times, float32 [steps + 1]; ValueError where they cannot be spaced so, or a shift is asked for."""
        if shift:
            raise ValueError(f"shift = {shift}: times of a diffusion are spaced by its scheduler file, not shifted; use 0.")
        return self.schedule.times(steps)

    def grid(self, height: int, width: int, frames: int = 1, fps: float = 24.0) -> tuple[int, int]:
        """Pixels of a latent (rows, columns); ValueError where the U-Net's scales do not halve them, or for a clip."""
        check_image(frames)
        return self._grid(height, width, self.downsample, self.downsample * 2 ** (len(self.unet.widths) - 1))

    def to_tokens(self, latent_BHWC):
        """A token is a pixel, row by row."""
        return latent_BHWC.reshape(latent_BHWC.shape[0], -1, latent_BHWC.shape[-1])

    def to_latent(self, tokens_BNC, grid: tuple[int, int]):
        """Back to [B, h, w, channels]."""
        return tokens_BNC.reshape(tokens_BNC.shape[0], *grid, -1)

    def cuts(self) -> dict[str, dict[str, int]]:
        """Sizes that an axis of a mesh must divide, {axis of the mesh: {what is cut: size}}."""
        u = self.unet
        widths = {f"width {width}": width for width in u.widths}
        return {
            "fsdp": widths | {"text": u.text_width},
            "tensor": {"heads": u.heads} | widths | {f"MLP of {width}": 2 * MLP * width for width in u.widths},
        }
