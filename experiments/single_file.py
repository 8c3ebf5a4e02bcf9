"""A model that is published as one safetensors file as a folder for `--model.path`, and such a file of a folder.

    python -m experiments.single_file ltx-2-19b-dev.safetensors DIR --text-encoder GEMMA
    python -m experiments.single_file DIR new.safetensors --like ltx-2-19b-dev.safetensors

The first makes DIR, in diffusers' layout, of the file and of copies of a folder with Gemma 3's weights and tokenizer
(google/gemma-3-12b-it).  The second writes the tensors of DIR, such as `experiments.export` wrote, as one file whose header,
names and dtypes are those of the published one.  Tensors keep their bytes where dtypes are the same, and none is left out.
"""

import dataclasses
import pathlib

import tyro

from experiments.command_line import command_line
from experiments.destination import file_to_write, folder_to_write


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to read and what to write."""

    source: tyro.conf.Positional[pathlib.Path]
    """The published file, or a model folder."""
    out: tyro.conf.Positional[pathlib.Path]
    """A new folder, or a new file."""
    text_encoder: pathlib.Path | None = None
    """Of a file: folder of the text encoder, with its tokenizer, which is published apart."""
    like: pathlib.Path | None = None
    """Of a folder: the published file."""


@command_line
def main(arguments: Arguments) -> None:
    """Reads, renames, writes."""
    from unigrpo_jax.config import require
    from unigrpo_jax.foreign_text import tell
    from unigrpo_jax.models.families import single_file
    from unigrpo_jax.models.folders.pipelines import told

    source, out, encoder, like = arguments.source, arguments.out, arguments.text_encoder, arguments.like
    require(source.exists(), f"there is no {source}; name a file or a model folder.")
    if source.is_file():
        require(encoder is not None, "--text-encoder names the folder of the text encoder, which the file does not hold.")
        require(like is None, "--like is for a folder that becomes a file; leave it out.")
        require(not out.exists() or (out.is_dir() and not any(out.iterdir())), f"{out} is not empty; name a new folder.")
        folder_to_write(out, "OUT")
    else:
        require(like is not None, "--like names the published file, whose header and names the new one has.")
        require(encoder is None, "--text-encoder is for a file that becomes a folder; leave it out.")
        require(not out.exists(), f"{out} is there; name a new file.")
        file_to_write(out, "OUT")
    with told():
        if source.is_file():
            files = single_file(source).unpack(source, encoder, out)
        else:
            kept = single_file(source).pack(source, like, out)
            files = [out]
            if kept:
                tell(f"as in {like}, since nothing reads them: {', '.join(kept)}")
    for path in files:
        tell(f"{path.stat().st_size / 1e6:10.1f} MB  {path}")


if __name__ == "__main__":
    main()
