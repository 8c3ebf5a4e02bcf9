"""Every part of SkyReels-V1, image to video, at toy size with random weights: the way of `skyreels_dance`, on a CPU.

    python -m experiments.run skyreels_tiny

Seen on one CPU core: 55 s.

Clips of 9 frames of 32 pixels go on from pictures inside the package (`first_frames`), guided by a second pass, and are
judged as in `hunyuan_tiny`.
"""

import dataclasses

from experiments.presets import hunyuan_tiny
from unigrpo_jax.config import RunConfig


def config() -> RunConfig:
    """`hunyuan_tiny` from a picture, with guidance as part of the policy."""
    full = hunyuan_tiny.config()
    return dataclasses.replace(
        full,
        name="skyreels_tiny",
        prompts=("first_frames",),
        model=dataclasses.replace(full.model, path="skyreels_tiny"),
        rollout=dataclasses.replace(full.rollout, guidance=5.0),
        evaluation=dataclasses.replace(full.evaluation, guidance=5.0),
    )
