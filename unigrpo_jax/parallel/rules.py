"""Where every array lies: one table from names of axes to mesh axes; a network names the axes of its parameters.

`fsdp` cuts the width of the residual stream out of every matrix: a layer's weights are gathered when it runs, and
gradients and optimizer state stay cut.  `sequence`, whose devices compute tokens of the same episodes, holds such parts,
too.  `tensor` cuts heads, MLPs and vocabulary: each device computes its part.
Nothing that a rule would cut is replicated silently: an axis that does not divide is an error.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.models.building.context import Context
from unigrpo_jax.models.building.token_cut import NOT_CUT, TokenCut
from unigrpo_jax.models.verbs import Condition
from unigrpo_jax.parallel.mesh import BATCH, FSDP, SEQUENCE, TENSOR, batch_size

RULES = {
    "embed": FSDP,
    "vision": FSDP,
    "vocab": TENSOR,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "mlp": TENSOR,
}
LIE_ALONG = {FSDP: (FSDP, SEQUENCE), TENSOR: (TENSOR,)}  # the axes whose devices hold the parts that a rule makes


def parts(mesh: Mesh, rule: str) -> int:
    """Into how many parts a rule cuts."""
    return math.prod(mesh.shape[axis] for axis in LIE_ALONG[rule])


def check_cuts(cuts: Mapping[str, Mapping[str, int]], mesh: Mesh) -> None:
    """ConfigError where an axis of the mesh does not divide what a network says that it cuts, `verbs.Painter.cuts`."""
    for axis, sizes in cuts.items():
        for what, size in sizes.items():
            if size % parts(mesh, axis):
                raise _indivisible(what, size, mesh, axis, sizes.values())


def _indivisible(what: str, size: int, mesh: Mesh, rule: str, sizes: Iterable[int]) -> ConfigError:
    """The arithmetic, and the most parts that divide all `sizes`."""
    count, axes = parts(mesh, rule), [axis for axis in LIE_ALONG[rule] if axis == rule or mesh.shape[axis] > 1]
    words, factors = (" * ".join(part) for part in ([f"mesh.{a}" for a in axes], [f"{mesh.shape[a]}" for a in axes]))
    fits = max(n for n in range(1, count) if math.gcd(*sizes) % n == 0)
    product = f"{factors} = {count}" if len(axes) > 1 else f"{count}"
    return ConfigError(f"{what} = {size} does not divide over {words} = {product} ({size} / {count} = "
                       f"{size / count:.2f}); use {words} = {fits}.")  # fmt: skip


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
        rules = [RULES.get(name) for name in names]
        rules = [rule if rule and parts(self.mesh, rule) > 1 else None for rule in rules]
        used = [rule for rule in rules if rule]
        if len(set(used)) < len(used):
            raise ConfigError(f"parameter {path} has two axes on one mesh axis: {names} on {rules}; change the family's.")
        for name, rule, size in zip(names, rules, shape, strict=True):
            if rule and size % parts(self.mesh, rule):
                raise _indivisible(f"{path}: its axis {name!r}", size, self.mesh, rule, [size])
        return NamedSharding(self.mesh, PartitionSpec(*map(self._over, rules)))

    def _over(self, rule: str | None) -> str | tuple[str, ...] | None:
        """The mesh axes of a rule that has several parts, those of size 1 left out."""
        axes = tuple(axis for axis in LIE_ALONG.get(rule, ()) if self.mesh.shape[axis] > 1)
        return axes[0] if len(axes) == 1 else axes or None

    def gathered(self, path: str, x: jax.Array) -> jax.Array:
        """A parameter put together along `fsdp` and `sequence`; `tensor` still cuts it."""
        cut = self.parameter(path, x.shape).spec
        whole = PartitionSpec(*(axis if axis == TENSOR else None for axis in cut))
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

    def transitions(self, shape: tuple[int, ...]) -> NamedSharding:
        """Where recorded transitions [B, W, N, C] lie: episodes spread, tokens cut along `sequence`, where they divide."""
        rows = None if shape[0] % batch_size(self.mesh) else BATCH
        cut = self.mesh.shape[SEQUENCE] > 1 and shape[2] % self.mesh.shape[SEQUENCE] == 0
        return NamedSharding(self.mesh, PartitionSpec(rows, None, SEQUENCE) if cut else PartitionSpec(rows))

    def sequence(self, cuts: Mapping[str, Mapping[str, int]]) -> TokenCut:
        """How the tokens of a sample lie; ConfigError where a network's `cuts` do not say that they can be cut."""
        count = self.mesh.shape[SEQUENCE]
        require(count == 1 or SEQUENCE in cuts, f"mesh.sequence = {count} cuts the latent tokens of an image or a clip over "
                "devices, which this family of models cannot; use mesh.sequence = 1.")  # fmt: skip
        return NOT_CUT if count == 1 else TokenCut(count, self._cut_tokens, self._whole_tokens)

    def _cut_tokens(self, x_BN: jax.Array) -> jax.Array:
        """Tokens [B, n, ...] cut along `sequence`; as in `activations`, B is left alone where it does not divide."""
        rows = None if x_BN.shape[0] % batch_size(self.mesh) else BATCH
        return jax.lax.with_sharding_constraint(x_BN, NamedSharding(self.mesh, PartitionSpec(rows, SEQUENCE)))

    def _whole_tokens(self, x_BN: jax.Array) -> jax.Array:
        """Tokens [B, n, ...] all on each device of `sequence`."""
        rows = None if x_BN.shape[0] % batch_size(self.mesh) else BATCH
        return jax.lax.with_sharding_constraint(x_BN, NamedSharding(self.mesh, PartitionSpec(rows, None)))

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
