"""Norms as Linen modules."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class RMSNorm(nn.Module):
    """y = scale * x / sqrt(mean(x^2) + eps); the statistic in float32, cast to x's dtype before the scale."""

    eps: float

    @nn.compact
    def __call__(self, x):
        """Normalises the last axis of x [..., D]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * jnp.broadcast_to(scale.astype(x.dtype), x.shape)
