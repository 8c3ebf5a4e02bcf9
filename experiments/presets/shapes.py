"""Shapes: GenEval in miniature, on a laptop.

    python -m experiments.run shapes

"""

from unigrpo_jax.config import LearningConfig, ModelConfig, RolloutConfig, RunConfig


def config() -> RunConfig:
    """The main job."""
    return RunConfig(
        name="shapes",
        iterations=300,
        model=ModelConfig(unroll=4),
        rollout=RolloutConfig(
            prompts_per_iteration=12, step_rule="cps", noise_level=0.8, window_size=1, window_range=(1, 6)
        ),
        learning=LearningConfig(
            group_size=8, reasoning_lr=3e-4, denoising_lr=2.5e-4, mse_weight=0.005, ema_decay=0.97
        ),
    )
