"""Shapes by a diffusion: DanceGRPO (arXiv 2505.07818) on Stable Diffusion's U-Net, on a laptop.

    python -m experiments.run shapes_sd

Seen, seed 0, the first 100 iterations alone (`--iterations 100 --learning.cooldown 60 100`): held-out exact 0.338 -> 0.442,
graded 0.610 -> 0.706, by DDIM of ten steps.  At a rate of 2e-4 training prompts rise faster for 30 iterations and then fall.
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
