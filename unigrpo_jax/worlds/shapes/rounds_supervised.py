"""What a base model for the worlds of several rounds learns from: whole episodes whose rounds are sometimes faulty.

As for `shapes` (`supervised`), a share `SLOPPY_PLANS` of the plans makes one mistake about what is asked, and a share
`SLOPPY_DRAWINGS` of the drawings one about the plan; each round goes on from what was really drawn before it.

reflect   The first round is an example of `shapes`.  The second one's thinking says truly what is wrong with the picture
          seen and plans the picture mended, with as little else changed as possible; but in a share `FALSE_VERDICTS` it
          misreads the prompt, so that what it says is untrue, and its plan goes with that.  In a share `UNCLEAR_PICTURES`
          the first picture has a cell that is no object; it is there to be looked at, not to be learned (`Round.clear`).
          Where only reading is practised, without mistakes, a share `WRONG_TO_READ` of the pictures is wrong, more of them
          unclear: to tell what is wrong is harder than to find that nothing is.
edit,     Half of the faulty plans misread the instruction; half of these also state the mistake.  The other half
story     lose, recolour or move one object of the right plan.  A faulty drawing loses, recolours or moves one object too.
          A story is drawn anew where its pictures would need a plan of no objects or one of more than
          `MAX_THINKING_TOKENS` (4 % of 5000, most of them removals of the last object).

All are pure functions of the generator.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes import edit, story, supervised
from unigrpo_jax.worlds.shapes.change import KINDS, Change, complete, from_metadata, goals, means, statement, without
from unigrpo_jax.worlds.shapes.change_judge import judge_change
from unigrpo_jax.worlds.shapes.checker import Findings, find_objects
from unigrpo_jax.worlds.shapes.drawing import CELL, render
from unigrpo_jax.worlds.shapes.reflect import find_faults, is_true, matched, staying, verdict_text
from unigrpo_jax.worlds.shapes.requirement import Requirement, Wanted
from unigrpo_jax.worlds.shapes.requirement import from_metadata as requirement_of
from unigrpo_jax.worlds.shapes.scene import CELLS, COLOURS, SHAPES, Object, Scene, plan_text, scene
from unigrpo_jax.worlds.shapes.supervised import PLACES, SLOPPY_DRAWINGS, SLOPPY_PLANS, misdraw, misread, other, pick

FALSE_VERDICTS = 0.25
UNCLEAR_PICTURES = 0.05
WRONG_TO_READ = 0.6  # of the pictures of examples without mistakes
UNCLEAR_TO_READ = 0.3  # of the first tries at a wrong one; it makes 0.44 of the wrong ones
MAX_THINKING_TOKENS = 26  # with the stop token

_COLOURS = tuple(COLOURS)


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of an example.

    Attributes:
      text: what the user says before it; None where nothing.
      thinking: in words.
      image: uint8 [24, 24, 3].
      clear: whether the image is one to learn to draw; False where it holds a cell that is no object.
    """

    text: str | None
    thinking: str
    image: np.ndarray
    clear: bool = True


@dataclasses.dataclass(frozen=True)
class RoundsExample:
    """One example: a prompt, the picture that it is about or None, uint8 [24, 24, 3], and what was done in each round."""

    prompt: Prompt
    picture: np.ndarray | None
    rounds: tuple[Round, ...]


def reflect_example(
    rng: np.random.Generator, prompts: Mapping[str, Sequence[Prompt]], sloppy: bool = True
) -> RoundsExample:
    """An example of `shapes_reflect`; `prompts` are those of each category of `shapes`, which is drawn uniformly.

    Where it is not `sloppy` the second thinking has no mistakes, and a share `WRONG_TO_READ` of the pictures is wrong; the
    first thinking may have mistakes in any case.
    """
    wrong = None if sloppy else rng.random() < WRONG_TO_READ
    while True:
        first = supervised.example(rng, prompts)
        clear = rng.random() >= (UNCLEAR_TO_READ if wrong else UNCLEAR_PICTURES)
        image = first.image if clear else _muddled(rng, first.image)
        seen, requirement = find_objects(image), requirement_of(first.prompt.metadata)
        faults = find_faults(seen, requirement)
        if wrong is None or wrong == (len(faults) > 0):
            break
    verdict, plan = verdict_text(faults), mend(rng, seen.objects, requirement)
    if sloppy and rng.random() < FALSE_VERDICTS:
        while is_true(verdict, faults):
            believed = misread(rng, requirement)
            verdict = verdict_text(find_faults(seen, believed))
        plan = mend(rng, seen.objects, believed)
    drawn = misdraw(rng, plan, requirement) if rng.random() < SLOPPY_DRAWINGS else plan
    rounds = (
        Round(first.prompt.text, first.thinking, image, clear),
        Round(None, plan_text(verdict, plan), render(drawn)),
    )
    return RoundsExample(first.prompt, None, rounds)


def edit_example(rng: np.random.Generator, split: str = "train", sloppy: bool = True) -> RoundsExample:
    """An example of `shapes_edit`, without mistakes where it is not `sloppy`; the kinds are drawn uniformly."""
    prompt = edit.draw(rng, pick(rng, KINDS), split)
    before = edit.given_scene(prompt.metadata)
    while (done := _changed(rng, from_metadata(prompt.metadata["change"]), before, sloppy)) is None:
        pass
    return RoundsExample(prompt, render(before), (Round(prompt.text, done[0], render(done[1])),))


def story_example(rng: np.random.Generator, split: str = "train") -> RoundsExample:
    """An example of `shapes_story`; the kinds of the last turns are drawn uniformly."""
    while True:
        prompt = story.draw(rng, pick(rng, KINDS), split)
        first = dataclasses.replace(prompt, metadata=prompt.metadata["rounds"][0]["requirement"])
        begun = supervised.example(rng, {"": (first,)})
        rounds, before = [Round(prompt.text, begun.thinking, begun.image)], find_objects(begun.image).objects
        for text, facts in zip(prompt.turns, prompt.metadata["rounds"][1:], strict=True):
            done = _changed(rng, from_metadata(facts["change"]), before)
            if done is None:
                break
            thinking, before = done
            rounds.append(Round(text, thinking, render(before)))
        else:
            return RoundsExample(prompt, None, tuple(rounds))


def mend(rng: np.random.Generator, seen: Scene, requirement: Requirement) -> Scene:
    """The scene of a picture made right: wanted objects stay, missing ones are added, the others go.

    Where a relation does not hold, as few objects as possible are moved.  Free colours and cells are random.
    """
    slots = matched(seen, requirement)
    wishes = [o and o.cell for _, o in slots]
    if requirement.relation:
        stay = {cells: staying([o for _, o in slots[:2]], cells) for cells in PLACES[requirement.relation]}
        wishes[:2] = pick(rng, [cells for cells, n in stay.items() if n == max(stay.values())])
    placed, taken = [], {cell for cell in wishes if cell}
    for (wanted, o), cell in zip(slots, wishes, strict=True):
        if cell is None or cell in {p.cell for p in placed}:
            cell = pick(rng, [c for c in CELLS if c not in taken])
            taken.add(cell)
        placed.append(Object(o.colour if o else wanted.colour or pick(rng, _COLOURS), wanted.shape, cell))
    return scene(*placed)


def _changed(
    rng: np.random.Generator, change: Change, before: Scene, sloppy: bool = True
) -> tuple[str, Scene] | None:
    """A thinking and a drawn scene for a change, each with a mistake at times; None where the plan cannot be said."""
    plan, new = complete(rng, pick(rng, goals(change, before)))
    stated = statement(change, before, new)
    if sloppy and rng.random() < SLOPPY_PLANS:
        mistaken = _mistaken(rng, change, before, plan, stated)
        if mistaken is None:
            return None
        stated, plan = mistaken
    thinking = plan_text(stated, plan)
    if not plan or len(thinking.split()) >= MAX_THINKING_TOKENS:
        return None
    return thinking, slip(rng, plan) if sloppy and rng.random() < SLOPPY_DRAWINGS else plan


def _mistaken(rng: np.random.Generator, change: Change, before: Scene, plan: Scene, stated: str) -> tuple[str, Scene] | None:
    """A statement and a plan that is not right; None where twenty draws gave none."""
    for _ in range(20):
        if rng.random() < 0.5:
            believed = misheard(rng, change, before)
            wrong, new = complete(rng, pick(rng, goals(believed, before)))
            said = pick(rng, (stated, statement(believed, before, new)))
        elif plan:
            wrong, said = slip(rng, plan), stated
        else:
            continue
        if wrong and not judge_change(Findings(wrong, ()), Findings(before, ()), change.metadata()).exact:
            return said, wrong
    return None


def misheard(rng: np.random.Generator, change: Change, before: Scene) -> Change:
    """A change that differs in one thing: the object, its new colour, the place or the number."""
    what, others = change.what, [o for o in before if not means(change.what, o)]
    if change.kind == "count":
        number = pick(rng, [n for n in (what.count - 1, what.count + 1) if n])
        return dataclasses.replace(change, what=dataclasses.replace(what, count=number))
    options = (["place"] if change.place else []) + (["colour"] if change.colour else [])
    options += ["kind"] if change.kind == "add" else ["object"] if others else []
    match pick(rng, options or ["kind"]):
        case "place":
            place = edit.some_place(rng, [Wanted(o.shape, o.colour) for o in others])
            return dataclasses.replace(change, place=place)
        case "colour":
            return dataclasses.replace(change, colour=other(rng, _COLOURS, change.colour))
        case "object":
            o = pick(rng, others)
            return dataclasses.replace(change, what=Wanted(o.shape, o.colour))
        case "kind":
            if what.colour and rng.random() < 0.5:
                return dataclasses.replace(change, what=dataclasses.replace(what, colour=other(rng, _COLOURS, what.colour)))
            return dataclasses.replace(change, what=dataclasses.replace(what, shape=other(rng, SHAPES, what.shape)))


def slip(rng: np.random.Generator, objects: Scene) -> Scene:
    """Another scene: one object missing, of another colour, or in another cell."""
    o = pick(rng, objects)
    rest = without(objects, o)
    match pick(rng, ("drop", "colour", "move")):
        case "drop":
            return rest
        case "colour":
            return scene(*rest, dataclasses.replace(o, colour=other(rng, _COLOURS, o.colour)))
        case "move":
            free = [cell for cell in CELLS if cell not in {p.cell for p in objects}]
            return scene(*rest, dataclasses.replace(o, cell=pick(rng, free)))


def _muddled(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The image with a cell, mostly that of an object, that is none: one between two colours, or halves of two objects."""
    objects = find_objects(image).objects
    cell = pick(rng, [*(o.cell for o in objects), pick(rng, CELLS)])
    fresh = Object(pick(rng, _COLOURS), pick(rng, SHAPES), cell)
    o = next((o for o in objects if o.cell == cell), fresh)
    between = rng.random() < 0.5
    shape = o.shape if between else other(rng, SHAPES, o.shape)
    one, two = render((o,)), render((Object(other(rng, _COLOURS, o.colour), shape, cell),))
    y, x, image = CELL * o.row, CELL * o.column, image.copy()
    if between:
        share = rng.uniform(0.35, 0.65)
        mixed = (share * one + (1 - share) * two).round().astype(np.uint8)
    else:
        mixed = np.concatenate([one[: y + CELL // 2], two[y + CELL // 2 :]])
    image[y : y + CELL, x : x + CELL] = mixed[y : y + CELL, x : x + CELL]
    return image
