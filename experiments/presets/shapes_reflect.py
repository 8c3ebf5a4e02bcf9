"""Shapes, reflected upon: think, draw, look at the drawing, say what is wrong with it, draw again.

    python -m experiments.run shapes_reflect

Both images are rewarded, each round's actions by their own image.

Seen, seeds 0 1 2: held-out images right, the first 0.47 -> 0.72, 0.77, 0.77, the second 0.32 -> 0.65, 0.67, 0.71; 7 to 8
minutes on one CPU core.  With a judge of the thinking it is better: experiments/several_rounds.md.
"""

import dataclasses

from experiments.presets import shapes
from unigrpo_jax.config import RunConfig


def config() -> RunConfig:
    """The main job in two rounds, from the base of several rounds."""
    full = shapes.config()
    return dataclasses.replace(
        full,
        name="shapes_reflect",
        iterations=90,
        prompts=("shapes_reflect",),
        model=dataclasses.replace(full.model, path="rounds_base", unroll=1),
        rollout=dataclasses.replace(full.rollout, rounds=2),
        learning=dataclasses.replace(
            full.learning, round_reward="each", credit="round", denoising_lr=2e-4, cooldown=(30, 90)
        ),
    )
