"""Every part of HunyuanVideo at toy size with random weights: the way of `hunyuan_dance` in seconds, on a CPU.

    python -m experiments.run hunyuan_tiny

Seen on 2 CPU cores that other jobs shared, with an empty compile cache: 52 s of processor time, an iteration in 1.6 s.

Clips of 9 frames of 32 pixels, judged frame by frame by a reward of images (colourfulness), which asks for nothing sensible.
"""

import dataclasses

from experiments.presets import flux_tiny
from unigrpo_jax.config import RunConfig


def config() -> RunConfig:
    """`flux_tiny`'s sizes with the toy of HunyuanVideo, which draws clips."""
    full = flux_tiny.config()
    return dataclasses.replace(
        full,
        name="hunyuan_tiny",
        rewards=("frames:mean:colourfulness",),
        model=dataclasses.replace(full.model, path="hunyuan_tiny", family="hunyuan_video"),
        rollout=dataclasses.replace(full.rollout, frames=9, frames_per_second=8.0, noise_level=0.25),
    )
