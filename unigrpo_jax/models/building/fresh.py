"""Flat parameters to train from scratch."""

import math
import re
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.flat_adapters import stacked
from unigrpo_jax.models.folders.component import Network


def fresh(
    network: Network, zero: str, key: jax.Array, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, jax.Array]:
    """Matrices and kernels normal with variance 1 / (numbers that one output reads), norms 1, biases 0; float32.

    Args:
      network: what the parameters are of.
      zero: regular expression of the modules whose weights are 0, and of what is no weight, such as tables; matched whole.
      key: each parameter's own key depends on its name alone.
      wanted: which parameters are made.
    """
    out = {}
    for name, shape in network.shapes().items():
        if not wanted(name):
            continue
        inputs = shape[1 + stacked(network, name) :]
        if name.endswith(".bias") or re.fullmatch(zero, name.removesuffix(".weight")):
            out[name] = jnp.zeros(shape)
        elif not inputs:
            out[name] = jnp.ones(shape)
        else:
            own = jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
            out[name] = jax.random.normal(own, shape) * math.prod(inputs) ** -0.5
    return out
