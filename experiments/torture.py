"""Shows that a run cannot be lost: harms a small one again and again, resumes it, and compares it with one left in peace.

    python -m experiments.torture [--faults 30] [--seed 0] [--model sd_tiny] [--folder DIR] [--quick] [--json FILE]

Faults: SIGKILL at random moments, also while it starts and while a checkpoint is written; SIGTERM; files of the newest
checkpoint cut, changed by a bit, removed; a torn line in metrics.jsonl; a full disk; a run folder that is read-only or gone;
a clock that jumps.  At the end parameters, optimizer and metrics must be equal, bit for bit; exit code 1 where not.
"""

import dataclasses
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Annotated, Literal

import tyro

from experiments.command_line import command_line
from experiments.destination import file_to_write, folder_to_write
from unigrpo_jax.foreign_text import tell


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How much harm is done, and where."""

    faults: Annotated[int, tyro.conf.arg(metavar="N")] = 30
    """Faults."""
    seed: int = 0
    """Order and moments of the faults."""
    model: Literal["tiny", "sd_tiny", "flux_tiny", "hunyuan_tiny"] = "tiny"
    """Whose toy is trained: BAGEL's, Stable Diffusion's, FLUX's or HunyuanVideo's."""
    folder: pathlib.Path | None = None
    """New or empty folder for both runs, which stays; default is a temporary one, which goes."""
    quick: bool = False
    """At most 3 faults, and of BAGEL only the heads are trained."""
    json: pathlib.Path | None = None
    """File for the same numbers."""


@command_line
def main(arguments: Arguments) -> None:
    """Harms, resumes, compares, prints, saves."""
    from experiments.survival.faults import KILLS, Failed
    from experiments.survival.lives import CLIPS, DRAWS, HEADS
    from experiments.survival.torture import HEADER, table, torture
    from unigrpo_jax.config import require
    from unigrpo_jax.training.console import Console
    from unigrpo_jax.training.run_folder import write_json

    os.environ["JAX_PLATFORMS"] = "cpu"  # the runs are small, and bit for bit is what is asked
    folder = arguments.folder
    require(arguments.faults > 0, f"--faults {arguments.faults}: it must be at least 1.")
    out = arguments.json and file_to_write(arguments.json, "--json")
    require(folder is None or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
            f"--folder {folder} is not empty; give a new one.")  # fmt: skip
    own = lambda: folder_to_write(folder, "--folder").resolve()
    place = pathlib.Path(tempfile.mkdtemp(prefix="torture-")) if folder is None else own()
    place.mkdir(parents=True, exist_ok=True)
    with Console() as console:
        try:
            count = min(arguments.faults, 3) if arguments.quick else arguments.faults
            heads = HEADS if arguments.quick else ()
            own = {"tiny": heads, "hunyuan_tiny": CLIPS}.get(arguments.model, DRAWS)
            settings = ("--model.path", arguments.model, *own)
            result = torture(place, count, arguments.seed, settings, console.message)
        except Failed as error:
            tell(f"experiments.torture: {error}", sys.stderr)
            sys.exit(1)
        finally:
            if folder is None:
                shutil.rmtree(place, ignore_errors=True)
        console.table("Faults", HEADER, table(result.faults))
        kills = sum(fault.kind in KILLS for fault in result.faults)
        console.message(f"{kills} SIGKILLs in {result.seconds:.0f} s; the disk was made full by {result.disk}.")
        for words in result.differences:
            console.message(f"DIFFERENT: {words}")
        if not result.differences:
            console.message(
                "Parameters, optimizer and metrics are those of the undisturbed run, bit for bit; each iteration has one "
                "line in metrics.jsonl."
            )
    if out is not None:
        write_json(out, dataclasses.asdict(result) | {"passed": result.passed()})
    sys.exit(0 if result.passed() else 1)


if __name__ == "__main__":
    main()
