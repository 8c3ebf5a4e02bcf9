"""Fits the path of one object with a course: what of its movement is the motion that was asked for.

Along the axis of a course a place is  p(t) = c + v phi(t),  v >= 0 in the direction asked for, with

    straight   phi = t - mean of t
    bounce     phi = -|t - u|            meet: the same
    stop       phi = min(t - u, 0)
    still      phi = 0

so that c and v are least squares in closed form for each turning time u, which is looked for in steps of `TURN_STEP` from
frame 2 to the last but two: both legs of a bounce are seen.  Across the axis p is constant.  A straight course without a
direction is fitted on both axes.
"""

import dataclasses
import functools

import numpy as np

from unigrpo_jax.worlds.motion.requirement import DIRECTIONS, Motion

TURN_STEP = 1 / 8
_TURNS = ("bounce", "stop", "meet")


@dataclasses.dataclass(frozen=True)
class Fit:
    """The nearest path of a course.

    Attributes:
      path: [F, 2], its places in pixels.
      speed: pixels a frame, at least 0.
      turn: the turning time in frames, and `turns_at` the place (y, x) then; None where the course has no turn.
    """

    path: np.ndarray
    speed: float
    turn: float | None = None
    turns_at: np.ndarray | None = None


def fit(path: np.ndarray, motion: Motion) -> Fit:
    """The nearest path of the motion's course to a path, [F, 2]; its pace is not read."""
    mean, nearest = path.mean(0), np.repeat(path.mean(0, keepdims=True), len(path), 0)
    if motion.course == "still":
        return Fit(nearest, 0.0)
    turns, phi = _profiles(motion.course, len(path))  # [U], [U, F]
    centred = phi - phi.mean(1, keepdims=True)
    slopes = centred @ (path - mean) / np.square(centred).sum(1)[:, None]  # [U, 2]
    if motion.direction is None:
        return Fit(nearest + np.outer(centred[0], slopes[0]), float(np.linalg.norm(slopes[0])))
    axis, sign = DIRECTIONS[motion.direction]
    speeds = np.maximum(sign * slopes[:, axis], 0)
    best = int((np.square(speeds) * np.square(centred).sum(1)).argmax())  # what the fit explains, in pixels squared
    nearest[:, axis] += sign * speeds[best] * centred[best]
    if motion.course not in _TURNS:
        return Fit(nearest, float(speeds[best]))
    turns_at = mean.copy()
    turns_at[axis] -= sign * speeds[best] * phi[best].mean()  # phi is 0 there
    return Fit(nearest, float(speeds[best]), float(turns[best]), turns_at)


@functools.cache
def _profiles(course: str, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Turning times [U] and phi [U, F]; of a course without turns the middle alone."""
    t = np.arange(frames, dtype=float)
    if course not in _TURNS:
        return np.array([t.mean()]), (t - t.mean())[None]
    turns = np.arange(2, frames - 3 + TURN_STEP / 2, TURN_STEP)
    since = t - turns[:, None]
    return turns, np.minimum(since, 0) if course == "stop" else -np.abs(since)
