"""What a prompt of the worlds of motion requires: who is there, and how each of them moves; its metadata and its key.

A motion is asked for from the first frame to the last one.  Its course is one of

    straight    steadily on, one way; without a direction, along any straight line
    bounce      steadily towards the wall in the direction, and back as fast
    stop        steadily to the wall in the direction, and there it stays
    meet        steadily towards the other object, and back as fast when they touch
    still       at rest

and its pace is slow, fast or anything that is seen to move.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unigrpo_jax.worlds.shapes.requirement import Wanted

CATEGORIES = ("single_motion", "direction", "speed", "wall", "meeting", "two_object")
COURSES = ("straight", "bounce", "stop", "meet", "still")
# Axis (0 down, 1 to the right) and sign.
DIRECTIONS = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}
OPPOSITE_WAY = {"left": "right", "right": "left", "up": "down", "down": "up"}

# Pixels a frame that the judge takes for a pace; None is a pace that is not named.
PACES = {"slow": (0.5, 1.1), "fast": (1.3, 2.4), None: (0.5, 2.4)}


@dataclasses.dataclass(frozen=True)
class Motion:
    """How one object moves; `direction` is where it moves first, None only for straight on and at rest."""

    course: str
    direction: str | None = None
    pace: str | None = None


@dataclasses.dataclass(frozen=True)
class Actor:
    """One object and its motion; what.colour None leaves the colour free, but one and the same in all frames."""

    what: Wanted
    motion: Motion


@dataclasses.dataclass(frozen=True)
class MotionRequirement:
    """The objects that every frame must show, no more and no fewer, of different kinds, and how they move."""

    category: str
    actors: tuple[Actor, ...]

    def facts(self) -> str:
        """A text that is equal for two requirements exactly where the same clips fulfil them."""
        return " and ".join(sorted(_fact(actor) for actor in self.actors))

    def metadata(self) -> dict[str, Any]:
        """The JSON-serialisable facts of a prompt with this requirement."""
        return {
            "category": self.category,
            "objects": [
                {"shape": a.what.shape, "colour": a.what.colour, **dataclasses.asdict(a.motion)} for a in self.actors
            ],
            "key": f"{self.category}: {self.facts()}",
        }


def from_metadata(metadata: Mapping[str, Any]) -> MotionRequirement:
    """The requirement in a prompt's metadata."""
    actors = tuple(
        Actor(Wanted(o["shape"], o["colour"]), Motion(o["course"], o["direction"], o["pace"])) for o in metadata["objects"]
    )
    return MotionRequirement(metadata["category"], actors)


def _fact(actor: Actor) -> str:
    """Such as `red circle straight right slow`, `any square bounce up`."""
    motion = actor.motion
    words = (actor.what.colour or "any", actor.what.shape, motion.course, motion.direction, motion.pace)
    return " ".join(word for word in words if word)
