"""The settings in a JSON file that somebody else's program wrote, each checked as it is read; null means absent."""

import pathlib
from collections.abc import Sequence
from typing import Any

from unigrpo_jax import foreign_files
from unigrpo_jax.foreign_text import quoted, visible

LARGEST_NUMBER = 1e30
LARGEST_SIZE = 2**24  # of anything that a config file counts; what is larger is no network's
MOST_LAYERS = 1000  # each of them is a list of tensors
MOST_ENTRIES = 100  # of a list of numbers
MOST_NAMES, LONGEST_NAME = 20, 60  # of a list that is shown
LONGEST_TEXT = 1000


class Settings:
    """One mapping of settings.

    Attributes:
      path: the file.
      nulls: names whose value is null; no other method sees them.
    """

    def __init__(self, path: pathlib.Path, data: dict[str, Any], place: str = ""):
        """`place` stands before every name in messages, such as "rope_parameters."."""
        self.path, self._place = path, place
        self.nulls = {name for name, value in data.items() if value is None}
        self._data = {name: value for name, value in data.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def names(self) -> list[str]:
        """All names with a value, in the file's order."""
        return list(self._data)

    def error(self, name: str, words: str) -> ValueError:
        """The error of a value, which the message quotes."""
        name, value = visible(name)[:LONGEST_NAME], quoted(self._data.get(name))
        return ValueError(f"{self.path}: {self._place}{name} = {value}, but {words}.")

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to `LARGEST_SIZE`."""
        value = self._data.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE:
            raise self.error(name, f"it must be a whole number from 1 to {LARGEST_SIZE}")
        return value

    def layers(self, name: str, default: int) -> int:
        """A whole number from 1 to `MOST_LAYERS`."""
        value = self.whole(name, default)
        if value > MOST_LAYERS:
            raise self.error(name, f"it must be at most {MOST_LAYERS}")
        return value

    def wholes(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """A list of whole numbers, at least one and at most `MOST_ENTRIES`."""
        values = self._data.get(name, list(default))
        if not isinstance(values, list) or not 0 < len(values) <= MOST_ENTRIES:
            raise self.error(name, f"it must be a list of whole numbers, at most {MOST_ENTRIES}")
        return tuple(Settings(self.path, {name: value}, self._place).whole(name) for value in values)

    def lists(self, name: str, default: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        """A list of such lists of whole numbers, at most `MOST_ENTRIES`."""
        values = self._data.get(name, list(default))
        if not isinstance(values, list) or not 0 < len(values) <= MOST_ENTRIES:
            raise self.error(name, f"it must be a list of lists of whole numbers, at most {MOST_ENTRIES}")
        return tuple(Settings(self.path, {name: value}, self._place).wholes(name, ()) for value in values)

    def words(self, name: str, default: Sequence[str], *known: str) -> tuple[str, ...]:
        """A list of words, each of them known."""
        values = self._data.get(name, list(default))
        if not isinstance(values, list) or any(value not in known for value in values):
            raise self.error(name, f"it must be a list of {' and '.join(known)}")
        return tuple(values)

    def word(self, name: str, default: str, *known: str) -> str:
        """One of the known words."""
        self.only(name, *known)
        return self._data.get(name, default)

    def text(self, name: str, default: str) -> str:
        """Words that are shown."""
        value = self._data.get(name, default)
        if not isinstance(value, str) or len(value) > LONGEST_TEXT:
            raise self.error(name, f"it must be a text of at most {LONGEST_TEXT} characters")
        return visible(value)

    def side(self, name: str, default: int) -> int:
        """A whole number, or a list of two equal ones: height and width of a square."""
        value = self._data.get(name)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            return Settings(self.path, {name: value[0]}, self._place).whole(name)
        return self.whole(name, default)

    def positive(self, name: str, default: float) -> float:
        """A number above 0 and up to `LARGEST_NUMBER`."""
        value = self._data.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= LARGEST_NUMBER:
            raise self.error(name, f"it must be a number above 0 and at most {LARGEST_NUMBER:g}")
        return float(value)

    def count(self, name: str, default: int) -> int:
        """A whole number from 0 to `LARGEST_SIZE`."""
        value = self._data.get(name, default)
        return value if value == 0 and isinstance(value, int) and not isinstance(value, bool) else self.whole(name, default)

    def number(self, name: str, default: float) -> float:
        """Any number up to `LARGEST_NUMBER`, with a sign."""
        value = self._data.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST_NUMBER:
            raise self.error(name, f"it must be a number of at most {LARGEST_NUMBER:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._data.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "it must be true or false")
        return value

    def flags(self, name: str, default: bool, count: int) -> tuple[bool, ...]:
        """True or false for each of so many, or one for all."""
        value = self._data.get(name, default)
        values = value if isinstance(value, list) else [value] * count
        if len(values) != count or any(not isinstance(x, bool) for x in values):
            raise self.error(name, f"it must be true or false, or a list of {count} of them")
        return tuple(values)

    def only(self, name: str, *values: Any) -> None:
        """ValueError where the name has another value than one of these; with none of them, where it is there at all."""
        if name in self and self._data[name] not in values:
            known = " or ".join(map(repr, values))
            raise self.error(name, f"this network knows only {known}" if values else "this network does not have that")

    def all_of(self, name: str, value: str) -> None:
        """ValueError where the name has another value than a list of this one."""
        found = self._data.get(name, [])
        if not isinstance(found, list) or any(x != value for x in found):
            raise self.error(name, f"this network knows only {value!r} in every layer")

    def part(self, name: str) -> "Settings":
        """The mapping under a name; an empty one where it is absent."""
        value = self._data.get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "it must be a mapping")
        return Settings(self.path, value, f"{self._place}{name}.")

    def besides(self, known: set[str]) -> str:
        """The names that are not among these, as one can show them; "" where there are none."""
        names = [visible(name)[:LONGEST_NAME] for name in self._data if name not in known]
        more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
        return ", ".join(names[:MOST_NAMES] + more)


def read_settings(path: pathlib.Path, files: str) -> Settings:
    """The settings of a file; ValueError where it cannot be read, which then says what `files` its folder holds."""
    try:
        data = foreign_files.read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); the folder of such a model holds {files}.") from None
    except ValueError as error:
        raise ValueError(f"{error}; download or copy it again.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not a mapping of settings; download or copy it again.")
    return Settings(path, data)
