"""Layers that are scanned or recomputed, as Flax lifts them; programs may be traced in several threads at once."""

import threading
from typing import Any

from flax import linen as nn

# A lifted layer is a class of its own, and while Flax makes one it takes fields out of the layer's, where others look.
_ONE_AT_A_TIME = threading.Lock()


def scanned(layer: type[nn.Module], **how: Any) -> type[nn.Module]:
    """`nn.scan` of a layer."""
    with _ONE_AT_A_TIME:
        return nn.scan(layer, **how)


def recomputed(layer: type[nn.Module], **how: Any) -> type[nn.Module]:
    """`nn.remat` of a layer."""
    with _ONE_AT_A_TIME:
        return nn.remat(layer, **how)
