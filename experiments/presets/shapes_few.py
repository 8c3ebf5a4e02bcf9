"""Shapes, drawn in few steps: UniGRPO from a student that draws in 4 transitions without guidance.

    python -m experiments.run shapes_few

The student is the base after 12 iterations of DMD2 (`experiments/shapes_world.md` has the command).  Rollouts draw as it
does: the data estimate, noised anew at every transition but the last, and one of the noised ones is trained.  The last is
held to the student at its own time, or a faint grid fills the black background.

Seen, seeds 0 1 2: held-out exact 0.713 -> 0.973, 0.973, 0.952 (0.46 of the base that the student was made of) in 4
evaluations without guidance; 9 minutes on one CPU core.  What was tried on validation prompts: experiments/few_steps.md.
"""

import dataclasses

from experiments.presets import shapes
from unigrpo_jax.config import RunConfig
from unigrpo_jax.models.schedule import timesteps

STEPS = 4


def config() -> RunConfig:
    """As `shapes`, from `shapes_few_base`, in fewer and larger steps of drawing."""
    full = shapes.config()
    last = float(timesteps(STEPS, full.rollout.timestep_shift)[STEPS - 1])
    return dataclasses.replace(
        full,
        name="shapes_few",
        iterations=150,
        model=dataclasses.replace(full.model, path="shapes_few_base"),
        rollout=dataclasses.replace(
            full.rollout, flow_steps=STEPS, noise_level=1.0, noise_range=(0, STEPS - 1), window_range=(0, STEPS - 1)
        ),
        learning=dataclasses.replace(
            full.learning, reasoning_lr=6e-4, ema_decay=0.9, cooldown=(90, 150), leash_times=(last,)
        ),
        evaluation=dataclasses.replace(full.evaluation, flow_steps=STEPS, sampler="sde"),
    )
