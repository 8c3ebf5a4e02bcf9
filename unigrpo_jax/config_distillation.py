"""Settings of distillation: from a trained model, guidance included, to a student that draws in few steps without it."""

import dataclasses
from typing import Literal

METHODS = ("mean_flow", "dmd2")  # of LearningConfig.method, those that distil


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Methods `mean_flow` (arXiv 2505.13447) and `dmd2` (arXiv 2405.14867), whose teacher is what a run begins with.

    What `dmd2` reads of teacher and fake score serves a student that learns from rewards, too (learning.matching_weight).
    """

    guidance: float = 1.0
    """The teacher's text guidance, which the student takes over and draws without; 1 is none."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The teacher is guided where low < t <= high."""
    guidance_renorm: Literal["model", "global", "channel", "text_channel", "none"] = "model"
    """As evaluation.guidance_renorm, of the teacher."""
    guidance_renorm_min: float = 0.0
    """As evaluation.guidance_renorm_min, of the teacher."""
    teacher: str | None = None
    """Where the start is not the teacher, but a student that learns from rewards (learning.matching_weight): its folder, or
    what else model.path takes, of the family and the sizes of the student."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of transitions that the student is made for, each of which an evaluation judges; evaluation.flow_steps is one
    of them.  Method `dmd2` trains at the states of one number."""
    again: bool = False
    """Distil a model that is a student already, one of `dmd2`."""
    time_mean: float = -0.4
    """Times of `mean_flow` are sigmoid(time_mean + time_std * normal): its mean; more is nearer to the noise."""
    time_std: float = 1.0
    """Its standard deviation."""
    equal_share: float = 0.75
    """Method `mean_flow`: share of the states at which the plain velocity is learned, s = t."""
    weight_power: float = 1.0
    """p: a state of `mean_flow` counts 1 / (its loss + weight_floor)^p; 0 weighs all alike."""
    weight_floor: float = 0.01
    """c, in mean squared error per number of the latent."""
    noise_range: tuple[float, float] = (0.02, 0.98)
    """Method `dmd2`: noise levels at which teacher and fake score are compared, before the schedule's shift."""
    fake_lr: float | None = None
    """Adam's rate for the fake score of `dmd2`, which learns what the student draws; none is twice learning.denoising_lr."""
    fake_steps: int = 5
    """Optimizer steps of the fake score before each of the student's."""
