"""Pixels as numbers of 8 bits and as floats in [-1, 1], and the autoencoder whose latents are pixels."""

import dataclasses

import jax.numpy as jnp


def to_uint8(image):
    """Images in [-1, 1] to uint8, truncated as the original does: clip(x / 2 + 1/2, 0, 1) * 255."""
    return (jnp.clip(image * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def from_uint8(image):
    """Images in uint8 to float32 in [-1, 1]."""
    return jnp.asarray(image, jnp.float32) / 127.5 - 1.0


@dataclasses.dataclass(frozen=True)
class PixelAutoencoder:
    """The identity: latents are pixels.  Same verbs as a learned autoencoder, with empty parameters."""

    downsample: int = 1
    channels: int = 3

    def encode(self, params, image_BHWC, keys_B=None):
        """Images in [-1, 1] to latents [B, height, width, 3]; there is nothing to sample."""
        del params, keys_B
        return image_BHWC

    def decode(self, params, latent_BHWC):
        """Latents to images, not clipped."""
        del params
        return latent_BHWC

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """No parameters."""
        return {}
