"""What makes a checkpoint whole: `manifest.json`, written last, with the size and SHA-256 of every file beside it.

The writers read their files once more for it, in the background, several processes each a share; readers do so before they
trust them.  A folder without the file was not finished; one whose files differ from it, or which lacks a file that a
restore opens, is damaged.
"""

import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from unigrpo_jax.training.storage import write_atomically

FILE_NAME = "manifest.json"
FORMAT = 1
REQUIRED = ("_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt")  # what Orbax opens first to restore
_PIECE = 1 << 22  # bytes read at a time
_THREADS = 8  # files hashed at the same time


class Damaged(ValueError):
    """A checkpoint cannot be used; the message says what is wrong with it."""


def names(folder: epath.Path) -> list[str]:
    """The files of a folder that its manifest describes, sorted; Damaged where one is not there that must be."""
    found = sorted(name for name, _ in _files(folder))
    _require(found)
    return found


def digests(folder: epath.Path, names: Sequence[str]) -> list[list | None]:
    """[bytes, SHA-256] of each file; None of one that cannot be read, as where storage shows it to its writer alone."""

    def of(name: str) -> list | None:
        try:
            return _digest(folder / name)
        except Exception:  # whatever a bucket's client raises
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(of, names))


def write(folder: epath.Path, facts: dict[str, Any], files: Mapping[str, list | None] | None = None) -> None:
    """Describes the files of a folder, and with them `facts`, in one step; Damaged where one is not there that must be.

    `files` are the digests by name, where they are known; what is None there is read.
    """
    files = dict.fromkeys(names(folder)) if files is None else dict(files)
    unread = [name for name, digest in files.items() if digest is None]
    with ThreadPoolExecutor(_THREADS) as pool:
        files |= zip(unread, pool.map(lambda name: _digest(folder / name), unread), strict=True)
    record = {"format": FORMAT, **facts, "files": files}
    text = json.dumps(record | {"sha256": _own_digest(record)}, indent=1) + "\n"
    write_atomically(folder / FILE_NAME, text.encode())


def read(folder: epath.Path) -> dict[str, Any]:
    """The facts that were written, and `files`; Damaged where there are none or they are not as written.

    Raises what storage does where it does not give them.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise Damaged(f"it was not finished: {FILE_NAME} is missing")
    try:
        record = json.loads(path.read_bytes())
        digest = record.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise Damaged(f"{FILE_NAME} is damaged") from None
    if digest != _own_digest(record) or record.get("format") != FORMAT:
        raise Damaged(f"{FILE_NAME} is damaged")
    return record


def check(folder: epath.Path, files: dict[str, list], share: tuple[int, int] = (0, 1)) -> None:
    """Damaged unless the files are those that were described; `share` (i, n) looks at every n-th of them from the i-th."""
    _require(files)
    names = sorted(files)[share[0] :: share[1]]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda name: _digest(folder / name) if (folder / name).exists() else None, names))
    for name, now in zip(names, found, strict=True):
        if now is None:
            raise Damaged(f"{name} is missing")
        if now[0] != files[name][0]:
            raise Damaged(f"{name} has {now[0]} bytes, not {files[name][0]}")
        if now != files[name]:
            raise Damaged(f"{name} holds other bytes than were written")


def _require(names: Container[str]) -> None:
    for name in REQUIRED:
        if name not in names:
            raise Damaged(f"{name} was never written")


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """All files under a folder by their path in it, but the manifest itself and what is being written."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif prefix or (path.name != FILE_NAME and not path.name.startswith(".")):
            yield f"{prefix}{path.name}", path


def _digest(path: epath.Path) -> list:
    """[bytes, SHA-256] of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return [size, digest.hexdigest()]


def _own_digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
