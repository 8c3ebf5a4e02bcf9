"""The prompts of `shapes_sound`: six categories, a train and a held-out part, each a fixed list.

The parts are made as those of `shapes_motion` are.
"""

import functools
import itertools
from collections.abc import Iterator

from unigrpo_jax.worlds.motion import prompts as motion_prompts
from unigrpo_jax.worlds.motion.prompts import KINDS, PAIRS, in_parts
from unigrpo_jax.worlds.motion.requirement import DIRECTIONS, Actor, Motion, MotionRequirement
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes.prompts import evaluation_prompts
from unigrpo_jax.worlds.sound.wording import wordings

CATEGORIES = ("rest", "direction", "wall", "meeting", "two_object", "two_bounces")


@functools.cache
def by_category(split: str) -> dict[str, tuple[Prompt, ...]]:
    """The prompts of "train" or "held_out" under the name of their category."""
    return in_parts(split, {category: tuple(requirements(category)) for category in CATEGORIES}, wordings)


def held_out_prompts(n: int) -> list[Prompt]:
    """The first n held-out prompts of a fixed order: the categories in turn."""
    return evaluation_prompts(n, of=by_category)


def requirements(category: str) -> Iterator[MotionRequirement]:
    """Every requirement of a category; of two objects in both orders."""
    match category:
        case "rest":
            cast = ((Actor(kind, Motion("still")),) for kind in KINDS)
        case "two_bounces":
            own = [Motion("still"), *(Motion("bounce", way) for way in DIRECTIONS)]
            both = [pair for pair in itertools.product(own, repeat=2) if any(m.course != "still" for m in pair)]
            cast = ((Actor(a, x), Actor(b, y)) for a, b in PAIRS for x, y in both)
        case _:
            return motion_prompts.requirements(category)
    return (MotionRequirement(category, actors) for actors in cast)
