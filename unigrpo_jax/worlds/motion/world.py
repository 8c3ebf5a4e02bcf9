"""The worlds of motion as the training loop sees them: `shapes_motion` and `shapes_animate`.

Scores of both are those of a verdict: `exact`, `graded`, `content`, `motion` and `smoothness`, and where a picture is given
`first_frame`.  The reward is the grade.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.motion import animate, prompts
from unigrpo_jax.worlds.motion.judge import ClipVerdict, judge_clips, scores
from unigrpo_jax.worlds.order import PromptOrder
from unigrpo_jax.worlds.shapes.drawing import SIDE
from unigrpo_jax.worlds.shapes.world import drawn_world
from unigrpo_jax.worlds.world import Judgement, World


def shapes_motion() -> World:
    """Text to video, six categories in turn; the held-out prompts share neither text nor requirement with the train ones."""
    train = list(prompts.by_category("train").values())
    return World(
        train=lambda seed: PromptOrder(train, seed),
        evaluation=prompts.held_out_prompts,
        longest=[tuple(itertools.chain.from_iterable(train))],
        judge=judge_motion,
        side=SIDE,
        clips=True,
    )


def shapes_animate() -> World:
    """Image to video, six categories in turn; the held-out prompts share no picture with its motions with the train ones."""
    return dataclasses.replace(drawn_world(animate.prompts, judge_animation), clips=True)


def judge_motion(batch: RewardBatch) -> Judgement:
    """Judges the clips by their prompts."""
    return _judgement(judge_clips(batch.videos, batch.metadata))


def judge_animation(batch: RewardBatch) -> Judgement:
    """Judges the clips by their prompts and by the pictures that were given."""
    return _judgement(animate.judge_animations(batch.videos, batch.metadata))


def motion_reward(batch: RewardBatch) -> dict[str, np.ndarray]:
    """The grade of each clip of `shapes_motion`, float32 [B], under the name `graded`."""
    return _grades(judge_clips(batch.videos, batch.metadata))


def animation_reward(batch: RewardBatch) -> dict[str, np.ndarray]:
    """The same of `shapes_animate`."""
    return _grades(animate.judge_animations(batch.videos, batch.metadata))


def _judgement(verdicts: Sequence[ClipVerdict]) -> Judgement:
    correct = np.array([v.exact for v in verdicts], bool)
    return Judgement(correct=correct, verdicts=[v.reason for v in verdicts], scores=scores(verdicts))


def _grades(verdicts: Sequence[ClipVerdict]) -> dict[str, np.ndarray]:
    return {"graded": np.array([v.graded for v in verdicts], np.float32)}
