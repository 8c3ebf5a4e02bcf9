"""BAGEL-7B-MoT at 512 px, where memory is short: a quarter of the latent tokens of `bagel_7b`, 384 thinking tokens.

    python -m experiments.run bagel_7b_512 --model.path DIR --prompts prompts.jsonl --rewards my_reward:score \\
        --model.param-dtype bfloat16 --model.lora.rank 64

Not run yet; `python -m launch.plan bagel_7b_512 --topology v6e:8x8 --mesh.fsdp 16 --mesh.tensor 4` compiles it for 64 chips
that train both experts in full.  The flow's clip range is twice that of 1024 px: the ratio's spread goes with one over the
root of the latent's numbers.
"""

import dataclasses

from experiments.presets import bagel_7b
from unigrpo_jax.config import RunConfig


def config() -> RunConfig:
    """`bagel_7b` with smaller images and shorter thinking."""
    full = bagel_7b.config()
    return dataclasses.replace(
        full,
        name="bagel_7b_512",
        rollout=dataclasses.replace(full.rollout, image_height=512, image_width=512, thinking_tokens=384),
        learning=dataclasses.replace(full.learning, flow_clip=2e-6),
    )
