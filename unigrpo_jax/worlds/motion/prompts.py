"""The prompts of `shapes_motion`: six categories, a train and a held-out part, each a fixed list.

As in the shapes world the parts differ in what is required, not only in the words: in every category the `HELD_OUT_SHARE` of
requirements with the smallest SHA-256 is held out.  Of all wordings a category keeps at most `TEXTS`, spread evenly over
its requirements.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from unigrpo_jax.worlds.motion.requirement import (
    CATEGORIES,
    DIRECTIONS,
    OPPOSITE_WAY,
    PACES,
    Actor,
    Motion,
    MotionRequirement,
)
from unigrpo_jax.worlds.motion.wording import wordings
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes.prompts import HELD_OUT_SHARE, TEXTS, digest, evaluation_prompts
from unigrpo_jax.worlds.shapes.requirement import Wanted
from unigrpo_jax.worlds.shapes.scene import COLOURS, SHAPES

MAX_PROMPT_WORDS = 20

KINDS = tuple(Wanted(shape, colour) for shape in SHAPES for colour in (None, *COLOURS))
PAIRS = tuple(
    (Wanted(a, x), Wanted(b, y)) for a, b in itertools.permutations(SHAPES, 2) for x, y in itertools.permutations(COLOURS, 2)
)


@functools.cache
def by_category(split: str) -> dict[str, tuple[Prompt, ...]]:
    """The prompts of "train" or "held_out" under the name of their category."""
    return in_parts(split, {category: tuple(requirements(category)) for category in CATEGORIES}, wordings)


def in_parts(
    split: str, required: Mapping[str, Sequence[MotionRequirement]], worded: Callable[[MotionRequirement], Iterable[str]]
) -> dict[str, tuple[Prompt, ...]]:
    """The prompts of "train" or "held_out", of each category's requirements and all that `worded` says of one."""
    if split not in TEXTS:
        raise ValueError(f'motion prompts: no split "{split}"; there are "train" and "held_out"')
    chosen = {}
    for category, every in required.items():
        facts = [r.facts() for r in every]
        in_order = sorted(set(facts), key=digest)
        held_out = set(in_order[: math.ceil(HELD_OUT_SHARE * len(in_order))])
        members = [r for r, fact in zip(every, facts, strict=True) if (fact in held_out) == (split == "held_out")]
        members.sort(key=lambda r: digest(str(r)))
        queues = [_texts(r, worded(r)) for r in members[: TEXTS[split]]]
        in_turn = (p for turn in itertools.zip_longest(*queues) for p in turn if p is not None)
        chosen[category] = tuple(itertools.islice(in_turn, TEXTS[split]))
    return chosen


def short(texts: Iterable[str]) -> list[str]:
    """The texts of at most `MAX_PROMPT_WORDS` words, in an order fixed by hashes."""
    return sorted((text for text in texts if len(text.split()) <= MAX_PROMPT_WORDS), key=digest)


def _texts(requirement: MotionRequirement, texts: Iterable[str]) -> Iterator[Prompt]:
    for text in short(texts):
        yield Prompt(text=text, metadata=requirement.metadata())


def held_out_prompts(n: int) -> list[Prompt]:
    """The first n held-out prompts of a fixed order: the categories in turn."""
    return evaluation_prompts(n, of=by_category)


def requirements(category: str) -> Iterator[MotionRequirement]:
    """Every requirement of a category; of two objects in both orders."""
    match category:
        case "single_motion":
            cast = ((Actor(kind, Motion("straight")),) for kind in KINDS)
        case "direction":
            cast = ((Actor(kind, Motion("straight", way)),) for kind in KINDS for way in DIRECTIONS)
        case "speed":
            paced = [Motion("straight", way, pace) for way in DIRECTIONS for pace in PACES if pace]
            cast = ((Actor(kind, motion),) for kind in KINDS for motion in paced)
        case "wall":
            turns = [Motion(course, way) for way in DIRECTIONS for course in ("bounce", "stop")]
            cast = ((Actor(kind, motion),) for kind in KINDS for motion in turns)
        case "meeting":
            cast = (
                (Actor(a, Motion("meet", way)), Actor(b, Motion("meet", OPPOSITE_WAY[way])))
                for a, b in PAIRS
                for way in DIRECTIONS
            )
        case "two_object":
            own = [Motion("still"), *(Motion("straight", way) for way in DIRECTIONS)]
            both = [pair for pair in itertools.product(own, repeat=2) if any(m.course != "still" for m in pair)]
            cast = ((Actor(a, x), Actor(b, y)) for a, b in PAIRS for x, y in both)
    return (MotionRequirement(category, actors) for actors in cast)
