"""A world: prompts to train on, prompts to be judged on, and what is known about a right answer."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from unigrpo_jax.config import RolloutConfig, require
from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.order import InTurn, Mixture, Order, PromptOrder
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.source import read_source

# Worlds with rules of their own: name -> where the function stands that makes it.
SHAPES: dict[str, str] = {
    "shapes": "unigrpo_jax.worlds.shapes.world:shapes",
    "shapes_direct": "unigrpo_jax.worlds.shapes.world:shapes_direct",
    "shapes_reflect": "unigrpo_jax.worlds.shapes.reflect:shapes_reflect",
    "shapes_edit": "unigrpo_jax.worlds.shapes.edit:shapes_edit",
    "shapes_story": "unigrpo_jax.worlds.shapes.story:shapes_story",
    "shapes_motion": "unigrpo_jax.worlds.motion.world:shapes_motion",
    "shapes_animate": "unigrpo_jax.worlds.motion.world:shapes_animate",
    "shapes_sound": "unigrpo_jax.worlds.sound.world:shapes_sound",
}


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
      train: the training prompts by position, for a seed.
      evaluation: n prompts that are not trained on, if the world has such.
      validation: n prompts to choose settings or checkpoints by; None where the world has none for that.
      longest: of each source the prompts whose length is to be checked before a run.
      judge: the world's own rules, or None where only the reward knows.
      side: pixels of the square images that its rules read; 0 where any will do.
      clips: whether its rules read clips, and not images.
      rate: samples per second of the sound of clips that its rules hear; 0 where they hear none.
      fps: frames per second of those clips; 0 where any will do.
      facts: names of the prompts' metadata that only rewards read.
      unread: names of what comes with the prompts and nobody reads.
    """

    train: Callable[[int], Order]
    evaluation: Callable[[int], list[Prompt]]
    longest: Sequence[Sequence[Prompt]]
    judge: Callable[[RewardBatch], Judgement] | None
    side: int = 0
    clips: bool = False
    rate: int = 0
    fps: float = 0.0
    facts: Sequence[str] = ()
    unread: Sequence[str] = ()
    validation: Callable[[int], list[Prompt]] | None = None

    def judged_on(self, split: str, count: int) -> list[Prompt]:
        """The prompts of an evaluation; ConfigError where there are none of that split, `evaluation.split`."""
        if split == "held_out":
            return self.evaluation(count)
        require(self.validation is not None, f"evaluation.split = {split!r}, but these prompts have no such part; give "
                "--evaluation.source another file, or use held_out.")  # fmt: skip
        return self.validation(count)

    def check_size(self, rollout: RolloutConfig) -> None:
        """ConfigError where images, or clips, are drawn that its rules do not read."""
        fps = rollout.frames_per_second
        require(self.fps in (0, fps), f"the rules of these prompts hear clips of {self.fps:g} frames per second, but "
                f"{fps:g} are drawn; set rollout.frames_per_second to {self.fps:g}, or give other --prompts.")  # fmt: skip
        read, drawn = "clips" if self.clips else "images", "one frame is" if rollout.frames == 1 else "clips are"
        require(self.judge is None or self.clips == (rollout.frames > 1), f"the rules of these prompts read {read}, but "
                f"{drawn} drawn; set rollout.frames to {9 if self.clips else 1}, or give other --prompts.")  # fmt: skip
        size = rollout.image_height, rollout.image_width
        require(not self.side or size == (self.side, self.side),
                f"the rules of these prompts read pictures of {self.side} x {self.side} pixels, but {size[0]} x {size[1]} "
                f"are drawn; set rollout.image_height and rollout.image_width to {self.side}, or give other "
                "--prompts.")  # fmt: skip

    def check_sound(self, rate: float) -> None:
        """ConfigError where its rules hear sound, and the clips have none, 0, or another number of samples per second."""
        has = f"makes {rate:g}" if rate else "makes no sound"
        require(self.rate in (0, rate), f"the rules of these prompts hear sound of {self.rate} samples per second, but the "
                f"model {has}; use a model that makes it, or give other --prompts.")  # fmt: skip


def load_world(prompts: Sequence[str], weights: Sequence[float] = (), evaluation: str | None = None,
               rounds: int = 0, evaluation_rounds: int = 0) -> World:  # fmt: skip
    """A world of `SHAPES` under its name, else prompts of files and datasets.

    Args:
      prompts: names that `read_source` knows; several are mixed.
      weights: the share of each; without any, equal ones.
      evaluation: where the prompts of the evaluation come from; None for those that are trained on.
      rounds: the rounds in which prompts are heard, `rollout.rounds`; 0 where nobody knows, and less is checked.
      evaluation_rounds: those of the evaluation where it has its own, `evaluation.rounds`; else 0.

    Raises:
      ConfigError: one of them cannot be read.
    """
    require(any(prompts), "prompts is empty; give --prompts FILE.jsonl, one object with a `prompt` per line.")
    if own := [name for name in (*prompts, evaluation) if name in SHAPES]:
        require(
            len(prompts) == 1 and evaluation is None,
            f"`{own[0]}` has rules and held-out prompts of its own; give it alone, without evaluation.source.",
        )
        module, _, loader = SHAPES[own[0]].partition(":")
        return getattr(importlib.import_module(module), loader)()
    trained = {"rollout.rounds": rounds} if rounds else {}
    judged_in = {"evaluation.rounds": evaluation_rounds} if evaluation_rounds else trained
    sources = [read_source(name, rounds=trained | (judged_in if evaluation is None else {})) for name in prompts]

    trained_on = tuple(sources)

    def train(seed: int) -> Order:
        return Mixture([PromptOrder(source.groups, seed, number) for number, source in enumerate(trained_on)], weights)

    if evaluation is None:
        judged = Mixture([InTurn(source.groups) for source in sources], weights)
    else:
        sources.append(read_source(evaluation, "--evaluation.source", judged_in))
        judged = InTurn(sources[-1].groups)
    return World(
        train=train,
        evaluation=lambda n: judged.batch(0, n),
        longest=[source.longest for source in trained_on],
        judge=None,
        facts=tuple(dict.fromkeys(name for source in sources for name in source.facts)),
        unread=tuple(dict.fromkeys(name for source in sources for name in source.unread)),
    )
