"""Latents as tokens: squares of latent pixels, row by row.

Inside a token the numbers lie as (row, column, channel), channel fastest, or in planes, (channel, row, column).
"""


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


def patchify_planes(latent_BHWC, patch: int):
    """Latents [B, h*p, w*p, c] to tokens in planes [B, h*w, c*p*p]."""
    b, h, w, c = latent_BHWC.shape
    x = latent_BHWC.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, -1, patch * patch * c)


def unpatchify_planes(tokens_BNC, grid: tuple[int, int], patch: int):
    """Tokens in planes [B, h*w, c*p*p] back to latents [B, h*p, w*p, c]."""
    x = tokens_BNC.reshape(tokens_BNC.shape[0], *grid, -1, patch, patch)
    x = x.transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(x.shape[0], patch * grid[0], patch * grid[1], -1)
