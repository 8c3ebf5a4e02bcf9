"""Where parameters lie that are read, used at once and dropped, such as a text encoder's: no table knows their names."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unigrpo_jax.models.folders.named import Place

DEVICES = "devices"


def on_own_devices(mesh: Mesh) -> Place:
    """Over this process's devices of a mesh, so that processes need not wait for each other.

    A matrix is cut along its last axis that divides over them; what has none, and vectors, are whole on each.
    """
    here = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    own = Mesh(np.array(here or jax.local_devices()), (DEVICES,), axis_types=(AxisType.Auto,))

    def place(path: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
        axes: list[str | None] = [None] * len(shape)
        divide = [i for i, size in enumerate(shape) if size % own.size == 0]
        if len(shape) > 1 and divide:
            axes[divide[-1]] = DEVICES
        return NamedSharding(own, PartitionSpec(*axes))

    return place
