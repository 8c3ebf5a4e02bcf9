"""A world: prompts to train on, prompts to be judged on, and what is known about a right answer."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.source import by_category, read_prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a world's own rules say of finished episodes.

    Attributes:
      correct: bool [B].
      verdicts: B short sentences.
      scores: named float arrays [B]; NaN where a score does not apply.
    """

    correct: np.ndarray
    verdicts: Sequence[str]
    scores: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Prompts and rules.

    Attributes:
      train: groups of training prompts; an iteration takes equal shares of each.
      evaluation: n prompts that are not trained on, if the world has such.
      judge: the world's own rules, or None where only the reward knows.
    """

    train: Sequence[Sequence[Prompt]]
    evaluation: Callable[[int], list[Prompt]]
    judge: Callable[[RewardBatch], Judgement] | None


def load_world(prompts: str) -> World:
    """The shapes world for "shapes", else the prompts of a JSONL file, which are then also those of the evaluation."""
    if prompts == "shapes":
        from unigrpo_jax.worlds.shapes.world import shapes

        return shapes()
    read = read_prompts(pathlib.Path(prompts).expanduser())
    repeated = lambda n: [read[i % len(read)] for i in range(n)]
    return World(train=by_category(read), evaluation=repeated, judge=None)
