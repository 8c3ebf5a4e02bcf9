"""Files on a disk that are written whole or not at all."""

import os
import pathlib


def write_whole(path: pathlib.Path, data: bytes) -> None:
    """Writes a file, in the place of one that may be there; OSError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
