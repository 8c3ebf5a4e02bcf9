"""The prompts of the shapes world: GenEval's six categories; a train, a held-out and a validation part, each a fixed list.

The parts differ in what is required, not only in the words.  In every category the `HELD_OUT_SHARE` of requirements
with the smallest SHA-256 is held out; a requirement that two categories share (one red circle, as a colour and as a
count) is on the same side in both.  Of all wordings a category keeps at most `TEXTS`, spread evenly over its
requirements, direct and indirect in turn, so that the start of each category's list is varied and the categories do not
differ too much in length.

Choices are made on the validation part, so that the held-out part stays unseen by them.  It asks for what the training part
asks for, in those words that come next in the training part's order and were left out there; a category that has used up
its words is filled up with training prompts from their start.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes.requirement import CATEGORIES, OPPOSITE, Requirement, Wanted
from unigrpo_jax.worlds.shapes.scene import COLOURS, MAX_OBJECTS, SHAPES
from unigrpo_jax.worlds.shapes.wording import FRAMES, wordings

HELD_OUT_SHARE = 0.15
TEXTS = {"train": 600, "held_out": 120, "validation": 120}
MAX_PROMPT_WORDS = 14


@functools.cache
def prompts(split: str) -> tuple[Prompt, ...]:
    """All prompts of "train", "held_out" or "validation", category after category."""
    return tuple(itertools.chain.from_iterable(by_category(split).values()))


@functools.cache
def by_category(split: str) -> dict[str, tuple[Prompt, ...]]:
    """The prompts of a split under the name of their category."""
    if split not in TEXTS:
        raise ValueError(f'shapes prompts: no split "{split}"; there are "train", "held_out" and "validation"')
    held_out = _held_out_facts()
    chosen = {}
    for category in CATEGORIES:
        members = [r for r in _requirements(category) if (r.facts() in held_out) == (split == "held_out")]
        members.sort(key=lambda r: digest(r.statement()))
        queues = [_texts(requirement) for requirement in members]
        in_turn = (p for turn in itertools.zip_longest(*queues) for p in turn if p is not None)
        if split == "validation":
            trained = tuple(itertools.islice(in_turn, TEXTS["train"]))
            chosen[category] = (*itertools.islice(in_turn, TEXTS[split]), *trained)[: TEXTS[split]]
        else:
            chosen[category] = tuple(itertools.islice(in_turn, TEXTS[split]))
    return chosen


@functools.cache
def direct(split: str) -> dict[str, tuple[Prompt, ...]]:
    """Those prompts of each category that say what is to be seen, so that nothing must be worked out first.

    Where no such words are left to validate on, they are training prompts.
    """
    plain = lambda members: tuple(p for p in members if not p.metadata["indirect"])
    return {name: plain(members) or plain(by_category("train")[name]) for name, members in by_category(split).items()}


def evaluation_prompts(
    n: int, split: str = "held_out", of: Callable[[str], Mapping[str, Sequence[Prompt]]] = by_category
) -> list[Prompt]:
    """The first n of a fixed order: the categories in turn; a text comes again only after all of its category.

    `of` is `by_category` or `direct`.
    """
    cycles = [itertools.cycle(members) for members in of(split).values()]
    return [next(cycles[i % len(cycles)]) for i in range(n)]


def _texts(requirement: Requirement) -> Iterator[Prompt]:
    """The prompts of a requirement, direct and indirect in turn, each kind in an order fixed by hashes."""
    kinds: dict[bool, list[str]] = {False: [], True: []}
    for text, indirect in sorted(wordings(requirement), key=lambda wording: digest(wording[0])):
        kinds[indirect].append(text)
    first = digest(requirement.statement())[-1] % 2 == 1
    queues = [_framed(kinds[indirect]) for indirect in (first, not first)]
    for turn in itertools.zip_longest(*queues):
        for text, indirect in zip(turn, (first, not first), strict=True):
            if text is not None:
                yield Prompt(text=text, metadata=requirement.metadata(indirect=indirect))


def _framed(texts: list[str]) -> Iterator[str]:
    """Every text in every frame that leaves it short enough; every text once before any comes again."""
    for turn in range(len(FRAMES)):
        for text in texts:
            framed = FRAMES[(digest(text)[-1] + turn) % len(FRAMES)].format(text)
            if len(framed.split()) <= MAX_PROMPT_WORDS:
                yield framed


def digest(text: str) -> bytes:
    """What orders texts and decides what is held out: their SHA-256."""
    return hashlib.sha256(text.encode()).digest()


def _requirements(category: str) -> Iterable[Requirement]:
    """Every requirement of a category; of two objects in both orders."""
    pairs = list(itertools.permutations(SHAPES, 2))
    match category:
        case "single_object":
            groups = [((Wanted(shape),), None) for shape in SHAPES]
        case "colors":
            groups = [((Wanted(shape, colour),), None) for shape in SHAPES for colour in COLOURS]
        case "counting":
            kinds = itertools.product(SHAPES, (None, *COLOURS), range(1, MAX_OBJECTS + 1))
            groups = [((Wanted(*kind),), None) for kind in kinds]
        case "two_object":
            groups = [((Wanted(a), Wanted(b)), None) for a, b in pairs]
        case "position":
            groups = [((Wanted(a), Wanted(b)), relation) for a, b in pairs for relation in OPPOSITE]
        case "color_attr":
            colours = list(itertools.permutations(COLOURS, 2))
            groups = [((Wanted(a, x), Wanted(b, y)), None) for a, b in pairs for x, y in colours]
    return [Requirement(category, objects, relation) for objects, relation in groups]


@functools.cache
def _held_out_facts() -> frozenset[str]:
    """What is held out.  Counting comes last: its counts of one are single objects, decided already."""
    decided, held_out = set(), set()
    for category in sorted(CATEGORIES, key=lambda name: name == "counting"):
        facts = {r.facts() for r in _requirements(category)} - decided
        held_out |= set(sorted(facts, key=digest)[: math.ceil(HELD_OUT_SHARE * len(facts))])
        decided |= facts
    return frozenset(held_out)
