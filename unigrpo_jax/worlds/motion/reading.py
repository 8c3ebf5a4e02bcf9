"""Reads clips: which objects stand where in each frame, from that frame alone.

With values in [0, 1], a frame is taken apart greedily.  T is the picture of a figure in white, and the light that T explains
of what is left of the frame is sum over channels of <frame, T>^2 / <T, T>, as much as any colour can make of it.  The best
whole place of all figures is found first, then, in the 8 x 8 window around it, the best figure and place in steps of
`STEP` pixel.  Its colour is <frame, T> / <T, T>; it is subtracted, and the next one is looked for, `MOST` in all.  Objects
may touch: after each further one all of them are found anew, each with the others taken away, in `ROUNDS` rounds.

What is left must be noise: in each window of 8 x 8 pixels at most `BAD_PIXELS` pixels have a channel further than
`PIXEL_TOLERANCE` from 0, and the root mean square is at most `RMS_TOLERANCE` in each channel.  An object counts where its
own window is so, its colour is within `COLOUR_TOLERANCE` of the palette in each channel, and no other figure explains more
than `DOUBT` times as much light (at most 0.82 for figures as drawn, 0.89 or more half way between two); else it is unclear.
A frame in which nothing is unclear and which is still no noise somewhere has one unclear thing.
"""

import dataclasses
import functools

import numpy as np

from unigrpo_jax.worlds.motion.drawing import PALETTE, cover
from unigrpo_jax.worlds.motion.scene import BOX, ROOM
from unigrpo_jax.worlds.shapes.drawing import CELL, SIDE
from unigrpo_jax.worlds.shapes.scene import COLOURS, SHAPES

STEP = 1 / 8
MOST = 3
ROUNDS = 2
COLOUR_TOLERANCE = 0.25
DOUBT = 0.89
PIXEL_TOLERANCE = 0.40
BAD_PIXELS = 1
RMS_TOLERANCE = 0.15

_LIGHT = 3.0  # in pixels of full brightness: what explains less is not looked at as an object
_AT_ONCE = 1024  # frames, so that memory stays below 100 MB
_AROUND = (CELL - BOX) // 2  # pixels of a window beside its box
_NAMES = tuple(COLOURS)


@dataclasses.dataclass(frozen=True)
class Sighting:
    """One object in one frame; the place is the top left corner of its box, (y, x) in pixels."""

    colour: str
    shape: str
    place: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Frame:
    """What one frame shows: recognised objects, and how many things that are none."""

    objects: tuple[Sighting, ...]
    unclear: int = 0


def read_clips(clips: np.ndarray) -> list[tuple[Frame, ...]]:
    """What each frame of B clips, uint8 [B, F, 24, 24, 3], shows."""
    if clips.ndim != 5 or clips.shape[2:] != (SIDE, SIDE, 3) or clips.dtype != np.uint8:
        raise ValueError(f"motion reading: clips are uint8 [B, F, {SIDE}, {SIDE}, 3], got {clips.dtype} {clips.shape}")
    count, frames = clips.shape[:2]
    pictures = clips.reshape(-1, SIDE, SIDE, 3)
    found = []
    for i in range(0, len(pictures), _AT_ONCE):
        found += _read(pictures[i : i + _AT_ONCE].astype(np.float32) / 255)
    return [tuple(found[i * frames : (i + 1) * frames]) for i in range(count)]


def is_noise(rest: np.ndarray) -> np.ndarray:
    """Which 8 x 8 windows of a difference of pictures, float [N, 24, 24, 3], hold noise alone: bool [N, 17, 17]."""
    bad = _window_sums((np.abs(rest) > PIXEL_TOLERANCE).any(-1)[..., None])[..., 0]
    return (bad < BAD_PIXELS + 0.5) & (window_rms(rest) <= RMS_TOLERANCE)


def window_rms(rest: np.ndarray) -> np.ndarray:
    """The root mean square of each 8 x 8 window in its worst channel, [N, 17, 17], of differences [N, 24, 24, 3]."""
    return np.sqrt(_window_sums(np.square(rest)).max(-1).clip(0) / CELL**2)


def _read(frames: np.ndarray) -> list[Frame]:
    """What N frames, float32 [N, 24, 24, 3], show."""
    n = len(frames)
    rest = frames.copy()
    figure, place = np.zeros((n, MOST), int), np.zeros((n, MOST, 2))
    colour, doubt = np.zeros((n, MOST, 3), np.float32), np.ones((n, MOST))
    there = np.zeros((n, MOST), bool)

    def take_out(rows: np.ndarray, k: int, coarse: np.ndarray) -> None:
        figure[rows, k], place[rows, k], colour[rows, k], doubt[rows, k] = _best_near(rest[rows], coarse)
        rest[rows] -= _picture(figure[rows, k], place[rows, k], colour[rows, k])

    rows = np.arange(n)
    for k in range(MOST):
        light, coarse = _whole_places(rest[rows])
        rows, coarse = rows[light > _LIGHT], coarse[light > _LIGHT]
        there[rows, k] = True
        take_out(rows, k, coarse)
        for _ in range(ROUNDS if k else 0):
            for j in range(k + 1):
                rest[rows] += _picture(figure[rows, j], place[rows, j], colour[rows, j])
                take_out(rows, j, _whole_places(rest[rows])[1])
    return _named(rest, figure, place, colour, there, there & (doubt <= DOUBT))


def _named(rest, figure, place, colour, there, certain) -> list[Frame]:
    """The frames in words; an object is one where its figure is certain, its colour known and its window else empty."""
    noise = is_noise(rest)
    distance = np.abs(colour[:, :, None] - PALETTE).max(-1)  # [N, MOST, colours]
    windows = np.clip(np.rint(place).astype(int) - _AROUND, 0, SIDE - CELL)
    own = noise[np.arange(len(rest))[:, None], windows[..., 0], windows[..., 1]]
    right = certain & own & (distance.min(-1) <= COLOUR_TOLERANCE)
    wrong = (there & ~right).sum(1)
    unclear = np.where(noise.all((1, 2)), wrong, np.maximum(wrong, 1))
    return [
        Frame(
            tuple(Sighting(_NAMES[distance[i, k].argmin()], SHAPES[figure[i, k]], tuple(place[i, k].tolist()))
                  for k in range(MOST) if right[i, k]),
            int(unclear[i]),
        )
        for i in range(len(rest))
    ]  # fmt: skip


@functools.cache
def _whole() -> tuple[np.ndarray, np.ndarray]:
    """All figures at all whole places: unit templates, float32 [pixels, templates], and the places, int [templates, 2]."""
    grid = np.array(list(np.ndindex(ROOM + 1, ROOM + 1)))
    return _bank(grid, SIDE)[0], np.tile(grid, (len(SHAPES), 1))


@functools.cache
def _fine() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All figures at all places inside of a window: templates as of `_bank`, their norms, and (figure, y, x) of each."""
    steps = round(2 * _AROUND / STEP) + 1
    grid = np.array(list(np.ndindex(steps, steps))) * STEP
    figures = np.repeat(np.arange(len(SHAPES)), len(grid))
    return *_bank(grid, CELL), np.column_stack([figures, np.tile(grid, (len(SHAPES), 1))])


def _bank(grid: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Every figure at every place as a column of norm 1, float32 [side * side, templates], and the norms, [templates]."""
    figures = np.repeat(np.arange(len(SHAPES)), len(grid))
    pictures = cover(figures, np.tile(grid, (len(SHAPES), 1)).astype(np.float32), side).reshape(len(figures), -1)
    norms = np.linalg.norm(pictures, axis=1)
    return np.ascontiguousarray((pictures / norms[:, None]).T), norms


def _whole_places(rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most light that a figure at a whole place explains, [N], and that place, int [N, 2]."""
    templates, grid = _whole()
    light = np.square(_by_channel(rest) @ templates).reshape(len(rest), 3, templates.shape[1]).sum(1)
    best = light.argmax(1)
    return light[np.arange(len(rest)), best], grid[best]


def _best_near(rest: np.ndarray, coarse: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What explains most light within a pixel of given whole places, int [N, 2].

    Its figure [N], its place [N, 2], its colour [N, 3], and how much another figure explains at best, as a share [N].
    """
    templates, norms, meaning = _fine()
    rows = np.arange(len(rest))
    padded = np.pad(rest, ((0, 0), (_AROUND, _AROUND), (_AROUND, _AROUND), (0, 0)))
    span = np.arange(CELL)
    window = padded[rows[:, None, None], coarse[:, 0, None, None] + span[:, None], coarse[:, 1, None, None] + span]
    fits = (_by_channel(window) @ templates).reshape(len(rest), 3, templates.shape[1])
    light = np.square(fits).sum(1)
    best = light.argmax(1)
    each = np.sort(light.reshape(len(rest), len(SHAPES), len(norms) // len(SHAPES)).max(-1), axis=1)
    figure, place, colour = meaning[best, 0].astype(int), coarse - _AROUND + meaning[best, 1:], fits[rows, :, best]
    return figure, place, colour / norms[best, None], each[:, -2] / each[:, -1].clip(1e-6)


def _by_channel(pictures: np.ndarray) -> np.ndarray:
    """[N, H, W, 3] as [3 N, H * W]."""
    n, height, width, channels = pictures.shape
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).reshape(channels * n, height * width)


def _picture(figure: np.ndarray, place: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return cover(figure, place)[..., None] * colour[:, None, None, :]


def _window_sums(values: np.ndarray) -> np.ndarray:
    """Sums over all 8 x 8 windows, float64 [N, 17, 17, C] of [N, 24, 24, C]."""
    sums = np.pad(values.astype(np.float64).cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0), (0, 0)))
    return sums[:, CELL:, CELL:] - sums[:, :-CELL, CELL:] - sums[:, CELL:, :-CELL] + sums[:, :-CELL, :-CELL]
