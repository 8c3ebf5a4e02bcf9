"""Files that somebody else wrote: read up to a size, without ever running what they hold, and only inside their folder.

Nothing here or elsewhere in the package unpickles: settings are JSON, arrays are npz without objects, weights safetensors.
"""

import io
import json
import os
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np

from unigrpo_jax.config import ConfigError
from unigrpo_jax.foreign_text import quoted

MIB = 2**20
SETTINGS = MIB  # bytes of a config.json, llm_config.json or provenance.json
TABLES = 64 * MIB  # of a summary, an index of weights, or the texts of samples
DEEPEST = 100
ARRAYS = 2048 * MIB  # of an npz, unpacked


def read_json(path: os.PathLike, limit: int = SETTINGS) -> Any:
    """The JSON value in a file of UTF-8.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is larger than `limit` bytes, or no JSON; the message begins with the path.
    """
    data = read_bytes(path, limit)
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from None


def parse_json(data: bytes | str) -> Any:
    """The JSON value of a text; ValueError, with one line of words, where it is none or is nested deeper than `DEEPEST`."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    level = [value]
    for _ in range(DEEPEST):  # else whatever walks through it may reach Python's limit
        level = [x for y in level if isinstance(y, dict | list) for x in (y.values() if isinstance(y, dict) else y)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def read_arrays(path: os.PathLike, limit: int = ARRAYS) -> dict[str, np.ndarray]:
    """The arrays of an npz file.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged, unpacks to more than `limit` bytes, or holds Python objects, which are never unpacked.
    """
    with _opened(path) as file:
        data = file.read(limit + 1)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            size = sum(part.file_size for part in packed.infolist())
        if size > limit or len(data) > limit:
            raise ValueError(f"it unpacks to more than {limit / MIB:g} MiB")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, KeyError, EOFError, OSError, MemoryError, SyntaxError, RuntimeError, NotImplementedError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{path} is not a readable npz file of numbers ({first})") from None


def read_bytes(path: os.PathLike, limit: int) -> bytes:
    """A file as it is; OSError where it cannot be read, ValueError where it is larger than `limit` bytes."""
    with _opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is larger than {limit / MIB:g} MiB, so it is not what it is called")
    return data


def _opened(path: os.PathLike):
    """The file for reading bytes; on a disk, or in a bucket where `path` knows how (etils.epath)."""
    return path.open("rb") if hasattr(path, "open") else open(path, "rb")


def named(text: str | os.PathLike, field: str) -> pathlib.Path:
    """The path that a text names, `~` replaced, whether it is there or not; `field` says whose text it is.

    ConfigError where it can be no path, or one that may not be looked at.
    """
    try:
        path = pathlib.Path(text).expanduser()
        os.fsencode(path)
        path.exists()
        if "\0" not in str(path):
            return path
        reason = "a zero in a name"
    except OSError as error:
        reason = error.strerror
    except UnicodeEncodeError:
        reason = "half of a surrogate pair"
    except (RuntimeError, ValueError) as error:  # ~ of an unknown user
        reason = str(error).rstrip(".")
    raise ConfigError(f"{field}: {quoted(os.fspath(text))} is no path that can be used ({reason}); give another one.")


def is_inside(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a path, links followed, lies in a folder; the `blobs` of a Hugging Face cache count for its folders."""
    target, home = (pathlib.Path(os.path.realpath(p)) for p in (path, folder))  # resolve() raises where links go round
    return any(target.is_relative_to(place) for place in (home, *_blobs(home)))


def _blobs(folder: pathlib.Path) -> list[pathlib.Path]:
    """Where the files of CACHE/models--OWNER--NAME/snapshots/COMMIT, or of a folder in it, lie; none of another folder.

    They are links into the repository's blobs, and those may be links into the blobs of the whole cache.
    """
    for place in (folder, *folder.parents):
        if place.parent.name == "snapshots":
            repository = place.parent.parent
            return [repository / "blobs"] + ([repository.parent / "blobs"] if "--" in repository.name else [])
    return []
