"""A world: prompts to train on, prompts to be judged on, and what is known about a right answer."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from unigrpo_jax.config import require
from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.source import by_category, read_prompts

EXAMPLES = pathlib.Path(__file__).with_name("examples.jsonl")


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
    """The shapes world for "shapes", else the prompts of a JSONL file, which are then also those of the evaluation.

    "examples" is a file of 48 prompts inside the package.  ConfigError where there is no such file.
    """
    require(bool(prompts), "prompts is empty; give --prompts FILE.jsonl, one object with a `prompt` per line.")
    if prompts == "shapes":
        from unigrpo_jax.worlds.shapes.world import shapes

        return shapes()
    read = read_prompts(EXAMPLES if prompts == "examples" else pathlib.Path(prompts).expanduser())
    groups = by_category(read)
    in_turn = lambda i: groups[i % len(groups)][i // len(groups) % len(groups[i % len(groups)])]
    return World(train=groups, evaluation=lambda n: [in_turn(i) for i in range(n)], judge=None)
