"""Files of a run folder, on a disk or in a bucket (gs://, s3://), through etils.epath: no reader meets half a file.

A disk appends and renames; a bucket does neither, but an object appears whole or not at all.
"""

import contextlib
import errno
import glob
import os
import time
from collections.abc import Callable

from etils import epath

from unigrpo_jax.config import ConfigError
from unigrpo_jax.foreign_files import named
from unigrpo_jax.foreign_text import quoted, said

Place = str | os.PathLike
UPLOAD_EVERY = 60.0  # seconds between uploads of a file that grows, or so many times what the last one took:
UPLOAD_SHARE = 50
UPLOAD_AGAIN = (1.0, 4.0)  # seconds before an upload that failed is tried again
_GPath = type(epath.Path("/"))


class LiteralPath(_GPath):
    """A path in which no character is a pattern: `glob` looks below it, whatever it is called.

    The class that it stands for joins path and pattern, and would look for `runs/a` where the path is `runs/[ab]`; Orbax
    searches a checkpoint in this way.  All paths made from it are of its kind.
    """

    def glob(self, pattern: str):
        """The paths below this one that match `pattern`."""
        for found in self._backend.glob(self._PATH.join(glob.escape(self._path_str), pattern)):
            yield self._new(found)


def literal(place: Place) -> epath.Path:
    """The path, with a name that is never a pattern."""
    found = epath.Path(place)
    return LiteralPath(found) if type(found) is _GPath else found


def path(place: Place) -> epath.Path:
    """A path on a disk or in a bucket; ConfigError where what speaks to the bucket is not installed."""
    if "://" not in os.fspath(place):
        named(place, "the folder")
    try:
        found = literal(place).expanduser()
    except KeyError:
        words = "is neither a path nor a bucket; give a path, or one such as gs://BUCKET/PATH"
        raise ConfigError(f"{quoted(os.fspath(place))} {words}.") from None
    if is_bucket(found):
        pattern = next((letter for letter in "*?[]" if letter in os.fspath(found)), None)
        if pattern:
            raise ConfigError(f"{found} holds {pattern!r}, which the clients of buckets take for a pattern; use a name "
                              "without * ? [ ].")  # fmt: skip
        try:
            found.exists()
        except ImportError as error:
            raise ConfigError(f"{found} is a bucket ({error}): pip install 'unigrpo_jax[gcs]', or the fsspec package of "
                              "another store.") from None  # fmt: skip
        except Exception as error:  # what a store's own client raises: no rights, no such bucket, no network
            first = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise ConfigError(f"{found} cannot be reached ({first}); check its name and your rights.") from None
    return found


def is_bucket(place: epath.Path) -> bool:
    """Whether a path is no file of this machine."""
    return "://" in os.fspath(place)


def inside(folder: epath.Path) -> list[epath.Path]:
    """What lies in a folder; nothing where there is none, as in a bucket where no object lies below it yet.

    An empty object that marks a folder of a bucket is listed there under the folder's own name, and is nothing in it.
    """
    try:
        found = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for path in found if path.name != folder.name or path.exists()]


def write_atomically(place: epath.Path, data: bytes) -> None:
    """Writes a file in one step; on failure the old one stays as it was.  An upload to a bucket is tried a few times."""
    if is_bucket(place):
        for pause in (*UPLOAD_AGAIN, None):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
                return
            except Exception:  # whatever a bucket's client raises
                if pause is None:
                    raise
                time.sleep(pause)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name without its bytes
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """Why something could not be read or written, as a clause."""
    return (error.strerror or str(error)) + (f" ({error.filename})" if error.filename else "")


def remove_temporary(folder: epath.Path) -> None:
    """Removes what a kill left of `write_atomically`; nobody may be writing there."""
    if not is_bucket(folder) and folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(".") and path.name.endswith(".tmp"):
                path.unlink(missing_ok=True)


class GrowingFile:
    """A text file that lines are added to.

    On a disk every line is there when `add` returns.  To a bucket the whole is uploaded by `flush`, by `close`, and once a
    minute, less often where that takes long, so that a kill loses what came after; a resumed run computes it again.  Of the
    uploads once a minute one may fail, since the next brings the same text and more: `say` tells of the first.
    """

    def __init__(self, place: epath.Path, begin: str, say: Callable[[str], None]):
        """`begin` replaces what the file holds."""
        write_atomically(place, begin.encode())
        self._place, self._tried, self._say, self._told, self._took = place, time.monotonic(), say, False, 0.0
        self._text = [begin] if is_bucket(place) else None
        self._file = None if is_bucket(place) else place.open("a", encoding="utf-8")

    def add(self, line: str) -> None:
        """Adds a line, which ends in a newline; OSError where it cannot be written, or the file is gone."""
        if self._file is not None:
            try:
                self._file.write(line)
                self._file.flush()
                if not os.path.samestat(os.stat(self._place), os.fstat(self._file.fileno())):
                    raise FileNotFoundError(errno.ENOENT, "another file has its name", os.fspath(self._place))
            except OSError:
                with contextlib.suppress(OSError):  # closing would fail again, with what is still in memory
                    self._file.close()
                raise
            return
        self._text.append(line)
        if time.monotonic() - self._tried > max(UPLOAD_EVERY, UPLOAD_SHARE * self._took):
            try:
                self.flush()
            except Exception as error:  # whatever a bucket's client raises
                if not self._told:
                    first = next(iter(said(error).splitlines()), type(error).__name__)[:200]
                    self._say(f"{self._place} could not be uploaded ({first}); that is tried again once a minute.")
                self._told = True

    def flush(self) -> None:
        """Makes all lines so far visible, and on a disk durable; raises what the disk or the bucket's client does."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        elif self._text is not None:
            began = self._tried = time.monotonic()
            write_atomically(self._place, "".join(self._text).encode())
            self._took = time.monotonic() - began

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._file is not None:
            self._file.close()
        elif self._text is not None:
            self.flush()
            self._text = None
