"""Shapes by a rectified flow: DanceGRPO (arXiv 2505.07818) on FLUX's transformer, on a laptop.

    python -m experiments.run shapes_flux
"""

from unigrpo_jax.config import EvaluationConfig, LearningConfig, ModelConfig, RolloutConfig, RunConfig


def config() -> RunConfig:
    """Shared noise, noise in every transition, a random 60 % of them trained; no leash."""
    return RunConfig(
        name="shapes_flux",
        iterations=300,
        prompts=("shapes_direct",),
        model=ModelConfig(path="shapes_flux_base", family="flux"),
        rollout=RolloutConfig(
            prompts_per_iteration=12,
            thinking=False,
            timestep_shift=0.0,
            step_rule="dance_sde",
            noise_level=0.3,
            noise="range",
            window="random",
            window_size=6,
            window_range=(0, 10),
            shared_noise=True,
        ),
        learning=LearningConfig(
            group_size=12,
            minibatches=4,
            denoising_lr=2e-4,
            mse_weight=0.0,
            ratio_norm=False,
            flow_clip=3e-3,
            ema_decay=0.99,
            cooldown=(200, 300),
        ),
        evaluation=EvaluationConfig(thinking=False),
    )
