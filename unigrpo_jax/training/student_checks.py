"""Whether settings fit a student, a model that was distilled to draw in few steps (`models.folders.student`)."""

import dataclasses

from unigrpo_jax.config import ConfigError, EvaluationConfig, LearningConfig, RolloutConfig, RunConfig, require
from unigrpo_jax.config_evaluation import PassesConfig
from unigrpo_jax.models import tree
from unigrpo_jax.models.building.second_time import is_second_time
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.loaded import Loaded
from unigrpo_jax.training.programs import FORWARD


def check_method(config: RunConfig, loaded: Loaded) -> None:
    """ConfigError where a run's method would blur what a student draws, or does not teach a second time that is new."""
    method = config.learning.method
    plain = method in FORWARD or method == "sft"
    require(loaded.student is None or not plain, f"learning.method = {method!r} is plain flow matching, which blurs what a "
            f"student such as {loaded.folder} draws in few steps; use grpo or refl.")  # fmt: skip
    require(not loaded.network.fresh_time or config.learning.distils, f"model.second_time gives the network an input, which "
            f"learning.method = {method!r} does not teach; leave it out, or distil a student first.")  # fmt: skip


def teacher_of(config: RunConfig, loaded: Loaded) -> Loaded | None:
    """The teacher that a student is held to while it learns from rewards; ConfigError where it is none of this student."""
    d = config.learning.distillation
    if d.teacher is None:
        return None
    try:
        path = None if d.teacher == "base" else d.teacher
        teacher = load_model(dataclasses.replace(config.model, path=path, second_time=False))
    except ConfigError as error:
        raise ConfigError(f"learning.distillation.teacher: {error}") from None
    name = f"learning.distillation.teacher = {d.teacher!r}"
    require(teacher.student is None, f"{name} is a student itself; name the model that it was made of.")
    own, others = (
        {path: x.shape for path, x in tree.flatten(model.stored_params()).items() if not is_second_time(path)}
        for model in (loaded, teacher)
    )
    require(teacher.family == loaded.family and own == others, f"{name} ({teacher.family}) has other parameters than "
            f"{loaded.folder} ({loaded.family}); name the model that this student was made of.")  # fmt: skip
    require(d.guidance <= 1 or teacher.codec.guided, f"learning.distillation.guidance = {d.guidance:g}, but "
            f"{teacher.folder} is not guided by a second pass; use 1.")  # fmt: skip
    teacher.check_weights()
    return teacher


def warnings(
    loaded: Loaded, rollout: RolloutConfig, evaluation: EvaluationConfig, trains: bool = False,
    learning: LearningConfig | None = None,
) -> list[str]:  # fmt: skip
    """What settings ask of a student that it was not made for, in sentences.

    Those of the rollout's steps if it `trains`, and those of what holds it to its teacher where the `learning` is given.
    """
    student, found = loaded.student, []
    if student is None:
        return found
    steps = {"evaluation.flow_steps": evaluation.flow_steps}
    guided = {"evaluation.guidance": evaluation.guidance}
    if trains:
        steps, guided = {"rollout.flow_steps": rollout.flow_steps} | steps, {"rollout.guidance": rollout.guidance} | guided
    made = f"the model is a student ({student.method})"
    for name, value in steps.items():
        if value not in student.steps:
            found.append(f"Warning: {name} = {value}, but {made} that was made for {_listed(student.steps)} steps.")
    for name, value in guided.items():
        if value > 1:
            found.append(f"Warning: {name} = {value:g}, but {made} that draws without, as its teacher did with "
                         f"{student.guidance:g}; use 1.")  # fmt: skip
    if _guide(evaluation.passes):
        found.append(f"Warning: evaluation.passes guide, but {made} that draws without; leave them out.")
    if learning is not None and learning.matching_weight and learning.distillation.guidance != student.guidance:
        own = learning.distillation.guidance
        found.append(f"Warning: learning.distillation.guidance = {own:g}, but {made} whose teacher was guided with "
                     f"{student.guidance:g}, to which it is held; use {student.guidance:g}.")  # fmt: skip
    if student.method == "dmd2":  # which knows some states alone
        if rollout.timestep_shift != student.timestep_shift:
            found.append(f"Warning: rollout.timestep_shift = {rollout.timestep_shift:g}, but {made} that was made for the "
                         f"states of {student.timestep_shift:g}.")  # fmt: skip
        if evaluation.sampler != "sde":
            found.append(f"Warning: evaluation.sampler = {evaluation.sampler!r}, but {made} that draws its noise anew at "
                         "each step; use 'sde'.")  # fmt: skip
        noise, rule = rollout.noise_level, rollout.step_rule
        if (trains or evaluation.sampler == "sde") and (rule, noise) != ("cps", 1):
            found.append(f"Warning: rollout.step_rule = {rule!r} and rollout.noise_level = {noise:g}, but {made} that draws "
                         "its noise anew at each step; use 'cps' and 1.")  # fmt: skip
        if trains and not _noised(rollout):
            low, high = rollout.noise_range
            found.append(f"Warning: rollout.noise_range = [{low}, {high}), but {made} that draws its noise anew at each "
                         f"step but the last; use 0 {rollout.flow_steps - 1}.")  # fmt: skip
    return found


def _guide(passes: PassesConfig) -> bool:
    """Whether any of the passes changes what is drawn."""
    return (passes.sound or 1) > 1 or passes.mixing > 0 or passes.other > 1


def _noised(r: RolloutConfig) -> bool:
    """Whether every transition but the last draws noise: beside the window's, or in one that is its whole range."""
    noisy, window = set(range(*r.noise_range)), set(range(*r.window_range))
    return set(range(r.flow_steps - 1)) <= (noisy | window if r.window_size == len(window) else noisy)


def _listed(steps: tuple[int, ...]) -> str:
    *others, last = map(str, steps)
    return f"{', '.join(others)} or {last}" if others else last
