"""Reads a scene back from the image alone, strictly: a cell is empty, one known object, or unclear.

With values in [0, 1], a pixel is *on* where its largest channel is above one half.  The pattern nearest to the
on-pixels is the candidate; its colour is the palette colour nearest to the mean over the pattern.  A pixel is *bad*
where a channel is further than `PIXEL_TOLERANCE` from what it should be: that mean inside the pattern, black outside.
A cell is

    empty    no bad pixel but one against an all-black cell,
    an object    the mean colour is within `COLOUR_TOLERANCE` of the palette, and at most one pixel is bad,
    unclear    else.

The root mean square of what remains is bounded in each channel too, against smears.  The margins: with one bad pixel
the runner-up pattern is still 11 or more pixels away; palette colours are 0.75 or more apart in some channel, so that
the runner-up colour is 0.5 or more away.
"""

import dataclasses

import numpy as np

from unigrpo_jax.worlds.shapes.drawing import CELL, MASKS, SIDE
from unigrpo_jax.worlds.shapes.scene import CELLS, COLOURS, SHAPES, Object, Scene

PIXEL_TOLERANCE = 0.40
COLOUR_TOLERANCE = 0.25
RMS_TOLERANCE = 0.15
BAD_PIXELS = 1

_PALETTE = np.array(list(COLOURS.values()), np.float32) / 255
_COLOUR_NAMES = tuple(COLOURS)
_PATTERNS = MASKS.reshape(len(SHAPES), -1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an image shows: recognised objects in reading order, and the names of cells that hold something else."""

    objects: Scene
    unclear: tuple[str, ...]


def find_objects(image: np.ndarray) -> Findings:
    """What one image, uint8 [24, 24, 3], shows."""
    return find_objects_batch(image[None])[0]


def find_objects_batch(images: np.ndarray) -> list[Findings]:
    """What each of B images, uint8 [B, 24, 24, 3], shows."""
    if images.shape[1:] != (SIDE, SIDE, 3) or images.dtype != np.uint8:
        raise ValueError(f"shapes checker: images are uint8 [B, {SIDE}, {SIDE}, 3], got {images.dtype} {images.shape}")
    pixels = images.reshape(-1, 3, CELL, 3, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    pixels = pixels.reshape(len(images), 9, CELL * CELL, 3).astype(np.float32) / 255

    on = (pixels.max(-1) > 0.5).astype(np.float32)
    mismatch = on.sum(-1)[..., None] + _PATTERNS.sum(-1) - 2 * on @ _PATTERNS.T  # [B, 9, shapes]
    shape = mismatch.argmin(-1)
    pattern = _PATTERNS[shape][..., None]  # [B, 9, 64, 1]
    mean = (pixels * pattern).sum(-2) / pattern.sum(-2)  # [B, 9, 3]
    from_palette = np.abs(mean[..., None, :] - _PALETTE).max(-1)  # [B, 9, colours]
    colour = from_palette.argmin(-1)

    is_object = (from_palette.min(-1) <= COLOUR_TOLERANCE) & _fits(pixels - pattern * mean[..., None, :])
    is_empty = _fits(pixels)
    return [_findings(*cells) for cells in zip(shape, colour, is_object, is_empty, strict=True)]


def _fits(residual: np.ndarray) -> np.ndarray:
    """Whether a cell's residual [B, 9, 64, 3] is noise: few bad pixels and a small root mean square in each channel."""
    bad = (np.abs(residual) > PIXEL_TOLERANCE).any(-1).sum(-1)
    rms = np.sqrt(np.square(residual).mean(-2)).max(-1)
    return (bad <= BAD_PIXELS) & (rms <= RMS_TOLERANCE)


def _findings(shape: np.ndarray, colour: np.ndarray, is_object: np.ndarray, is_empty: np.ndarray) -> Findings:
    """The findings of one image from its nine cells' readings."""
    objects = tuple(
        Object(_COLOUR_NAMES[colour[i]], SHAPES[shape[i]], cell) for i, cell in enumerate(CELLS) if is_object[i]
    )
    unclear = tuple(cell for i, cell in enumerate(CELLS) if not is_object[i] and not is_empty[i])
    return Findings(objects, unclear)
