"""FLUX.1-dev with the settings of DanceGRPO's Table 6 (arXiv 2505.07818): 32 prompts x 12 episodes at 1024 px.

    python -m experiments.run flux_dance --model.path DIR --prompts prompts.jsonl \\
        --rewards hpsv2:HPSv2.1 clipscore:CLIP --mesh.fsdp 16

Not run yet: no machine that holds it was at hand; launch/from_laptop_to_pod.md says what `python -m launch.plan flux_dance`
said of chips that fit, with all weights and with adapters (`--model.param-dtype bfloat16 --model.lora.rank 128
--model.lora.alpha 256 --learning.denoising-lr 3e-4`, as the public script has them).

Every transition but the last draws noise; trained are 15 of those 24, as in the public scripts.  Both rewards' advantages
are added, and nothing holds the policy to its start.  Those scripts draw 720 x 720 in 16 steps:

    --rollout.image-height 720 --rollout.image-width 720 --rollout.flow-steps 16 --rollout.noise-range 0 15 \\
        --rollout.window-range 0 15 --rollout.window-size 9

Also in the paper: binary rewards, `--learning.reward-thresholds hpsv2 0.28 clipscore 0.975` (its CLIP 0.39, here times 2.5),
and the best and worst of many, `--learning.group-size 64 --learning.best 8 --learning.worst 8`.
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

# Queries, keys, values and outputs of the pictures' attention, as DanceGRPO adapts them.
ADAPTED = (r"(single_)?transformer_blocks\.attn\.to_(q|k|v)", r"transformer_blocks\.attn\.to_out\.0")


def config() -> RunConfig:
    """Table 6."""
    return RunConfig(
        name="flux_dance",
        iterations=300,
        prompts=(),
        rewards=(),
        model=ModelConfig(
            path="black-forest-labs/FLUX.1-dev",
            family="flux",
            dtype="bfloat16",
            remat="full",
            lora=LoraConfig(targets=ADAPTED),
        ),
        rollout=RolloutConfig(
            prompts_per_iteration=32,
            prompt_tokens=512,
            thinking=False,
            image_height=1024,
            image_width=1024,
            flow_steps=25,
            timestep_shift=3.0,
            step_rule="dance_sde",
            noise_level=0.3,
            noise_range=(0, 24),
            window="random",
            window_size=15,
            window_range=(0, 24),
            shared_noise=True,
            micro_batches=4,
        ),
        learning=LearningConfig(
            group_size=12,
            advantage_limit=5.0,
            ratio_norm=False,
            flow_clip=1e-4,
            mse_weight=0.0,
            reference="none",
            minibatches=4,
            micro_batches=6,
            window_steps="scanned",
            denoising_lr=1e-5,
            weight_decay=1e-4,
            max_grad_norm=1.0,
        ),
        evaluation=EvaluationConfig(prompts=128, batch=64, thinking=False, flow_steps=50),
        checkpoint=CheckpointConfig(every=20),
        logging=LoggingConfig(samples_every=20),
    )
