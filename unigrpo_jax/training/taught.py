"""The examples of an iteration as arrays: the texts of all, and the pictures, of which a process reads its own alone.

Which examples, in which order, and whose text is left out is a function of (seed, iteration), so that a resume needs nothing
else.  A picture is read when it is needed, or a batch before that.
"""

import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from PIL import Image

from unigrpo_jax.config import ConfigError, RolloutConfig
from unigrpo_jax.episode import Thinking
from unigrpo_jax.models.loaded import Codec
from unigrpo_jax.picture_files import fit
from unigrpo_jax.worlds.examples import Examples, thinking_of
from unigrpo_jax.worlds.prompt import Prompt

READERS = 4  # threads; others run while one decodes
CHECKED = 64  # pictures of a file that are decoded before a run
_TOGETHER = 256  # thinkings that are encoded together
_DROPOUT = 1  # keeps these random numbers apart from the order's


def texts_of(examples: Sequence[Prompt], codec: Codec, rollout: RolloutConfig) -> tuple[Any, Thinking | None]:
    """Prompts and thinkings, arrays of the host; ConfigError where one does not fit into its bucket."""
    text = codec.prompts([example.text for example in examples], rollout.prompt_tokens, lambda row: examples[row].place)
    return text, _thinkings(examples, codec, rollout) if rollout.thinking else None


def _thinkings(examples: Sequence[Prompt], codec: Codec, rollout: RolloutConfig) -> Thinking:
    words = [thinking_of(example) for example in examples]
    return codec.thinkings(words, rollout.thinking_tokens, lambda row: examples[row].place)


def dropped(seed: int, step: int, batch: int, share: float) -> np.ndarray:
    """Whose text is left out in an iteration, bool [B]."""
    return np.random.default_rng([seed, step, _DROPOUT]).random(batch) < share


def check_examples(examples: Examples, codec: Codec, rollout: RolloutConfig) -> None:
    """ConfigError where a text does not fit into its bucket or holds unknown words, or a picture cannot be decoded.

    Looks at the longest prompts and thinkings, and at the first pictures.
    """
    codec.check_lengths((p.text for p in examples.longest), rollout.prompt_tokens, lambda row: examples.longest[row].place)
    deepest = iter(examples.deepest if rollout.thinking else ())
    while part := list(itertools.islice(deepest, _TOGETHER)):
        _thinkings(part, codec, rollout)
    seen = [examples.longest, *([examples.deepest] if rollout.thinking else [])]
    said = lambda example: (example.text, thinking_of(example)) if rollout.thinking else (example.text,)
    if unknown := codec.unknown_words(text for each in seen for example in each for text in said(example)):
        first = next(example for each in seen for example in each if codec.unknown_words(said(example)))
        raise ConfigError(f"{first.named} and its thinking have words that the model does not know, in all lines "
                          f"{len(unknown)}, such as {', '.join(unknown[:3])}; write others, or use a model that knows "
                          "them.")  # fmt: skip
    for example in itertools.islice(examples.prompts, CHECKED):
        _read(example, rollout)


def _read(example: Prompt, rollout: RolloutConfig) -> np.ndarray:
    """The picture in the size that a run draws, uint8 [H, W, 3]; ConfigError, with the line, where it cannot be read."""
    try:
        return fit(Image.fromarray(example.picture()), rollout.image_height, rollout.image_width)
    except ConfigError as error:
        raise ConfigError(f"{example.named}: {error}") from None


class Pictures:
    """Reads the pictures of B examples onto the devices; a process reads those that its own hold."""

    def __init__(self, rollout: RolloutConfig, batch: int, sharding: jax.sharding.Sharding):
        self._rollout, self._sharding = rollout, sharding
        self._shape = (batch, rollout.image_height, rollout.image_width, 3)
        held = sharding.addressable_devices_indices_map(self._shape).values()
        self._own = sorted({row for index in held for row in self._rows(index)})
        self._threads = ThreadPoolExecutor(READERS)
        self._ahead: dict[object, Future] = {}

    def ahead(self, examples: Sequence[Prompt]) -> None:
        """Begins to read those that are asked for next, and forgets the others."""
        self._ahead = {examples[row].place: self._begin(examples[row]) for row in self._own}

    def __call__(self, examples: Sequence[Prompt]) -> jax.Array:
        """uint8 [B, H, W, 3]; ConfigError where one cannot be read."""
        coming = {row: self._ahead.get(examples[row].place) or self._begin(examples[row]) for row in self._own}
        read = {row: future.result() for row, future in coming.items()}
        stack = lambda index: np.stack([read[row] for row in self._rows(index)])
        return jax.make_array_from_callback(self._shape, self._sharding, stack)

    def _begin(self, example: Prompt) -> Future:
        return self._threads.submit(_read, example, self._rollout)

    def _rows(self, index: tuple[slice, ...]) -> range:
        return range(*index[0].indices(self._shape[0]))
