"""Safetensors files as one table of tensors: read one by one, in one file or in shards with an index, and written so.

No tensor is read before it is asked for, and no file stays mapped after it was, so that the host holds what is in use.
"""

import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from unigrpo_jax import foreign_files

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".msgpack", ".h5")  # of anybody's weights
SHARD_BYTES = 5 * 10**9
MOST_FAULTS, LONGEST_FAULT = 200, 300  # of a message; a file may hold any number of tensors with names of any length
# Files up to this size are hashed whole; of larger ones only blocks, evenly spread.
HASHED_WHOLE = 2**30


class StoredTensors:
    """The tensors of `STEM.safetensors`, or of the shards that `STEM.safetensors.index.json` names.

    Attributes:
      path: the file, or the index.
      files: every safetensors file.
    """

    def __init__(self, folder: pathlib.Path, stem: str):
        """Reads the headers.  ValueError where a file is missing, damaged, or not what the index says."""
        from safetensors import SafetensorError, safe_open

        single = folder / f"{stem}.safetensors"
        self.path = single if single.exists() else folder / f"{stem}.safetensors.index.json"
        self._file_of: dict[str, pathlib.Path] = {}
        self._about: dict[str, tuple[tuple[int, ...], str]] = {}
        self._metadata: dict[str, str] = {}
        self.files = [single] if single.exists() else sorted(set(read_index(self.path).values()))
        for path in self.files:
            try:
                with safe_open(path, framework="numpy") as file:
                    self._metadata |= file.metadata() or {}
                    for name in file.keys():
                        cut = file.get_slice(name)
                        self._file_of[name] = path
                        self._about[name] = (tuple(cut.get_shape()), cut.get_dtype())
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"{path} is not a readable safetensors file ({error}); download or copy it again."
                ) from None
        empty = [name for name, (shape, _) in self._about.items() if 0 in shape]
        if empty:
            raise ValueError(f"{self.path} holds {empty[0]} without a number in it; download or copy it again.")
        if not single.exists():
            lost = [(name, path.name) for name, path in read_index(self.path).items() if self._file_of.get(name) != path]
            if lost:
                raise ValueError(f"{self.path} places {lost[0][0]} in {lost[0][1]}, which does not hold it.")

    def names(self) -> set[str]:
        """All tensors."""
        return set(self._about)

    def shape(self, name: str) -> tuple[int, ...]:
        """Stored shape of a tensor."""
        return self._about[name][0]

    def dtype(self, name: str) -> str:
        """Stored dtype of a tensor, in safetensors' words ("BF16")."""
        return self._about[name][1]

    def metadata(self) -> dict[str, str]:
        """What the headers say beside the tensors."""
        return dict(self._metadata)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its stored shape and dtype; ValueError where its file has become unreadable."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file_of[name], framework="numpy") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self._file_of[name]} cannot be read ({error}); download or copy it again.") from None


def read_index(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file of each tensor, by an index; ValueError where it is none, or names a file outside its folder."""
    try:
        index = foreign_files.read_json(path, foreign_files.TABLES)["weight_map"]
        names = {name: pathlib.Path(file) for name, file in index.items()}
    except FileNotFoundError:
        raise ValueError(f"there is neither {path.name.removesuffix('.index.json')} nor its index in "
                         f"{path.parent}.") from None  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not a safetensors index (JSON with a weight_map).") from None
    for file in names.values():
        place = path.parent / file
        if file.name != str(file) or file.name == "..":
            raise ValueError(f"{path} names a file outside its folder: {str(file)[:200]}.")
        if not _is_inside(place, path.parent):
            raise ValueError(f"{place} is a link out of its folder, and an index may name files of its folder only; "
                             "put the file there instead of the link.")  # fmt: skip
    return {name: path.parent / file for name, file in names.items()}


def _is_inside(path: pathlib.Path, folder: pathlib.Path) -> bool:
    try:
        return foreign_files.is_inside(path, folder)
    except (OSError, ValueError):  # a name that no file can have; opening it will say so
        return True


def faults(stored: StoredTensors, wanted: Mapping[str, tuple[int, ...]], optional: Iterable[str], ignored: str) -> list[str]:
    """Everything that is wrong with a file, as phrases (at most `MOST_FAULTS`); layers that share a fault are one phrase.

    Args:
      stored: the file.
      wanted: name and shape of every tensor that it should hold.
      optional: names that may be missing.
      ignored: regular expression of names that may stand there unread.
    """
    present, optional = stored.names(), set(optional)
    found = [("missing ", name, "") for name in wanted.keys() - present - optional]
    found += [("unknown ", name, "") for name in present - wanted.keys() if not re.fullmatch(ignored, name)]
    for name in wanted.keys() & present:
        if stored.shape(name) != wanted[name]:
            shapes = f" has shape {list(stored.shape(name))}, the config asks for {list(wanted[name])}"
            found.append(("", name, shapes))
        if stored.dtype(name) not in DTYPES:
            found.append(("", name, f" has dtype {stored.dtype(name)}; convert it to one of {', '.join(DTYPES)}"))
    merged: dict[tuple[str, str, str], list[int]] = {}
    for before, name, after in found:
        number = re.search(r"(?:layers|transformer_blocks|encoder\.block|resblocks)\.(\d+)(?=\.)", name)
        pattern = name if number is None else f"{name[: number.start(1)]}{{}}{name[number.end(1) :]}"
        merged.setdefault((before, pattern, after), []).extend([] if number is None else [int(number[1])])
    phrases = (before + name.replace("{}", _ranges(n)) + after for (before, name, after), n in sorted(merged.items()))
    shown = [phrase.replace("\n", "\\n")[:LONGEST_FAULT] for phrase in phrases]
    more = [f"and {len(shown) - MOST_FAULTS} more"] if len(shown) > MOST_FAULTS else []
    return shown[:MOST_FAULTS] + more


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "{0..2,5}", [3] as "3"."""
    numbers, parts = sorted(numbers), []
    for n in numbers:
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    words = ",".join(str(a) if a == b else f"{a}..{b}" for a, b in parts)
    return words if len(numbers) == 1 else f"{{{words}}}"


def checksum(files: Iterable[pathlib.Path]) -> str:
    """SHA-256 of files, in hexadecimal digits.

    Of a file above 1 GiB it covers the size, both ends and 4096 blocks spread over it, so that it takes seconds.
    """
    digest = hashlib.sha256()
    for path in files:
        for piece in _pieces(path):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(path: pathlib.Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield str(size).encode()
    with open(path, "rb") as file:
        if size <= HASHED_WHOLE:
            while piece := file.read(2**24):
                yield piece
            return
        for i in range(4096):
            file.seek((size - 2**14) * i // 4095)
            yield file.read(2**14)


def write(folder: pathlib.Path, stem: str, shapes: Mapping[str, tuple[int, ...]], tensors: Iterator[tuple[str, np.ndarray]],
          dtype: str, shard_bytes: int = SHARD_BYTES, metadata: Mapping[str, str] | None = None) -> None:  # fmt: skip
    """Writes tensors as one file, or as shards of at most `shard_bytes` with an index where they are more.

    Args:
      folder: an existing folder.
      stem: the file's name without `.safetensors`.
      shapes: name and shape of all tensors, in the order in which they come.
      tensors: the tensors; one shard of them is in memory at a time.
      dtype: "float32", "float16" or "bfloat16".
      shard_bytes: largest shard; a single tensor may be larger.
      metadata: of the header, in addition.
    """
    import ml_dtypes
    from safetensors.numpy import save_file

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        bytes_ = math.prod(shape) * kind.itemsize
        if shards[-1] and size + bytes_ > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_
    number = lambda i: f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
    file_name = lambda i: f"{stem}{number(i)}.safetensors"
    for i, names in enumerate(shards):
        arrays = {name: np.ascontiguousarray(value).astype(kind, copy=False) for name, (_, value) in
                  zip(names, tensors, strict=False)}  # fmt: skip
        temporary = folder / f".{file_name(i)}.partial"
        save_file(arrays, temporary, metadata={"format": "pt", **(metadata or {})})
        temporary.chmod(0o644)  # safetensors writes for the owner alone
        temporary.replace(folder / file_name(i))
    if len(shards) > 1:
        total = sum(math.prod(shape) for shape in shapes.values()) * kind.itemsize
        index = {"metadata": {"total_size": total},
                 "weight_map": {name: file_name(i) for i, names in enumerate(shards) for name in names}}  # fmt: skip
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        (folder / f"{stem}.safetensors").unlink(missing_ok=True)  # an older single file would be read instead


def write_as_stored(path: pathlib.Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]],
                    read: Callable[[str], np.ndarray], metadata: Mapping[str, str]) -> None:  # fmt: skip
    """Writes one file whose tensors may have different dtypes; one tensor is in memory at a time.

    Args:
      path: the file, whose folder exists.
      tensors: (name, dtype in safetensors' words, shape), in the order in which they come.
      read: gives a tensor by its name, in that dtype or in one that is cast to it.
      metadata: of the header.
    """
    import ml_dtypes

    kind = lambda word: np.dtype(ml_dtypes.bfloat16 if word == "BF16" else DTYPES[word])
    header, end = {"__metadata__": dict(metadata)}, 0
    for name, word, shape in tensors:
        begin, end = end, end + math.prod(shape) * kind(word).itemsize
        header[name] = {"dtype": word, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, word, _ in tensors:
            file.write(np.ascontiguousarray(read(name)).astype(kind(word), copy=False).tobytes())
    temporary.replace(path)
