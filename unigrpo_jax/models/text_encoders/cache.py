"""What encoders said of texts, kept on disk: one file a text, found by the content of the text and of its encoder.

A file is the SHA-256 of the encoder's key, the text and the arrays, and then the arrays' bytes; their shapes are the
encoder's.  It is written whole under another name first.  One that is cut, changed, of another text or of another encoder is
not believed, and made again.  Any number of processes and runs may share a folder, on one machine or several.
"""

import contextlib
import hashlib
import math
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from unigrpo_jax import caches
from unigrpo_jax.config import ConfigError, EmbeddingsConfig
from unigrpo_jax.foreign_files import named

FIELD = "model.embeddings.folder"
END, PARTIAL = ".states", ".states.partial"
OWN = re.compile("[0-9a-f]{32}")  # folders that may be looked into: a user may have named one that holds other things
ABANDONED = 3600  # seconds after which a half-written file is nobody's any more

Arrays = Mapping[str, np.ndarray]


class Store:
    """The states of one encoder's texts in a folder that other encoders use, too.

    Attributes:
      folder: of this encoder's files.
      bytes: size of a file.
    """

    def __init__(self, config: EmbeddingsConfig, encoder: str, shapes: Mapping[str, jax.ShapeDtypeStruct]):
        """ConfigError where the folder cannot be made or written.

        Args:
          config: where, and how much all encoders' files may take together.
          encoder: key of the encoder: another one whenever it would say anything else.
          shapes: of the arrays of one text.
        """
        self._root = _root(config)
        self._limit = int(config.gigabytes * 1e9)
        self._encoder, self._shapes = encoder, dict(sorted(shapes.items()))
        self.folder = self._root / encoder[:32]  # as `OWN`
        self.bytes = 32 + sum(_size(like) for like in self._shapes.values())
        self._taken: int | None = None  # by all files when they were last counted, and by what was written since
        self._since = 0

    def has(self, text: str) -> bool:
        """Whether there is a file of the right size, which is then the one used last; only `read` looks into it."""
        path = self._path(text)
        try:
            if path.stat().st_size != self.bytes:
                return False
        except OSError:
            return False
        _touch(path)
        return True

    def read(self, text: str) -> dict[str, np.ndarray] | None:
        """The arrays of a text; None where there is no file, or one that is not believed."""
        path = self._path(text)
        try:
            if path.stat().st_size != self.bytes:
                return None
            data = path.read_bytes()
        except OSError:
            return None
        if len(data) != self.bytes or data[:32] != self._digest(text, memoryview(data)[32:]):
            return None
        _touch(path)
        arrays, at = {}, 32
        for name, like in self._shapes.items():
            arrays[name] = np.frombuffer(data, like.dtype, math.prod(like.shape), at).reshape(like.shape)
            at += _size(like)
        return arrays

    def write(self, text: str, arrays: Arrays) -> None:
        """Keeps the arrays of a text.  OSError where the disk is full or the folder cannot be written."""
        data = b"".join(np.asarray(arrays[name], like.dtype).tobytes() for name, like in self._shapes.items())
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(PARTIAL, ".", self.folder)
        try:
            with open(handle, "wb") as file:
                file.write(self._digest(text, data) + data)
            os.chmod(partial, 0o644)  # it was made for the owner alone
            _touch(partial)  # by the clock of `since`, which is not the disk's
            os.replace(partial, self._path(text))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        self._since += self.bytes

    def room(self, texts: int, since: float) -> bool:
        """Makes room for so many texts more, and says whether there is.

        What was used longest ago is removed first, whichever encoder's it is; never what was used after `since`, a time as
        `time.time` has it.
        """
        needed = texts * self.bytes
        taken = None if self._taken is None else self._taken + self._since + needed
        if taken is None or taken > self._limit or self._since > self._limit // 20:  # others write here, too
            self._taken, self._since = self._pruned(self._limit - needed, since), 0
        return self._taken + self._since + needed <= self._limit

    def _pruned(self, limit: int, since: float) -> int:
        """Bytes that are taken after removing, where more than `limit` are, until there is some room besides."""
        found, taken = [], 0
        for path, status in _files(self._root):
            if path.name.endswith(END):
                found.append((status.st_mtime, status.st_size, path))
                taken += status.st_size
            elif path.name.endswith(PARTIAL) and status.st_mtime < time.time() - ABANDONED:
                _remove(path)
        if taken <= limit:
            return taken
        for used, size, path in sorted(found):
            if taken <= limit - self._limit // 20 or used >= since:
                break
            if _remove(path):
                taken -= size
        return taken

    def _path(self, text: str) -> pathlib.Path:
        return self.folder / f"{self._digest(text, b'').hex()}{END}"

    def _digest(self, text: str, data) -> bytes:
        digest = hashlib.sha256(f"{self._encoder}\0".encode())
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        digest.update(data)
        return digest.digest()


def _root(config: EmbeddingsConfig) -> pathlib.Path:
    if config.folder is None:
        return caches.cache_or_temporary() / "texts"
    folder = named(config.folder, FIELD)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ConfigError(f"{FIELD} = {config.folder!r} is no folder that can be written ({error.strerror}); give another "
                          "one.") from None  # fmt: skip


def _files(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, os.stat_result]]:
    """The files of all encoders; those that others remove meanwhile are not among them."""
    for folder in _entries(root):
        for entry in _entries(folder.path) if OWN.fullmatch(folder.name) else ():
            with contextlib.suppress(OSError):
                yield pathlib.Path(entry.path), entry.stat(follow_symlinks=False)


def _entries(folder) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:  # it is gone, or no folder
        return []


def _remove(path: pathlib.Path) -> bool:
    """Whether the file is gone; another user's may have to stay."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _touch(path: os.PathLike | str) -> None:
    with contextlib.suppress(OSError):  # another user's file is no older for being read
        os.utime(path, (now := time.time(), now))


def _size(like: jax.ShapeDtypeStruct) -> int:
    return math.prod(like.shape) * np.dtype(like.dtype).itemsize
