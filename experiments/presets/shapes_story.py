"""Shapes, told as a story: the user speaks three times, and each picture builds on the one before it.

    python -m experiments.run shapes_story

Each image is rewarded, and each round's actions by their own image: an early fault is not judged again later.

Seen, seeds 0 1 2: held-out images right, the first 0.55 -> 0.84, 0.80, 0.82, the second 0.34 -> 0.59, 0.56, 0.55, the third
0.21 -> 0.42, 0.34, 0.32; 9 to 10 minutes on one CPU core.
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
        iterations=60,
        prompts=("shapes_story",),
        rollout=dataclasses.replace(full.rollout, rounds=3, prompts_per_iteration=8),
        learning=dataclasses.replace(full.learning, cooldown=(20, 60)),
    )
