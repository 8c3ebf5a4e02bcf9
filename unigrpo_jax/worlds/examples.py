"""Examples to learn from: JSON lines, each a prompt, the picture that answers it, and perhaps the thinking between.

    {"prompt": "two red circles", "thinking": "a red circle above another", "image": "0001.png", "category": "counting"}

The form is that of prompts (`lines`), but `image` is what is to be drawn, not what is shown.  A file is read through once,
when every line is checked and every picture's head is opened; of a line its offset is kept, 8 bytes, and the rest is read
again when it is asked for.
"""

import array
import dataclasses
import heapq
import itertools
from collections.abc import Sequence

from unigrpo_jax.config import require
from unigrpo_jax.foreign_files import named
from unigrpo_jax.foreign_text import is_unicode, quoted
from unigrpo_jax.picture_files import check_picture
from unigrpo_jax.worlds.lines import Line, json_prompt, parsed, reader, with_picture, written
from unigrpo_jax.worlds.prompt import CHECKED, MOST_NAMES, Picked, Prompt

THINKING = "thinking"  # of a line, and so of its prompt's metadata
_READ = ("image", "category", THINKING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """The examples of a file.

    Attributes:
      prompts: in the file's order; `picture` gives what is to be drawn, `thinking_of` what is to be thought.
      longest: at most `CHECKED` of them, those with the longest prompts.
      deepest: as many, those with the longest thinkings.
      thought: the first line that has a thinking; None where none has.
      unread: names of what else stands there, at most `MOST_NAMES`.
    """

    prompts: Sequence[Prompt]
    longest: Sequence[Prompt]
    deepest: Sequence[Prompt]
    thought: Line | None
    unread: Sequence[str]


def thinking_of(example: Prompt) -> str:
    """The thinking of an example; empty where it has none."""
    return example.metadata.get(THINKING) or ""


def asked(example: Prompt) -> Prompt:
    """The prompt alone, as somebody asks it: no picture is shown with it."""
    hidden = ("image", THINKING)
    metadata = {key: value for key, value in example.metadata.items() if key not in hidden}
    return dataclasses.replace(example, picture=None, metadata=metadata)


def read_examples(name: str, option: str, thinks: bool) -> Examples:
    """The examples of a file.

    Args:
      name: of the file.
      option: what named it, for messages.
      thinks: every line must come with a thinking.

    Raises:
      ConfigError: the file cannot be read or is empty, or a line (with its number) is no such example, or its picture is
        missing or no picture.
    """
    path = named(name, option)
    stamp = written(path)

    def example(text: str) -> Prompt:
        return with_picture(json_prompt(text), path.parent)

    def checked(text: str) -> Prompt:
        found = example(text)
        thinking = found.metadata.get(THINKING)
        require(found.picture is not None, 'has no "image"; write the path of the picture that is to be learned there.')
        require(thinking is None or (isinstance(thinking, str) and bool(thinking.strip()) and is_unicode(thinking)),
                f'"thinking" is {quoted(thinking)}; write the words of the thinking there, or leave it out.')  # fmt: skip
        require(thinking is not None or not thinks, 'has no "thinking", and rollout.thinking is on; write one for every '
                "line, or use --rollout.no-thinking.")  # fmt: skip
        require(not found.turns, '"turns" are for several rounds, and an example is one; take them out.')
        check_picture(found.picture.path)
        return found

    offsets, thought = array.array("q"), None
    unread: dict[str, None] = {}
    longest: list[tuple[int, int]] = []  # heaps of (characters, offset)
    deepest: list[tuple[int, int]] = []
    for offset, found in parsed(path, checked, option):
        offsets.append(offset)
        words = thinking_of(found)
        if words and thought is None:
            thought = Line(path, offset)
        for heap, size in ((longest, len(found.text)), (deepest, len(words))):
            (heapq.heappush if len(heap) < CHECKED else heapq.heappushpop)(heap, (size, offset))
        if len(unread) < MOST_NAMES:
            unread |= dict.fromkeys(itertools.islice((k for k in found.metadata if k not in _READ), MOST_NAMES))
    require(bool(offsets), f"{path} holds no examples; write one JSON object per line.")
    picked = lambda heap: Picked(read, [offset for _, offset in sorted(heap, reverse=True)])
    read = reader(path, example, stamp)
    return Examples(
        prompts=Picked(read, offsets),
        longest=picked(longest),
        deepest=picked(deepest),
        thought=thought,
        unread=tuple(itertools.islice(unread, MOST_NAMES)),
    )
