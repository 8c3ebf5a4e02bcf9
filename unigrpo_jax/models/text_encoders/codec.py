"""Prompts as frozen encoders' states of them: encoded once, kept on disk, and read from there."""

import contextlib
import dataclasses
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import ConfigError, EmbeddingsConfig, RolloutConfig
from unigrpo_jax.foreign_text import tell
from unigrpo_jax.models.folders.named import Place
from unigrpo_jax.models.text_encoders.cache import FIELD, Store
from unigrpo_jax.models.text_encoders.encoder import ROWS, Encoders
from unigrpo_jax.models.text_encoders.states import TextStates

PART = 256  # texts that are looked for together
Encode = Callable[[Sequence[str]], list[dict[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingCodec:
    """A `models.loaded.Codec`.  Every text has as many states as its encoder has tokens, whatever `length` is asked for.

    The encoders are on the devices only while a text is encoded that is not on disk.  Each process encodes on its own
    devices, so that none waits for another.

    Attributes:
      encoders: of the family.
      kept: where their states lie, and how much of them.
      guided: whether `TextStates.empty` is given.
      place: path and shape of an encoder's parameter to its sharding over this process's devices; None is the first one.
      notice: is told what a user should know and need not act upon, once.
    """

    encoders: Encoders
    kept: EmbeddingsConfig
    guided: bool = False
    place: Place | None = None
    notice: Callable[[str], None] = lambda words: tell(words, sys.stderr)
    _told: set[str] = dataclasses.field(default_factory=set, repr=False, compare=False)

    def system(self, rollout: RolloutConfig) -> tuple[int, ...]:
        """Nothing is read before a prompt."""
        return ()

    def bucket(self, texts: Iterable[str]) -> int:
        """L, of any texts."""
        return self.encoders.shapes()["states"].shape[0]

    def check_lengths(self, texts: Iterable[str], length: int, place: Callable[[int], object] | None = None) -> None:
        """Says once of each encoder which text is longest, where it is cut; the public pipelines cut it, too."""
        longest = [(0, "", 0)] * len(self.encoders.parts)
        for start, part in _parts(texts):
            for i, encoder in enumerate(self.encoders.parts):
                lengths = encoder.coder.lengths(part)
                row = int(np.argmax(lengths))
                if lengths[row] > longest[i][0]:
                    longest[i] = lengths[row], part[row], start + row
        for encoder, (most, text, row) in zip(self.encoders.parts, longest, strict=True):
            if most > encoder.coder.tokens:
                where = place(row) if place is not None else None
                self._say(
                    encoder.name,
                    f"The prompt {text[:60]!r}{f' ({where})' if where else ''} has {most} tokens; {encoder.name} reads the "
                    f"first {encoder.coder.tokens}, as of every longer one.",
                )

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """The words, sorted, that become an encoder's token for what it does not know."""
        words = sorted({word for text in texts for word in text.split()})
        return [word for word in words if any(_unknown(encoder.coder, word) for encoder in self.encoders.parts)]

    def prepare(self, texts: Iterable[str]) -> None:
        """Encodes what is not on disk yet, some texts at a time, as far as `kept.gigabytes` reaches, which it says.

        Processes that share the folder begin at different texts, and find what the others have done.  ConfigError where the
        disk cannot be written.
        """
        began, seen, full = time.time(), 0, False
        with self._encoding() as encode:
            for _, part in _parts(itertools.chain([""] if self.guided else [], texts)):
                seen += len(part)
                lacked = [] if full else [text for text in dict.fromkeys(part) if not self._store.has(text)]
                for batch in in_turn(lacked, jax.process_index(), jax.process_count()):
                    now = [text for text in batch if not self._store.has(text)]  # another process may have been faster
                    full = full or (bool(now) and not self._store.room(len(now), began))
                    if now and not full:
                        self._keep(now, encode(now))
        if full:
            needed = seen * self._store.bytes / 1e9
            self._say("room", f"What the text encoders say of {seen} prompts takes up to {needed:.3g} GB, more than "
                      f"model.embeddings.gigabytes = {self.kept.gigabytes:g}; the encoders are loaded again for those that "
                      f"are not kept.  Use {math.ceil(needed * 1.1)} to spare that.")  # fmt: skip

    def prompts(self, texts: Sequence[str], length: int, place: Callable[[int], object] | None = None) -> TextStates:
        """P texts' states, from disk where they are there; `length` decides nothing."""
        self.check_lengths(texts, length, place)
        began = time.time()
        asked = dict.fromkeys([*texts, *([""] if self.guided else [])])
        found = {text: self._store.read(text) for text in asked}
        lacked = [text for text in asked if found[text] is None]
        if lacked:
            with self._encoding() as encode:
                for text, arrays in zip(lacked, encode(lacked), strict=True):
                    found[text] = arrays
                    self._try_to_keep(text, arrays, began)
        rows = lambda some: {name: np.stack([found[text][name] for text in some]) for name in self.encoders.shapes()}
        empty = None
        if self.guided:
            one = rows([""])
            empty = TextStates(**{name: np.broadcast_to(x, (len(texts), *x.shape[1:])) for name, x in one.items()})
        return TextStates(**rows(texts), empty=empty)

    def shapes(self, count: int, length: int) -> TextStates:
        """Shapes and dtypes of `prompts` of so many texts."""
        arrays = {name: jax.ShapeDtypeStruct((count, *x.shape), x.dtype) for name, x in self.encoders.shapes().items()}
        return TextStates(**arrays, empty=TextStates(**arrays) if self.guided else None)

    def thoughts(self, thinking: Any, batch: int) -> list[str]:
        """Empty texts: nothing thinks."""
        return [""] * batch

    @functools.cached_property
    def _store(self) -> Store:
        return Store(self.kept, self.encoders.key, self.encoders.shapes())

    @contextlib.contextmanager
    def _encoding(self) -> Iterator[Encode]:
        """What encodes; the weights are read when it is first asked to."""
        with contextlib.ExitStack() as stack:
            loaded: list[Encode] = []

            def encode(texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
                if not loaded:
                    loaded.append(stack.enter_context(self.encoders.on_devices(self.place)))
                return loaded[0](texts)

            yield encode

    def _keep(self, texts: Sequence[str], said: Sequence[Mapping[str, np.ndarray]]) -> None:
        try:
            for text, arrays in zip(texts, said, strict=True):
                self._store.write(text, arrays)
        except OSError as error:
            raise ConfigError(f"{self._store.folder} cannot be written ({error.strerror}); make room there, or give another "
                              f"{FIELD}.") from None  # fmt: skip

    def _try_to_keep(self, text: str, arrays: Mapping[str, np.ndarray], since: float) -> None:
        """In the middle of a run a full disk costs time, and no more."""
        try:
            if self._store.room(1, since):
                self._store.write(text, arrays)
        except OSError as error:
            self._say("disk", f"{self._store.folder} cannot be written ({error.strerror}); the text encoders are loaded "
                      "again whenever a prompt is drawn that is not there.")  # fmt: skip

    def _say(self, of: str, words: str) -> None:
        """Once, and by one process; a disk may be one process's own."""
        if of not in self._told and (of == "disk" or jax.process_index() == 0):
            self.notice(words)
        self._told.add(of)


def in_turn(texts: Sequence[str], process: int, count: int) -> list[Sequence[str]]:
    """Texts in batches of `ROWS`, from another one on for each of `count` processes."""
    batches = [texts[start : start + ROWS] for start in range(0, len(texts), ROWS)]
    first = len(batches) * process // count
    return batches[first:] + batches[:first]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownTexts:
    """Stands where no encoder's files are read: of texts it knows the shapes alone.

    Attributes:
      states: (tokens, width) of a text's states.
      pooled: width of its pooled state; 0 where a network reads none.
      masked: whether a mask says which states are padding's.
      audio: width of a text's states for what is heard; 0 where nothing is.
      dtype: of all states.
      guided: whether the empty text's come with them.
    """

    states: tuple[int, int]
    pooled: int = 0
    masked: bool = False
    audio: int = 0
    dtype: str
    guided: bool = False

    def system(self, rollout: RolloutConfig) -> tuple[int, ...]:
        """Nothing is read before a prompt."""
        return ()

    def shapes(self, count: int, length: int) -> TextStates:
        """As `EmbeddingCodec.shapes`."""
        here = lambda dtype, *shape: jax.ShapeDtypeStruct((count, *shape), jnp.dtype(dtype))
        one = TextStates(
            states=here(self.dtype, *self.states),
            pooled=here(self.dtype, self.pooled) if self.pooled else None,
            mask=here(bool, self.states[0]) if self.masked else None,
            audio=here(self.dtype, self.states[0], self.audio) if self.audio else None,
        )
        return one.replace(empty=one) if self.guided else one


def _parts(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Some texts at a time, and the number of the first."""
    start, texts = 0, iter(texts)
    while part := list(itertools.islice(texts, PART)):
        yield start, part
        start += len(part)


def _unknown(coder, word: str) -> bool:
    unknown = getattr(coder.tokenizer, "unk_token_id", None)
    return unknown is not None and unknown in coder.words(word)
