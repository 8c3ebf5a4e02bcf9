"""What a prompt is: the text that the model reads and the facts that a reward may judge by."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt.

    Attributes:
      text: what the model reads.
      metadata: JSON-serialisable facts for rewards and tables, such as the category; the model never sees them.
    """

    text: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
