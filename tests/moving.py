"""Clips made by hand: a bright square that moves over a dark ground, one pixel a frame."""

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch

FPS = 8.0
COLOURS = np.array([(220, 40, 40), (40, 200, 60), (60, 80, 230), (230, 210, 50)], np.uint8)


def clip(frames=6, height=24, width=32, colour=0, speed=1) -> np.ndarray:
    """uint8 [frames, height, width, 3]."""
    out = np.full((frames, height, width, 3), 16, np.uint8)
    for number, frame in enumerate(out):
        left = (2 + speed * number) % (width - 6)
        frame[6:12, left : left + 6] = COLOURS[colour]
    return out


def batch(count=3, **size) -> RewardBatch:
    """Episodes with a clip each, all of one group."""
    videos = np.stack([clip(colour=row % len(COLOURS), **size) for row in range(count)])
    return RewardBatch(
        prompts=[f"square {row}" for row in range(count)],
        metadata=[{"number": row} for row in range(count)],
        thinking=[""] * count,
        videos=videos,
        fps=FPS,
        group=np.zeros(count, int),
    )
