"""Shapes, told as a story: the user speaks three times, and each picture builds on the one before it.

    python -m experiments.run shapes_story

Each image is rewarded, and each round's actions by their own image: an early fault is not judged again later.
"""

import dataclasses

from experiments.presets import shapes_reflect
from unigrpo_jax.config import RunConfig


def config() -> RunConfig:
    """As `shapes_reflect`, in three rounds, with fewer prompts in an iteration."""
    full = shapes_reflect.config()
    return dataclasses.replace(
        full,
        name="shapes_story",
        prompts=("shapes_story",),
        rollout=dataclasses.replace(full.rollout, rounds=3, prompts_per_iteration=8),
    )
