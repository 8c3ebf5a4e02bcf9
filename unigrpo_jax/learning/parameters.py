"""Which parameter is trained by what: every parameter belongs to exactly one group, by its path."""

import re
from collections.abc import Mapping

import jax
import optax

from unigrpo_jax.config import ConfigError, LearningConfig
from unigrpo_jax.models.building.lora import is_adapter
from unigrpo_jax.models.tree import flatten

REASONING, DENOISING, FROZEN = "reasoning", "denoising", "frozen"
GROUPS = (REASONING, DENOISING, FROZEN)


def group_of(path: str, trained_by: Mapping[str, str], frozen: tuple[str, ...]) -> str:
    """The group of one parameter.

    Args:
      path: its path, such as "layers/und/q_proj/kernel".
      trained_by: {group: pattern} of the network.
      frozen: regular expressions; a path that one of them matches whole, or up to a "/", is frozen.

    Raises:
      ConfigError: the path belongs to no group or to several.
    """
    if any(re.fullmatch(f"(?:{pattern})(?:/.*)?", path) for pattern in frozen):
        return FROZEN
    found = [name for name, pattern in trained_by.items() if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise ConfigError(f"parameter {path} belongs to {found or 'no group'}; every parameter needs exactly one.")
    return found[0]


def groups(params: dict, config: LearningConfig, trained_by: Mapping[str, str]) -> dict[str, str]:
    """{path: group} of all parameters; where there are adapters, they alone are trained; a student learns to draw alone.

    Raises:
      ConfigError: a `frozen` pattern matches nothing or is malformed, or nothing is left to train.
    """
    paths = list(flatten(params))
    for pattern in config.frozen:
        try:
            hit = any(re.fullmatch(f"(?:{pattern})(?:/.*)?", path) for path in paths)
        except re.error as error:
            raise ConfigError(f"learning.frozen: {pattern!r} is not a regular expression ({error}).") from None
        if not hit:
            raise ConfigError(
                f"learning.frozen: {pattern!r} matches no parameter; paths look like {paths[0]} or {paths[-1]}."
            )
    labels = {path: group_of(path, trained_by, config.frozen) for path in paths}
    if any(is_adapter(path) for path in paths):
        labels = {path: group if is_adapter(path) else FROZEN for path, group in labels.items()}
    if config.distils:
        labels = {path: FROZEN if group == REASONING else group for path, group in labels.items()}
    if set(labels.values()) == {FROZEN}:
        raise ConfigError("learning.frozen leaves no parameter to train; take a pattern out.")
    return labels


def split(params: dict, labels: dict[str, str]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Flat trainable and frozen parameters."""
    flat = flatten(params)
    trained = {path: x for path, x in flat.items() if labels[path] != FROZEN}
    return trained, {path: x for path, x in flat.items() if labels[path] == FROZEN}


def optimizer(config: LearningConfig, labels: dict[str, str]) -> optax.GradientTransformation:
    """Clip of the norm over both experts together, then Adam with each expert's rate; for flat trainable parameters."""
    adam = lambda rate: optax.adamw(
        rate, b1=config.adam_b1, b2=config.adam_b2, eps=config.adam_eps, weight_decay=config.weight_decay
    )
    trained = {path: group for path, group in labels.items() if group != FROZEN}
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.partition({REASONING: adam(config.reasoning_lr), DENOISING: adam(config.denoising_lr)}, trained),
    )
