"""LTX-2 with the settings of DanceGRPO (arXiv 2505.07818) for clips: 32 prompts x 8 clips of 121 frames with their sound.

    python -m experiments.run ltx2_rlhf --model.path DIR --prompts prompts.jsonl \\
        --rewards frames:mean:hpsv2:HPSv2.1 clipping onsets --mesh.fsdp 64 \\
        --learning.credit-by hpsv2_mean video not_clipped audio synchrony video,audio

on 64 devices, each of which samples one clip at a time and learns from one; or on 16 with `--mesh.fsdp 4 --mesh.sequence 4
--rollout.micro-batches 32 --learning.micro-batches 64`, which cuts the tokens of a clip over four, so that these sample two
clips at a time and learn from one.  Not run yet: no machine that holds it was at hand; launch/from_laptop_to_pod.md says
what `python -m launch.plan ltx2_rlhf` said.

Clips of 512 x 768 pixels, 24 frames a second, are 6144 tokens of video and 126 of sound.  Without `--learning.credit-by`,
which says what each reward judges, every reward moves clip and sound alike.  All clips of a group are trained, since the
best and worst of one reward are not those of another.

DanceGRPO has no settings for LTX-2.  As for its other clips: 16 steps, of which a random 60 % are trained, any but the last;
noise level 0.25; groups of 8 and one step of the optimizer an iteration, since guidance, here the 3 that LTX-2 was published
with for clips, is a part of the policy.  Shift 5, as for HunyuanVideo: the released scheduler's for this size is 16 (0 asks
for it), with which the first transitions hardly move and so hardly teach.

Adapters instead of all weights, of every attention: of both branches, to the texts, and between the two

    --model.param-dtype bfloat16 --model.lora.rank 32 --model.lora.alpha 32 --learning.denoising-lr 1e-4
"""

import dataclasses

from experiments.presets import flux_dance
from unigrpo_jax.config import LoraConfig, RunConfig

# Queries, keys, values and outputs of all six attentions of a block.
ADAPTED = (r"transformer_blocks\.(audio_)?attn[12]\.to_(q|k|v|out\.0)",
           r"transformer_blocks\.(audio_to_video|video_to_audio)_attn\.to_(q|k|v|out\.0)")  # fmt: skip


def config() -> RunConfig:
    """What is not of clips with sound is as in `flux_dance`."""
    flow = flux_dance.config()
    return dataclasses.replace(
        flow,
        name="ltx2_rlhf",
        model=dataclasses.replace(flow.model, path="Lightricks/LTX-2", family="ltx2", lora=LoraConfig(targets=ADAPTED)),
        rollout=dataclasses.replace(
            flow.rollout,
            prompt_tokens=1024,
            image_height=512,
            image_width=768,
            frames=121,
            flow_steps=16,
            timestep_shift=5.0,
            noise_level=0.25,
            noise_range=(0, 15),
            window_size=9,
            window_range=(0, 15),
            guidance=3.0,
            micro_batches=4,
        ),
        learning=dataclasses.replace(flow.learning, group_size=8, minibatches=1, micro_batches=4),
        evaluation=dataclasses.replace(flow.evaluation, prompts=64, batch=64, flow_steps=30, guidance=3.0),
    )
