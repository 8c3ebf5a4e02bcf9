"""The shapes world as the training loop sees it."""

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.order import PromptOrder
from unigrpo_jax.worlds.shapes import prompts
from unigrpo_jax.worlds.shapes.checker import find_objects_batch
from unigrpo_jax.worlds.shapes.judge import drawing_follows_plan, judge, judge_plan
from unigrpo_jax.worlds.world import Judgement, World


def judge_episodes(batch: RewardBatch) -> Judgement:
    """Judges the images by rule, and tells apart the two ways to fail.

    Scores: `exact` and `graded` of the image; `plan_exact`, is the thinking right; `drawing_follows_plan`, does the
    image show what the thinking says, NaN where the thinking is no plan; `exact_given_plan`, is the image right, NaN where
    the thinking is not.
    """
    found = find_objects_batch(batch.images)
    verdicts = [judge(f, m) for f, m in zip(found, batch.metadata, strict=True)]
    plans = [judge_plan(t, m) for t, m in zip(batch.thinking, batch.metadata, strict=True)]
    follows = [drawing_follows_plan(f, t) for f, t in zip(found, batch.thinking, strict=True)]
    exact = np.array([v.exact for v in verdicts])
    right = np.array([p.exact for p in plans])
    return Judgement(
        correct=exact,
        verdicts=[v.reason for v in verdicts],
        scores={
            "exact": exact.astype(np.float64),
            "graded": np.array([v.graded for v in verdicts]),
            "plan_exact": right.astype(np.float64),
            "drawing_follows_plan": np.array([np.nan if f is None else float(f) for f in follows]),
            "exact_given_plan": np.where(right, exact, np.nan),
        },
    )


def shapes() -> World:
    """Prompts in GenEval's six categories; the held-out ones share neither text nor requirement with the train ones."""
    groups = list(prompts.by_category("train").values())
    return World(
        train=lambda seed: PromptOrder(groups, seed),
        evaluation=prompts.evaluation_prompts,
        longest=[prompts.prompts("train")],
        judge=judge_episodes,
    )
