"""A reward that needs nothing and means little: how colourful a picture is.  For trying a model's whole way."""

import numpy as np

from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.rewards.protocol import RewardBatch, RewardFunction


def load(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `colourfulness`."""
    require(not argument, f"rewards: colourfulness:{argument}: colourfulness takes no argument; leave it out.")
    return score


def score(batch: RewardBatch) -> dict[str, np.ndarray]:
    """Colourfulness, float64 [B], 0 for grey pictures, about 0.4 for vivid ones (Hasler & Suesstrunk 2003).

        sqrt(std(rg)^2 + std(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2),    rg = R - G,    yb = (R + G) / 2 - B

    with colours in [0, 1] here.
    """
    r, g, b = np.moveaxis(np.asarray(batch.images, np.float64) / 255, -1, 0)
    planes = (r - g, (r + g) / 2 - b)
    spread = np.sqrt(sum(p.std(axis=(1, 2)) ** 2 for p in planes))
    return {"colourfulness": spread + 0.3 * np.sqrt(sum(p.mean(axis=(1, 2)) ** 2 for p in planes))}
