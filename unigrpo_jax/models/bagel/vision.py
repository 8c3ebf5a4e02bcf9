"""The vision encoder and the connector: image patches to tokens of the network (SigLIP-NaViT, LLaVA-style MLP).

Pre-norm layers with full attention inside one image, a last LayerNorm, no pooling: one token per patch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from unigrpo_jax.models.bagel.config import VisionConfig

gelu = lambda x: nn.gelu(x, approximate=True)  # the tanh form


class VisionLayer(nn.Module):
    """LayerNorm, attention, residual; LayerNorm, MLP, residual."""

    config: VisionConfig
    dtype: jnp.dtype
    hold: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x_BND, _):
        """x [B, N, D] to the same shape; the second argument and result are the scan's."""
        c = self.config
        x_BND = x_BND if self.hold is None else self.hold(x_BND)
        norm = lambda name: nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, use_fast_variance=False, name=name)
        heads = lambda name: nn.DenseGeneral((c.heads, c.hidden_size // c.heads), dtype=self.dtype, name=name)
        h = norm("norm1")(x_BND)
        attended = jax.nn.dot_product_attention(heads("q_proj")(h), heads("k_proj")(h), heads("v_proj")(h))
        x = x_BND + nn.DenseGeneral(c.hidden_size, axis=(-2, -1), dtype=self.dtype, name="out_proj")(attended)
        h = nn.Dense(c.intermediate_size, dtype=self.dtype, name="fc1")(norm("norm2")(x))
        x = x + nn.Dense(c.hidden_size, dtype=self.dtype, name="fc2")(gelu(h))
        self.sow("intermediates", "hidden", x)
        return x, None


class VisionEncoder(nn.Module):
    """Patches of one image per sample to features; `hold` as in `Bagel`."""

    config: VisionConfig
    dtype: jnp.dtype
    hold: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, patches_BNP, position_ids_N):
        """Features [B, N, D] of patches [B, N, patch_width], whose values lie in [-1, 1]."""
        c = self.config
        table = self.param("position_embedding", nn.initializers.normal(0.02), (c.table_side**2, c.hidden_size))
        x = nn.Dense(c.hidden_size, dtype=self.dtype, name="patch_embed")(patches_BNP.astype(self.dtype))
        x = x + table[position_ids_N].astype(self.dtype)[None]
        self.sow("intermediates", "embeddings", x)
        layers = nn.scan(
            VisionLayer, variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True}, length=c.layers
        )
        x, _ = layers(c, self.dtype, self.hold, name="layers")(x, None)
        return nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, use_fast_variance=False, name="post_norm")(x)


class Connector(nn.Module):
    """Linear, GELU, linear: from the encoder's width to the network's."""

    hidden_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features):
        """Features [..., vision width] to [..., D]."""
        h = nn.Dense(self.hidden_size, dtype=self.dtype, name="fc1")(features)
        return nn.Dense(self.hidden_size, dtype=self.dtype, name="fc2")(gelu(h))
