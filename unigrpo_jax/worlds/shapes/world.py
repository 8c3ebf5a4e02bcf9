"""The shapes world as the training loop sees it."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.order import Drawn, Order, PromptOrder
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes import prompts
from unigrpo_jax.worlds.shapes.checker import Findings, find_objects_batch
from unigrpo_jax.worlds.shapes.drawing import SIDE
from unigrpo_jax.worlds.shapes.judge import Verdict, drawing_follows_plan, judge, judge_images, judge_plan
from unigrpo_jax.worlds.world import Judgement, World

SPLITS = ("train", "held_out")
VALIDATION = len(SPLITS)  # the stream of prompts to choose by, which are made as those to train on are
LOOKED_AT = 500  # prompts of a world without end whose length is checked before a run

def judge_episodes(batch: RewardBatch) -> Judgement:
    """Judges the images by rule, and tells apart the two ways to fail.

    Scores: `exact` and `graded` of the image; `plan_exact`, is the thinking right; `drawing_follows_plan`, does the
    image show what the thinking says, NaN where the thinking is no plan; `exact_given_plan`, is the image right, NaN where
    the thinking is not.
    """
    found = find_objects_batch(batch.images)
    return told_apart(
        [judge(f, m) for f, m in zip(found, batch.metadata, strict=True)],
        [judge_plan(t, m) for t, m in zip(batch.thinking, batch.metadata, strict=True)],
        [drawing_follows_plan(f, t) for f, t in zip(found, batch.thinking, strict=True)],
    )


def judge_drawings(batch: RewardBatch) -> Judgement:
    """Judges the images alone: `exact` and `graded`."""
    verdicts = judge_images(batch.images, batch.metadata)
    exact, graded = (np.array([getattr(v, name) for v in verdicts], np.float64) for name in ("exact", "graded"))
    return Judgement(correct=exact > 0, verdicts=[v.reason for v in verdicts], scores={"exact": exact, "graded": graded})


def told_apart(images: Sequence[Verdict], plans: Sequence[Verdict], follows: Sequence[bool | None]) -> Judgement:
    """The scores above from verdicts on B images and on their plans, and from whether each image follows its plan."""
    exact, right = np.array([v.exact for v in images], bool), np.array([p.exact for p in plans], bool)
    return Judgement(
        correct=exact,
        verdicts=[v.reason for v in images],
        scores={
            "exact": exact.astype(np.float64),
            "graded": np.array([v.graded for v in images], np.float64),
            "plan_exact": right.astype(np.float64),
            "drawing_follows_plan": np.array([np.nan if f is None else float(f) for f in follows]),
            "exact_given_plan": np.where(right, exact, np.nan),
        },
    )


def findings_before(batch: RewardBatch) -> list[Findings | None]:
    """What the image shows that each episode's round began from; None where it began from none."""
    return [None] * len(batch.prompts) if batch.before is None else list(find_objects_batch(batch.before))


def drawn_prompts(draw: Callable[[np.random.Generator, int, str], Prompt], groups: int, seed: int, split: str) -> Drawn:
    """Prompts without end of "train", "held_out" or "validation"; `draw` makes one of a generator, a group and a part.

    Those to validate on are made as the training ones are, from other random numbers.
    """
    part, stream = ("train", VALIDATION) if split == "validation" else (split, SPLITS.index(split))
    return Drawn(lambda rng, group: draw(rng, group, part), groups, seed, stream)


def drawn_world(prompts: Callable[[int, str], Order], judge: Callable[[RewardBatch], Judgement]) -> World:
    """A world whose prompts are made one by one, by seed and part; the held-out ones are always the same."""
    evaluation, validation = prompts(0, "held_out"), prompts(0, "validation")
    return World(
        train=lambda seed: prompts(seed, "train"),
        evaluation=lambda n: evaluation.batch(0, n),
        validation=lambda n: validation.batch(0, n),
        longest=[prompts(0, "train").batch(0, LOOKED_AT)],
        judge=judge,
        side=SIDE,
    )


def shapes() -> World:
    """Prompts in GenEval's six categories; the held-out ones share neither text nor requirement with the train ones."""
    return _world(prompts.by_category, judge_episodes)


def shapes_direct() -> World:
    """The prompts of `shapes` that say what is to be seen, for models that do not think."""
    return _world(prompts.direct, judge_drawings)


def _world(of: Callable[[str], Mapping[str, Sequence[Prompt]]], judge: Callable[[RewardBatch], Judgement]) -> World:
    train = list(of("train").values())
    return World(
        train=lambda seed: PromptOrder(train, seed),
        evaluation=lambda n: prompts.evaluation_prompts(n, of=of),
        validation=lambda n: prompts.evaluation_prompts(n, "validation", of),
        longest=[tuple(itertools.chain.from_iterable(train))],
        judge=judge,
        side=SIDE,
    )
