"""Is the text in the picture?  Flow-GRPO's text-rendering reward (arXiv 2505.05470), with a reader that you bring.

    reward = max(1 - edits / length, 0)

where `edits` is the Levenshtein distance between the wanted text and what the reader reads, both in lower case and without
white space, and `length` that of the wanted text.  As in Flow-GRPO's program the distance is 0 where the wanted text is part
of what was read, since a picture may hold other words, too.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.rewards.judging import RewardError
from unigrpo_jax.rewards.load import find_function
from unigrpo_jax.rewards.protocol import ABSTAIN, RewardBatch

_QUOTED = re.compile('"([^"]*)"|“([^”]*)”')


def load(argument: str, config: RunConfig) -> "OCR":
    """The reward `ocr:my_module:reader`."""
    require(bool(argument), "rewards: ocr needs a reader of pictures; give it as ocr:my_module:reader.")
    return OCR(find_function(argument, f"ocr:{argument}"), f"ocr:{argument}")


class OCR:
    """How much of the wanted text is read, component `ocr`, from 0 to 1; NaN where no text is wanted.

    What is wanted stands in metadata["text"], else between the first double quotes of the prompt.
    """

    def __init__(self, reader: Callable[[np.ndarray], Sequence[str]], name: str = "ocr"):
        """`reader`: uint8 [B, H, W, 3] -> B texts; it may say `cost` and `identity` of itself as a reward does."""
        self._reader, self._name = reader, name
        self.cost = getattr(reader, "cost", "host")
        identity = getattr(reader, "identity", "")
        self.identity = identity and f"ocr {identity}"

    def __call__(self, batch: RewardBatch) -> dict[str, np.ndarray]:
        """{"ocr": [B]}, `ABSTAIN` where no text is asked for; RewardError where the reader returns other than B texts."""
        targets = [normalised(wanted(*both)) for both in zip(batch.prompts, batch.metadata, strict=True)]
        scores = np.full(len(targets), ABSTAIN, object)
        rows = [row for row, target in enumerate(targets) if target]
        if rows:
            texts = list(self._reader(batch.images[rows]))
            if len(texts) != len(rows) or not all(isinstance(text, str) for text in texts):
                raise RewardError(f"the reader of {self._name} must return one text per image; it got {len(rows)} images")
            scores[rows] = [similarity(normalised(text), targets[row]) for text, row in zip(texts, rows, strict=True)]
        return {"ocr": scores}


def wanted(prompt: str, metadata: Mapping[str, Any]) -> str:
    """The text that is to be seen; "" where none is asked for."""
    if metadata.get("text") is not None:
        return str(metadata["text"])
    found = _QUOTED.search(prompt)
    return (found[1] or found[2] or "") if found else ""


def normalised(text: str) -> str:
    """A text in lower case, without white space."""
    return "".join(text.lower().split())


def similarity(read: str, target: str) -> float:
    """max(1 - distance / len(target), 0) of normalised texts; 1 where `target`, which is not empty, is part of `read`."""
    if target in read:
        return 1.0
    if len(read) >= 2 * len(target):  # so many are to be deleted that nothing is left of the reward
        return 0.0
    return max(1 - levenshtein(read, target) / len(target), 0.0)


def levenshtein(a: str, b: str) -> int:
    """The smallest number of insertions, deletions and substitutions that make `a` into `b` (Wagner & Fischer 1974)."""
    row = list(range(len(b) + 1))  # distances of a[:i] from each b[:j]
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
