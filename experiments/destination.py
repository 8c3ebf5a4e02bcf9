"""Where a program is told to write, tried before it computes anything, so that nothing is lost for a place that is none."""

import contextlib
import errno
import os
import pathlib
import tempfile
from collections.abc import Iterator

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.foreign_files import named

_ANOTHER = "name another place"


def file_to_write(place: str | os.PathLike, option: str) -> pathlib.Path:
    """The file at `place`, which need not be there yet; ConfigError, naming the `option`, where it cannot be written.

    A device or a pipe is no such file: what is written in one step would take its place.
    """
    path = named(place, option)
    require(not path.is_dir(), f"{option} {path} is a folder; name a file in it.")
    require(not path.exists() or path.is_file(), f"{option} {path} is no file on a disk; {_ANOTHER}.")
    with _tried(path, option):
        _try(path.parent)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def folder_to_write(place: str | os.PathLike, option: str) -> pathlib.Path:
    """The folder at `place`, which need not be there yet; ConfigError, naming the `option`, where none can be written."""
    path = named(place, option)
    require(path.is_dir() or not path.exists(), f"{option} {path} is a file; name a folder.")
    with _tried(path, option):
        _try(path)
    return path


@contextlib.contextmanager
def _tried(path: pathlib.Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written ({error.strerror}); {_ANOTHER}.") from None


def _try(folder: pathlib.Path) -> None:
    """OSError where no file can be made in a folder; what is made to see that goes again."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
