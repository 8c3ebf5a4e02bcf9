"""What a prompt is: what the model sees and reads, and the facts that a reward may judge by; and where prompts come from."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.config import require
from unigrpo_jax.foreign_text import is_unicode, quoted

RESERVED = ("image", "turns", "rounds", "category")  # names of the metadata that the program itself reads; null is absent
MOST_NAMES = 20  # of metadata that are told
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
        """What the user says in the rounds after the first: `turns` of the metadata where that is a list of texts."""
        said = self.metadata.get("turns")
        return said if isinstance(said, list | tuple) and all(isinstance(text, str) for text in said) else ()

    @property
    def facts(self) -> Sequence[Mapping[str, Any]]:
        """What holds in each round: `rounds` of the metadata where that is a list of mappings."""
        own = self.metadata.get("rounds")
        return own if isinstance(own, list | tuple) and all(isinstance(facts, Mapping) for facts in own) else ()

    @property
    def named(self) -> str:
        """The prompt inside a message, with its place."""
        return f"the prompt {quoted(self.text, 60)}{f' ({self.place})' if self.place is not None else ''}"

    def at(self, turn: int) -> "Prompt":
        """What has been asked up to round `turn`, from 0: all words, and the facts, those of `rounds[turn]` over them."""
        said = [self.text, *self.turns[:turn]]
        facts = self.facts
        metadata = {**self.metadata, **facts[turn]} if turn < len(facts) else self.metadata
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
    require(
        not turns or len(turns) == rounds - 1,
        f"the prompt {quoted(prompt.text, 60)} has {len(turns)} later turns, and {setting} = {rounds} hears "
        f"{rounds - 1}; use {setting} = {len(turns) + 1}.",
    )
    require(bool(turns) == talks, f"the prompt {quoted(prompt.text, 60)} has {len(turns)} later turns, and others of the "
            f"run {rounds - 1 if talks else 0}; give all the same number.")  # fmt: skip
    return turns


def check_reserved(prompt: Prompt, rounds: Mapping[str, int]) -> None:
    """ConfigError where `turns` or `rounds` of the metadata are not what the rounds of a run can read.

    Where there is one round alone, they have no meaning and may be anything, but for a list of texts under `turns`.

    Args:
      prompt: its metadata may be anything.
      rounds: the number of rounds by the setting that says so; empty where nobody knows it, and then only what holds for
        any number is checked.
    """
    turns, facts = prompt.turns, prompt.facts
    for setting, number in rounds.items():
        turns_of(prompt, number, bool(turns), setting)
    if rounds and max(rounds.values()) == 1:
        return
    said, own = (prompt.metadata.get(name) for name in ("turns", "rounds"))
    require(said is None or isinstance(said, list | tuple) and len(turns) == len(said),
            f"the prompt {quoted(prompt.text, 60)} has `turns` that are no list of texts; write one for each later round.")
    require(all(text.strip() and is_unicode(text) for text in turns),
            "the prompt has `turns` of which one is blank or holds half a surrogate pair; write it anew.")  # fmt: skip
    require(own is None or isinstance(own, list | tuple) and len(facts) == len(own),
            f'"rounds" is {quoted(own)}; write a list of objects there, the facts of each round.')  # fmt: skip
    told = {f"{len(turns)} `turns`": len(turns) + 1} if turns else {f"{s} = {n}": n for s, n in rounds.items()}
    for what, number in told.items():
        enough = len(facts) == number if turns else len(facts) >= number
        require(not facts or enough, f'"rounds" has the facts of {len(facts)} round(s), and {what} make {number}; write the '
                                     "facts of each.")  # fmt: skip


def same_turns(prompt: Prompt, others: int | None = None) -> int:
    """The number of the prompt's later turns; ConfigError where that is not the number of the `others`."""
    own = len(prompt.turns)
    require(others in (None, own), f"{prompt.named} has {own} later turns, and others of the run {others}; give all the "
                                   "same number.")  # fmt: skip
    return own


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
      facts: names of the metadata that only rewards read, at most `MOST_NAMES`.
      unread: names of what stands there and nobody reads, such as a dataset's pictures.
    """

    groups: Sequence[Sequence[Prompt]]
    longest: Sequence[Prompt]
    facts: Sequence[str] = ()
    unread: Sequence[str] = ()
