"""Parameters and the tensors of a file: which is which, and how one is laid out as the other.

A linear weight is stored [out, in] and used [in, out]; heads are split out of the projections; layers are stacked along
a leading axis for the scan.
"""

import dataclasses
import gc
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

TABLE = -1
Place = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of our parameters and where it stands in the file.

    Attributes:
      path: our path, joined by "/".
      names: the file's names, one per layer for a stacked parameter, else one.
      inputs: input axes of a matrix, which is stored transposed, with its input axes and its output axes flattened to one
        each; 0 for a vector, stored flat; TABLE for an array that is stored as it is.
      stacked: whether ours has a leading layer axis.
    """

    path: str
    names: tuple[str, ...]
    inputs: int
    stacked: bool

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The file's shape of each tensor, from our parameter's."""
        shape = shape[1:] if self.stacked else shape
        if self.inputs == TABLE:
            return shape
        cut = self.inputs
        return (math.prod(shape[cut:]), math.prod(shape[:cut])) if cut else (math.prod(shape),)

    def from_stored(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A stored tensor in our layout, as a view; `shape` is our parameter's, with the layer axis if it has one."""
        return (array.T if self.inputs > 0 else array).reshape(shape[1:] if self.stacked else shape)

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """The inverse, for one layer."""
        if self.inputs == TABLE:
            return array
        return array.reshape(math.prod(array.shape[: self.inputs]), -1).T if self.inputs else array.reshape(-1)


def read(
    table: Iterable[Tensor],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    stored: Callable[[Tensor, str], np.ndarray],
    place: Place | None = None,
) -> dict[str, jax.Array]:
    """Reads parameters, one at a time; the host holds this process's shards of one and one stored tensor beside.

    Args:
      table: the parameters.
      shapes: path to shape and dtype of ours.
      stored: the stored tensor of a name.
      place: our path and shape to the sharding that a parameter is born with; None is the default device.

    Returns:
      {path: array}.
    """
    out = {}
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    for t in table:
        like = shapes[t.path]
        sharding = default if place is None else place(t.path, like.shape)
        shard = lambda index, t=t, like=like: _shard(t, like, stored, index)
        out[t.path] = jax.block_until_ready(jax.make_array_from_callback(like.shape, sharding, shard))
        gc.collect(0)  # only then JAX lets go of the host's copy
    return out


def _shard(t: Tensor, like, stored: Callable[[Tensor, str], np.ndarray], index: tuple[slice, ...]) -> np.ndarray:
    """The part of our parameter that `index` cuts out, in our dtype."""
    if not t.stacked:
        whole = t.from_stored(stored(t, t.names[0]), like.shape)[index]
        return np.asarray(whole, like.dtype, order="C")
    layers = range(like.shape[0])[index[0]]
    sizes = [len(range(n)[cut]) for n, cut in zip(like.shape[1:], index[1:], strict=True)]
    out = np.empty((len(layers), *sizes), like.dtype)
    for row, layer in enumerate(layers):
        out[row] = t.from_stored(stored(t, t.names[layer]), like.shape)[index[1:]]
    return out
