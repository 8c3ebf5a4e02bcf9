"""The world `shapes_story`: a picture made in three rounds; the user speaks in each, and each builds on the picture so far.

    text        a red circle and a square           thinking    red circle and square : red circle top , blue square left
    turn        now make it green                   thinking    make blue square green : red circle top , green square left
    turn        remove the circle                   thinking    remove red circle : green square left

The first text is a prompt of `shapes` for one or two objects.  A later turn is a change (`change`) and is judged against
what the picture before it really showed, whatever was asked for: a red square stays red unless the turn says otherwise.
`it` is the object that the turn before added, recoloured or moved, or the first picture's only one; the facts name it by
its shape, with its colour where another object of that shape was asked for.  Where the picture before lacks what a turn
refers to, holds several of it, or is already as asked, `change` says what is right: of a removal, the picture as it
was; else the object as the turn wants it, beside all that was there.  Stories never
ask for more than four objects, for an empty picture, or for the same place twice.

Since a removal from a picture that lacks the object is done by doing nothing, and an early fault is not judged again later,
a story is to be rewarded by all of its rounds, not by its last picture alone.

Stories are made without end: position i of seed s is a function of (s, i) alone, and its last turn is a change of kind
i mod 5 of `change.KINDS`, which is its category.  The held-out part differs in every round: its first texts are held-out
prompts of `shapes`, and the key of every change is a held-out one (`change.is_held_out`); of the training stories, neither.

Metadata: `category`, `indirect` (of any text), `turns`, `rounds` (per round the facts `requirement` and `change`, of which
one is None), `key` (the requirements of all rounds).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.order import Drawn
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes.change import KINDS, Change, Place, is_held_out
from unigrpo_jax.worlds.shapes.change_judge import judge_change, judge_changed_plan
from unigrpo_jax.worlds.shapes.change_wording import Reference, descriptions, names, wordings
from unigrpo_jax.worlds.shapes.checker import Findings, find_objects_batch
from unigrpo_jax.worlds.shapes.edit import some_place, worded
from unigrpo_jax.worlds.shapes.judge import Verdict, drawing_follows_plan, judge, judge_plan
from unigrpo_jax.worlds.shapes.prompts import by_category
from unigrpo_jax.worlds.shapes.requirement import Wanted, from_metadata
from unigrpo_jax.worlds.shapes.scene import COLOURS, MAX_OBJECTS, SHAPES
from unigrpo_jax.worlds.shapes.supervised import other, pick
from unigrpo_jax.worlds.shapes.world import SPLITS, drawn_prompts, drawn_world, findings_before, told_apart
from unigrpo_jax.worlds.world import Judgement, World

ROUNDS = 3
BEGINNINGS = ("single_object", "two_object", "colors", "color_attr")
PRONOUN_SHARE = 0.5
_COLOURS = tuple(COLOURS)

# What has been asked to be in the picture, colours None where free, and the number of the object that `it` would be.
_State = tuple[list[Wanted], int | None]


def draw(rng: np.random.Generator, kind: str, split: str) -> Prompt:
    """A story of "train" or "held_out" whose last turn is a change of one kind."""
    if split not in SPLITS:
        raise ValueError(f'shapes stories: no split "{split}"; there are "train" and "held_out"')
    while True:
        first = pick(rng, by_category(split)[pick(rng, BEGINNINGS)])
        kinds = list(from_metadata(first.metadata).objects)
        state: _State | None = (kinds, 0 if len(kinds) == 1 else None)
        asked = []
        for wanted in (pick(rng, KINDS), kind):
            turn = _turn(rng, wanted, split, *state)
            if turn is None:
                break
            change, state, text, indirect = turn
            asked.append((change, text, indirect))
        places = [change.place for change, _, _ in asked if change.place]
        if len(asked) == ROUNDS - 1 and len(places) == len(set(places)):
            return _prompt(kind, first, asked)


def _prompt(kind: str, first: Prompt, asked: list[tuple[Change, str, bool]]) -> Prompt:
    rounds = [{"requirement": dict(first.metadata), "change": None}]
    rounds += [{"requirement": None, "change": change.metadata()} for change, _, _ in asked]
    facts = {
        "category": kind,
        "indirect": first.metadata["indirect"] or any(indirect for _, _, indirect in asked),
        "turns": [text for _, text, _ in asked],
        "rounds": rounds,
        "key": " then ".join([first.metadata["key"], *(change.key() for change, _, _ in asked)]),
    }
    return Prompt(text=first.text, metadata=facts)


def _turn(rng: np.random.Generator, kind: str, split: str, kinds: list[Wanted], it: int | None):
    """A change of one kind, the state after it, its text and whether that is indirect; None after 60 impossible draws."""
    for _ in range(60):
        drawn = _asked(rng, kind, kinds, it)
        if drawn is not None and is_held_out(drawn[0]) == (split == "held_out"):
            change, state, what, of = drawn
            return change, state, *worded(rng, list(wordings(change, what, of)))
    return None


def _asked(rng: np.random.Generator, kind: str, kinds: list[Wanted], it: int | None):
    """A change, the state after it, and the phrases for its object and for that of its place; None for a bad draw."""
    if kind == "count":
        return _count(rng, kinds)
    if kind == "add":
        if len(kinds) == MAX_OBJECTS:
            return None
        added = Wanted(pick(rng, SHAPES), pick(rng, (*_COLOURS, None, None)))
        place, of = _place(rng, kinds) if rng.random() < 0.5 else (None, ())
        return Change(kind, added, place=place), ([*kinds, added], len(kinds)), (), of
    i = int(rng.random() * len(kinds))
    before, after = kinds[:i], kinds[i + 1 :]
    enough = descriptions(kinds[i], before + after)
    if not enough or (kind == "remove" and len(kinds) == 1):
        return None
    if it == i and rng.random() < PRONOUN_SHARE:
        meant, phrases = enough[0], [("it", False)]
    else:
        meant = pick(rng, enough)
        phrases = list(names(meant))
    match kind:
        case "remove":
            return Change(kind, meant), (before + after, None), phrases, ()
        case "recolour":
            colour = other(rng, _COLOURS, kinds[i].colour)
            return Change(kind, meant, colour), ([*before, Wanted(kinds[i].shape, colour), *after], i), phrases, ()
        case "move":
            place, of = _place(rng, before + after)
            return Change(kind, meant, place=place), (kinds, i), phrases, of


def _place(rng: np.random.Generator, others: list[Wanted]) -> tuple[Place, list[Reference]]:
    """A place, perhaps in relation to one of the others, and the phrases for that one."""
    known = [descriptions(kind, others[:i] + others[i + 1 :]) for i, kind in enumerate(others)]
    place = some_place(rng, [pick(rng, enough) for enough in known if enough])
    return place, list(names(place.of)) if place.of else []


def _count(rng: np.random.Generator, kinds: list[Wanted]):
    """The same for a count of one of the shapes asked for, perhaps of one colour where all their colours are known."""
    one = pick(rng, kinds)
    alike = [kind for kind in kinds if kind.shape == one.shape]
    colour = pick(rng, (None, one.colour)) if all(kind.colour for kind in alike) else None
    there = sum(colour in (None, kind.colour) for kind in alike)
    room = MAX_OBJECTS - len(kinds)
    if not room:
        return None
    more = 1 + int(rng.random() * room)
    state = [*kinds, *[Wanted(one.shape, colour)] * more], None
    return Change("count", Wanted(one.shape, colour, there + more)), state, (), ()


def judge_story(found: Findings, before: Findings | None, metadata: Mapping[str, Any]) -> Verdict:
    """Judges the image of one round.

    Args:
      found: what it shows.
      before: what the image before it shows; None in the first round.
      metadata: the facts of the round, as `Prompt.at` gives them.

    Raises:
      ValueError: a later round without the image before.
    """
    if metadata["change"] is None:
        return judge(found, metadata["requirement"])
    return judge_change(found, _known(before), metadata["change"])


def judge_story_plan(text: str, before: Findings | None, metadata: Mapping[str, Any]) -> Verdict:
    """The same judgement on the scene that a thinking plans; a plan that does not parse gets 0."""
    if metadata["change"] is None:
        return judge_plan(text, metadata["requirement"])
    return judge_changed_plan(text, _known(before), metadata["change"])


def _known(before: Findings | None) -> Findings:
    if before is None:
        raise ValueError("shapes_story: a later round is judged against the image before it, and `before` is None")
    return before


def judge_episodes(batch: RewardBatch) -> Judgement:
    """The scores of `shapes` for one round, the later ones against `batch.before`; ValueError without it."""
    found, before = find_objects_batch(batch.images), findings_before(batch)
    rows = list(zip(found, before, batch.metadata, batch.thinking, strict=True))
    return told_apart(
        [judge_story(f, b, m) for f, b, m, _ in rows],
        [judge_story_plan(t, b, m) for _, b, m, t in rows],
        [drawing_follows_plan(f, t) for f, _, _, t in rows],
    )


def reward(batch: RewardBatch) -> dict[str, np.ndarray]:
    """The grade of each image, float32 [B], under the name `graded`; the thinking is not read."""
    found, before = find_objects_batch(batch.images), findings_before(batch)
    grades = [judge_story(*row).graded for row in zip(found, before, batch.metadata, strict=True)]
    return {"graded": np.array(grades, np.float32)}


def prompts(seed: int, split: str) -> Drawn:
    """All stories of a part by position, the kinds of their last turns in turn."""
    return drawn_prompts(lambda rng, group, split: draw(rng, KINDS[group], split), len(KINDS), seed, split)


def shapes_story() -> World:
    """Stories of three rounds; the held-out ones share no round's requirement with the training ones."""
    return drawn_world(prompts, judge_episodes)
