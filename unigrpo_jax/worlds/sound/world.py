"""The world of sound as the training loop sees it: `shapes_sound`.

Its scores are those of a verdict: `exact`, `graded`, and the eight dimensions.  The reward is the grade.
"""

import itertools

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.motion.judge import scores
from unigrpo_jax.worlds.order import PromptOrder
from unigrpo_jax.worlds.shapes.drawing import SIDE
from unigrpo_jax.worlds.sound import prompts
from unigrpo_jax.worlds.sound.judge import SoundVerdict, judge_sounds
from unigrpo_jax.worlds.sound.synthesis import FPS, RATE
from unigrpo_jax.worlds.world import Judgement, World


def shapes_sound() -> World:
    """Text to video with sound, six categories in turn; held-out and train prompts share neither text nor requirement."""
    train = list(prompts.by_category("train").values())
    return World(
        train=lambda seed: PromptOrder(train, seed),
        evaluation=prompts.held_out_prompts,
        longest=[tuple(itertools.chain.from_iterable(train))],
        judge=judge_sound,
        side=SIDE,
        clips=True,
        rate=RATE,
        fps=FPS,
    )


def judge_sound(batch: RewardBatch) -> Judgement:
    """Judges the clips and their sounds by their prompts."""
    verdicts = _verdicts(batch)
    correct = np.array([v.exact for v in verdicts], bool)
    return Judgement(correct=correct, verdicts=[v.reason for v in verdicts], scores=scores(verdicts))


def sound_reward(batch: RewardBatch) -> dict[str, np.ndarray]:
    """The grade of each clip with its sound, float32 [B], under the name `graded`."""
    return {"graded": np.array([v.graded for v in _verdicts(batch)], np.float32)}


def _verdicts(batch: RewardBatch) -> list[SoundVerdict]:
    return judge_sounds(batch.videos, batch.audio, batch.rate, batch.metadata)
