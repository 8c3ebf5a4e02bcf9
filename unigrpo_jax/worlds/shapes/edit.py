"""The world `shapes_edit`: a picture and an instruction to change it; one round.

    picture     red circle top-left , blue square right      read before the text; `picture(metadata)` draws it
    text        make the tomato coloured shape green
    thinking    make red circle green : green circle top-left , blue square right
    image       the whole picture after the change

Prompts are made without end: position i of seed s is a function of (s, i) alone, and asks for kind i mod 5 of
`change.KINDS`.  A scene has two to four objects before and after, and the instruction means exactly one thing in it.

The held-out part differs in what is required: a change's key, such as `recolour: 1 red circle to green`, `count: 3 any
circle` or `move: 1 blue cross at left of red square`, names kind, object, number, new colour and place, whatever the words
and the scene; by its hash it belongs to one part (`change.is_held_out`).  A text and a scene together have one key, so
that no pair of them is in both parts either.

Metadata: `category` (the kind), `indirect`, `scene` (the picture before, as the objects of a plan), `change`
(`Change.metadata()`) and `key`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.order import Drawn
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes.change import KINDS, SIDES, SPOTS, Change, Place, cells, free_cells, is_held_out, without
from unigrpo_jax.worlds.shapes.change_judge import judge_change, judge_changed_plan
from unigrpo_jax.worlds.shapes.change_wording import CHANGE_FRAMES, Reference, kind_references, references, wordings
from unigrpo_jax.worlds.shapes.checker import Findings, find_objects_batch
from unigrpo_jax.worlds.shapes.drawing import render
from unigrpo_jax.worlds.shapes.judge import Verdict, drawing_follows_plan
from unigrpo_jax.worlds.shapes.prompts import MAX_PROMPT_WORDS
from unigrpo_jax.worlds.shapes.requirement import OPPOSITE, Wanted
from unigrpo_jax.worlds.shapes.scene import (
    CELLS,
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    Object,
    Scene,
    objects_text,
    parse_plan,
    scene,
)
from unigrpo_jax.worlds.shapes.supervised import other, pick
from unigrpo_jax.worlds.shapes.world import SPLITS, drawn_prompts, drawn_world, told_apart
from unigrpo_jax.worlds.world import Judgement, World

ROUNDS = 1
INDIRECT_SHARE = 0.6
_COLOURS = tuple(COLOURS)


def draw(rng: np.random.Generator, kind: str, split: str) -> Prompt:
    """A prompt of "train" or "held_out" that asks for one kind of change."""
    if split not in SPLITS:
        raise ValueError(f'shapes edits: no split "{split}"; there are "train" and "held_out"')
    while True:
        case = _case(rng, kind)
        if case is None or is_held_out(case[1]) != (split == "held_out"):
            continue
        before, change, target, mark = case
        kinds = [Wanted(o.shape, o.colour) for o in before]
        what = references(target, without(before, target)) if target else ()
        of = kind_references(mark, [k for k in kinds if k != mark]) if mark else ()
        there = sum(o.shape == change.what.shape and change.what.colour in (None, o.colour) for o in before)
        text, indirect = worded(rng, list(wordings(change, what, of, there)))
        facts = {"category": kind, "indirect": indirect, "scene": objects_text(before)}
        facts |= {"change": change.metadata(), "key": change.key()}
        return Prompt(text=text, metadata=facts, picture=_Shown(facts["scene"]))


def worded(rng: np.random.Generator, ways: list[Reference]) -> Reference:
    """One of the wordings that is short enough, in a frame; indirect with probability `INDIRECT_SHARE` where both exist."""
    short = [way for way in ways if len(way[0].split()) <= MAX_PROMPT_WORDS]
    wanted = rng.random() < INDIRECT_SHARE
    text, indirect = pick(rng, [way for way in short if way[1] == wanted] or short)
    frames = [f for f in CHANGE_FRAMES if len(f.split()) - 1 + len(text.split()) <= MAX_PROMPT_WORDS]
    return pick(rng, frames).format(text), indirect


def some_place(rng: np.random.Generator, marks: list[Wanted]) -> Place:
    """A spot, a side, or a relation to one of the marks, each with the same probability."""
    group = pick(rng, ("spot", "side", "relation") if marks else ("spot", "side"))
    if group == "relation":
        return Place(pick(rng, tuple(OPPOSITE)), pick(rng, marks))
    return Place(pick(rng, SPOTS if group == "spot" else SIDES))


def _case(rng: np.random.Generator, kind: str) -> tuple[Scene, Change, Object | None, Wanted | None] | None:
    """A random scene, a change of it, the object that is meant, and the kind that a place refers to; None for a bad draw."""
    if kind == "count":
        return _count(rng)
    before = _scene(rng, 2 + int(rng.random() * (MAX_OBJECTS - 2 if kind == "add" else MAX_OBJECTS - 1)))
    target = pick(rng, before)
    what = Wanted(target.shape, target.colour)
    rest = without(before, target)
    if kind == "recolour":
        return before, Change(kind, what, other(rng, _COLOURS, target.colour)), target, None
    if kind == "remove":
        return before, Change(kind, what), target, None
    if kind == "add":
        what, rest, target = Wanted(pick(rng, SHAPES), pick(rng, (*_COLOURS, None, None))), before, None
    place = some_place(rng, [Wanted(o.shape, o.colour) for o in rest]) if target or rng.random() < 0.5 else None
    allowed = cells(place, rest)
    if not allowed & free_cells(None, before) or (target and target.cell in allowed):
        return None
    return before, Change(kind, what, place=place), target, place and place.of


def _count(rng: np.random.Generator) -> tuple[Scene, Change, None, None] | None:
    """The same for a count: objects of one shape, perhaps of one colour, and others, of which some are to become more."""
    shape, colour = pick(rng, SHAPES), pick(rng, (*_COLOURS, *(None,) * len(_COLOURS)))
    number = 2 + int(rng.random() * (MAX_OBJECTS - 1))
    there = 1 + int(rng.random() * (number - 1))
    others = int(rng.random() * (MAX_OBJECTS - number + 1))
    if there + others < 2:
        return None
    kinds = [(colour or pick(rng, _COLOURS), shape) for _ in range(there)]
    kinds += [(pick(rng, _COLOURS), pick(rng, SHAPES)) for _ in range(others)]
    if sum(s == shape and colour in (None, c) for c, s in kinds) > there:
        return None
    where = rng.permutation(len(CELLS))
    before = scene(*(Object(c, s, CELLS[i]) for (c, s), i in zip(kinds, where, strict=False)))
    return before, Change("count", Wanted(shape, colour, number)), None, None


def _scene(rng: np.random.Generator, n: int) -> Scene:
    """n objects of different kinds in random cells."""
    kinds = rng.choice(len(SHAPES) * len(_COLOURS), n, replace=False)
    where = rng.permutation(len(CELLS))[:n]
    named = [(_COLOURS[k // len(SHAPES)], SHAPES[k % len(SHAPES)]) for k in kinds]
    return scene(*(Object(*kind, CELLS[i]) for kind, i in zip(named, where, strict=True)))


def given_scene(metadata: Mapping[str, Any]) -> Scene:
    """The scene of the picture that a prompt is about."""
    return parse_plan(f": {metadata['scene']}")


@dataclasses.dataclass(frozen=True)
class _Shown:
    """The picture of a prompt; equal where the scenes, as texts, are."""

    scene: str

    def __call__(self) -> np.ndarray:
        return picture({"scene": self.scene})


def picture(metadata: Mapping[str, Any]) -> np.ndarray:
    """The picture that a prompt is about, uint8 [24, 24, 3]."""
    return render(given_scene(metadata))


def judge_edit(found: Findings, metadata: Mapping[str, Any]) -> Verdict:
    """Judges an image by `change_judge.judge_change` against the scene of the picture that was given."""
    return judge_change(found, Findings(given_scene(metadata), ()), metadata["change"])


def judge_episodes(batch: RewardBatch) -> Judgement:
    """The scores of `shapes`, with exact and graded as in `change_judge`: the change, and all else as it was."""
    rows = list(zip(find_objects_batch(batch.images), batch.metadata, batch.thinking, strict=True))
    return told_apart(
        [judge_edit(f, m) for f, m, _ in rows],
        [judge_changed_plan(t, Findings(given_scene(m), ()), m["change"]) for _, m, t in rows],
        [drawing_follows_plan(f, t) for f, _, t in rows],
    )


def reward(batch: RewardBatch) -> dict[str, np.ndarray]:
    """The grade of each image, float32 [B], under the name `graded`; the thinking is not read."""
    found = find_objects_batch(batch.images)
    grades = [judge_edit(f, facts).graded for f, facts in zip(found, batch.metadata, strict=True)]
    return {"graded": np.array(grades, np.float32)}


def prompts(seed: int, split: str) -> Drawn:
    """All prompts of a part by position, the kinds in turn."""
    return drawn_prompts(lambda rng, group, split: draw(rng, KINDS[group], split), len(KINDS), seed, split)


def shapes_edit() -> World:
    """Instructions of five kinds in turn; the held-out ones share neither text and picture nor required change."""
    return drawn_world(prompts, judge_episodes)
