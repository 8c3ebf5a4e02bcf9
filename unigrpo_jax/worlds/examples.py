"""Examples to learn from: JSON lines, each a prompt, the picture or clip that answers it, and perhaps the thinking between.

    {"prompt": "two red circles", "thinking": "a red circle above another", "image": "0001.png", "category": "counting"}
    {"prompt": "a red circle moves up", "video": "0001.mp4"}
    {"prompt": "it turns", "video": "0001.mp4", "image": "0001.png"}
    {"prompt": "a ball bounces", "video": "0001.webp", "audio": "0001.wav"}

The form is that of prompts (`lines`), but `image` is what is to be drawn, not what is shown; where clips are learned that is
`video`, and `image` the first frame that the clip goes on from, which is else its own where a model always goes on from one;
`audio` is the sound of the clip, which is else that in its MP4.  A file is read through once, when every line is checked and
every picture's and clip's head is read; of a line its offset is kept, 8 bytes, and the rest is read again when it is asked
for.
"""

import array
import dataclasses
import heapq
import itertools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from unigrpo_jax.clip_files import Sound, check_clip, has_sound, read_clip, read_clip_sound
from unigrpo_jax.config import require
from unigrpo_jax.foreign_files import named
from unigrpo_jax.foreign_text import is_unicode, quoted
from unigrpo_jax.picture_files import check_picture
from unigrpo_jax.sound_files import check_sound_file, read_sound
from unigrpo_jax.worlds.lines import Line, file_beside, json_prompt, parsed, reader, with_picture, written
from unigrpo_jax.worlds.prompt import CHECKED, MOST_NAMES, Picked, Prompt

THINKING, VIDEO, AUDIO = "thinking", "video", "audio"  # of a line, and so of its prompt's metadata


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip in a file, and its sound, there or in a WAV file; read whenever they are asked for."""

    path: pathlib.Path
    wav: pathlib.Path | None = None

    def __call__(self) -> np.ndarray:
        """uint8 [F, H, W, 3]; ConfigError where it cannot be read."""
        return read_clip(self.path)[0]

    @property
    def fps(self) -> float:
        """How many of its frames make a second, by its file; ConfigError likewise."""
        return read_clip(self.path)[1]

    @property
    def has_sound(self) -> bool:
        """Whether there is a sound, by the heads of the files; ConfigError likewise."""
        return self.wav is not None or has_sound(self.path)

    @property
    def sound(self) -> Sound | None:
        """The sound as it is; None where there is none; ConfigError likewise."""
        return read_clip_sound(self.path) if self.wav is None else read_sound(self.wav)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Prompt):
    """A prompt and what answers it.

    Attributes:
      clip: gives the clip that is to be drawn; None where that is `picture`.  With a clip `picture` is the first frame that
        it goes on from, and None where that is its own.
    """

    clip: Clip | None = None

    @property
    def first(self) -> Callable[[], np.ndarray] | None:
        """Gives the picture from which is gone on, uint8 [H, W, 3]."""
        own = self.clip
        return self.picture if self.picture is not None or own is None else lambda: own()[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """The examples of a file.

    Attributes:
      prompts: in the file's order; `picture` or `clip` gives what is to be drawn, `thinking_of` what is to be thought.
      longest: at most `CHECKED` of them, those with the longest prompts.
      deepest: as many, those with the longest thinkings.
      thought: the first line that has a thinking; None where none has.
      begun: the first line that has a first frame beside its clip; None where none has.
      unbegun: the first line whose clip has none beside it; None where none is such.
      heard: the first line that names a sound beside its clip; None where none does.
      unread: names of what else stands there, at most `MOST_NAMES`.
    """

    prompts: Sequence[Example]
    longest: Sequence[Example]
    deepest: Sequence[Example]
    thought: Line | None
    begun: Line | None
    unbegun: Line | None
    heard: Line | None
    unread: Sequence[str]


def thinking_of(example: Prompt) -> str:
    """The thinking of an example; empty where it has none."""
    return example.metadata.get(THINKING) or ""


def asked(example: Example, begins: bool = False) -> Prompt:
    """The prompt alone, as somebody asks it; where a model `begins` with a picture, the first frame is shown with it."""
    hidden = ("image", VIDEO, AUDIO, THINKING)
    metadata = {key: value for key, value in example.metadata.items() if key not in hidden}
    return Prompt(text=example.text, picture=example.first if begins else None, metadata=metadata, place=example.place)


def read_examples(name: str, option: str, thinks: bool, clips: bool = False) -> Examples:
    """The examples of a file.

    Args:
      name: of the file.
      option: what named it, for messages.
      thinks: every line must come with a thinking.
      clips: every line must come with a clip; else with a picture.

    Raises:
      ConfigError: the file cannot be read or is empty, or a line (with its number) is no such example, or its picture or
        clip is missing or none.
    """
    path = named(name, option)
    stamp = written(path)
    read_here = ("image", "category", THINKING, *((VIDEO, AUDIO) if clips else ()))

    def example(text: str) -> Example:
        found = with_picture(json_prompt(text), path.parent)
        name = found.metadata.get(VIDEO) if clips else None
        wav = found.metadata.get(AUDIO) if clips else None
        wav = None if wav is None else file_beside(wav, AUDIO, path.parent, "sound")
        clip = None if name is None else Clip(file_beside(name, VIDEO, path.parent, "clip"), wav)
        return Example(text=found.text, picture=found.picture, metadata=found.metadata, clip=clip)

    def checked(text: str) -> Example:
        found = example(text)
        thinking = found.metadata.get(THINKING)
        if clips:
            require(found.clip is not None, 'has no "video", and clips are drawn; write the path of the clip that is to be '
                    "learned there, or learn pictures with --rollout.frames 1.")  # fmt: skip
            check_clip(found.clip.path)
            if found.clip.wav is not None:
                check_sound_file(found.clip.wav)
        hint = "" if found.metadata.get(VIDEO) is None else ", or learn its clip with --rollout.frames"
        require(clips or found.picture is not None,
                f'has no "image"; write the path of the picture that is to be learned there{hint}.')  # fmt: skip
        require(thinking is None or (isinstance(thinking, str) and bool(thinking.strip()) and is_unicode(thinking)),
                f'"thinking" is {quoted(thinking)}; write the words of the thinking there, or leave it out.')  # fmt: skip
        require(thinking is not None or not thinks, 'has no "thinking", and rollout.thinking is on; write one for every '
                "line, or use --rollout.no-thinking.")  # fmt: skip
        require(not found.turns, '"turns" are for several rounds, and an example is one; take them out.')
        if found.picture is not None:
            check_picture(found.picture.path)
        return found

    offsets, thought, begun, unbegun, heard = array.array("q"), None, None, None, None
    unread: dict[str, None] = {}
    longest: list[tuple[int, int]] = []  # heaps of (characters, offset)
    deepest: list[tuple[int, int]] = []
    for offset, found in parsed(path, checked, option):
        offsets.append(offset)
        words = thinking_of(found)
        if words and thought is None:
            thought = Line(path, offset)
        if begun is None and found.clip is not None and found.picture is not None:
            begun = Line(path, offset)
        if unbegun is None and found.clip is not None and found.picture is None:
            unbegun = Line(path, offset)
        if heard is None and found.clip is not None and found.clip.wav is not None:
            heard = Line(path, offset)
        for heap, size in ((longest, len(found.text)), (deepest, len(words))):
            (heapq.heappush if len(heap) < CHECKED else heapq.heappushpop)(heap, (size, offset))
        if len(unread) < MOST_NAMES:
            unread |= dict.fromkeys(itertools.islice((k for k in found.metadata if k not in read_here), MOST_NAMES))
    require(bool(offsets), f"{path} holds no examples; write one JSON object per line.")
    picked = lambda heap: Picked(read, [offset for _, offset in sorted(heap, reverse=True)])
    read = reader(path, example, stamp)
    return Examples(
        prompts=Picked(read, offsets),
        longest=picked(longest),
        deepest=picked(deepest),
        thought=thought,
        begun=begun,
        unbegun=unbegun,
        heard=heard,
        unread=tuple(itertools.islice(unread, MOST_NAMES)),
    )
