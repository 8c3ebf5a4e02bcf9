"""Low-rank adapters: W + scale * A B beside frozen weights (LoRA, arXiv 2106.09685).

An adapter is two leaves, `lora_a` [..., inputs, r] and `lora_b` [..., r, outputs], beside the `kernel` that it adapts.  The
network uses them where it finds them, so the model without adapters is the same tree without those leaves: a reference
policy costs no second copy.
"""

import math
import re
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from unigrpo_jax.models.tree import flatten, unflatten

NAMES = ("lora_a", "lora_b")


def is_adapter(path: str) -> bool:
    """Whether a parameter's path is that of an adapter, A or B."""
    return re.search(r"[/.]lora_([ab]|[AB]\.weight)$", path) is not None


def is_second(path: str) -> bool:
    """Whether it is that of B, which starts at zero."""
    return re.search(r"[/.]lora_(b|B\.weight)$", path) is not None


def hits(params: dict, targets: Sequence[str]) -> dict[str, int]:
    """How many linear maps each target means, those of all layers; ValueError where it is none, or no regular expression."""
    kernels = {path.removesuffix("/kernel"): x for path, x in flatten(params).items()
               if re.fullmatch(r"layers/.*_proj/kernel", path)}  # fmt: skip
    out = {}
    for target in targets:
        try:
            own = [x for path, x in kernels.items() if re.fullmatch(target, path)]
        except re.error as error:
            raise ValueError(f"{target!r} is not a regular expression ({error}).") from None
        if not own:
            raise ValueError(f"{target!r} matches no projection; there are {', '.join(sorted(kernels))}.")
        out[target] = sum(x.shape[0] for x in own)
    return out


def attach(params: dict, rank: int, targets: Sequence[str], key: jax.Array) -> dict:
    """The parameters with fresh adapters: A normal with variance 1 / inputs, B zero, so that nothing changes yet.

    Args:
      params: nested parameters, arrays or their shapes.
      rank: r.
      targets: regular expressions of paths in the decoder's layers, such as "layers/gen/q_proj"; matched whole.
      key: of A; each adapter's own key depends on its path alone.

    Raises:
      ValueError: a target matches no projection, or is no regular expression.
    """
    hits(params, targets)
    flat = flatten(params)
    kernels = [path.removesuffix("/kernel") for path in flat if re.fullmatch(r"layers/.*_proj/kernel", path)]
    for path in kernels:
        if any(re.fullmatch(target, path) for target in targets):
            layers, *shape = flat[f"{path}/kernel"].shape
            inputs = len(shape) - 1 if path.endswith("o_proj") else 1
            width = math.prod(shape[:inputs])
            own = jax.random.fold_in(key, zlib.crc32(path.encode()) & 0x7FFFFFFF)
            flat[f"{path}/lora_a"] = jax.random.normal(own, (layers, *shape[:inputs], rank)) * width**-0.5
            flat[f"{path}/lora_b"] = jnp.zeros((layers, rank, *shape[inputs:]))
    return unflatten(flat)
