"""Where every array lies: names for the axes of parameters and activations, and one table from names to mesh axes.

`fsdp` cuts the width of the residual stream out of every matrix: a layer's weights are gathered when it runs, and
gradients and optimizer state stay cut.  `tensor` cuts heads, MLPs and vocabulary: each device computes its part.
Nothing that a rule would cut is replicated silently: an axis that does not divide is an error.
"""

import dataclasses
import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unigrpo_jax.config import ConfigError
from unigrpo_jax.models.building.context import Context
from unigrpo_jax.parallel.mesh import BATCH, FSDP, TENSOR, batch_size

RULES = {
    "embed": FSDP,
    "vision": FSDP,
    "vocab": TENSOR,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "mlp": TENSOR,
}
# (paths, names of the axes); the first that matches whole counts.  None is never cut.
PARAMETERS = (
    (r"embed/embedding", ("vocab", "embed")),
    (r"lm_head/kernel", ("embed", "vocab")),
    (r"layers/.*/q_proj/kernel", (None, "embed", "heads", None)),
    (r"layers/.*/[kv]_proj/kernel", (None, "embed", "kv_heads", None)),
    (r"layers/.*/q_proj/bias", (None, "heads", None)),
    (r"layers/.*/[kv]_proj/bias", (None, "kv_heads", None)),
    (r"layers/.*/o_proj/kernel", (None, "heads", None, "embed")),
    (r"layers/.*/(gate|up)_proj/kernel", (None, "embed", "mlp")),
    (r"layers/.*/down_proj/kernel", (None, "mlp", "embed")),
    (r"layers/.*/(q|k|v|gate|up)_proj/lora_a", (None, "embed", None)),
    (r"layers/.*/o_proj/lora_a", (None, "heads", None, None)),
    (r"layers/.*/down_proj/lora_a", (None, "mlp", None)),
    (r"layers/.*/q_proj/lora_b", (None, None, "heads", None)),
    (r"layers/.*/[kv]_proj/lora_b", (None, None, "kv_heads", None)),
    (r"layers/.*/(gate|up)_proj/lora_b", (None, None, "mlp")),
    (r"layers/.*/(o|down)_proj/lora_b", (None, None, "embed")),
    (r"layers/.*/[qk]_norm/scale", (None, None)),
    (r"layers/.*_norm/scale", (None, "embed")),
    (r"norm_(und|gen)/scale", ("embed",)),
    (r"time_embedder/fc1/kernel|vae2llm/kernel|connector/fc1/kernel", (None, "embed")),
    (r"time_embedder/fc2/kernel|llm2vae/kernel|connector/fc2/kernel", ("embed", None)),
    (r"(time_embedder|connector)/fc[12]/bias|vae2llm/bias", ("embed",)),
    (r"llm2vae/bias", (None,)),
    (r"(latent|vit)_pos_embed", (None, "embed")),
    (r"vision/patch_embed/kernel|vision/position_embedding", (None, "vision")),
    (r"vision/layers/(q|k|v)_proj/kernel", (None, "vision", None, None)),
    (r"vision/layers/out_proj/kernel", (None, None, None, "vision")),
    (r"vision/layers/fc1/kernel", (None, "vision", None)),
    (r"vision/layers/fc2/kernel", (None, None, "vision")),
    (r"vision/layers/[qkv]_proj/bias", (None, None, None)),
    (r"vision/layers/.*/(bias|scale)", (None, None)),
    (r"vision/(patch_embed|post_norm)/(bias|scale)", (None,)),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rules on one mesh.

    Attributes:
      mesh: the devices.
    """

    mesh: Mesh

    def parameter(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """Where a parameter lies between two programs.

        Raises:
          ConfigError: no rule knows the path, two axes would lie on one mesh axis, or an axis does not divide.
        """
        names = next((names for pattern, names in PARAMETERS if re.fullmatch(pattern, path)), None)
        if names is None or len(names) != len(shape):
            raise ConfigError(f"no rule says where parameter {path} of shape {list(shape)} lies; add one to parallel.rules.")
        axes = [RULES.get(name) for name in names]
        axes = [axis if axis and self.mesh.shape[axis] > 1 else None for axis in axes]
        used = [axis for axis in axes if axis]
        if len(set(used)) < len(used):
            raise ConfigError(f"parameter {path} has two axes on one mesh axis: {names} on {axes}; change parallel.rules.")
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

    def context(self) -> Context:
        """Where a context of episodes lies: episodes spread, heads of keys and values along `tensor`."""
        kv = NamedSharding(self.mesh, PartitionSpec(None, BATCH, TENSOR, None, None))
        rows = NamedSharding(self.mesh, PartitionSpec(BATCH))
        return Context(keys=kv, values=kv, valid=rows, rope=rows)

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
            if isinstance(path, str) and any(re.fullmatch(pattern, path) for pattern, _ in PARAMETERS) and leaf.ndim:
                return self.parameter(path, leaf.shape)
            return NamedSharding(self.mesh, PartitionSpec())

        return jax.tree_util.tree_map_with_path(of, tree)
