"""The device mesh: episodes along `slice`, `data` and `fsdp`, parameters cut along `fsdp`, `sequence` and `tensor`.

Along `sequence` lie the latent tokens of one episode, where there are more of them than a device should hold.  Slices are
joined by a network far slower than that inside a slice; along their axis only gradients are added.
"""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unigrpo_jax.config import MeshConfig, require
from unigrpo_jax.config_checks import mesh_sizes

SLICE, DATA, FSDP, SEQUENCE, TENSOR = "slice", "data", "fsdp", "sequence", "tensor"
BATCH = (SLICE, DATA, FSDP)  # what episodes are spread over: devices that share no parameter work on other episodes, too


def make_mesh(devices: int = 0, sizes: MeshConfig = MeshConfig(), present=None) -> Mesh:  # noqa: B008 (frozen)
    """A mesh of the first `devices` of those that are present, 0 takes all; a size of 0 is what the others leave.

    `present` are devices to compile for; None is what JAX sees.

    Raises:
      ConfigError: there are fewer devices, or the sizes do not multiply to their number.
    """
    present = jax.devices() if present is None else present
    require(
        0 <= devices <= len(present),
        f"devices = {devices}, but JAX sees {len(present)} ({present[0].platform}); use 0 for all of them.",
    )
    chosen = present[: devices or len(present)]
    slices = len({getattr(device, "slice_index", 0) for device in chosen})
    asked = mesh_sizes(sizes, len(chosen), slices, f"{len(chosen)} devices")
    shape = tuple(asked.values())
    # `jax.make_mesh` knows no slices, and refuses to split an axis of the torus: 64 x 4 on 16 x 16 chips needs it.
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(shape, chosen, allow_split_physical_axes=True)
    else:
        inside, between = (1, *shape[1:]), (slices, *(1,) * (len(shape) - 1))
        arranged = mesh_utils.create_hybrid_device_mesh(inside, between, chosen, allow_split_physical_axes=True)
    return Mesh(arranged, tuple(asked), axis_types=(AxisType.Auto,) * len(shape))


def batch_size(mesh: Mesh) -> int:
    """Number of parts that episodes are spread over."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh) -> NamedSharding:
    """The first axis of an array, its episodes, cut along `slice`, `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH))
