"""One network of a folder in diffusers' or transformers' layout: its tensors and its parameters, both ways.

Parameters are flat dicts under the tensors' own names; those of scanned blocks are stacked (`Network.stored_names`).
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import jax
import numpy as np

from unigrpo_jax.models.building.flat import ADAPTER
from unigrpo_jax.models.folders import named, stored
from unigrpo_jax.models.folders.named import TABLE, Place, Tensor

# The file's name without .safetensors, by whose folder it is.
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"


class Network(Protocol):
    """What has parameters in a file."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every parameter and its shape."""

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter: one, or one for each layer of the leading axis."""


def table(network: Network) -> list[Tensor]:
    """Which tensor is which parameter."""
    names = {name: network.stored_names(name) for name in network.shapes()}
    return [Tensor(name, own, TABLE, own != (name,)) for name, own in names.items()]


def wanted(network: Network) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    shapes = network.shapes()
    return {name: t.stored_shape(shapes[t.path]) for t in table(network) for name in t.names}


def open_weights(folder: pathlib.Path, stem: str, network: Network, ignored: str = "") -> stored.StoredTensors:
    """The weights of a folder, of which only headers are read.

    Args:
      folder: of the component, such as `FOLDER/unet`.
      stem: `DIFFUSERS` or `TRANSFORMERS`; one file, or shards with an index.
      network: what its config describes.
      ignored: regular expression of names that may stand there unread.

    Raises:
      ValueError: a file is missing or damaged, or tensors are missing, unknown, misshaped or of an unknown dtype, all named.
    """
    weights = stored.StoredTensors(folder, stem)
    if found := stored.faults(weights, wanted(network), (), ignored):
        raise ValueError(f"{weights.path} does not fit {folder / 'config.json'}: {'; '.join(found)}.")
    return weights


class Weights(Protocol):
    """Tensors by name."""

    def read(self, name: str) -> np.ndarray:
        """One of them."""


def read(weights: Weights, network: Network, dtype, place: Place | None = None,
         wanted: Callable[[str], bool] = lambda path: True) -> dict[str, jax.Array]:  # fmt: skip
    """Reads parameters, one at a time; the host holds one of them and one tensor beside what lies on the devices.

    Args:
      weights: from `open_weights`.
      network: what they fit.
      dtype: of the parameters.
      place: path and shape to the sharding that a parameter is born with; None is the default device.
      wanted: which parameters are read.
    """
    shapes = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in network.shapes().items()}
    return named.read((t for t in table(network) if wanted(t.path)), shapes, lambda _, name: weights.read(name), place)


def write(folder: pathlib.Path, stem: str, network: Network, params: Mapping[str, jax.Array], dtype: str,
          shard_bytes: int = stored.SHARD_BYTES, lora_scale: float = 1.0) -> None:  # fmt: skip
    """Writes the weights under the names that `open_weights` reads, fetched from the devices one layer at a time.

    Where a weight has an adapter beside it, lora_scale * B A is added to it, in float32.

    Args:
      folder: an existing folder.
      stem: as in `open_weights`.
      network: what the parameters are of.
      params: flat parameters.
      dtype: "float32", "float16" or "bfloat16".
      shard_bytes: largest file; above it there are shards with an index.
      lora_scale: of the adapters.
    """
    stored.write(folder, stem, wanted(network), _tensors(network, params, lora_scale), dtype, shard_bytes)


def _tensors(network: Network, params: Mapping[str, jax.Array], lora_scale: float) -> Iterator[tuple[str, np.ndarray]]:
    for t in table(network):
        adapter = [params[own] for end in ADAPTER if (own := f"{t.path.removesuffix('.weight')}.{end}") in params]
        for layer, name in enumerate(t.names):
            of_layer = lambda p, layer=layer, t=t: np.asarray(p[layer] if t.stacked else p)
            value = of_layer(params[t.path])
            if adapter:
                a, b = (of_layer(x).astype(np.float32) for x in adapter)
                value = value.astype(np.float32) + np.float32(lora_scale) * (b @ a).reshape(value.shape)
            yield name, value


@dataclasses.dataclass(frozen=True)
class Parts:
    """Weights of several networks, each in a folder of its own.

    Attributes:
      opened: {name of the folder: (network, its weights)}.
    """

    opened: Mapping[str, tuple[Network, stored.StoredTensors]]

    def read(self, dtype, place: Place | None = None) -> dict[str, jax.Array]:
        """All parameters, each called by its folder, FOLDER.NAME."""
        return {f"{part}.{name}": x for part, (network, weights) in self.opened.items()
                for name, x in read(weights, network, dtype, place).items()}  # fmt: skip


def open_parts(folder: pathlib.Path, networks: Mapping[str, Network]) -> Parts:
    """The weights of these folders inside a folder; ValueError as `open_weights`."""
    return Parts({part: (network, open_weights(folder / part, DIFFUSERS, network)) for part, network in networks.items()})


def count(network: Network) -> int:
    """Numbers in all parameters."""
    return sum(math.prod(shape) for shape in network.shapes().values())
