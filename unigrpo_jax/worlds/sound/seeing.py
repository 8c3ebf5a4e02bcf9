"""What the paths of a clip say that must be heard: when each object moves, where it is, and what it meets, and when."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from unigrpo_jax.worlds.motion.course import fit
from unigrpo_jax.worlds.motion.judge import PLACE_TOLERANCE, TIME_TOLERANCE, TURN_TOLERANCE
from unigrpo_jax.worlds.motion.requirement import DIRECTIONS, Motion
from unigrpo_jax.worlds.motion.scene import BOX

LEAST_STEP = 0.35  # pixels a frame: what moves less is at rest


@dataclasses.dataclass(frozen=True)
class Seen:
    """A turn, or a stop, as seen: when, in frames, and the place (y, x) of who turns; of two that meet the mean."""

    time: float
    place: np.ndarray


def moving(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In which frames an object on a path, [F, 2], moves, and in which of them that is certain: bool [F] each.

    In a frame means from it to the next one; the last is as the one before.  A pause of one step is a turn.  Where rest and
    motion meet, the frames on both sides are uncertain.
    """
    steps = np.abs(np.diff(path, axis=0)).max(1) >= LEAST_STEP
    steps[1:-1] |= steps[:-2] & steps[2:]
    moves = np.append(steps, steps[-1])
    change = np.append(moves[1:] != moves[:-1], False)
    return moves, ~(change | np.append(False, change[:-1]))


def x_in_frames(path: np.ndarray) -> np.ndarray:
    """The x in the middle of each frame's time, [F] of a path, [F, 2]."""
    return np.append((path[1:, 1] + path[:-1, 1]) / 2, path[-1, 1])


def seen_touches(paths: Sequence[np.ndarray | None]) -> list[Seen]:
    """What is met on some paths, [F, 2] each or None; two that turn together where they touch meet each other."""
    turns = [turn for path in paths if path is not None and (turn := _turn(path)) is not None]
    met = []
    while turns:
        first = turns.pop(0)
        for other in turns:
            apart = np.abs(first.place - other.place).max()
            if abs(first.time - other.time) <= TIME_TOLERANCE and apart <= BOX + TURN_TOLERANCE:
                turns = [turn for turn in turns if turn is not other]
                first = Seen((first.time + other.time) / 2, (first.place + other.place) / 2)
                break
        met.append(first)
    return met


def _turn(path: np.ndarray) -> Seen | None:
    """Where a path turns back or stops: by the nearest such course of all, where no steady one is near."""
    straight = fit(path, Motion("straight")).path
    if np.linalg.norm(path - straight, axis=1).max() <= PLACE_TOLERANCE:
        return None
    fits = [fit(path, Motion(course, way)) for course in ("bounce", "stop") for way in DIRECTIONS]
    best = min(fits, key=lambda found: float(np.square(path - found.path).sum()))
    return Seen(best.turn, best.turns_at)
