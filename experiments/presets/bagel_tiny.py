"""Every part of BAGEL at toy size with random weights: the way of `bagel_7b` in seconds, on a CPU.

    python -m experiments.run bagel_tiny

Seen on 2 CPU cores with an empty compile cache: 46 s, and 4 s for `python -m experiments.export runs/bagel_tiny DIR`.

The model is made on first use and read from its folder like the real one.  What it draws means nothing, and the reward
(colourfulness) asks for nothing sensible.
"""

import dataclasses

from experiments.presets import bagel_7b
from unigrpo_jax.config import RunConfig


def config() -> RunConfig:
    """`bagel_7b`, small."""
    full = bagel_7b.config()
    return dataclasses.replace(
        full,
        name="bagel_tiny",
        iterations=2,
        prompts=("examples",),
        rewards=("colourfulness",),
        model=dataclasses.replace(full.model, path="tiny", dtype="float32", remat="none"),
        rollout=dataclasses.replace(
            full.rollout,
            prompts_per_iteration=4,
            prompt_tokens=64,
            thinking_tokens=12,
            image_height=64,
            image_width=48,
            flow_steps=5,
            window_size=2,
            window_range=(0, 3),
            micro_batches=1,
        ),
        learning=dataclasses.replace(
            full.learning, group_size=4, flow_clip=1e-4, minibatches=1, micro_batches=1, reasoning_lr=1e-4, denoising_lr=1e-3
        ),
        evaluation=dataclasses.replace(full.evaluation, prompts=8, batch=8, flow_steps=4),
        checkpoint=dataclasses.replace(full.checkpoint, every=1),
        logging=dataclasses.replace(full.logging, samples_every=0, samples=4),
    )
