"""Stable Diffusion 1.4 with the settings of DanceGRPO's Table 6 (arXiv 2505.07818): 32 prompts x 12 episodes at 512 px.

    python -m experiments.run sd_dance --model.path DIR --prompts prompts.jsonl \\
        --rewards hpsv2:HPSv2.1 clipscore:CLIP --mesh.fsdp 4

Not run yet; launch/from_laptop_to_pod.md says what `python -m launch.plan sd_dance --topology v5e:2x2 --mesh.fsdp 4` said.

Guidance is part of the policy, so an iteration makes one step of the optimizer.  Its scale 5 and DDIM's eta 1 are those of
the public code, which steps by DDIM with eta; the paper writes an SDE with noise level 0.3 (`--rollout.step-rule dance_sde
--rollout.noise-level 0.3`).  Every transition draws noise; trained are 30 of 50, any but the last.  Both rewards' advantages
are added, and nothing holds the policy to its start.  Binary rewards and the best and worst of many: as in `flux_dance`.
"""

from unigrpo_jax.config import (
    CheckpointConfig,
    EvaluationConfig,
    LearningConfig,
    LoggingConfig,
    LoraConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
)

ADAPTED = (r".*\.attn[12]\.to_(q|k|v|out\.0)",)  # queries, keys, values and outputs of every attention


def config() -> RunConfig:
    """Table 6."""
    return RunConfig(
        name="sd_dance",
        iterations=300,
        prompts=(),
        rewards=(),
        model=ModelConfig(
            path="CompVis/stable-diffusion-v1-4",
            family="stable_diffusion",
            dtype="bfloat16",
            remat="full",
            lora=LoraConfig(targets=ADAPTED),
        ),
        rollout=RolloutConfig(
            prompts_per_iteration=32,
            prompt_tokens=77,
            thinking=False,
            image_height=512,
            image_width=512,
            flow_steps=50,
            timestep_shift=0.0,
            step_rule="ddim",
            noise_level=1.0,
            noise_range=(0, 49),
            window="random",
            window_size=30,
            window_range=(0, 49),
            shared_noise=True,
            guidance=5.0,
            micro_batches=4,
        ),
        learning=LearningConfig(
            group_size=12,
            ratio_norm=False,
            flow_clip=1e-4,
            mse_weight=0.0,
            micro_batches=24,
            window_steps="scanned",
            denoising_lr=1e-5,
            weight_decay=1e-4,
            max_grad_norm=1.0,
        ),
        evaluation=EvaluationConfig(prompts=128, batch=64, thinking=False, flow_steps=50, guidance=5.0),
        checkpoint=CheckpointConfig(every=20),
        logging=LoggingConfig(samples_every=20),
    )
