"""Whether the settings of a distillation can work together, from the numbers alone."""

from unigrpo_jax.config import DistillationConfig, RunConfig, require


def check_distillation(config: RunConfig) -> None:
    """Raises ConfigError where settings of a distillation cannot work, or stand where nothing reads them."""
    learn, r, d = config.learning, config.rollout, config.learning.distillation
    method = f"learning.method = {learn.method!r}"
    require(learn.distils or d == DistillationConfig(), f"learning.distillation is read by learning.method = 'mean_flow' "
            f"and 'dmd2' alone, but {method}; use experiments.distill, or leave it out.")  # fmt: skip
    if not learn.distils:
        return
    _check_numbers(d)
    require(bool(d.steps), "learning.distillation.steps is empty; name the numbers of transitions that the student is made "
                           "for, such as 1 2 4.")  # fmt: skip
    few = [steps for steps in d.steps if steps < 1]
    require(not few, f"learning.distillation.steps = {' '.join(map(str, d.steps))}, but a drawing has at least 1 transition"
                     "; leave the others out.")  # fmt: skip
    require(len(set(d.steps)) == len(d.steps), f"learning.distillation.steps = {' '.join(map(str, d.steps))} names a number "
                                               "twice; name each once.")  # fmt: skip
    require(learn.method != "dmd2" or len(d.steps) == 1, f"learning.distillation.steps = {' '.join(map(str, d.steps))}, but "
            f"{method} trains at the states of one number of transitions; use one, such as 4.")  # fmt: skip
    require(learn.reference != "none", f"learning.reference = 'none' keeps nothing of the start, which is the teacher of "
                                       f"{method}; use 'device' or 'host'.")  # fmt: skip
    require(learn.group_size == 1 and not learn.best + learn.worst, f"learning.group_size = {learn.group_size}, "
            f"learning.best = {learn.best} and learning.worst = {learn.worst}, but nothing is compared in a group by "
            f"{method}; use 1, 0 and 0.")  # fmt: skip
    require(learn.flow_weight > 0, f"learning.flow_weight = 0, but {method} learns nothing else; use 1.")
    require(r.rounds == 1, f"rollout.rounds = {r.rounds}, but {method} learns a single drawing; use 1.")
    require(r.guidance <= 1, f"rollout.guidance = {r.guidance:g} is that of what is trained, and a student draws without; "
                             f"use 1, and learning.distillation.guidance {r.guidance:g} for the teacher.")  # fmt: skip
    require(learn.method != "mean_flow" or config.model.second_time, f"{method} learns a velocity between two times, and "
            "model.second_time is off; turn it on, or use 'dmd2'.")  # fmt: skip
    require(learn.method != "mean_flow" or not config.model.lora.rank, f"{method} trains an embedder of the second time, "
            f"which adapters leave out, and model.lora.rank = {config.model.lora.rank}; use 0, or 'dmd2'.")  # fmt: skip
    require(learn.method != "mean_flow" or not config.model.floor_time, "model.floor_time makes steps of the time, along "
            f"which {method} takes a derivative; turn it off, or use 'dmd2'.")  # fmt: skip


def _check_numbers(d: DistillationConfig) -> None:
    require(d.guidance >= 1, f"learning.distillation.guidance = {d.guidance:g}, but it must be 1, which is none, or more.")
    for name in ("guidance_interval", "noise_range"):
        low, high = getattr(d, name)
        require(0 <= low < high <= 1,
                f"learning.distillation.{name} = ({low:g}, {high:g}) must satisfy 0 <= low < high <= 1.")  # fmt: skip
    for name in ("guidance_renorm_min", "equal_share"):
        value = getattr(d, name)
        require(0 <= value <= 1, f"learning.distillation.{name} = {value:g}, but it must be from 0 to 1.")
    for name in ("time_std", "weight_floor"):
        value = getattr(d, name)
        require(value > 0, f"learning.distillation.{name} = {value:g}, but it must be above 0.")
    for name in ("weight_power", "fake_lr"):
        value = getattr(d, name)
        require(value >= 0, f"learning.distillation.{name} = {value:g}, but it must be 0 or more.")
    require(d.fake_steps >= 1, f"learning.distillation.fake_steps = {d.fake_steps}, but it must be at least 1.")
