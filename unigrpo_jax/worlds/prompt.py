"""What a prompt is: the text that the model reads and the facts that a reward may judge by; and where prompts come from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CHECKED = 4096  # prompts of a source whose length in tokens is checked before a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt.

    Attributes:
      text: what the model reads.
      metadata: JSON-serialisable facts for rewards and tables, such as the category; the model never sees them.
      place: anything whose str() says where it stands, for messages; None where that says nothing.
    """

    text: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    place: object = dataclasses.field(default=None, compare=False, repr=False)


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
