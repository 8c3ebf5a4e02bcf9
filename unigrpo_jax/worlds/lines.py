"""Prompts of a text file, one per line, of any number of lines: 8 bytes of memory each.

A file is read through once, when every line is checked and its offset kept; a prompt is read again when it is asked for.
Three forms: JSON lines, an object with "prompt" and anything else as metadata; GenEval's metadata, JSON lines whose "tag"
is the category; plain text, where a line is a prompt.  In JSON, "image" names the picture that comes with the prompt, a file
in the folder of the prompts or below it; "turns" and "rounds" are for later rounds; null says that a key is absent.
"""

import array
import dataclasses
import heapq
import itertools
import json
import os
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.foreign_files import is_inside, named, parse_json
from unigrpo_jax.foreign_text import is_unicode, quoted
from unigrpo_jax.picture_files import open_rgb
from unigrpo_jax.worlds import geneval
from unigrpo_jax.worlds.prompt import (
    CHECKED,
    MOST_NAMES,
    RESERVED,
    Picked,
    Prompt,
    Source,
    check_reserved,
    pictured,
    same_turns,
)

LONGEST_LINE = 2**20  # bytes
MOST_CATEGORIES, LONGEST_CATEGORY = 10_000, 200


def parsed(path: pathlib.Path, parse: Callable[[str], Any], option: str = "--prompts") -> Iterator[tuple[int, Any]]:
    """The lines of a file that are not blank, as (offset in bytes, what `parse` makes of the text).

    Args:
      path: the file.
      parse: may raise a ConfigError that says nothing of the place.
      option: what named the file, for messages.

    Raises:
      ConfigError: the file cannot be read, or a line (with its number) is no UTF-8, too long, or refused by `parse`.
    """
    try:
        with open(path, "rb") as file:
            require(file.seekable(), f"{path} is no file on a disk, so that it cannot be read twice; save it as one.")
            offset = 0
            for number in itertools.count(1):
                line = file.readline(LONGEST_LINE + 1)
                if not line:
                    return
                require(len(line) <= LONGEST_LINE,
                        f"{path}, line {number}: longer than {LONGEST_LINE} bytes; shorten it.")  # fmt: skip
                text = _decoded(path, line, offset)
                if text.strip():
                    try:
                        record = parse(text)
                    except ConfigError as error:
                        raise ConfigError(f"{path}, line {number}: {error}") from None
                    yield offset, record
                offset += len(line)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check {option}.") from None


def _decoded(path: pathlib.Path, line: bytes, offset: int) -> str:
    try:
        return line.decode(
            "utf-8" if offset else "utf-8-sig"
        )  # the bytes are cut at line feeds only: a text may hold U+2028
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def json_value(line: str) -> Any:
    """The value of a line of JSON."""
    try:
        return parse_json(line.strip("\r\n"))
    except ValueError as error:
        what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ConfigError(f"not JSON ({what}); write one object per line.") from None


def json_prompt(line: str) -> Prompt:
    """A line of JSON as a prompt; GenEval's form is recognised by its keys."""
    record = json_value(line)
    text = record.pop("prompt", None) if isinstance(record, dict) else None
    require(isinstance(text, str) and bool(text.strip()), 'expected an object with a text under "prompt".')
    require(is_unicode(text), "the prompt holds half a surrogate pair; remove it.")
    record = {key: value for key, value in record.items() if value is not None or key not in RESERVED}
    if isinstance(record.get("rounds"), list):
        record["rounds"] = [{} if facts is None else facts for facts in record["rounds"]]
    if geneval.is_check(record):
        record.setdefault("category", record["tag"])
    return Prompt(text=text, metadata=record)


def geneval_prompt(line: str) -> Prompt:
    """A line of GenEval's metadata as a prompt."""
    prompt = json_prompt(line)
    require(
        geneval.is_check(prompt.metadata), 'expected GenEval\'s form, with a text under "tag" and a list under "include".'
    )
    return prompt


def text_prompt(line: str) -> Prompt:
    """A line of text as a prompt."""
    return Prompt(text=line.strip())


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture in a file, opened whenever it is called."""

    path: pathlib.Path

    def __call__(self) -> np.ndarray:
        """uint8 [H, W, 3]; ConfigError where it cannot be read."""
        return np.asarray(open_rgb(self.path))


def with_picture(prompt: Prompt, folder: pathlib.Path) -> Prompt:
    """The prompt with the picture that `image` of its metadata names, if it does.

    ConfigError where that is no file inside the folder, or where `media` is filled instead, as others write it; whether it
    is a picture shows when it is read.
    """
    name, media = prompt.metadata.get("image"), prompt.metadata.get("media")
    elsewhere = isinstance(media, list) and any(isinstance(part, dict) for part in media)
    require(name is not None or not elsewhere,
            '"media" is not read; write the path of the picture that comes with the prompt under "image".')  # fmt: skip
    return prompt if name is None else dataclasses.replace(prompt, picture=Image(file_beside(name, "image", folder)))


def file_beside(name: Any, key: str, folder: pathlib.Path, what: str = "picture") -> pathlib.Path:
    """The file that stands under a key of a line; ConfigError where it is none inside the folder of the prompts."""
    require(isinstance(name, str) and bool(name), f'"{key}" is {quoted(name)}; write the path of a {what} there.')
    path = named(folder / name, f'"{key}"')
    require(is_inside(path, folder), f'"{key}" is {quoted(name)}, which leaves the folder of the prompts, {folder}; put the '
                                     f"{what} there.")  # fmt: skip
    require(path.is_file(), f'"{key}" is {quoted(name)}, but there is no such file in {folder}, the folder of the '
                            "prompts; put it there.")  # fmt: skip
    return path


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a file; its number is found when it is asked for."""

    path: pathlib.Path
    offset: int

    def __str__(self) -> str:
        number, left = 1, self.offset
        with open(self.path, "rb") as file:
            while block := file.read(min(left, 2**20)):
                number, left = number + block.count(b"\n"), left - len(block)
        return f"{self.path}, line {number}"


def read_file(path: pathlib.Path, parse: Callable[[str], Prompt] = json_prompt, option: str = "--prompts",
              rounds: Mapping[str, int] = types.MappingProxyType({})) -> Source:  # fmt: skip
    """The prompts of a file, grouped by metadata["category"].

    Args:
      path: the file.
      parse: makes a prompt of a line.
      option: what named the file, for messages.
      rounds: as in `check_reserved`.

    Raises:
      ConfigError: the file is missing or empty, a line (with its number) is no prompt or says what this run cannot read, or
        some show a picture, or say more later, and others do not.
    """
    stamp = written(path)
    shown = lambda text: with_picture(parse(text), path.parent)

    def checked(text: str) -> Prompt:
        prompt = shown(text)
        check_reserved(prompt, rounds)
        return prompt

    groups: dict[str, array.array] = {}
    shows: bool | None = None
    turns: int | None = None
    facts: dict[str, None] = {}  # names in the order in which they come
    longest: list[tuple[int, int]] = []  # a heap of (characters, offset)
    for offset, prompt in parsed(path, checked, option):
        if (prompt.picture is not None) != shows:  # nearly never, and where a line stands takes long to say
            shows = pictured([dataclasses.replace(prompt, place=Line(path, offset))], shows)
        if len(prompt.turns) != turns:
            turns = same_turns(dataclasses.replace(prompt, place=Line(path, offset)), turns)
        if len(facts) < MOST_NAMES:
            facts |= dict.fromkeys(itertools.islice((k for k in prompt.metadata if k not in RESERVED), MOST_NAMES))
        category = str(prompt.metadata.get("category", ""))
        if category not in groups:
            require(len(category) <= LONGEST_CATEGORY and len(groups) < MOST_CATEGORIES,
                    f"{Line(path, offset)}: \"category\" is one of at most {MOST_CATEGORIES} kinds of prompts, in at most "
                    f"{LONGEST_CATEGORY} characters; call what is different for every prompt otherwise.")  # fmt: skip
            groups[category] = array.array("q")
        groups[category].append(offset)
        (heapq.heappush if len(longest) < CHECKED else heapq.heappushpop)(longest, (_letters(prompt), offset))
    form = "one prompt" if parse is text_prompt else "one JSON object"
    require(bool(groups), f"{path} holds no prompts; write {form} per line.")

    read = reader(path, shown, stamp)
    longest_first = [offset for _, offset in sorted(longest, reverse=True)]
    return Source(
        groups=[Picked(read, offsets) for offsets in groups.values()],
        longest=Picked(read, longest_first),
        facts=tuple(itertools.islice(facts, MOST_NAMES)),
    )


def reader(path: pathlib.Path, parse: Callable[[str], Prompt], stamp: tuple[int, int] | None) -> Callable[[int], Prompt]:
    """Reads the prompt that begins at an offset of a file; ConfigError where the file is no longer as it was `written`."""

    def read(offset: int) -> Prompt:
        try:
            with open(path, "rb") as file:
                require(_stamp(os.fstat(file.fileno())) == stamp, f"{path} changed while it is used; start again.")
                file.seek(offset)
                line = file.readline(LONGEST_LINE)
        except OSError as error:
            raise ConfigError(f"{path} can no longer be read ({error.strerror}); bring it back.") from None
        return dataclasses.replace(parse(_decoded(path, line, offset)), place=Line(path, offset))

    return read


def written(path: pathlib.Path) -> tuple[int, int] | None:
    """Size and time of a file, by which a change is noticed; None where there is none."""
    return _stamp(os.stat(path)) if path.exists() else None


def _letters(prompt: Prompt) -> int:
    """Of the longest text that is said with a prompt."""
    return max(map(len, (prompt.text, *prompt.turns)))


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
