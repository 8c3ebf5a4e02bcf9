"""A model folder from the Hugging Face hub: what a folder on a disk would be read from, and no more."""

import glob
import pathlib
from collections.abc import Callable, Sequence

from unigrpo_jax.caches import hub_folder
from unigrpo_jax.config import ConfigError
from unigrpo_jax.models.bagel import layout
from unigrpo_jax.models.folders.stored import read_index


def fetch(name: str, parts: Callable[[pathlib.Path], Sequence[str]] = lambda folder: ()) -> pathlib.Path:
    """The folder of a repository in the hub's cache, with all files that are read of it; one revision throughout.

    Small files come first; they say whether it is a folder of parts, whether it is an adapter, which is fetched no further,
    and which shards there are.

    Args:
      name: of the repository.
      parts: patterns of the files that are read of a folder of parts, by the small files that are there; none where it is no
        such folder.

    Raises:
      ConfigError: its index of shards is none.
      Exception: the hub's client and its HTTP library have errors of many kinds.
    """
    folder = _fetch(name, None, [*layout.SMALL_FILES, *layout.ADAPTER_FILES])
    if patterns := parts(folder):
        _fetch(name, folder.name, patterns, below=True)
        return folder
    if layout.adapter_files(folder):
        return folder
    _fetch(name, folder.name, ["ae.safetensors"])
    for stem in layout.WEIGHT_STEMS:
        _fetch(name, folder.name, [f"{stem}.safetensors"])
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file() and not (folder / f"{stem}.safetensors").is_file():
            try:
                shards = {path.name for path in read_index(index).values()}
            except ValueError as error:
                raise ConfigError(str(error)) from None
            _fetch(name, folder.name, sorted(map(glob.escape, shards)))
        if layout.weight_stem(folder) == stem:
            break
    return folder


def _fetch(name: str, revision: str | None, patterns: Sequence[str], below: bool = False) -> pathlib.Path:
    """The snapshot with the files that match, of the top folder alone or of those below; without a revision the newest."""
    from huggingface_hub import snapshot_download

    # The client warns where nothing matches; of JSON files, which are there by then, something always does.
    wanted = patterns if below else ["*.json", *patterns]
    ignored = None if below else "*/*"
    kept = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=ignored, cache_dir=hub_folder())
    return pathlib.Path(kept)
