"""Rotary embedding of one axis, two equal halves of a head turning together (RoFormer, arXiv 2104.09864)."""

import jax.numpy as jnp


def rotary_table(positions, head_dim: int, theta: float):
    """Cosines and sines [..., head_dim], float32, of positions [...]: two equal halves (RoFormer, half-split)."""
    inverse_frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = jnp.einsum("...,k->...k", positions.astype(jnp.float32), inverse_frequency, precision="highest")
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLHK, cos_BLK, sin_BLK):
    """Applies the rotary embedding in float32 and returns x's dtype."""
    x = x_BLHK.astype(jnp.float32)
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * cos_BLK[:, :, None] + turned * sin_BLK[:, :, None]).astype(x_BLHK.dtype)
