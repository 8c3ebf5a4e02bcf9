"""Where prompts come from: what a name after --prompts stands for."""

import pathlib
from collections.abc import Mapping
from types import MappingProxyType

from unigrpo_jax.foreign_files import named
from unigrpo_jax.worlds import lines
from unigrpo_jax.worlds.prompt import Source

_HERE = pathlib.Path(__file__).parent
# Prompts inside the package: 48 without pictures, and 8 that each come with a first frame to go on from.
INSIDE = {"examples": _HERE / "examples.jsonl", "first_frames": _HERE / "first_frames" / "prompts.jsonl"}


def read_source(name: str, option: str = "--prompts", rounds: Mapping[str, int] = MappingProxyType({})) -> Source:
    """The prompts that a name stands for.

    Args:
      name: `examples` or `first_frames`, prompts inside the package; FILE.txt, a prompt per line; `geneval:FILE`, GenEval's
        metadata; `tfds:NAME[/CONFIG][:SPLIT][#FIELD]`, a prepared dataset of TensorFlow Datasets; any other FILE, JSON
        lines.
      option: what named it, for messages.
      rounds: as in `unigrpo_jax.worlds.prompt.check_reserved`.

    Raises:
      ConfigError: nothing of that kind is there, or a line of it is no prompt.
    """
    path = file_of(name, option)
    if path is None:
        from unigrpo_jax.worlds.dataset import read_dataset

        return read_dataset(name.partition(":")[2])
    is_geneval = _is_geneval(name)
    plain = lines.text_prompt if path.suffix == ".txt" else lines.json_prompt
    return lines.read_file(path, lines.geneval_prompt if is_geneval else plain, option, rounds)


def file_of(name: str, option: str = "--prompts") -> pathlib.Path | None:
    """The file that prompts of a name, as in `read_source`, are read from; None where it is a dataset's."""
    kind, _, rest = name.partition(":")
    if kind == "tfds" and rest:
        return None
    return INSIDE[name] if name in INSIDE else named(rest if _is_geneval(name) else name, option)


def _is_geneval(name: str) -> bool:
    return name.startswith("geneval:") and name != "geneval:"
