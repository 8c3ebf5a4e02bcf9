"""Shapes in motion from a picture: `shapes_motion` where each prompt comes with the first frame (SkyReels-V1's way).

    python -m experiments.run shapes_animate
"""

import dataclasses

from experiments.presets import shapes_motion
from unigrpo_jax.config import ModelConfig, RunConfig


def config() -> RunConfig:
    """The settings of `shapes_motion`."""
    return dataclasses.replace(
        shapes_motion.config(),
        name="shapes_animate",
        prompts=("shapes_animate",),
        model=ModelConfig(path="shapes_animate_base", family="hunyuan_video"),
    )
