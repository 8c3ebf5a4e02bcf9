"""What a prompt is: what the model sees and reads, and the facts that a reward may judge by; and where prompts come from."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.config import require
from unigrpo_jax.foreign_text import quoted

CHECKED = 4096  # prompts of a source whose length in tokens is checked before a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt.

    Attributes:
      text: what the model reads.
      picture: gives what the user shows before the text, an RGB image uint8 [H, W, 3], whenever it is called; None where
        nothing is shown.  ConfigError where it cannot be read.
      metadata: JSON-serialisable facts for rewards and tables, such as the category; the model never sees them.
      place: anything whose str() says where it stands, for messages; None where that says nothing.
    """

    text: str
    picture: Callable[[], np.ndarray] | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    place: object = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def turns(self) -> Sequence[str]:
        """What the user says in the rounds after the first: `turns` of the metadata, or nothing."""
        return self.metadata.get("turns", ())

    @property
    def named(self) -> str:
        """The prompt inside a message, with its place."""
        return f"the prompt {quoted(self.text, 60)}{f' ({self.place})' if self.place is not None else ''}"

    def at(self, turn: int) -> "Prompt":
        """What has been asked up to round `turn`, from 0: all words, and the facts, those of `rounds[turn]` over them."""
        said = [self.text, *self.turns[:turn]]
        facts = self.metadata.get("rounds")
        metadata = self.metadata if facts is None else {**self.metadata, **facts[turn]}
        return dataclasses.replace(self, text=". ".join(said) if turn else self.text, metadata=metadata)


def said_later(prompts: Sequence[Prompt], rounds: int, setting: str = "rollout.rounds") -> list[list[str]]:
    """The texts of each later round, rounds - 1 lists; none where no prompt says anything later.

    ConfigError where a prompt has another number of turns than the rounds can hear, whose number is that `setting`.
    """
    talks = bool(prompts and prompts[0].turns)
    return [list(texts) for texts in zip(*(turns_of(prompt, rounds, talks, setting) for prompt in prompts), strict=True)]


def turns_of(prompt: Prompt, rounds: int, talks: bool, setting: str = "rollout.rounds") -> Sequence[str]:
    """The turns of a prompt; ConfigError as of `said_later`.  `talks` says whether others of the run have some."""
    turns = prompt.turns
    good = isinstance(turns, list | tuple) and all(isinstance(text, str) for text in turns)
    require(good, f"the prompt {quoted(prompt.text, 60)} has `turns` that are no list of texts; write them so.")
    require(
        not turns or len(turns) == rounds - 1,
        f"the prompt {quoted(prompt.text, 60)} has {len(turns)} later turns, and {setting} = {rounds} hears "
        f"{rounds - 1}; use {setting} = {len(turns) + 1}.",
    )
    require(bool(turns) == talks, f"the prompt {quoted(prompt.text, 60)} has {len(turns)} later turns, and others of the "
            f"run {rounds - 1 if talks else 0}; give all the same number.")  # fmt: skip
    return turns


def pictured(prompts: Iterable[Prompt], others: bool | None = None) -> bool:
    """Whether the prompts show a picture each; ConfigError where some do and some do not.

    `others` says it of prompts that these must be like.
    """
    for prompt in prompts:
        shows = prompt.picture is not None
        others = shows if others is None else others
        has, have = ("a picture", "none") if shows else ("no picture", "one")
        require(shows == others, f"{prompt.named} comes with {has}, and others of the run with {have}; give all of them a "
                                 "picture, under `image`, or none.")  # fmt: skip
    return bool(others)


@dataclasses.dataclass(frozen=True)
class Picked(Sequence):
    """Prompts that are read when they are asked for.

    Attributes:
      read: the prompt of a key.
      keys: one number per prompt, such as where it begins in a file.
    """

    read: Callable[[int], Prompt]
    keys: Sequence[int]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Prompt:
        return self.read(self.keys[index])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Prompts of one file or dataset.

    Attributes:
      groups: by category, in order of first appearance; an iteration takes equal shares of each.
      longest: at most `CHECKED` prompts, those likeliest not to fit into their bucket.
    """

    groups: Sequence[Sequence[Prompt]]
    longest: Sequence[Prompt]
