"""Draws scenes: crisp 24x24 images, one 6x6 pattern in the middle of each occupied 8x8 cell, black elsewhere.

The circle is an outline, because at six pixels a disc is a square without its corners.  Any two patterns differ in at
least 12 of the 64 pixels of a cell.
"""

import numpy as np

from unigrpo_jax.config import RolloutConfig, require
from unigrpo_jax.worlds.shapes.scene import COLOURS, SHAPES, Scene

CELL = 8
SIDE = 3 * CELL

PATTERNS = {
    "circle": (".####.", "##..##", "#....#", "#....#", "##..##", ".####."),
    "square": ("######", "######", "######", "######", "######", "######"),
    "triangle": ("..##..", "..##..", ".####.", ".####.", "######", "######"),
    "cross": ("..##..", "..##..", "######", "######", "..##..", "..##.."),
}


def _mask(rows) -> np.ndarray:
    return np.pad(np.array([[pixel == "#" for pixel in row] for row in rows]), 1)


# [4, 8, 8] bool, in the order of SHAPES.
MASKS = np.stack([_mask(PATTERNS[shape]) for shape in SHAPES])
_STAMPS = {
    (colour, shape): mask[..., None] * np.array(rgb, np.uint8)
    for colour, rgb in COLOURS.items()
    for shape, mask in zip(SHAPES, MASKS, strict=True)
}


def render(scene: Scene) -> np.ndarray:
    """The image of a scene, uint8 [24, 24, 3]."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    for o in scene:
        y, x = CELL * o.row, CELL * o.column
        image[y : y + CELL, x : x + CELL] = _STAMPS[o.colour, o.shape]
    return image


def check_size(reward: str, rollout: RolloutConfig) -> None:
    """ConfigError where a rollout draws images of another size than a reward of this world reads."""
    height, width = rollout.image_height, rollout.image_width
    require((height, width) == (SIDE, SIDE), f"rewards: {reward} reads pictures of {SIDE} x {SIDE} pixels, but rollout "
            f"draws {height} x {width}; set rollout.image_height and rollout.image_width to {SIDE}, or use other "
            "--rewards.")  # fmt: skip
