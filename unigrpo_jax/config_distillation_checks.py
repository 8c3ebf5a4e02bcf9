"""Whether the settings of a distillation can work together, from the numbers alone."""

from collections.abc import Sequence

from unigrpo_jax.config import DistillationConfig, RunConfig, require

_OF_TIMES = ("time_mean", "time_std", "equal_share", "weight_power", "weight_floor")  # what `mean_flow` alone reads
_OF_FAKE = ("noise_range", "fake_lr", "fake_steps")  # and what it does not


def check_distillation(config: RunConfig) -> None:
    """Raises ConfigError where settings of a distillation cannot work, or stand where nothing reads them."""
    learn, r, d = config.learning, config.rollout, config.learning.distillation
    method = f"learning.method = {learn.method!r}"
    _check_matching(config)
    require(learn.distils or learn.matches or d == DistillationConfig(), "learning.distillation is read by learning.method "
            f"= 'mean_flow' and 'dmd2' and by learning.matching_weight alone, but {method}; use experiments.distill, or "
            "leave it out.")  # fmt: skip
    require(not learn.distils or d.teacher is None, f"learning.distillation.teacher = {d.teacher!r}, but the teacher of "
            f"{method} is what the run begins with; name it by --model.path.")  # fmt: skip
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
    _check_read(config)


def _check_read(config: RunConfig) -> None:
    """ConfigError where a distillation does not read what somebody set, with what is read instead."""
    learn, r = config.learning, config.rollout
    method = f"learning.method = {learn.method!r}"
    for name in ("mse_weight", "latent_kl_weight", "text_kl_weight"):
        require(getattr(learn, name) == 0, f"learning.{name} = {getattr(learn, name):g} holds to the start of the run, "
                f"which {method} has as its teacher; use 0.")  # fmt: skip
    noisy = f"rollout.noise_range = [{r.noise_range[0]}, {r.noise_range[1]})"
    require(not r.shared_noise, f"rollout.shared_noise gives the drawings of a group one noise, and {method} compares "
            "nothing in a group; leave it out.")  # fmt: skip
    if learn.method == "mean_flow":
        require(r.step_rule == "ode", f"rollout.step_rule = {r.step_rule!r}, but the teacher of {method} draws without "
                                      "noise; use 'ode'.")  # fmt: skip
        require(r.noise_range == (0, 0), f"{noisy}, but the teacher of {method} draws without noise; use 0 0.")
        _check_unset(config, _OF_FAKE, method, "which has no fake score, and looks at times by time_mean and time_std")
        return
    require(r.noise_range == (0, 0), f"{noisy}, but {method} draws noise at each transition; use 0 0.")
    require((r.step_rule, r.noise_level) == ("cps", 1), f"rollout.step_rule = {r.step_rule!r} and rollout.noise_level = "
            f"{r.noise_level:g}, but a student of {method} draws its noise anew at each transition; use 'cps' and "
            "1.")  # fmt: skip
    low, high = r.window_range
    require((r.window_size, low, high) == (1, 0, 1), f"rollout.window_size = {r.window_size} and rollout.window_range = "
            f"[{low}, {high}), but {method} learns at the states of all transitions, which learning.distillation.steps "
            "counts; use 1 and 0 1.")  # fmt: skip
    _check_unset(config, _OF_TIMES, method, "which looks at noise levels by noise_range")


def _check_unset(config: RunConfig, names: Sequence[str], by: str, instead: str) -> None:
    """ConfigError where one of these settings of `learning.distillation`, which `by` does not read, is not its default."""
    for name in names:
        value = getattr(config.learning.distillation, name)
        words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        require(value == getattr(DistillationConfig, name), f"learning.distillation.{name} = {words} is not read by {by}, "
                f"{instead}; leave it out.")  # fmt: skip


def _check_matching(config: RunConfig) -> None:
    """The same, of a student that learns from rewards and is held to its teacher."""
    learn, r, d = config.learning, config.rollout, config.learning.distillation
    weight = f"learning.matching_weight = {learn.matching_weight:g}"
    if not learn.matching_weight:
        require(learn.distils or d.teacher is None, f"learning.distillation.teacher = {d.teacher!r} is read where {weight} "
                "is above 0; give that a weight, such as 0.001, or leave the teacher out.")  # fmt: skip
        return
    require(learn.method == "grpo", f"{weight} stands beside learning.method = 'grpo' alone, but that is {learn.method!r}; "
                                    "use 0.")  # fmt: skip
    require(d.teacher is not None, f"{weight} holds a student to its teacher, and no teacher is named; give its folder by "
                                   "--learning.distillation.teacher.")  # fmt: skip
    require(learn.reference != "none", f"learning.reference = 'none' keeps no teacher for {weight}; use 'device' or 'host'.")
    start = [name for name in ("mse_weight", "latent_kl_weight", "text_kl_weight") if getattr(learn, name)]
    start += ["leash_times"] if learn.leash_times else []
    require(not start, f"learning.{' and learning.'.join(start)} hold to the start of the run, in the place of which "
                       f"{weight} holds to a teacher; use 0, or no times.")  # fmt: skip
    require(learn.flow_weight > 0, f"{weight} holds what is drawn, and learning.flow_weight = 0 trains no drawing; use 1.")
    require(r.rounds == 1, f"rollout.rounds = {r.rounds}, but {weight} holds a single drawing; use 1.")
    require(r.guidance <= 1, f"rollout.guidance = {r.guidance:g}, but a student draws without guidance; use 1, and "
                             f"learning.distillation.guidance {r.guidance:g} for the teacher.")  # fmt: skip
    _check_numbers(d)
    _check_unset(config, _OF_TIMES, weight, "which looks at noise levels by noise_range")
    _check_unset(config, ("steps", "again"), weight, "whose student draws in rollout.flow_steps")


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
        value = getattr(d, name) or 0.0
        require(value >= 0, f"learning.distillation.{name} = {value:g}, but it must be 0 or more.")
    require(d.fake_steps >= 1, f"learning.distillation.fake_steps = {d.fake_steps}, but it must be at least 1.")
