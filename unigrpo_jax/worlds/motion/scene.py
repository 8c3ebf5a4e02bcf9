"""A moving scene as data, and its mechanics: objects that move steadily until a wall or another object is met.

An object is a box of `BOX` x `BOX` pixels (every shape of the shapes world touches all four sides of its box).  A place is
the top left corner of the box, (y, x) in pixels from the top left of the picture, any real number in [0, `ROOM`]; a
velocity is (y, x) in pixels a frame.  The sides of the picture are the walls: they turn an object back (`reflect`), or it
stays there (`stop`).  Two boxes that meet exchange their velocities across the side at which they touch, as equal masses do.
Both are a touch, and happen at a time of their own, between frames as a rule.
"""

import dataclasses

import numpy as np

from unigrpo_jax.worlds.shapes.drawing import CELL, SIDE

FRAMES = 9  # a video autoencoder maps 4 k + 1 frames to k + 1 latents
BOX = CELL - 2
ROOM = SIDE - BOX
WALLS = ("reflect", "stop")

_SOON = 1e-9  # frames, or pixels: what is nearer has just happened, or touches


@dataclasses.dataclass(frozen=True)
class Mover:
    """One object: what it is, where it begins (y, x), and how it moves then (y, x)."""

    colour: str
    shape: str
    start: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class MovingScene:
    """Objects that begin apart from each other inside the walls; `walls` is one of `WALLS`."""

    movers: tuple[Mover, ...]
    walls: str = "reflect"

    def __post_init__(self):
        if self.walls not in WALLS:
            raise ValueError(f'moving scene: walls = "{self.walls}"; there are "reflect" and "stop"')
        starts = np.array([mover.start for mover in self.movers], float).reshape(-1, 2)
        if ((starts < 0) | (starts > ROOM)).any():
            raise ValueError(f"moving scene: an object begins outside of [0, {ROOM}] in {self.movers}; move it inside")
        if any(np.abs(a - b).max() < BOX - _SOON for i, a in enumerate(starts) for b in starts[:i]):
            raise ValueError(f"moving scene: two objects overlap in {self.movers}; begin {BOX} pixels apart")


@dataclasses.dataclass(frozen=True)
class Touch:
    """An object that meets a wall, or two that meet: when, in frames, who, by number, and where, (y, x), of two the mean."""

    time: float
    who: tuple[int, ...]
    place: tuple[float, float]


def places(scene: MovingScene, frames: int = FRAMES) -> np.ndarray:
    """Where each object is in each frame: float64 [frames, objects, 2], exact up to rounding."""
    return _course(scene, frames)[0]


def touches(scene: MovingScene, frames: int = FRAMES) -> list[Touch]:
    """What is met from the first frame to the last one, in the order of time; in a corner two walls are met at once."""
    return _course(scene, frames)[1]


def _course(scene: MovingScene, frames: int) -> tuple[np.ndarray, list[Touch]]:
    """The mechanics, from one wall or meeting to the next."""
    at = np.array([mover.start for mover in scene.movers], float).reshape(-1, 2)
    moves = np.array([mover.velocity for mover in scene.movers], float).reshape(-1, 2)
    path, met = [at.copy()], []
    for frame in range(1, frames):
        left = 1.0
        while left > 0:
            wall, meeting = _next_wall(at, moves), _next_meeting(at, moves)
            step = min(left, wall[0], meeting[0])
            at, left = at + step * moves, left - step
            who: tuple[int, ...] = ()
            if step == wall[0]:
                moves[wall[1]] *= -1.0 if scene.walls == "reflect" else 0.0
                who = (int(wall[1][0]),)
            elif step == meeting[0]:
                first, second, axis = meeting[1]
                moves[[first, second], axis] = moves[[second, first], axis]
                who = (second, first)
            if who:
                met.append(Touch(frame - left, who, tuple(at[list(who)].mean(0).clip(0, ROOM).tolist())))
        at = np.clip(at, 0, ROOM)
        path.append(at)
    return np.stack(path), met


def _next_wall(at: np.ndarray, moves: np.ndarray) -> tuple[float, tuple[int, int]]:
    """The time until an object reaches a wall that it moves towards, and (object, axis)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(moves > 0, (ROOM - at) / moves, np.where(moves < 0, -at / moves, np.inf))
    if not times.size:
        return np.inf, (0, 0)
    where = np.unravel_index(times.argmin(), times.shape)
    return max(float(times[where]), 0.0), where


def _next_meeting(at: np.ndarray, moves: np.ndarray) -> tuple[float, tuple[int, int, int]]:
    """The time until two boxes that come nearer touch, and (object, object, axis across the touching sides)."""
    best = np.inf, (0, 0, 0)
    for i in range(len(at)):
        for j in range(i):
            gap, closing = at[i] - at[j], moves[i] - moves[j]
            begins, ends = np.array([_overlap(g, c) for g, c in zip(gap, closing, strict=True)]).T
            axis = int(begins.argmax())
            if begins[axis] < ends.min() - _SOON and begins[axis] >= -_SOON and begins[axis] < best[0]:
                best = max(float(begins[axis]), 0.0), (i, j, axis)
    return best


def _overlap(gap: float, closing: float) -> tuple[float, float]:
    """When two intervals of length `BOX`, `gap` apart and moving by `closing` a frame, begin and end to overlap."""
    if closing == 0:
        return (-np.inf, np.inf) if abs(gap) < BOX - _SOON else (np.inf, -np.inf)
    times = sorted(((-BOX - gap) / closing, (BOX - gap) / closing))
    return times[0], times[1]
