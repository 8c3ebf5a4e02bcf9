"""A CLIP that open_clip stores, such as HPSv2, as a folder in transformers' layout, for `--rewards hpsv2:DIR`.

    python -m experiments.open_clip HPS_v2.1_compressed.safetensors DIR --like CLIP

CLIP is a folder in that layout of the same architecture (of HPSv2, laion/CLIP-ViT-H-14-laion2B-s32B-b79K), whose config,
tokenizer and preprocessor are copied; its weights need not be there.  Tensors keep their numbers and dtypes, and none is
left out.  A published pickle becomes a safetensors file first; given one, the error says by which line.
"""

import dataclasses
import pathlib

import tyro

from experiments.command_line import command_line
from experiments.destination import folder_to_write


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to read and what to write."""

    file: tyro.conf.Positional[pathlib.Path]
    """Tensors under open_clip's names, as safetensors."""
    out: tyro.conf.Positional[pathlib.Path]
    """A new folder."""
    like: pathlib.Path
    """Folder of a CLIP of the same architecture."""


@command_line
def main(arguments: Arguments) -> None:
    """Reads, renames, writes."""
    from unigrpo_jax.config import require
    from unigrpo_jax.foreign_text import tell
    from unigrpo_jax.models.folders.pipelines import told
    from unigrpo_jax.rewards.open_clip import convert

    file, out, like = arguments.file, arguments.out, arguments.like
    require(file.is_file(), f"there is no file {file}; name a published one.")
    require(like.is_dir(), f"there is no folder {like}; name by --like that of a CLIP in transformers' layout.")
    require(not out.exists() or (out.is_dir() and not any(out.iterdir())), f"{out} is not empty; name a new folder.")
    folder_to_write(out, "OUT")
    with told():
        files = convert(file, like, out)
    for path in files:
        tell(f"{path.stat().st_size / 1e6:10.1f} MB  {path}")


if __name__ == "__main__":
    main()
