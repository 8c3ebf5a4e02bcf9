"""The device mesh: episodes along `data` and `fsdp`, parameters cut along `fsdp` and `tensor`."""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unigrpo_jax.config import MeshConfig, require

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
BATCH = (DATA, FSDP)  # what episodes are spread over: devices that share no parameter work on other episodes, too


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
    asked = {DATA: sizes.data, FSDP: sizes.fsdp, TENSOR: sizes.tensor}
    known = math.prod(size for size in asked.values() if size)
    words = " * ".join(f"mesh.{name} = {size or '?'}" for name, size in asked.items())
    unknown = [name for name, size in asked.items() if not size]
    require(len(unknown) < 2, f"{words}: at most one size may be 0 (inferred); set the others.")
    require(
        len(chosen) % known == 0 if unknown else len(chosen) == known,
        f"{words} = {known}{' * ?' if unknown else ''} does not give the {len(chosen)} devices; let the sizes multiply to "
        f"{len(chosen)}, or use devices = {known}.",
    )
    shape = tuple(size or len(chosen) // known for size in asked.values())
    # `jax.make_mesh` refuses to split an axis of the torus: 64 x 4 on 16 x 16 chips needs it.
    arranged = mesh_utils.create_device_mesh(shape, chosen, allow_split_physical_axes=True)
    return Mesh(arranged, tuple(asked), axis_types=(AxisType.Auto,) * len(shape))


def batch_size(mesh: Mesh) -> int:
    """Number of parts that episodes are spread over."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis `axis` of an array, its episodes, cut along `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH))
