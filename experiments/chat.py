"""The terminal's side of a conversation: lines in, thinking and pictures out, commands, and files.

What is refused is one sentence, and the conversation goes on as it was.
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from experiments.terminal_pictures import show
from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.foreign_files import named
from unigrpo_jax.foreign_text import quoted, tell

HELP = """Write what you want to see, then what is to change.  Each picture is looked at before your next words are heard.
/image FILE   gives a picture; the next words edit it
/undo         takes back the last round, or the picture given after it; files that were written stay
/save [DIR]   writes the conversation into a new folder: conversation.json, the pictures as they are, strip.png
/help         shows this
/quit         ends, as the end of input does"""


def slug(text: str) -> str:
    """Letters and digits of a text, for a file's name; "image" where it has none."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-") or "image"


def enlarged(image, times: int):
    """An image, uint8 [H, W, 3], as a Pillow image whose pixels are squares of `times`."""
    from PIL import Image

    picture = Image.fromarray(image)
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


@dataclasses.dataclass(kw_only=True)
class Chat:
    """A conversation at a terminal.

    Attributes:
      conversation: what has been said.
      make: the program for a picture given last, or for none; ConfigError where its size cannot be drawn.
      open: a file as the network looks at it; ConfigError where it cannot.
      out: folder of the pictures.
      enlarge: each pixel becomes this many on a side.
      facts: what `/save` writes about the model, JSON values.
    """

    conversation: Any
    make: Callable[[Any], Any]
    open: Callable[[pathlib.Path], Any]
    out: pathlib.Path
    enlarge: int
    facts: dict[str, Any]

    def __post_init__(self):
        self._programs = [self.make(None)]  # one for each state, the last one holds

    def run(self) -> None:
        """Reads lines until the end of input or `/quit`."""
        commands = {"/image": self.image, "/undo": self.undo, "/save": self.save, "/help": lambda _: tell(HELP)}
        for line in lines():
            words = line.strip()
            command, _, rest = words.partition(" ")
            if command == "/quit":
                return
            try:
                if not words:
                    raise ConfigError("an empty line says nothing; write what to draw, or /help.")
                if not command.startswith("/"):
                    self.say(words)
                elif command in commands:
                    commands[command](rest.strip())
                else:
                    raise ConfigError(f"there is no command {quoted(command, 40)}; /help lists those that there are.")
            except ConfigError as error:
                tell(f"Not done: {error}", keep="")
            except OSError as error:
                tell(f"Not done: {error.filename or self.out} cannot be written ({error.strerror or error}).", keep="")

    def say(self, text: str) -> None:
        """One round: prints the thinking, writes the picture, shows it."""
        done = self._with_memory(lambda: self.conversation.say(self._programs[-1], text))
        self._programs.append(self._programs[-1])
        if done.thinking:
            tell(done.thinking)
        picture = enlarged(done.image, self.enlarge)
        path = self._free(f"{len(self.conversation.rounds)}-{slug(text)}")
        self.out.mkdir(parents=True, exist_ok=True)
        picture.save(path, format="PNG")
        show(picture, sys.stdout, os.environ)
        tell(f"Wrote {path}", keep="")

    def image(self, name: str) -> None:
        """`/image FILE`: the picture enters the context, and what is drawn from now on has its size."""
        require(bool(name), "/image takes a file: /image photo.png")
        name = name.strip("'\"")  # as a terminal writes a file that is dropped on it
        picture = self.open(named(name, "/image"))
        program = self.make(picture)
        self._with_memory(lambda: self.conversation.give(program, picture))
        self._programs.append(program)
        height, width = picture.pixels.shape[1:3]
        tell(f"Looked at {name}, {width} x {height} pixels; say what is to become of it.", keep="")

    def undo(self, _: str) -> None:
        """`/undo`."""
        taken = self.conversation.undo()
        self._programs.pop()
        what = "the picture" if taken is None else f"round {len(self.conversation.rounds) + 1}, {quoted(taken.text, 60)}"
        tell(f"Took back {what}.", keep="")

    def save(self, name: str) -> None:
        """`/save [DIR]`: a folder that is new or empty; without a name, chat-1, chat-2 and so on."""
        rounds = self.conversation.rounds
        require(bool(rounds), "there is nothing to save yet; say something first.")
        if name:
            folder = named(name, "/save")
        else:
            folder = next(p for n in range(1, 10**6) if not (p := self.out / f"chat-{n}").exists())
        empty = not folder.exists() or folder.is_dir() and not any(folder.iterdir())
        require(empty, f"{folder} is there already and holds something; name a new folder.")
        folder.mkdir(parents=True, exist_ok=True)
        save(folder, rounds, self.conversation.standing.given, self.facts)
        tell(f"Wrote {folder}: conversation.json, strip.png and {len(rounds)} pictures", keep="")

    def _free(self, name: str) -> pathlib.Path:
        """A file that is not there yet."""
        names = [name, *(f"{name}-{n}" for n in range(2, 10**4))]
        return next(path for n in names if not (path := self.out / f"{n}.png").exists())

    def _with_memory(self, call: Callable[[], Any]) -> Any:
        """What `call` returns; ConfigError where the device's memory does not suffice."""
        import jax

        try:
            return call()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ConfigError("the device's memory does not suffice for this round, which was left out; /undo takes rounds "
                              "back, smaller --height and --width take less.") from None  # fmt: skip


def save(folder: pathlib.Path, rounds, given, facts: dict[str, Any]) -> None:
    """Writes rounds: conversation.json, each picture as it is, and all rounds in a row, strip.png.

    Args:
      folder: that is there.
      rounds: of the conversation.
      given: pictures since the last of them, uint8 [H, W, 3] each.
      facts: of the model, JSON values.
    """
    from PIL import Image

    from unigrpo_jax.training.samples import Moment, Sample, draw_grid

    def write(number: int, images) -> list[str]:
        names = [f"{number}-given-{n}.png" for n in range(1, len(images) + 1)]
        for name, image in zip(names, images, strict=True):
            Image.fromarray(image).save(folder / name, format="PNG")
        return names

    texts, moments = [], []
    for number, done in enumerate(rounds, 1):
        Image.fromarray(done.image).save(folder / f"{number}.png", format="PNG")
        texts.append({"text": done.text, "thinking": done.thinking, "given": write(number, done.given),
                      "image": f"{number}.png"})  # fmt: skip
        moments.append({"prompt": done.text, "thinking": done.thinking, "image": done.image, "verdict": "", "correct": None,
                        "given": done.given})  # fmt: skip
    facts = facts | {"rounds": texts, "given_next": write(len(rounds) + 1, given)}
    *earlier, last = moments
    draw_grid([Sample(**last, earlier=tuple(Moment(**m) for m in earlier))]).save(folder / "strip.png", format="PNG")
    (folder / "conversation.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def lines() -> Iterator[str]:
    """What is typed, or comes through a pipe, line by line; what is no text there becomes its escapes."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (lines can then be edited)
        while True:
            try:
                line = input("> ")
            except EOFError:
                print()
                return
            yield line.encode("utf-8", "backslashreplace").decode()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="backslashreplace")
    for line in sys.stdin:
        yield line.encode("utf-8", "backslashreplace").decode()
