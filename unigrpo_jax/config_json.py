"""Settings as JSON: what a run folder keeps of its config, and back."""

import dataclasses
import difflib
import json
import types
import typing
from typing import Any, Literal

from etils import epath

from unigrpo_jax import foreign_files
from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.foreign_text import quoted


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested JSON-serialisable dicts."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(data: dict[str, Any], cls: type = RunConfig, where: str = "config") -> Any:
    """Rebuilds a config from `to_dict`'s output.

    Raises:
      ConfigError: a field is unknown (its nearest neighbour is named), or its value is of another type.
    """
    require(isinstance(data, dict), f"{where} is not a mapping of settings.")
    kinds = typing.get_type_hints(cls)
    for name in data:
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"{where}: no field is called {quoted(name)}{hint}")
    return cls(**{name: _typed(value, kinds[name], f"{where}.{name}") for name, value in data.items()})


def _typed(value: Any, kind: Any, where: str) -> Any:
    """A JSON value as a field's type; ConfigError where it is of another."""
    if dataclasses.is_dataclass(kind):
        return from_dict(value, kind, where)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # text or nothing
        return None if value is None else _typed(value, inner[0], where)
    if origin is dict:
        words = "names" if inner[1] is str else "numbers"
        require(isinstance(value, dict), f"{where} = {quoted(value)}, but it must be a mapping of names to {words}.")
        return {_typed(k, inner[0], where): _typed(v, inner[1], f"{where}[{str(k)[:80]}]") for k, v in value.items()}
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{where} = {quoted(value)}, but it must be a list.")
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        require(len(value) == len(kinds), f"{where} = {quoted(value)}, but it must hold {len(kinds)} values.")
        return tuple(_typed(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    if origin is Literal:
        require(value in inner, f"{where} = {quoted(value)}, but it must be one of {', '.join(inner)}.")
        return value
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    require(fits, f"{where} = {quoted(value)}, but it must be {words}.")
    return value


def load_run_config(path: epath.Path) -> RunConfig:
    """Reads a run folder's config.json; ConfigError where it is missing, no JSON, or of another version."""
    try:
        data = foreign_files.read_json(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); give a run folder that `python -m experiments.run` made."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{error}; restore it or give another run folder.") from None
    return settled(from_dict(data, where=str(path)))


def settled(config: RunConfig) -> RunConfig:
    """As run folders are compared and read: the rate of a fake score is a number where one learns, and else none.

    Folders from before it followed the student's rate say 5e-4, whether anything read it or not.
    """
    learning, d = config.learning, config.learning.distillation
    unread = None if d.fake_lr == 5e-4 else d.fake_lr
    own = dataclasses.replace(d, fake_lr=learning.fake_lr if learning.matches else unread)
    return dataclasses.replace(config, learning=dataclasses.replace(learning, distillation=own))
