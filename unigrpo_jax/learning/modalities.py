"""The modalities of a drawing: how their losses are added, and what settings say of them by name.

    loss of a drawing = sum_m modality_weights[m] * L_m

A latent is a pytree of modalities, an array itself where there is one alone (`models.verbs`).  L_m, with its ratio, its clip
and its leash, is a mean over the numbers of m alone, so that a large modality does not drown a small one.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unigrpo_jax.config import LearningConfig, require
from unigrpo_jax.models.verbs import Painter


def names(network: Painter, size: tuple[int, int, int, float]) -> tuple[str, ...]:
    """Names of the modalities that a network draws, sorted; () where a latent is one array.

    `size` is `RolloutConfig.size`, of which the network must be able to draw.
    """
    shape = network.latent_shape(network.grid(*size))
    return tuple(sorted(shape)) if isinstance(shape, Mapping) else ()


def check(learning: LearningConfig, there: tuple[str, ...], model: str) -> None:
    """ConfigError where settings name a modality that is not there, or leave nothing to learn.

    Args:
      learning: `modality_weights` and `credit_by`.
      there: from `names`.
      model: what the model is called.
    """
    credited = {modality: None for own in learning.credited.values() for modality in own}
    for setting, named in (("modality_weights", learning.modality_weights), ("credit_by", credited)):
        require(not named or bool(there), f"learning.{setting} names {', '.join(named)}, but what {model} draws is not "
                "divided into modalities; leave it out.")  # fmt: skip
        unknown = [name for name in named if name not in there]
        require(not unknown, f"learning.{setting} names {', '.join(unknown)}, but {model} draws {' and '.join(there)}; use "
                "these names.")  # fmt: skip
    require(not there or any(learning.modality_weights.get(name, 1.0) for name in there),
            "learning.modality_weights is 0 for every modality, so nothing learns; set one above 0.")  # fmt: skip


def by_modality(latent, *others) -> dict[str, tuple]:
    """{"flow": others} of a latent that is one array; {"flow_NAME": their parts} of one with several modalities.

    Args:
      latent: a pytree of modalities.
      others: pytrees like it, or what is the same for all of them, such as None.
    """
    if isinstance(latent, Mapping):
        pick = lambda part, name: part[name] if isinstance(part, Mapping) else part
        return {f"flow_{name}": tuple(pick(part, name) for part in others) for name in sorted(latent)}
    return {"flow": others}


def weights(latent, learning: LearningConfig) -> Any:
    """What each modality's loss counts: {NAME: weight}; 1.0 where a latent is one array."""
    if isinstance(latent, Mapping):
        return {name: learning.modality_weights.get(name, 1.0) for name in latent}
    return 1.0


def added(losses, learning: LearningConfig) -> jax.Array:
    """The weighted sum of one loss of each modality, arrays of one shape."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.multiply, weights(losses, learning), losses)))
