"""The worlds of motion as the training loop sees them: `shapes_motion` and `shapes_animate`.

Scores of both are those of a verdict: `exact`, `graded`, `content`, `motion` and `smoothness`, and where a picture is given
`first_frame`.  The reward is the grade.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.motion import animate, prompts
from unigrpo_jax.worlds.motion.judge import ClipVerdict, judge_clips, scores
from unigrpo_jax.worlds.order import PromptOrder
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes.drawing import SIDE
from unigrpo_jax.worlds.shapes.world import drawn_world
from unigrpo_jax.worlds.world import Judgement, World


def shapes_motion() -> World:
    """Text to video, six categories in turn; the held-out prompts share neither text nor requirement with the train ones."""
    return listed_world(prompts.by_category("train"), prompts.held_out_prompts, judge_motion)


def shapes_animate() -> World:
    """Image to video, six categories in turn; the held-out prompts share no picture with its motions with the train ones."""
    return dataclasses.replace(drawn_world(animate.prompts, judge_animation), clips=True)


def judge_motion(batch: RewardBatch) -> Judgement:
    """Judges the clips by their prompts."""
    return judgement(judge_clips(batch.videos, batch.metadata))


def judge_animation(batch: RewardBatch) -> Judgement:
    """Judges the clips by their prompts and by the pictures that were given."""
    return judgement(animate.judge_animations(batch.videos, batch.metadata))


def motion_reward(batch: RewardBatch) -> dict[str, np.ndarray]:
    """The grade of each clip of `shapes_motion`, float32 [B], under the name `graded`."""
    return grades(judge_clips(batch.videos, batch.metadata))


def animation_reward(batch: RewardBatch) -> dict[str, np.ndarray]:
    """The same of `shapes_animate`."""
    return grades(animate.judge_animations(batch.videos, batch.metadata))


def listed_world(
    train: Mapping[str, Sequence[Prompt]],
    evaluation: Callable[[int], list[Prompt]],
    judge: Callable[[RewardBatch], Judgement],
    **more: float,
) -> World:
    """A world of clips whose prompts are fixed lists by category; `more` is what else there is to say of it."""
    groups = list(train.values())
    return World(
        train=lambda seed: PromptOrder(groups, seed),
        evaluation=evaluation,
        longest=[tuple(itertools.chain.from_iterable(groups))],
        judge=judge,
        side=SIDE,
        clips=True,
        **more,
    )


def judgement(verdicts: Sequence[ClipVerdict]) -> Judgement:
    """What B verdicts say, with their reasons and all their numbers."""
    correct = np.array([v.exact for v in verdicts], bool)
    return Judgement(correct=correct, verdicts=[v.reason for v in verdicts], scores=scores(verdicts))


def grades(verdicts: Sequence[ClipVerdict]) -> dict[str, np.ndarray]:
    """The grades of B verdicts, float32 [B], under the name `graded`."""
    return {"graded": np.array([v.graded for v in verdicts], np.float32)}
