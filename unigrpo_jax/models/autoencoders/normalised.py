"""What the autoencoders of LTX-2 share, of clips and of sound: their norm, and latents normalised by stored statistics.

Parameters are flat dicts; channels are last.
"""

import jax
import jax.numpy as jnp

MEAN, STD = "latents_mean", "latents_std"  # names of the statistics, one number a channel


def pixel_norm(x, eps: float):
    """x / sqrt(mean(x^2) + eps) over the channels of each pixel, without a weight."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def branch(convolve, name: str, x, eps: float):
    """What a residual block adds: norm, SiLU, `conv1`, norm, SiLU, `conv2`; `convolve` is (name, x) -> y."""
    h = convolve(f"{name}.conv1", jax.nn.silu(pixel_norm(x, eps)))
    return convolve(f"{name}.conv2", jax.nn.silu(pixel_norm(h, eps)))


def normalised(params, z, scale: float = 1.0):
    """Latents as networks see them, (z - mean) * scale / std, of those that the encoder gives."""
    return (z - _like(params[MEAN], z)) * scale / _like(params[STD], z)


def as_encoded(params, x, scale: float = 1.0):
    """The inverse of `normalised`."""
    return x * _like(params[STD], x) / scale + _like(params[MEAN], x)


def statistics_shapes(width: int):
    """Of `normalised`."""
    yield MEAN, (width,)
    yield STD, (width,)


def _like(statistic, x):
    return jnp.asarray(statistic, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
