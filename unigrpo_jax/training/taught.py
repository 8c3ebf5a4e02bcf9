"""The examples of an iteration as arrays: the texts of all, and pictures or clips, of which a process reads its own alone.

A picture is an array, as is a clip; a clip with its sound is {"video": its frames, "audio": its samples}.

Which examples, in which order, and whose text is left out is a function of (seed, iteration), so that a resume needs nothing
else.  A picture or clip is read when it is needed, or a batch before that.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from PIL import Image

from unigrpo_jax.config import ConfigError, RolloutConfig, require
from unigrpo_jax.episode import Thinking
from unigrpo_jax.models.loaded import Codec, SoundForm
from unigrpo_jax.picture_files import fit
from unigrpo_jax.training.taught_sound import check_heard, fitted_sound
from unigrpo_jax.worlds.examples import Example, Examples, thinking_of

READERS = 4  # threads; others run while one decodes
CHECKED = 64  # pictures or clips of a file that are decoded before a run
_TOGETHER = 256  # thinkings that are encoded together
_DROPOUT = 1  # keeps these random numbers apart from the order's


def texts_of(examples: Sequence[Example], codec: Codec, rollout: RolloutConfig) -> tuple[Any, Thinking | None]:
    """Prompts and thinkings, arrays of the host; ConfigError where one does not fit into its bucket."""
    text = codec.prompts([example.text for example in examples], rollout.prompt_tokens, lambda row: examples[row].place)
    return text, _thinkings(examples, codec, rollout) if rollout.thinking else None


def _thinkings(examples: Sequence[Example], codec: Codec, rollout: RolloutConfig) -> Thinking:
    words = [thinking_of(example) for example in examples]
    return codec.thinkings(words, rollout.thinking_tokens, lambda row: examples[row].place)


def dropped(seed: int, step: int, batch: int, share: float) -> np.ndarray:
    """Whose text is left out in an iteration, bool [B]."""
    return np.random.default_rng([seed, step, _DROPOUT]).random(batch) < share


def check_examples(examples: Examples, codec: Codec, rollout: RolloutConfig, form: SoundForm | None = None) -> None:
    """ConfigError where a text does not fit into its bucket or holds unknown words, or what is drawn cannot be decoded.

    Looks at the longest prompts and thinkings, and at the first pictures or clips, which must have the run's size.  Where a
    sound is learned, of the `form`, every clip must have one.
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
    for example in examples.prompts if form is not None else ():
        with named_by(example):
            check_heard(example.clip.has_sound, example.clip.path)
    for example in itertools.islice(examples.prompts, CHECKED):
        read(example, rollout, True, form)


def read(
    example: Example, rollout: RolloutConfig, begins: bool, form: SoundForm | None = None
) -> tuple[Any, np.ndarray | None]:
    """What is to be drawn, and from which picture it goes on, as a run draws them.

    Pictures are scaled to fill the run's size and cut out of their middle; a clip must have it, frames and all, and its
    sound the clip's length.

    Args:
      example: of a file.
      rollout: the size.
      begins: whether the model goes on from a picture.
      form: of the sound that is learned with a clip; None where none is.

    Returns:
      uint8 [H, W, 3], or of a clip [F, H, W, 3], where there is a `form` {"video": that, "audio": float32 [S, channels]};
      and uint8 [H, W, 3], None where nothing is gone on from.

    Raises:
      ConfigError: one cannot be read, a clip has another size, or its sound another length or none; with the line.
    """
    fitted = lambda picture: fit(Image.fromarray(picture()), rollout.image_height, rollout.image_width)
    with named_by(example):
        if example.clip is None:
            drawn = fitted(example.picture)
            return drawn, drawn if begins else None
        drawn = example.clip()
        has, wanted = drawn.shape[:3], (rollout.frames, rollout.image_height, rollout.image_width)
        words = lambda size: f"{size[0]} frames of {size[1]} x {size[2]} pixels"
        require(has == wanted, f"its clip has {words(has)} (height x width), and the run draws {words(wanted)}; cut and "
                "scale it so, or set rollout.frames, rollout.image_height and rollout.image_width to its own.")  # fmt: skip
        first = None if not begins else drawn[0] if example.picture is None else fitted(example.picture)
        if form is None:
            return drawn, first
        return {"video": drawn, "audio": fitted_sound(example.clip, form, rollout)}, first


@contextlib.contextmanager
def named_by(example: Example) -> Iterator[None]:
    """Puts the line of an example before what a ConfigError says."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{example.named}: {error}") from None


class Pictures:
    """Reads the pictures or clips of B examples onto the devices; a process reads those that its own hold."""

    def __init__(
        self, rollout: RolloutConfig, batch: int, sharding: jax.sharding.Sharding, begins: bool = False,
        form: SoundForm | None = None,
    ):  # fmt: skip
        """`begins`: the model goes on from a picture, which is read, too; `form`: of the sound, which is read, too."""
        self._rollout, self._sharding, self._begins, self._form = rollout, sharding, begins, form
        frames = (rollout.frames,) if rollout.frames > 1 else ()
        self._shape = (batch, *frames, rollout.image_height, rollout.image_width, 3)
        held = sharding.addressable_devices_indices_map(self._shape).values()
        self._own = sorted({row for index in held for row in self._rows(index)})
        self._threads = ThreadPoolExecutor(READERS)
        self._ahead: dict[object, Future] = {}

    def ahead(self, examples: Sequence[Example]) -> None:
        """Begins to read those that are asked for next, and forgets the others."""
        self._ahead = {examples[row].place: self._begin(examples[row]) for row in self._own}

    def __call__(self, examples: Sequence[Example]) -> tuple[Any, jax.Array | None]:
        """What is to be drawn, uint8 [B, H, W, 3] or of clips [B, F, H, W, 3], and what that goes on from, [B, H, W, 3].

        With sound the first is {"video": clips, "audio": float32 [B, S, channels]}.  The second is None where the model goes
        on from nothing.  ConfigError as of `read`.
        """
        coming = {row: self._ahead.get(examples[row].place) or self._begin(examples[row]) for row in self._own}
        found = {row: future.result() for row, future in coming.items()}
        if self._form is None:
            drawn = self._placed(self._shape, lambda row: found[row][0])
        else:
            shapes = {"video": self._shape, "audio": (self._shape[0], self._form.samples, self._form.channels)}
            drawn = {name: self._placed(shape, lambda row, name=name: found[row][0][name]) for name, shape in shapes.items()}
        first = (self._shape[0], *self._shape[-3:])
        return drawn, self._placed(first, lambda row: found[row][1]) if self._begins else None

    def _placed(self, shape: tuple[int, ...], of: Callable[[int], np.ndarray]) -> jax.Array:
        stack = lambda index: np.stack([of(row) for row in self._rows(index)])
        return jax.make_array_from_callback(shape, self._sharding, stack)

    def _begin(self, example: Example) -> Future:
        return self._threads.submit(read, example, self._rollout, self._begins, self._form)

    def _rows(self, index: tuple[slice, ...]) -> range:
        return range(*index[0].indices(self._shape[0]))
