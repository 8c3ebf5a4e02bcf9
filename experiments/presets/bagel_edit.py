"""BAGEL-7B-MoT edits a given picture in two rounds: `bagel_7b` that sees a picture, draws, looks at what it drew, draws again.

    python -m experiments.run bagel_edit --model.path DIR --prompts edits.jsonl --rewards my_reward:score --mesh.fsdp 64
"""

import dataclasses

from experiments.presets import bagel_7b
from unigrpo_jax.config import RunConfig

PICTURES = True  # what `launch.plan` takes for given, since no prompts are named


def config() -> RunConfig:
    """`bagel_7b` with two rounds."""
    full = bagel_7b.config()
    return dataclasses.replace(full, name="bagel_edit", rollout=dataclasses.replace(full.rollout, rounds=2))
