"""Where parameters lie that are read, used at once and dropped, such as a text encoder's: no table knows their names."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unigrpo_jax.models.named import Place
from unigrpo_jax.parallel.mesh import FSDP


def over_fsdp(mesh: Mesh) -> Place:
    """Cuts every matrix along its last axis that divides over `fsdp`; what has none, and vectors, are whole everywhere."""

    def place(path: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
        axes: list[str | None] = [None] * len(shape)
        divide = [i for i, size in enumerate(shape) if size % mesh.shape[FSDP] == 0]
        if len(shape) > 1 and divide and mesh.shape[FSDP] > 1:
            axes[divide[-1]] = FSDP
        return NamedSharding(mesh, PartitionSpec(*axes))

    return place
