"""The order of prompts: a function of (seed, position), so that a resume needs no iterator state.

Prompts come in groups (GenEval's categories, or one group).  Position i takes the next prompt of group i mod groups,
and each group is walked through in a new random order per pass.
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.worlds.prompt import Prompt


class PromptOrder:
    """An endless sequence of prompts."""

    def __init__(self, groups: Sequence[Sequence[Prompt]], seed: int):
        require(bool(groups) and all(groups), "there are no prompts to draw from.")
        self.groups, self.seed = groups, seed
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # the current pass of each group

    def at(self, position: int) -> Prompt:
        """The prompt at a position from 0 on."""
        index, number = divmod(position, len(self.groups))
        group = self.groups[number]
        epoch, offset = divmod(index, len(group))
        if self._orders.get(number, (None,))[0] != epoch:
            order = np.random.default_rng([self.seed, number, epoch]).permutation(len(group))
            self._orders[number] = (epoch, order)
        return group[self._orders[number][1][offset]]

    def batch(self, step: int, size: int) -> list[Prompt]:
        """The prompts of iteration `step`, from 0 on."""
        return [self.at(position) for position in range(step * size, (step + 1) * size)]


def by_category(prompts: Iterable[Prompt]) -> list[list[Prompt]]:
    """Prompts grouped by metadata["category"], in order of first appearance; one group where there is none."""
    groups: dict[str, list[Prompt]] = collections.defaultdict(list)
    for prompt in prompts:
        groups[str(prompt.metadata.get("category", ""))].append(prompt)
    return list(groups.values())


def read_prompts(path: pathlib.Path) -> list[Prompt]:
    """Prompts of a JSONL file: one object per line with "prompt" (text) and anything else as metadata.

    Raises:
      ConfigError: the file is missing or empty, or a line (with its number) is no such object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: a text may hold U+2028
    except OSError as error:
        raise ConfigError(f"the prompt file {path} cannot be read ({error.strerror}); check --prompts.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the prompt file {path} is not UTF-8 text; save it as UTF-8.") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise ConfigError(f"{path}, line {number}: not JSON ({what}); write one object per line.") from None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str) or not record["prompt"].strip():
            raise ConfigError(f'{path}, line {number}: expected an object with a text under "prompt".')
        try:
            record["prompt"].encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{path}, line {number}: the prompt holds half a surrogate pair; remove it.") from None
        prompts.append(Prompt(text=record.pop("prompt"), metadata=record))
    require(bool(prompts), f"the prompt file {path} holds no prompts; write one JSON object per line.")
    return prompts
