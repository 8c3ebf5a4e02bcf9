"""BAGEL-7B-MoT with the settings of UniGRPO's Table 3 (arXiv 2603.23500): 32 prompts x 24 episodes at 1024 px.

    python -m experiments.run bagel_7b --model.path DIR --prompts prompts.jsonl --rewards my_reward:score --mesh.fsdp 64

Not run yet: no machine that holds it was at hand.  `python -m launch.plan bagel_7b --topology v5p:4x4x4 --mesh.fsdp 64` and
`--topology v6e:16x16 --mesh.fsdp 64 --mesh.tensor 4` compile it without chips; what they said stands in
launch/from_laptop_to_pod.md.  Training both experts in full takes float32 weights 58 GB, Adam 105 GB, gradients 52 GB and a
bfloat16 reference 26 GB over all chips that the mesh spreads them on; adapters over bfloat16 weights (`--model.param-dtype
bfloat16 --model.lora.rank 64`) take about 35 GB for the same.

The paper's "PPO epochs 2" is read as two disjoint minibatches per iteration, as UniRL does; two passes are
`--learning.minibatches 1 --learning.ppo-epochs 2`.  The paper does not say whether its MSE weight 1.5e-5 is on the sum or on
the mean over the latent's 262,144 numbers; here it is on the mean, and 3.93 is the same weight on the sum.
"""

from unigrpo_jax.config import (
    CheckpointConfig,
    EvaluationConfig,
    LearningConfig,
    LoggingConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
)
from unigrpo_jax.models.bagel.release import HUB_NAME
from unigrpo_jax.models.bagel.text import GENERATION_SYSTEM_PROMPT

# Both experts' projections and MLPs, the time embedder and the latent's two maps are trained; these are not.
FROZEN = ("embed", "lm_head", r"layers/.*_norm", "norm_und", "norm_gen")


def config() -> RunConfig:
    """Table 3."""
    return RunConfig(
        name="bagel_7b",
        iterations=300,
        prompts=(),
        rewards=(),
        model=ModelConfig(path=HUB_NAME, family="bagel", dtype="bfloat16", remat="full"),
        rollout=RolloutConfig(
            prompts_per_iteration=32,
            prompt_tokens=128,
            system_prompt=GENERATION_SYSTEM_PROMPT,
            thinking_tokens=1024,
            temperature=1.0,
            image_height=1024,
            image_width=1024,
            flow_steps=25,
            timestep_shift=3.0,
            step_rule="flow_sde",
            noise_level=0.8,
            window_size=3,
            window_range=(0, 5),
            micro_batches=4,
            gather_weights=True,
        ),
        learning=LearningConfig(
            group_size=24,
            flow_clip=1e-6,
            flow_weight=1.0,
            mse_weight=1.5e-5,
            text_kl_weight=0.0,
            minibatches=2,
            micro_batches=6,
            reasoning_lr=1e-6,
            denoising_lr=3e-5,
            frozen=FROZEN,
        ),
        evaluation=EvaluationConfig(
            prompts=128,
            batch=64,
            temperature=0.0,
            flow_steps=50,
            guidance=4.0,
            guidance_interval=(0.4, 1.0),
        ),
        checkpoint=CheckpointConfig(every=20),
        logging=LoggingConfig(samples_every=20),
    )
