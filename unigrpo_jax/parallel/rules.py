"""Where every array lies: one table from names of axes to mesh axes; a network names the axes of its parameters.

`fsdp` cuts the width of the residual stream out of every matrix: a layer's weights are gathered when it runs, and
gradients and optimizer state stay cut.  `tensor` cuts heads, MLPs and vocabulary: each device computes its part.
Nothing that a rule would cut is replicated silently: an axis that does not divide is an error.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unigrpo_jax.config import ConfigError
from unigrpo_jax.models.building.context import Context
from unigrpo_jax.models.verbs import Condition
from unigrpo_jax.parallel.mesh import BATCH, FSDP, TENSOR, batch_size

RULES = {
    "embed": FSDP,
    "vision": FSDP,
    "vocab": TENSOR,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "mlp": TENSOR,
}

def check_cuts(cuts: Mapping[str, Mapping[str, int]], mesh: Mesh) -> None:
    """ConfigError where an axis of the mesh does not divide what a network says that it cuts, `verbs.Painter.cuts`."""
    for axis, sizes in cuts.items():
        parts = mesh.shape[axis]
        for what, size in sizes.items():
            if size % parts:
                most = math.gcd(*sizes.values())
                fits = max(n for n in range(1, parts) if most % n == 0)
                raise ConfigError(f"{what} = {size} does not divide over mesh.{axis} = {parts} ({size} / {parts} = "
                                  f"{size / parts:.2f}); use mesh.{axis} = {fits}.")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rules on one mesh.

    Attributes:
      mesh: the devices.
      axes: (pattern, names of the axes) of the network's parameters, as `verbs.Painter.axes`.
    """

    mesh: Mesh
    axes: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    def parameter(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """Where a parameter lies between two programs.

        Raises:
          ConfigError: no rule knows the path, two axes would lie on one mesh axis, or an axis does not divide.
        """
        names = next((names for pattern, names in self.axes if re.fullmatch(pattern, path)), None)
        if names is None or len(names) != len(shape):
            raise ConfigError(f"no rule says where parameter {path} of shape {list(shape)} lies; add one to the family.")
        axes = [RULES.get(name) for name in names]
        axes = [axis if axis and self.mesh.shape[axis] > 1 else None for axis in axes]
        used = [axis for axis in axes if axis]
        if len(set(used)) < len(used):
            raise ConfigError(f"parameter {path} has two axes on one mesh axis: {names} on {axes}; change the family's.")
        for name, axis, size in zip(names, axes, shape, strict=True):
            if axis and size % self.mesh.shape[axis]:
                count = self.mesh.shape[axis]
                fits = [n for n in range(1, count) if size % n == 0]
                raise ConfigError(
                    f"{path}: its axis {name!r} = {size} does not divide over mesh.{axis} = {count} "
                    f"({size} / {count} = {size / count:.2f}); use mesh.{axis} = {max(fits)}."
                )
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def gathered(self, path: str, x: jax.Array) -> jax.Array:
        """A parameter put together along `fsdp`; `tensor` still cuts it."""
        cut = self.parameter(path, x.shape).spec
        whole = PartitionSpec(*(None if axis == FSDP else axis for axis in cut))
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, whole))

    def condition(self, condition: Condition) -> Condition:
        """Lays a condition of episodes out: episodes spread, heads of keys and values along `tensor`."""
        place = rows = NamedSharding(self.mesh, PartitionSpec(BATCH))
        if isinstance(condition, Context):
            kv = NamedSharding(self.mesh, PartitionSpec(None, BATCH, TENSOR, None, None))
            place = Context(keys=kv, values=kv, valid=rows, rope=rows)
        return jax.lax.with_sharding_constraint(condition, place)

    def activations(self, x: jax.Array) -> jax.Array:
        """Holds the residual stream [B, ...] to its episodes, so that weights come to it and not it to weights.

        A batch that does not divide (one system prompt, a few prompts before they are repeated) is left to the compiler.
        """
        if x.shape[0] % batch_size(self.mesh):
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(BATCH)))

    def like_parameters(self, tree):
        """Shardings of a tree that holds {path: array} of parameters somewhere inside; all else is replicated.

        An optimizer's moments and a moving average lie where their parameters lie.
        """

        def of(keys, leaf):
            last = keys[-1] if keys else None
            path = getattr(last, "key", None)
            if isinstance(path, str) and any(re.fullmatch(pattern, path) for pattern, _ in self.axes) and leaf.ndim:
                return self.parameter(path, leaf.shape)
            return NamedSharding(self.mesh, PartitionSpec())

        return jax.tree_util.tree_map_with_path(of, tree)
