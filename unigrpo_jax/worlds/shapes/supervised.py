"""What the base model learns from: prompts with a thinking and a drawing, each of which is sometimes faulty.

A share `SLOPPY_PLANS` of the plans, where no other is asked for, makes one mistake about the prompt; half of these also
state the mistake, half state the prompt rightly and then plan something else.  A share `SLOPPY_DRAWINGS` of the drawings
makes one mistake about the plan.  Faults are other scenes, never blur or noise: a model that learns from these examples has
right and wrong modes to choose between.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes.drawing import render
from unigrpo_jax.worlds.shapes.judge import holds
from unigrpo_jax.worlds.shapes.requirement import OPPOSITE, Requirement, Wanted, from_metadata
from unigrpo_jax.worlds.shapes.scene import CELLS, COLOURS, MAX_OBJECTS, SHAPES, Object, Scene, plan_text, scene

SLOPPY_PLANS = 0.25
SLOPPY_DRAWINGS = 0.40

_COLOURS = tuple(COLOURS)
# Per relation, all (cell, cell) in which it holds.
PLACES = {
    relation: [
        (a, b) for a, b in itertools.permutations(CELLS, 2) if holds(Object("", "", a), relation, Object("", "", b))
    ]
    for relation in OPPOSITE
}


@dataclasses.dataclass(frozen=True)
class Example:
    """One example: a prompt, the thinking in words, and the image, uint8 [24, 24, 3]."""

    prompt: Prompt
    thinking: str
    image: np.ndarray


def example(
    rng: np.random.Generator, prompts: Mapping[str, Sequence[Prompt]], sloppy_plans: float = SLOPPY_PLANS,
    sloppy_drawings: float = SLOPPY_DRAWINGS,
) -> Example:  # fmt: skip
    """One example; `prompts` are those of each category, which is drawn uniformly."""
    prompt = pick(rng, prompts[pick(rng, tuple(prompts))])
    requirement = from_metadata(prompt.metadata)
    stated = planned = requirement
    if rng.random() < sloppy_plans:
        planned = misread(rng, requirement)
        stated = pick(rng, (planned, requirement))
    plan = place(rng, planned)
    drawn = misdraw(rng, plan, requirement) if rng.random() < sloppy_drawings else plan
    return Example(prompt, plan_text(stated.statement(), plan), render(drawn))


def examples(rng: np.random.Generator, prompts: Mapping[str, Sequence[Prompt]], n: int) -> list[Example]:
    """n independent examples."""
    return [example(rng, prompts) for _ in range(n)]


def misread(rng: np.random.Generator, requirement: Requirement) -> Requirement:
    """A requirement that no scene fulfils along with the given one: an object more, fewer or other, or turned round."""
    kinds = [Wanted(w.shape, w.colour) for w in requirement.objects for _ in range(w.count)]
    coloured, relation = kinds[0].colour is not None, requirement.relation
    possible = {
        "add": len(kinds) < MAX_OBJECTS,
        "drop": len(kinds) > 1,
        "shape": True,
        "colour": coloured,
        "relation": relation is not None,
    }
    i = index(rng, len(kinds))
    match pick(rng, [mistake for mistake, ok in possible.items() if ok]):
        case "add":
            kinds.append(Wanted(pick(rng, SHAPES), pick(rng, _COLOURS) if coloured else None))
        case "drop":
            del kinds[i]
            relation = None
        case "shape":
            kinds[i] = Wanted(other(rng, SHAPES, kinds[i].shape), kinds[i].colour)
        case "colour":
            kinds[i] = Wanted(kinds[i].shape, other(rng, _COLOURS, kinds[i].colour))
        case "relation":
            relation = OPPOSITE[relation]
    if relation is None:
        kinds = [Wanted(kind.shape, kind.colour, kinds.count(kind)) for kind in dict.fromkeys(kinds)]
    return Requirement(requirement.category, tuple(kinds), relation)


def place(rng: np.random.Generator, requirement: Requirement) -> Scene:
    """A scene that fulfils a requirement: free colours and cells are random."""
    kinds = [wanted for wanted in requirement.objects for _ in range(wanted.count)]
    cells = list(pick(rng, PLACES[requirement.relation])) if requirement.relation else []
    cells += [CELLS[i] for i in rng.permutation(len(CELLS)) if CELLS[i] not in cells]
    colours = [kind.colour or pick(rng, _COLOURS) for kind in kinds]
    return scene(*(Object(c, kind.shape, cell) for c, kind, cell in zip(colours, kinds, cells, strict=False)))


def misdraw(rng: np.random.Generator, plan: Scene, requirement: Requirement) -> Scene:
    """Another scene: one object missing or, where the prompt names colours, of another colour."""
    i = index(rng, len(plan))
    match pick(rng, ("drop", "colour") if requirement.objects[0].colour else ("drop",)):
        case "drop":
            changed = ()
        case "colour":
            changed = (dataclasses.replace(plan[i], colour=other(rng, _COLOURS, plan[i].colour)),)
    return (*plan[:i], *changed, *plan[i + 1 :])


def index(rng: np.random.Generator, n: int) -> int:
    """A uniform index below n; `rng.integers` is ten times slower for one number."""
    return int(rng.random() * n)


def pick(rng: np.random.Generator, options: Sequence):
    """One of the options, uniformly."""
    return options[index(rng, len(options))]


def other(rng: np.random.Generator, options: Sequence[str], current: str) -> str:
    """Another option than the current one, uniformly."""
    return pick(rng, [option for option in options if option != current])
