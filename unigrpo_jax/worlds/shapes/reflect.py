"""The world `shapes_reflect`: draw, look at it, say what is wrong, draw again; two rounds, no later user text.

    text        show a blue square and a red circle
    thinking    blue square and red circle : red circle left , blue square center
    image       ...
    thinking    missing blue square and extra green square : red circle left , blue square center
    image       ...

Prompts and splits are those of `shapes`; nothing but the picture tells the model whether its first image was right.  The
thinking of the second round is a verdict on the picture seen, a colon, and the plan of the next one:

    right                     nothing is wrong
    FAULT [and FAULT]         one fault or two:
        missing [COLOUR] SHAPE    a wanted object is not there; with its colour exactly where the prompt names colours
        extra COLOUR SHAPE        an object is there that is not wanted
        unclear CELL              a cell holds something that is no object
        not RELATION              all else is right, and the relation does not hold

A wanted object is there where one of its shape and colour is; of n wanted and m found ones n - m are missing or m - n are
extra, of whichever colours where the colour is free.  A verdict is true where every fault that it names is there, each as
often as it is named, and it names all of them or two (an unclear cell need not be named beside another fault); `right`
is true where there is none.  The longest has 7 words, so that with a plan of four objects a thinking has 23.
"""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.shapes import world
from unigrpo_jax.worlds.shapes.change import means
from unigrpo_jax.worlds.shapes.checker import Findings
from unigrpo_jax.worlds.shapes.judge import holds, judge
from unigrpo_jax.worlds.shapes.requirement import Requirement, Wanted, from_metadata
from unigrpo_jax.worlds.shapes.scene import Object, Scene
from unigrpo_jax.worlds.shapes.supervised import PLACES
from unigrpo_jax.worlds.world import Judgement, World

ROUNDS = 2
MAX_FAULTS = 2
WORDS = ("missing", "extra", "unclear", "not")


@dataclasses.dataclass(frozen=True)
class Faults:
    """What is wrong with a picture.

    Attributes:
      missing: wanted kinds, of count 1, each as often as it is missing.
      extra: (how many are too many, the found objects that they may be) for each kind of which there are.
      unclear: cells.
      relation: the one that does not hold though all else is right; None where there is no such fault.
    """

    missing: tuple[Wanted, ...]
    extra: tuple[tuple[int, tuple[Object, ...]], ...]
    unclear: tuple[str, ...]
    relation: str | None

    def __len__(self) -> int:
        """How many faults there are; unclear cells count where there is nothing else."""
        return len(self.missing) + sum(n for n, _ in self.extra) + (self.relation is not None) or len(self.unclear)


def matched(objects: Scene, requirement: Requirement) -> list[tuple[Wanted, Object | None]]:
    """Each wanted object with a found one of its kind or None; of a relation those of which most can stay where they are."""
    wanted = [Wanted(kind.shape, kind.colour) for kind in requirement.objects for _ in range(kind.count)]
    left, slots = list(objects), []
    if requirement.relation:
        first, second = ([o for o in objects if means(kind, o)] for kind in wanted[:2])
        pairs = [(a, b) for a in first or [None] for b in [o for o in second if o != a] or [None]]
        best = max(pairs, key=lambda pair: max(staying(pair, cells) for cells in PLACES[requirement.relation]))
        slots = list(zip(wanted, best, strict=False))
        left = [o for o in left if o not in best]
    for kind in wanted[len(slots) :]:
        o = next((o for o in left if means(kind, o)), None)
        if o is not None:
            left.remove(o)
        slots.append((kind, o))
    return slots


def staying(objects: Sequence[Object | None], cells: Sequence[str]) -> int:
    """How many of the objects stand in their cell already."""
    return sum(o is not None and o.cell == cell for o, cell in zip(objects, cells, strict=True))


def find_faults(found: Findings, requirement: Requirement) -> Faults:
    """What is wrong with what a picture shows; of objects of a kind, those that may best stay come first."""
    slots = matched(found.objects, requirement)
    missing, stay = [kind for kind, o in slots if o is None], [o for _, o in slots if o is not None]
    extra = [o for o in found.objects if o not in stay]
    groups = {}
    for o in extra:
        kind = next((kind for kind, _ in slots if means(kind, o)), None)
        groups.setdefault(kind or o, []).append(o)
    of_kind = lambda kind: [o for o in stay if isinstance(kind, Wanted) and means(kind, o)]
    options = [(len(some), (*of_kind(kind), *some)) for kind, some in groups.items()]
    relation = None if missing or extra or found.unclear else requirement.relation
    if relation and holds(slots[0][1], relation, slots[1][1]):
        relation = None
    return Faults(tuple(missing), tuple(options), found.unclear, relation)


def verdict_text(faults: Faults) -> str:
    """The verdict that names the first faults: missing and extra ones in turn, then unclear cells; `right` for none."""
    missing = ["missing " + " ".join(filter(None, (kind.colour, kind.shape))) for kind in faults.missing]
    extra = [f"extra {o.colour} {o.shape}" for n, objects in faults.extra for o in objects[-n:]]
    named = [fault for pair in itertools.zip_longest(missing, extra) for fault in pair if fault]
    named += [f"unclear {cell}" for cell in faults.unclear]
    named += [f"not {faults.relation}"] if faults.relation else []
    return " and ".join(named[:MAX_FAULTS]) or "right"


def is_true(verdict: str, faults: Faults) -> bool:
    """Whether a verdict, the words before the colon, says what is wrong by the rules above."""
    named = [tuple(fault.split()) for fault in verdict.split(" and ")]
    if named == [("right",)]:
        return not len(faults)
    if not min(len(faults), MAX_FAULTS) <= len(named) <= MAX_FAULTS:
        return False
    return all(_are_there(word, [fault[1:] for fault in named if fault[:1] == (word,)], faults) for word in WORDS) and all(
        fault[:1] in {(word,) for word in WORDS} for fault in named
    )


def _are_there(word: str, named: Sequence[tuple[str, ...]], faults: Faults) -> bool:
    """Whether faults of one sort are there, each as often as it is named."""
    if word == "extra":
        counts = collections.Counter(named)
        for n, objects in faults.extra:
            left = n
            for kind, many in collections.Counter((o.colour, o.shape) for o in objects).items():
                taken = min(counts[kind], many, left)
                counts[kind] -= taken
                left -= taken
        return not any(counts.values())
    there = {
        "missing": [tuple(filter(None, (kind.colour, kind.shape))) for kind in faults.missing],
        "unclear": [(cell,) for cell in faults.unclear],
        "not": [tuple(faults.relation.split())] if faults.relation else [],
    }[word]
    return not collections.Counter(named) - collections.Counter(there)


def judge_verdict(thinking: str, before: Findings | None, metadata: Mapping[str, Any]) -> bool | None:
    """Whether the words before the first colon say truly what is wrong with the picture seen; None where none was seen."""
    if before is None:
        return None
    words = thinking.split()
    if ":" not in words:
        return False
    return is_true(" ".join(words[: words.index(":")]), find_faults(before, from_metadata(metadata)))


def says_right(thinking: str) -> bool:
    """Whether a thinking finds nothing wrong with the picture seen."""
    return thinking.split()[:2] == ["right", ":"]


def judge_episodes(batch: RewardBatch) -> Judgement:
    """The scores of `shapes` for one round, and `verdict_right`, NaN where no picture was seen (`batch.before`).

    `seen_right`, was the picture seen right, and NaN likewise, is there to compare with: what it is, `verdict_right` of
    a model that says `right` to everything would be.  `caught` is `verdict_right` where the picture seen was wrong; `kept`
    and `mended` are `exact` where it was right and where it was wrong; NaN elsewhere.  `thinking_right` says of right
    images whether all of their thinking was right, plan and verdict, and is NaN for wrong ones.
    """
    judged = world.judge_episodes(batch)
    before = world.findings_before(batch)
    rows = list(zip(batch.thinking, before, batch.metadata, strict=True))
    number = lambda value: np.nan if value is None else float(value)
    verdict = np.array([number(judge_verdict(*row)) for row in rows])
    seen = np.array([number(None if b is None else judge(b, m).exact) for _, b, m in rows])
    exact, plan = judged.scores["exact"], judged.scores["plan_exact"]
    more = {
        "verdict_right": verdict,
        "seen_right": seen,
        "caught": np.where(seen == 0, verdict, np.nan),
        "kept": np.where(seen == 1, exact, np.nan),
        "mended": np.where(seen == 0, exact, np.nan),
        "thinking_right": np.where(exact == 1, plan * np.where(np.isnan(verdict), 1.0, verdict), np.nan),
    }
    return dataclasses.replace(judged, scores={**judged.scores, **more})


def shapes_reflect() -> World:
    """The prompts of `shapes`, the same for both rounds; the reward is `shapes`, too."""
    return dataclasses.replace(world.shapes(), judge=judge_episodes)
