"""LAION's aesthetic predictor: a stack of linear layers over a normalised image embedding, trained on ratings from 1 to 10.

Its file stands in the CLIP's folder as aesthetic_head.safetensors, with the names of its checkpoint: layers.N.weight and
layers.N.bias for the improved predictor (N = 0, 2, 4, 6, 7; between them stood dropout, and no activation), or weight and
bias alone for the first, linear one.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.rewards.clip_weights import open_weights, unpickle

STEM = "aesthetic_head"

Head = list[tuple[jax.Array, jax.Array]]


def rating(head: Head, image_BE: jax.Array) -> jax.Array:
    """Ratings [B] of image embeddings of length 1; `head` is (kernel [in, out], bias [out]) of each layer."""
    x = image_BE
    for kernel, bias in head:
        x = x @ kernel + jnp.broadcast_to(bias, (len(x), len(bias)))
    return x[:, 0]


class HeadFile:
    """A head whose shapes have been checked.

    Attributes:
      files: where it stands.
    """

    def __init__(self, folder: pathlib.Path, space: int):
        """Reads the header; ConfigError where the layers do not lead from `space` numbers to one."""
        self._stored = open_weights(folder, STEM, {"*.pth": lambda path: unpickle(path, folder / f"{STEM}.safetensors")})
        self.files, path = self._stored.files, self._stored.path
        names, width = self._stored.names(), space
        numbers = sorted({int(found[1]) for name in names if (found := re.fullmatch(r"layers\.(\d+)\.(weight|bias)", name))})
        self._layers = [f"layers.{n}." for n in numbers] or [""]
        known = {layer + part for layer in self._layers for part in ("weight", "bias")}
        for fault, odd in (("is missing", known - names), ("is unknown", names - known)):
            require(not odd, f"{path}: {min(odd, default='')} {fault}; a head holds layers.N.weight and layers.N.bias, or "
                    "weight and bias.")  # fmt: skip
        for layer in self._layers:
            weight, bias = (self._stored.shape(layer + part) for part in ("weight", "bias"))
            out = 1 if layer == self._layers[-1] else weight[0] if weight else 0
            fits = weight == (out, width) and bias == (out,)
            require(fits, f"{path}: {layer}weight and {layer}bias have shapes {list(weight)} and {list(bias)}, but "
                    f"[{out}, {width}] and [{out}] are needed: the first layer takes the {space} numbers of the CLIP's "
                    "embedding, and the last gives one.")  # fmt: skip
            width = out

    def params(self, sharding: jax.sharding.Sharding) -> Head:
        """The layers, float32."""
        try:
            read = lambda name: jax.device_put(self._stored.read(name).astype(np.float32).T, sharding)
            return [(read(layer + "weight"), read(layer + "bias")) for layer in self._layers]
        except ValueError as error:
            raise ConfigError(str(error)) from None
