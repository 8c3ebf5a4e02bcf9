"""Shapes in motion from text: DanceGRPO (arXiv 2505.07818) on HunyuanVideo's transformer at small size, on a laptop.

    python -m experiments.run shapes_motion

The clip range is that of `shapes_flux`, 3e-3, times the square root of how many more numbers the latent of a clip has than
one of those, 12.
"""

import dataclasses

from experiments.presets import shapes_flux
from unigrpo_jax.config import ModelConfig, RunConfig


def config() -> RunConfig:
    """The settings of `shapes_flux`, for clips of 9 frames."""
    flow = shapes_flux.config()
    return dataclasses.replace(
        flow,
        name="shapes_motion",
        prompts=("shapes_motion",),
        model=ModelConfig(path="shapes_motion_base", family="hunyuan_video"),
        rollout=dataclasses.replace(flow.rollout, frames=9, frames_per_second=8.0),
        learning=dataclasses.replace(flow.learning, flow_clip=8.7e-4),
    )
