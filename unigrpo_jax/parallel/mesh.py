"""The device mesh: parameters everywhere, episodes spread along `data`."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unigrpo_jax.config import require

DATA = "data"


def make_mesh(devices: int = 0) -> Mesh:
    """A one-axis mesh of the first `devices` devices; 0 takes all.  ConfigError where there are fewer."""
    present = jax.devices()
    require(
        0 <= devices <= len(present),
        f"devices = {devices}, but JAX sees {len(present)} ({present[0].platform}); use 0 for all of them.",
    )
    chosen = present[: devices or len(present)]
    return jax.make_mesh((len(chosen),), (DATA,), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis `axis` of an array cut along `data`."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, DATA))
