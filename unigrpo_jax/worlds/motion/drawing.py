"""Draws moving scenes: clips of 9 frames of 24 x 24, the shapes world's figures at any real place, with soft edges.

A figure is a plane one, made of the unit squares of the shapes world's 6 x 6 pattern; a pixel has the colour of the figure
times the share of the pixel that the figure covers.  At whole places that is the shapes world's own drawing.
"""

import numpy as np

from unigrpo_jax.worlds.motion.scene import BOX, FRAMES, MovingScene, places
from unigrpo_jax.worlds.shapes.drawing import MASKS, SIDE
from unigrpo_jax.worlds.shapes.scene import COLOURS, SHAPES

FIGURES = MASKS[:, 1:-1, 1:-1].astype(np.float32)  # [shapes, 6, 6]
PALETTE = np.array(list(COLOURS.values()), np.float32) / 255  # [colours, 3]


def cover(shape: np.ndarray, place: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The covered share of each pixel, float32 [N, side, side], of N figures.

    Args:
      shape: int [N], numbers in `SHAPES`.
      place: float [N, 2], top left corners (y, x); what lies outside of the picture is cut off.
      side: pixels of the square picture.
    """
    rows, columns = _shares(place[:, 0], side), _shares(place[:, 1], side)
    return rows @ FIGURES[shape] @ columns.transpose(0, 2, 1)


def _shares(at: np.ndarray, side: int) -> np.ndarray:
    """What share of pixel row p each of the figure's six rows covers: float32 [N, side, 6]."""
    offset = np.arange(side)[:, None] - np.arange(BOX) - np.asarray(at, np.float32)[:, None, None]
    return np.maximum(1 - np.abs(offset), 0).astype(np.float32)


def draw(colours: np.ndarray, shapes: np.ndarray, path: np.ndarray) -> np.ndarray:
    """The clip of objects on given paths, uint8 [F, 24, 24, 3].

    Args:
      colours: int [n], or [F, n] where they change; numbers in `COLOURS`.
      shapes: the same, numbers in `SHAPES`.
      path: float [F, n, 2], places; objects that touch add up, which is exact where they do not overlap.
    """
    frames, n = path.shape[:2]
    colours, shapes = (np.broadcast_to(np.asarray(x, int), (frames, n)).ravel() for x in (colours, shapes))
    covers = cover(shapes, path.reshape(-1, 2)).reshape(frames, n, SIDE, SIDE)
    light = np.einsum("fnyx,fnc->fyxc", covers, PALETTE[colours].reshape(frames, n, 3))
    return np.round(255 * np.clip(light, 0, 1)).astype(np.uint8)


def kinds(scene: MovingScene) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the objects' colours and shapes, int [n] each."""
    names = tuple(COLOURS)
    return (np.array([names.index(m.colour) for m in scene.movers], int),
            np.array([SHAPES.index(m.shape) for m in scene.movers], int))  # fmt: skip


def render(scene: MovingScene, frames: int = FRAMES) -> np.ndarray:
    """The clip of a scene, uint8 [frames, 24, 24, 3]."""
    return draw(*kinds(scene), places(scene, frames))
