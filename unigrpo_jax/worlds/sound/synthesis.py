"""Makes the sound of a moving scene: a tone for each shape while it moves, a click at each touch, left and right heard so.

A sound is float32 [S, 2], left and right, `RATE` samples a second and `FRAME` of them a frame of video: time t, in frames,
is sample t `FRAME`.  What sounds is decided once for each of its blocks of `BLOCK` samples, two a frame:

    tone     `TONE` cos(pi k (n + 1/2) / BLOCK) at sample n of the clip, k = `PITCHES`[shape], an even number: 8 k Hz
    click    `CLICK` times a burst of 13 samples that dies away, from the start of a block on, the nearest to the touch
    place    x from 0 (left wall) to `ROOM` turns both to (cos a, sin a), a = pi / 2 x / ROOM: constant power

A tone is so one and the same pattern in every block, one number of the block's cosine transform, and a click always another
one: what a model has to learn of a sound is which, when, and how loud on each side.  Nothing is ever louder than 1.
"""

import dataclasses

import numpy as np

from unigrpo_jax.worlds.motion.drawing import kinds
from unigrpo_jax.worlds.motion.scene import FRAMES, ROOM, MovingScene, places, touches
from unigrpo_jax.worlds.shapes.scene import SHAPES

FPS = 8  # frames a second
BLOCK = 64  # samples
FRAME = 2 * BLOCK
RATE = FPS * FRAME
PITCHES = dict(zip(SHAPES, (16, 24, 32, 40), strict=True))  # half cycles a block: 128, 192, 256 and 320 Hz
TONE = 0.2
CLICK = 0.6

_SIGNS = np.array([1, 1, 1, 1, 1, -1, -1, 1, 1, -1, 1, -1, 1])  # Barker's sequence of 13, of all frequencies alike
BURST = _SIGNS * np.exp(-np.arange(len(_SIGNS)) / 4)


@dataclasses.dataclass(frozen=True)
class Click:
    """A click at the start of a block, by number, heard at the place x."""

    block: int
    x: float


@dataclasses.dataclass(frozen=True)
class Score:
    """What sounds in each of K blocks.

    Attributes:
      pitches: int [n], of n tones; values of `PITCHES`.
      sounding: bool [K, n].
      x: float [K, n], where each is heard, in [0, `ROOM`].
      clicks: in any order.
    """

    pitches: np.ndarray
    sounding: np.ndarray
    x: np.ndarray
    clicks: tuple[Click, ...]


def score(scene: MovingScene, frames: int = FRAMES) -> Score:
    """What is to be heard of a scene: an object sounds in every block in which it moves, from where it is in its middle.

    The time after the last frame is as the time just before.
    """
    quarters = 4 * (frames - 1)
    slow = [dataclasses.replace(m, velocity=tuple(v / 4 for v in m.velocity)) for m in scene.movers]
    path = places(dataclasses.replace(scene, movers=tuple(slow)), quarters + 1)
    moved = np.abs(np.diff(path, axis=0)).max(-1) > 0  # [quarters, n]
    half = np.minimum(2 * np.arange(2 * frames)[:, None] + [0, 1], quarters - 1)  # the two quarters of each block
    middles = np.minimum(half[:, 0] + 1, quarters)
    clicks = dict.fromkeys((round(2 * touch.time), touch.who, touch.place[1]) for touch in touches(scene, frames))
    pitches = np.array(list(PITCHES.values()))[kinds(scene)[1]]
    return Score(pitches, moved[half].any(1), path[middles, :, 1], tuple(Click(block, x) for block, _, x in clicks))


def play(music: Score) -> np.ndarray:
    """The sound of a score, float32 [K `BLOCK`, 2]."""
    n = np.arange(BLOCK) + 0.5
    waves = TONE * np.cos(np.pi * music.pitches[:, None] * n / BLOCK)  # [n, BLOCK]: k is even, so all blocks are alike
    blocks = np.einsum("kn,knc,ns->ksc", music.sounding, gains(music.x), waves)
    for click in music.clicks:
        blocks[click.block, : len(BURST)] += CLICK * BURST[:, None] * gains(np.array(click.x))
    return blocks.reshape(-1, 2).astype(np.float32)


def sound(scene: MovingScene, frames: int = FRAMES) -> np.ndarray:
    """The sound of a scene, float32 [frames `FRAME`, 2]."""
    return play(score(scene, frames))


def angle(x: np.ndarray) -> np.ndarray:
    """From 0, left alone, to pi / 2, right alone, where something at x is heard."""
    return np.pi / 2 * np.clip(x, 0, ROOM) / ROOM


def gains(x: np.ndarray) -> np.ndarray:
    """How loud something at x is left and right, [..., 2]; the sum of squares is 1."""
    return np.stack([np.cos(angle(x)), np.sin(angle(x))], -1)
