"""Writes a trained model in the layout that its family is published in, for PyTorch and for `--model.path`.

    python -m experiments.export CHECKPOINT OUT_DIR [--dtype bfloat16] [--devices 8 --mesh.fsdp 8]

CHECKPOINT is a run folder (its newest checkpoint), RUN/checkpoints/N, or a model folder.  OUT_DIR gets the trained weights
(shards and an index above 5 GB) under the original names and shapes, adapters folded in, and copies of all other parts.  In
diffusers' layout the adapters stand by themselves in OUT_DIR/lora, too, in PEFT's and in diffusers' files.
"""

import dataclasses
import pathlib
from typing import Literal

import tyro

from experiments.command_line import command_line, preset
from experiments.destination import folder_to_write
from unigrpo_jax.config import MeshConfig


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to write, where, and how."""

    checkpoint: tyro.conf.Positional[str]
    """Run folder, RUN/checkpoints/N, model folder, or the name of a model in the package, such as `base`."""
    out: tyro.conf.Positional[pathlib.Path]
    """A new folder."""
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """Of the written weights; `stored` is that of the weights that the run started from."""
    shard_gb: float = 5.0
    """Largest file, in 10^9 bytes."""
    devices: int = 1
    """Devices that hold the weights meanwhile; 0 is all."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


@command_line
def main(arguments: Arguments) -> None:
    """Reads, folds, writes."""
    from unigrpo_jax.config import require
    from unigrpo_jax.foreign_text import tell
    from unigrpo_jax.training.distilled import student_of
    from unigrpo_jax.training.restore import restore

    out = arguments.out
    require(arguments.shard_gb > 0, f"shard_gb = {arguments.shard_gb}, but it must be above 0.")
    require(not out.exists() or (out.is_dir() and not any(out.iterdir())), f"{out} is not empty; name a new folder.")
    folder_to_write(out, "OUT")
    restored = restore(arguments.checkpoint, preset([], "shapes")[0], arguments.devices, arguments.mesh)
    dtype = restored.loaded.stored_dtype if arguments.dtype == "stored" else arguments.dtype
    try:
        student = student_of(restored.config, restored.loaded)
        files = restored.loaded.export(restored.read(), out, dtype, int(arguments.shard_gb * 1e9), student)
    except OSError as error:
        require(False, f"{out} cannot be written ({error.strerror or error}); choose another folder.")
    for path in files:
        tell(f"{path.stat().st_size / 1e6:10.1f} MB  {path}")


if __name__ == "__main__":
    main()
