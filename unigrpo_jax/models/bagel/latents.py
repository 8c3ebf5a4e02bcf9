"""Images, latents and latent tokens: patches, their places, and the autoencoder between pixels and latents.

Images are float32 [B, height, width, 3] in [-1, 1]; latents are [B, rows, columns, channels]; latent tokens [B, N, C] run
row by row, and inside a token (row in patch, column in patch, channel), channel fastest.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np


def patchify(latent_BHWC, patch: int):
    """Latents [B, h*p, w*p, c] to tokens [B, h*w, p*p*c]."""
    b, h, w, c = latent_BHWC.shape
    x = latent_BHWC.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(tokens_BNC, grid: tuple[int, int], patch: int):
    """Tokens [B, h*w, p*p*c] back to latents [B, h*p, w*p, c]."""
    b, _, c = tokens_BNC.shape
    x = tokens_BNC.reshape(b, *grid, patch, patch, c // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, grid[0] * patch, grid[1] * patch, c // patch**2)


def position_ids(grid: tuple[int, int], max_latent_size: int) -> np.ndarray:
    """Rows of the position table, int32 [N]: row * max_latent_size + column."""
    return (np.arange(grid[0])[:, None] * max_latent_size + np.arange(grid[1])).reshape(-1).astype(np.int32)


def position_table(side: int, width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine table, float32 [side*side, width]; the first half encodes the column, the second the row.

    Each half is [sin(p w_i), cos(p w_i)], w_i = 10000^(-i / (width / 4)) (Vaswani et al. 2017, in two dimensions).
    """
    frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    angle = np.arange(side)[:, None] * frequency
    line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)  # [side, width / 2]
    column = np.broadcast_to(line[None], (side, side, width // 2))
    row = np.broadcast_to(line[:, None], (side, side, width // 2))
    return np.concatenate([column, row], axis=-1).reshape(side * side, width).astype(np.float32)


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
