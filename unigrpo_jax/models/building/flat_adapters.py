"""Low-rank adapters of flat parameters: W + scale * B A beside frozen weights (LoRA, arXiv 2106.09685).

An adapter is two parameters under PEFT's names beside the `MODULE.weight` [(layers,) out, in] of a linear map:
`MODULE.lora_A.weight` [(layers,) r, in] and `MODULE.lora_B.weight` [(layers,) out, r].  `flat.linear` uses them where it
finds them, so the model without adapters is the same dict without those names.
"""

import re
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.flat import ADAPTER, Params
from unigrpo_jax.models.building.second_time import is_second_time
from unigrpo_jax.models.folders.component import Network

A, B = ADAPTER


def linears(network: Network) -> dict[str, tuple[int, ...]]:
    """{module: shape of its weight} of every linear map that may be adapted, [(layers,) out, in].

    A second time's embedder may not: where it is learned at all it is new, and small.
    """
    weights = {name: shape for name, shape in network.shapes().items()
               if name.endswith(".weight") and not is_second_time(name)}  # fmt: skip
    return {name.removesuffix(".weight"): shape for name, shape in weights.items()
            if len(shape) - stacked(network, name) == 2}  # fmt: skip


def stacked(network: Network, name: str) -> bool:
    """Whether the leading axis of a parameter is one of layers."""
    return network.stored_names(name) != (name,)


def hits(network: Network, targets: Sequence[str]) -> dict[str, int]:
    """How many linear maps each target means, those of stacked layers one by one.

    Raises:
      ValueError: a target matches none, or is no regular expression.
    """
    modules, found = list(linears(network)), {}
    for target in targets:
        try:
            matched = [module for module in modules if re.fullmatch(target, module)]
        except re.error as error:
            raise ValueError(f"{target!r} is not a regular expression ({error}).") from None
        if not matched:
            kinds = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", r"\\d+", module) for module in modules)
            raise ValueError(f"{target!r} matches no linear map; there are {', '.join(kinds)}.")
        found[target] = sum(len(network.stored_names(f"{module}.weight")) for module in matched)
    return found


def attach(network: Network, params: Params, rank: int, targets: Sequence[str], key: jax.Array) -> dict[str, jax.Array]:
    """The parameters with fresh adapters: A normal with variance 1 / in, B zero, so that nothing changes yet.

    Args:
      network: what the parameters are of.
      params: flat parameters.
      rank: r.
      targets: regular expressions of modules, matched whole, such as "transformer_blocks.attn.to_(q|k|v)".
      key: of A; each adapter's own key depends on its name alone.

    Raises:
      ValueError: as `hits`.
    """
    hits(network, targets)
    out = dict(params)
    for module, (*layers, width_out, width) in linears(network).items():
        if any(re.fullmatch(target, module) for target in targets):
            own = jax.random.fold_in(key, zlib.crc32(module.encode()) & 0x7FFFFFFF)
            out[f"{module}.{A}"] = jax.random.normal(own, (*layers, rank, width)) * width**-0.5
            out[f"{module}.{B}"] = jnp.zeros((*layers, width_out, rank))
    return out


def scaled(params: Params, scale: float) -> Params:
    """The parameters with every B multiplied by the factor of the adapters' products."""
    return {name: scale * p if name.endswith(f".{B}") else p for name, p in params.items()}
