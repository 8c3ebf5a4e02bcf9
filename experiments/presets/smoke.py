"""Smoke: every part of the main job once or twice, in under a minute, for continuous integration.

python -m experiments.run smoke
"""

import dataclasses

from experiments.presets import shapes
from unigrpo_jax.config import RunConfig


def config() -> RunConfig:
    """The shapes preset with few and small iterations."""
    full = shapes.config()
    return dataclasses.replace(
        full,
        name="smoke",
        iterations=3,
        model=dataclasses.replace(full.model, unroll=1),
        rollout=dataclasses.replace(full.rollout, prompts_per_iteration=6),
        learning=dataclasses.replace(full.learning, group_size=4, cooldown=(0, 0)),
        evaluation=dataclasses.replace(full.evaluation, prompts=24, batch=24),
        logging=dataclasses.replace(full.logging, samples_every=2, samples=6),
        checkpoint=dataclasses.replace(full.checkpoint, every=2),
    )
