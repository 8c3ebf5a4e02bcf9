"""Writing a file so that a reader, or a crash, never meets half of it."""

import os
import pathlib


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Writes `data` next to `path` and renames it into place; on failure the old file stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
