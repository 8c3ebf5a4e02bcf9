"""The world of sound as the training loop sees it: `shapes_sound`.

Its scores are those of a verdict: `exact`, `graded`, and the eight dimensions.  The reward is the grade.
"""

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.motion.world import grades, judgement, listed_world
from unigrpo_jax.worlds.sound import prompts
from unigrpo_jax.worlds.sound.judge import SoundVerdict, judge_sounds
from unigrpo_jax.worlds.sound.synthesis import FPS, RATE
from unigrpo_jax.worlds.world import Judgement, World


def shapes_sound() -> World:
    """Text to video with sound, six categories in turn; held-out and train prompts share neither text nor requirement."""
    return listed_world(prompts.by_category("train"), prompts.held_out_prompts, judge_sound, rate=RATE, fps=FPS)


def judge_sound(batch: RewardBatch) -> Judgement:
    """Judges the clips and their sounds by their prompts."""
    return judgement(_verdicts(batch))


def sound_reward(batch: RewardBatch) -> dict[str, np.ndarray]:
    """The grade of each clip with its sound, float32 [B], under the name `graded`."""
    return grades(_verdicts(batch))


def _verdicts(batch: RewardBatch) -> list[SoundVerdict]:
    return judge_sounds(batch.videos, batch.audio, batch.rate, batch.metadata)
