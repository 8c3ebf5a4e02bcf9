"""Images, latents and latent tokens: patches, their places, and the autoencoder between pixels and latents.

Images are float32 [B, height, width, 3] in [-1, 1]; latents are [B, rows, columns, channels]; latent tokens [B, N, C] run
row by row, and inside a token (row in patch, column in patch, channel), channel fastest.
"""


import numpy as np


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


