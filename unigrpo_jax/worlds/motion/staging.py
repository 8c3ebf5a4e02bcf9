"""Makes moving scenes that fulfil a requirement: starts and velocities at random, well inside of what the judge allows."""

import numpy as np

from unigrpo_jax.worlds.motion.requirement import DIRECTIONS, Actor, MotionRequirement
from unigrpo_jax.worlds.motion.scene import BOX, FRAMES, ROOM, Mover, MovingScene, places
from unigrpo_jax.worlds.shapes.scene import COLOURS
from unigrpo_jax.worlds.shapes.supervised import pick

# Pixels a frame, by pace; of a course with a turn, and of two that meet, where no pace is named.
SPEEDS = {"slow": (0.7, 0.9), "fast": (1.6, 2.0), None: (0.7, 2.0)}
TURN_SPEEDS = (1.0, 2.0)
MEETING_SPEEDS = (0.8, 1.15)
TURNS = (2.5, FRAMES - 3.5)  # frames
MEETINGS = (3.0, FRAMES - 4.0)

_COLOURS = tuple(COLOURS)
_STEPS = FRAMES - 1
_TRIES = 1000


def stage(rng: np.random.Generator, requirement: MotionRequirement) -> MovingScene:
    """A scene whose clip of `FRAMES` frames fulfils a requirement; ValueError where a thousand draws gave none.

    Objects whose course is not to meet pass each other by a pixel at least.
    """
    actors = requirement.actors
    walls = "stop" if any(a.motion.course == "stop" for a in actors) else "reflect"
    for _ in range(_TRIES):
        if [a.motion.course for a in actors] == ["meet", "meet"]:
            return MovingScene(_meeting(rng, actors), walls)
        movers = tuple(_mover(rng, actor) for actor in actors)
        if _apart(movers, walls):
            return MovingScene(movers, walls)
    raise ValueError(f"motion staging: no room was found for `{requirement.facts()}`; ask for fewer or slower objects")


def colour_of(rng: np.random.Generator, actor: Actor) -> str:
    """The colour that is named, or any."""
    return actor.what.colour or pick(rng, _COLOURS)


def _mover(rng: np.random.Generator, actor: Actor) -> Mover:
    """One object alone, inside the walls."""
    motion, start, velocity = actor.motion, rng.uniform(0, ROOM, 2), np.zeros(2)
    if motion.course == "straight":
        speed = rng.uniform(*SPEEDS[motion.pace])
        if motion.direction is None:
            angle = rng.uniform(0, 2 * np.pi)
            velocity = speed * np.array([np.sin(angle), np.cos(angle)])
        else:
            axis, sign = DIRECTIONS[motion.direction]
            velocity[axis] = sign * speed
        way = _STEPS * velocity
        start = rng.uniform(np.maximum(-way, 0), ROOM - np.maximum(way, 0))
    elif motion.course in ("bounce", "stop"):
        axis, sign = DIRECTIONS[motion.direction]
        velocity[axis] = sign * rng.uniform(*(SPEEDS[motion.pace] if motion.pace else TURN_SPEEDS))
        start[axis] = (ROOM if sign > 0 else 0) - velocity[axis] * rng.uniform(*TURNS)
    return Mover(colour_of(rng, actor), actor.what.shape, tuple(start.tolist()), tuple(velocity.tolist()))


def _meeting(rng: np.random.Generator, actors: tuple[Actor, ...]) -> tuple[Mover, ...]:
    """Two that move towards each other in one lane, equally fast, and touch before they reach a wall again."""
    axis, sign = DIRECTIONS[actors[0].motion.direction]
    speed, turn, lane = rng.uniform(*MEETING_SPEEDS), rng.uniform(*MEETINGS), rng.uniform(0, ROOM)
    reach = speed * max(turn, _STEPS - turn)
    middle = rng.uniform(BOX / 2 + reach, ROOM - BOX / 2 - reach)
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
