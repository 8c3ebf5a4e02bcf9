"""SkyReels-V1, image to video, with the settings of DanceGRPO (arXiv 2505.07818): 32 prompts x 8 clips of 53 frames.

    python -m experiments.run skyreels_dance --model.path DIR --prompts prompts.jsonl \\
        --rewards my_reward:score --mesh.fsdp 16

Not run yet: no machine that holds it was at hand.  DIR is made once of two published folders (experiments/dance.md).  Each
line of the prompts comes with the first frame, {"prompt": "it turns", "image": "a.png"}, of any size: it is scaled to fill
480 x 480 pixels and cut out of its middle.  The paper's reward is VideoAlign's motion quality, which is not built: a reward
of clips reads `batch.videos`, `batch.fps` and `batch.before`, the first frame; `--rewards judge --judge.frames 8` asks a
vision-language model behind a server.

As in the public script: groups of 8, shift 7, guidance 5 as part of the policy, so that an iteration makes one step of the
optimizer; every clip of a group is trained.  All else, also the size, is `hunyuan_dance`'s.
"""

import dataclasses

from experiments.presets import hunyuan_dance
from unigrpo_jax.config import RunConfig

PICTURES = True  # each prompt has one under `image`; no prompts are named that `launch.plan` could see it from


def config() -> RunConfig:
    """The public script's; what is not of image to video is as in `hunyuan_dance`."""
    full = hunyuan_dance.config()
    return dataclasses.replace(
        full,
        name="skyreels_dance",
        model=dataclasses.replace(full.model, path="Skywork/SkyReels-V1-Hunyuan-I2V"),
        rollout=dataclasses.replace(full.rollout, timestep_shift=7.0, guidance=5.0),
        learning=dataclasses.replace(full.learning, group_size=8, best=0, worst=0, minibatches=1, micro_batches=16),
        evaluation=dataclasses.replace(full.evaluation, guidance=5.0),
    )
