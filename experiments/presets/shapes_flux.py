"""Shapes by a rectified flow: DanceGRPO (arXiv 2505.07818) on FLUX's transformer, on a laptop.

    python -m experiments.run shapes_flux

Seen, seeds 0 1 2: held-out exact 0.331 -> 0.660, 0.683, 0.652, graded 0.591 -> 0.841, 0.865, 0.849, by the ODE of ten
steps; 8 to 10 minutes on one core (`--devices 1`).

60 iterations of seed 0 with constant rates, judged in the same way, from an earlier base (0.388, commit e21d975), and how
far the velocity had moved by then (MSE):

| optimizer steps | rate | clip | noise level | exact | MSE |
|---|---|---|---|---|---|
| 1 | 3e-4 | | 0.3 | 0.531 | 0.70 |
| 1 | 3e-4 | | 0.6 | 0.531 | |
| 4 | 1.5e-4 | 3e-3 | 0.3 | 0.525 | 0.13 |
| 4 | 3.5e-4 | 3e-3 | 0.3 | 0.517 | 0.37 |

The clip range is DanceGRPO's 1e-4 times about the square root of how many more numbers a latent of FLUX has than one of
these, 144.
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
            noise_range=(0, 10),
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
