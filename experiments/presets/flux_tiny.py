"""Every part of FLUX at toy size with random weights: the way of `flux_dance` in seconds, on a CPU.

    python -m experiments.run flux_tiny

Seen on 2 CPU cores with an empty compile cache: 25 s, and 3 s for `python -m experiments.export runs/flux_tiny DIR`.
"""

import dataclasses

from experiments.presets import bagel_tiny
from experiments.presets.flux_dance import ADAPTED
from unigrpo_jax.config import LoraConfig, RunConfig


def config() -> RunConfig:
    """`bagel_tiny`'s sizes with the toy of FLUX, which does not think."""
    full = bagel_tiny.config()
    rollout = dataclasses.replace(
        full.rollout,
        thinking=False,
        system_prompt="",
        image_height=32,
        image_width=32,
        timestep_shift=0.0,
        step_rule="dance_sde",
        noise_level=0.3,
        noise_range=(0, 5),
        window="random",
        window_size=3,
        window_range=(0, 5),
        shared_noise=True,
    )
    return dataclasses.replace(
        full,
        name="flux_tiny",
        model=dataclasses.replace(full.model, path="flux_tiny", family="flux", lora=LoraConfig(targets=ADAPTED)),
        rollout=rollout,
        learning=dataclasses.replace(full.learning, mse_weight=0.0, reference="none", frozen=()),
        evaluation=dataclasses.replace(
            full.evaluation, thinking=False, flow_steps=4, guidance=1.0, guidance_interval=(0.0, 1.0)
        ),
    )
