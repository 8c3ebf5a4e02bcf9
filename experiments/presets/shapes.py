"""Shapes: GenEval in miniature, on a laptop.

python -m experiments.run shapes
"""

from unigrpo_jax.config import LearningConfig, ModelConfig, RolloutConfig, RunConfig


def config() -> RunConfig:
    """The main job."""
    return RunConfig(
        name="shapes",
        iterations=150,
        model=ModelConfig(unroll=4),
        rollout=RolloutConfig(prompts_per_iteration=12),
        learning=LearningConfig(group_size=8),
    )
