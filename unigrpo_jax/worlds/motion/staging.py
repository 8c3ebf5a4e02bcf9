"""Makes moving scenes that fulfil a requirement: starts and velocities at random, inside of what the judge allows.

Places and speeds are any real numbers, or `whole`: then every object stands on whole pixels in every frame, turns in one of
`WHOLE_TURNS` and not between two, glides along rows, columns or diagonals by one or two cells of the shapes world, and
begins in the middle of one, but for the distance to what it turns at.  There are as many requirements, and far fewer clips.
"""

import numpy as np

from unigrpo_jax.worlds.motion.requirement import DIRECTIONS, Actor, MotionRequirement
from unigrpo_jax.worlds.motion.scene import BOX, FRAMES, ROOM, Mover, MovingScene, places
from unigrpo_jax.worlds.shapes.drawing import CELL
from unigrpo_jax.worlds.shapes.scene import COLOURS
from unigrpo_jax.worlds.shapes.supervised import pick

# Pixels a frame, by pace; of a course with a turn, and of two that meet, where no pace is named.
SPEEDS = {"slow": (0.7, 0.9), "fast": (1.6, 2.0), None: (0.7, 2.0)}
WHOLE_SPEEDS = {"slow": (1, 1), "fast": (2, 2), None: (1, 2)}
TURN_SPEEDS = (1.0, 2.0)
MEETING_SPEEDS = (0.8, 1.15)
TURNS = (2.5, FRAMES - 3.5)  # frames
MEETINGS = (3.0, FRAMES - 4.0)
WHOLE_TURNS = (3, FRAMES - 4)
MARGIN = (CELL - BOX) // 2  # pixels between the middle of a cell and the cell's own corner

_COLOURS = tuple(COLOURS)
_STEPS = FRAMES - 1
_TRIES = 1000


def stage(rng: np.random.Generator, requirement: MotionRequirement, whole: bool = False) -> MovingScene:
    """A scene whose clip of `FRAMES` frames fulfils a requirement.

    Objects whose course is not to meet pass each other by a pixel at least.

    Args:
      rng: where everything random comes from.
      requirement: what is to be seen.
      whole: whether objects stand on whole pixels and begin in cells, as above.

    Raises:
      ValueError: a thousand draws gave none.
    """
    actors = requirement.actors
    walls = "stop" if any(a.motion.course == "stop" for a in actors) else "reflect"
    for _ in range(_TRIES):
        if [a.motion.course for a in actors] == ["meet", "meet"]:
            return MovingScene(_meeting(rng, actors, whole), walls)
        movers = tuple(_mover(rng, actor, whole) for actor in actors)
        if _apart(movers, walls):
            return MovingScene(movers, walls)
    raise ValueError(f"motion staging: no room was found for `{requirement.facts()}`; ask for fewer or slower objects")


def colour_of(rng: np.random.Generator, actor: Actor) -> str:
    """The colour that is named, or any."""
    return actor.what.colour or pick(rng, _COLOURS)


def between(rng: np.random.Generator, low, high, whole: bool, step: int = 1, offset: int = 0) -> np.ndarray:
    """Numbers, uniform between those given, float64 of their common shape: real ones, or offset + multiples of a step."""
    if not whole:
        return rng.uniform(low, high)
    first, last = np.ceil(np.subtract(low, offset) / step), np.floor(np.subtract(high, offset) / step)
    return offset + step * rng.integers(first.astype(int), last.astype(int), endpoint=True).astype(float)


def speed_of(rng: np.random.Generator, pace: str | None, whole: bool) -> float:
    """Pixels a frame, of a straight course."""
    return float(between(rng, *(WHOLE_SPEEDS if whole else SPEEDS)[pace], whole))


def _place(rng: np.random.Generator, low, high, whole: bool) -> np.ndarray:
    """Where an object begins, between corners or along one axis: anywhere, or in the middle of a cell."""
    return between(rng, low, high, whole, CELL, MARGIN)


def _turn(rng: np.random.Generator, frames: tuple[float, float], whole: bool) -> float:
    """When an object turns."""
    return float(pick(rng, WHOLE_TURNS)) if whole else rng.uniform(*frames)


def _clear(whole: bool) -> float:
    """Pixels between a wall and what is not to meet it, which on whole pixels would touch it in the last frame at times."""
    return float(whole)


def _mover(rng: np.random.Generator, actor: Actor, whole: bool) -> Mover:
    """One object alone, inside the walls."""
    motion, start, velocity = actor.motion, _place(rng, np.zeros(2), ROOM, whole), np.zeros(2)
    if motion.course == "straight":
        speed = speed_of(rng, motion.pace, whole)
        if motion.direction is None:
            angle = rng.uniform(0, 2 * np.pi)
            velocity = speed * np.array([np.sin(angle), np.cos(angle)])
            if whole:  # a step along a diagonal is longer
                velocity = np.rint(velocity / speed)
                velocity *= 1 if velocity.all() else speed
        else:
            axis, sign = DIRECTIONS[motion.direction]
            velocity[axis] = sign * speed
        way = _STEPS * velocity + _clear(whole) * np.sign(velocity)
        start = _place(rng, np.maximum(-way, 0), ROOM - np.maximum(way, 0), whole)
    elif motion.course in ("bounce", "stop"):
        axis, sign = DIRECTIONS[motion.direction]
        speed = speed_of(rng, motion.pace, whole) if motion.pace else between(rng, *TURN_SPEEDS, whole)
        velocity[axis] = sign * speed
        start[axis] = (ROOM if sign > 0 else 0) - velocity[axis] * _turn(rng, TURNS, whole)
    return Mover(colour_of(rng, actor), actor.what.shape, tuple(start.tolist()), tuple(velocity.tolist()))


def _meeting(rng: np.random.Generator, actors: tuple[Actor, ...], whole: bool) -> tuple[Mover, ...]:
    """Two that move towards each other in one lane, equally fast, and touch before they reach a wall again."""
    axis, sign = DIRECTIONS[actors[0].motion.direction]
    speed, turn = between(rng, *MEETING_SPEEDS, whole), _turn(rng, MEETINGS, whole)
    lane = _place(rng, 0, ROOM, whole)
    reach = speed * max(turn, _STEPS - turn) + _clear(whole)
    middle = _place(rng, BOX / 2 + reach, ROOM - BOX / 2 - reach, whole)
    movers = []
    for actor, side in zip(actors, (sign, -sign), strict=True):
        start, velocity = np.full(2, lane), np.zeros(2)
        start[axis], velocity[axis] = middle - side * (BOX / 2 + speed * turn), side * speed
        movers.append(Mover(colour_of(rng, actor), actor.what.shape, tuple(start.tolist()), tuple(velocity.tolist())))
    return tuple(movers)


def _apart(movers: tuple[Mover, ...], walls: str) -> bool:
    """Whether the objects, each on its way as if it were alone, never come nearer than a pixel."""
    ways = [places(MovingScene((mover,), walls)) for mover in movers]
    gaps = [np.abs(a - b).max(-1).min() for i, a in enumerate(ways) for b in ways[:i]]
    return all(gap >= BOX + 1 for gap in gaps)
