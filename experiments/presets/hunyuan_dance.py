"""HunyuanVideo with the settings of DanceGRPO (arXiv 2505.07818): 32 prompts x 24 clips of 53 frames of 480 px.

    python -m experiments.run hunyuan_dance --model.path DIR --prompts prompts.jsonl --rewards my_reward:score --mesh.fsdp 16

on 16 devices, each of which samples three clips at a time and learns from one; on 64 with `--mesh.sequence 4` besides, which
cuts the tokens of a clip over four.  Not run yet: no machine that holds it was at hand.

The paper's reward is VideoAlign's visual quality (its motion quality has weight 0), which is not built: a reward of clips
reads `batch.videos` and `batch.fps`, and `--rewards judge --judge.frames 8` asks a vision-language model behind a server.

As in the public script: 16 steps, of which a random 60 % are trained, any but the last; noise level 0.25; shift 5; the best
and the worst 8 of each prompt's 24 clips, which share their first noise.  Clips are decoded in tiles, as there.
From a picture: `skyreels_dance`.
"""

import dataclasses

from experiments.presets import flux_dance
from unigrpo_jax.config import RunConfig


def config() -> RunConfig:
    """The public script's; what is not of HunyuanVideo is as in `flux_dance`."""
    flow = flux_dance.config()
    return dataclasses.replace(
        flow,
        name="hunyuan_dance",
        model=dataclasses.replace(flow.model, path="hunyuanvideo-community/HunyuanVideo", family="hunyuan_video"),
        rollout=dataclasses.replace(
            flow.rollout,
            prompt_tokens=256,
            image_height=480,
            image_width=480,
            frames=53,
            flow_steps=16,
            timestep_shift=5.0,
            noise_level=0.25,
            noise_range=(0, 15),
            window_size=9,
            window_range=(0, 15),
            micro_batches=16,
        ),
        learning=dataclasses.replace(flow.learning, group_size=24, best=8, worst=8, micro_batches=8),
        evaluation=dataclasses.replace(flow.evaluation, prompts=64, batch=16),
    )
