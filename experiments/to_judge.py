"""What `evaluate` and `geneval` share: the model that they judge, and how it draws where the command line does not say it.

That is as the model's run judged it; a model folder as --preset judges, else as it was published; and that of a student of
few steps as it learned to: in its steps, by its sampler, without guidance.
"""

import dataclasses
from typing import Any, Literal

from experiments.command_line import preset, read_again
from unigrpo_jax.config import EvaluationConfig, RunConfig, require
from unigrpo_jax.config_checks import check

SAMPLER = ("thinking", "thinking_as_text", "temperature", "sampler", "flow_steps", "guidance", "guidance_image",
           "guidance_interval", "guidance_renorm", "guidance_renorm_min", "passes")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Dtypes:
    """Of a model folder's network; what is not given is the preset's, or float32.  A run knows its own."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype."""
    param_dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the weights in memory."""


def to_judge(kind: Any, arguments: Any) -> tuple[Any, Any]:
    """The model that `checkpoint` names, its weights not read yet, and the arguments with its usual sampler.

    `kind` is what the command line is read as.  ConfigError where settings cannot be.
    """
    from unigrpo_jax.training.restore import restore

    bare, _ = preset([arguments.preset] if arguments.preset else [], "shapes")
    given = {name: x for name, x in dataclasses.asdict(arguments.model).items() if x is not None}
    bare = dataclasses.replace(bare, model=dataclasses.replace(bare.model, **given))
    restored = restore(arguments.checkpoint, bare, arguments.devices, arguments.mesh)
    require(restored.is_bare or not given, "--model.dtype and --model.param-dtype are for a model folder, and "
            f"{restored.folder} is a run, which knows its own; leave them out.")  # fmt: skip
    restored = restored if arguments.preset else restored.as_published
    usual = {name: getattr(restored.config.evaluation, name) for name in SAMPLER}
    if restored.is_bare and restored.loaded.student is not None:  # a run on a student knows how it judges
        usual |= restored.loaded.published.evaluation
    evaluation = dataclasses.replace(arguments.evaluation, **usual)
    arguments = read_again(kind, dataclasses.replace(arguments, evaluation=evaluation))
    check(RunConfig(evaluation=arguments.evaluation))
    return restored, arguments


def sampler_words(e: EvaluationConfig) -> str:
    """The sampler in a line."""
    low, high = e.guidance_interval
    guidance = f"guidance {e.guidance:g} at {low:g} < t <= {high:g}" if e.guidance > 1 else "no guidance"
    thinking = f"thinking at temperature {e.temperature:g}" if e.thinking else "no thinking"
    return f"Drawn by the {e.sampler.upper()} in {e.flow_steps} steps, {guidance}, {thinking}."
