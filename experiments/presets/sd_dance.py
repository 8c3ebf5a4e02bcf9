"""Stable Diffusion 1.4 with the settings of DanceGRPO's Table 6 (arXiv 2505.07818): 32 prompts x 12 episodes at 512 px.

    python -m experiments.run sd_dance --model.path DIR --prompts prompts.jsonl \\
        --rewards hpsv2:HPSv2.1 clipscore:CLIP --mesh.fsdp 4

Not run yet; launch/from_laptop_to_pod.md says what `python -m launch.plan sd_dance --topology v5e:2x2 --mesh.fsdp 4` said.

Guidance is part of the policy, so an iteration makes one step of the optimizer.  Its scale 5 and DDIM's eta 1 are those of
the public code, which steps by DDIM with eta; the paper writes an SDE with noise level 0.3 (`--rollout.step-rule dance_sde
--rollout.noise-level 0.3`).  Every transition but the last draws noise; trained are 30 of those 49.  Both rewards'
advantages are added, and nothing holds the policy to its start.  Binary rewards and the best and worst of many: as in
`flux_dance`.
"""

import dataclasses

from experiments.presets import flux_dance
from unigrpo_jax.config import LoraConfig, RunConfig

ADAPTED = (r".*\.attn[12]\.to_(q|k|v|out\.0)",)  # queries, keys, values and outputs of every attention


def config() -> RunConfig:
    """Table 6; what is not of Stable Diffusion is as in `flux_dance`."""
    flow = flux_dance.config()
    return dataclasses.replace(
        flow,
        name="sd_dance",
        model=dataclasses.replace(
            flow.model, path="CompVis/stable-diffusion-v1-4", family="stable_diffusion", lora=LoraConfig(targets=ADAPTED)
        ),
        rollout=dataclasses.replace(
            flow.rollout,
            prompt_tokens=77,
            image_height=512,
            image_width=512,
            flow_steps=50,
            timestep_shift=0.0,
            step_rule="ddim",
            noise_level=1.0,
            noise_range=(0, 49),
            window_size=30,
            window_range=(0, 49),
            guidance=5.0,
        ),
        learning=dataclasses.replace(flow.learning, minibatches=1, micro_batches=24),
        evaluation=dataclasses.replace(flow.evaluation, guidance=5.0),
    )
