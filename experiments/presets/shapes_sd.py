"""Shapes by a diffusion: DanceGRPO (arXiv 2505.07818) on Stable Diffusion's U-Net, on a laptop.

    python -m experiments.run shapes_sd
"""

import dataclasses

from experiments.presets import shapes_flux
from unigrpo_jax.config import ModelConfig, RunConfig


def config() -> RunConfig:
    """As `shapes_flux`, by another network, whose predicted noise bears smaller steps."""
    flow = shapes_flux.config()
    return dataclasses.replace(
        flow,
        name="shapes_sd",
        iterations=200,
        model=ModelConfig(path="shapes_sd_base", family="stable_diffusion"),
        learning=dataclasses.replace(flow.learning, denoising_lr=8e-5, cooldown=(130, 200)),
    )
