"""Pixels as 8 bits and as floats in [-1, 1], clips that have a latent, and the autoencoder whose latents are pixels."""

import dataclasses

import jax.numpy as jnp


def to_uint8(image):
    """Images in [-1, 1] to uint8, truncated as the original does: clip(x / 2 + 1/2, 0, 1) * 255."""
    return (jnp.clip(image * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def from_uint8(image):
    """Images in uint8 to float32 in [-1, 1]."""
    return jnp.asarray(image, jnp.float32) / 127.5 - 1.0


def latent_size(frames: int, height: int, width: int, every: int, downsample: int) -> tuple[int, int, int]:
    """Frames, rows and columns of a clip's latent; ValueError names the nearest clips where there is none.

    The first frame has one of its own, and `every` more have another; a latent pixel is `downsample` pixels a side.
    """
    if frames % every != 1 % every or frames < 1:
        raise ValueError(f"a clip of {frames} frames has no latent: the first frame is one of its own and every "
                         f"{every} more are another; use {_nearest(frames - 1, every, 1)} frames.")  # fmt: skip
    for side in (height, width):
        if side % downsample or not side:
            raise ValueError(f"a clip of {height} x {width} pixels has no latent: a latent pixel is {downsample} "
                             f"a side; use {_nearest(side, downsample)} instead of {side}.")  # fmt: skip
    return 1 + (frames - 1) // every, height // downsample, width // downsample


def _nearest(number: int, by: int, beyond: int = 0) -> str:
    """The multiples of `by` around a number that is none, in words; `beyond` is added to each, and no result is 0."""
    low = number // by * by + beyond
    return f"{low} or {low + by}" if low > 0 else f"{low + by}"


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
