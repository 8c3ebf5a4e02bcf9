"""What `scheduler/scheduler_config.json` says of a diffusion: its betas, what the network predicts, where DDIM steps.

The file is of whichever solver its folder is published with (PNDM, DDIM, Euler, ...); they all hold the same diffusion, and
the names that a DDIM knows are read, as diffusers' `DDIMScheduler.from_config` does.
"""

import dataclasses
import pathlib

import numpy as np

from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.paths import Prediction, VariancePreserving, scaled_linear
from unigrpo_jax.models.schedule import DiffusionSchedule

# Solvers of such a diffusion, by diffusers' names.
CLASSES = tuple(f"{name}Scheduler" for name in (
    "PNDM", "DDIM", "DDPM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "DEISMultistep",
    "DPMSolverMultistep", "DPMSolverSinglestep", "KDPM2Discrete", "KDPM2AncestralDiscrete", "UniPCMultistep"))  # fmt: skip
MOST_STEPS = 100_000
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "v_prediction": "v", "sample": "data"}
# What would be another diffusion, or other times, with the values that mean that it is not done.
_ONLY = {
    "_class_name": CLASSES,
    "trained_betas": (),
    "thresholding": (False,),
    "rescale_betas_zero_snr": (False,),
    "timestep_type": ("discrete",),
    **dict.fromkeys((f"use_{kind}_sigmas" for kind in ("karras", "exponential", "beta", "flow")), (False,)),
    "use_lu_lambdas": (False,),
}
# Of solvers that are not run here, and of what is refused above; two that Stable Diffusion's pipeline overrules, whose steps
# have an offset of 1 and whose data estimates are not clipped, whatever its file says.
_NO_MATTER = {
    "_diffusers_version", "algorithm_type", "clip_sample", "clip_sample_range", "disable_corrector",
    "dynamic_thresholding", "dynamic_thresholding_ratio", "euler_at_final", "final_sigmas_type", "flow_shift",
    "interpolation_type", "lambda_min_clipped", "lower_order_final", "predict_x0", "sample_max_value", "sigma_max",
    "sigma_min", "skip_prk_steps", "solver_order", "solver_p", "solver_type", "steps_offset", "time_shift_type",
    "use_dynamic_shifting", "variance_type",
}  # fmt: skip
KNOWN = {*_ONLY, *_NO_MATTER, "beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type",
          "timestep_spacing", "set_alpha_to_one"}  # fmt: skip
_LEAST = 1e-12  # of alpha^2 and sigma^2; their roots are float32


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """What the file says.

    Attributes:
      path: the betas.
      prediction: what the network says.
      schedule: how a sampler's times are spaced.
    """

    path: VariancePreserving
    prediction: Prediction
    schedule: DiffusionSchedule


def read_scheduler(path: pathlib.Path, files: str) -> Scheduler:
    """What a file says; ValueError, in one sentence, where it is none or asks for what is not built.

    A name that is left out has DDIM's default.
    """
    found = read_settings(path, files)
    for name, values in _ONLY.items():
        found.only(name, *values)
    steps = found.whole("num_train_timesteps", 1000)
    first, last = found.positive("beta_start", 0.0001), found.positive("beta_end", 0.02)
    if steps > MOST_STEPS:
        raise found.error("num_train_timesteps", f"it must be at most {MOST_STEPS}")
    if max(first, last) >= 1:
        raise found.error("beta_start" if first >= 1 else "beta_end", "it must be below 1")
    scaled = found.word("beta_schedule", "linear", "linear", "scaled_linear") == "scaled_linear"
    betas = np.linspace(first, last, steps)
    diffusion = scaled_linear(first, last, steps) if scaled else VariancePreserving(tuple(betas))
    kept = np.cumprod(1 - np.asarray(diffusion.betas))  # alpha^2, which is divided by, as is 1 - alpha^2
    if 1 - kept[0] < _LEAST:
        raise found.error("beta_start", "the first step adds no noise then; use a larger one")
    if kept[-1] < _LEAST:
        raise found.error("beta_end", f"nothing of the data is left after {steps} steps then; use a smaller one")
    return Scheduler(
        path=diffusion,
        prediction=_PREDICTIONS[found.word("prediction_type", "epsilon", *_PREDICTIONS)],
        schedule=DiffusionSchedule(
            train_steps=steps,
            spacing=found.word("timestep_spacing", "leading", "leading", "trailing"),
            to_data=found.flag("set_alpha_to_one", True),
        ),
    )
