"""BAGEL-7B-MoT edits a given picture in two rounds: sees it, thinks, draws, looks at its drawing, thinks, draws again.

    python -m experiments.run bagel_edit --model.path DIR --prompts edits.jsonl --rewards my_reward:score --mesh.fsdp 64
    python -m launch.plan bagel_edit --topology v5p:4x4x4 --mesh.fsdp 64

Evaluations are guided as BAGEL's own program guides edits; all else as in `bagel_7b`.  Not run yet; by the plan both
programs fit (launch/from_laptop_to_pod.md).
"""

import dataclasses

from experiments.presets import bagel_7b
from unigrpo_jax.config import RunConfig
from unigrpo_jax.config_evaluation import EDITING

PICTURES = True  # each prompt has one under `image`; no prompts are named that `launch.plan` could see it from


def config() -> RunConfig:
    """`bagel_7b` with two rounds."""
    full = bagel_7b.config()
    rollout, evaluation = dataclasses.replace(full.rollout, rounds=2), dataclasses.replace(full.evaluation, **EDITING)
    return dataclasses.replace(full, name="bagel_edit", rollout=rollout, evaluation=evaluation)
