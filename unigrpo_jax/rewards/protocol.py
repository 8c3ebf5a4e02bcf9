"""What a reward is: a function from a batch of finished episodes to named numbers, one per episode.

    def reward(batch: RewardBatch) -> Mapping[str, np.ndarray]: ...

Each named value has shape [B] and is one component; higher is better.  The function sees the original prompt and the
image; the thinking is there for tables and for judges of thoughts, not for judging the image.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardBatch:
    """Finished episodes as a reward sees them.

    Attributes:
      prompts: B prompt texts.
      metadata: B mappings, as they stood in the prompt source.
      images: uint8 [B, height, width, 3].
      thinking: B texts, without special tokens.
    """

    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    images: np.ndarray
    thinking: Sequence[str]


RewardFunction = Callable[[RewardBatch], Mapping[str, np.ndarray]]
