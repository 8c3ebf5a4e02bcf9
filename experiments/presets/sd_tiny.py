"""Every part of Stable Diffusion at toy size with random weights: the way of `sd_dance` in seconds, on a CPU.

    python -m experiments.run sd_tiny

Seen on 2 CPU cores with an empty compile cache: 65 s, and 3 s for `python -m experiments.export runs/sd_tiny DIR`.
"""

import dataclasses

from experiments.presets import flux_tiny
from experiments.presets.sd_dance import ADAPTED
from unigrpo_jax.config import LoraConfig, RunConfig


def config() -> RunConfig:
    """`flux_tiny` with a diffusion, DDIM, and guidance as part of the policy."""
    full = flux_tiny.config()
    return dataclasses.replace(
        full,
        name="sd_tiny",
        model=dataclasses.replace(full.model, path="sd_tiny", family="stable_diffusion", lora=LoraConfig(targets=ADAPTED)),
        rollout=dataclasses.replace(full.rollout, step_rule="ddim", noise_level=1.0, guidance=5.0),
        evaluation=dataclasses.replace(full.evaluation, guidance=5.0),
    )
