"""BAGEL-7B-MoT edits a given picture in two rounds: sees it, thinks, draws, looks at its drawing, thinks, draws again.

    python -m experiments.run bagel_edit --model.path DIR --prompts edits.jsonl --rewards my_reward:score --mesh.fsdp 64
    python -m launch.plan bagel_edit --topology v5p:4x4x4 --mesh.fsdp 64

All else as in `bagel_7b`.  Not run yet; by the plan both programs fit (launch/from_laptop_to_pod.md).
"""

import dataclasses

from experiments.presets import bagel_7b
from unigrpo_jax.config import RunConfig

PICTURES = True  # each prompt has one under `image`; no prompts are named that `launch.plan` could see it from


def config() -> RunConfig:
    """`bagel_7b` with two rounds."""
    full = bagel_7b.config()
    return dataclasses.replace(full, name="bagel_edit", rollout=dataclasses.replace(full.rollout, rounds=2))
