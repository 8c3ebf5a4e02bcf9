"""What a student would save: seconds a sample of a preset's model by the roofline, in its teacher's transitions and in few.

    python -m launch.few_steps bagel_7b --teacher 49 --passes 2 [--students 8 4 2 1] [--chip v5p]

An estimate, and of one chip: operations over its peak, and weights once a pass over its bandwidth where that takes longer
(`launch.planning.roofline`).  The text encoders, the autoencoder, links and the host are left out, and so is the student's
embedder of the second time, which is nothing beside them.  Only the preset's sizes are read, no weights.
"""

import dataclasses
from typing import Annotated

import tyro

from experiments.command_line import command_line, preset_file
from launch.planning.roofline import Phase
from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.foreign_text import tell
from unigrpo_jax.models.families import known, load_model
from unigrpo_jax.models.loaded import Loaded
from unigrpo_jax.models.work import Split
from unigrpo_jax.parallel.chips import CHIPS, Chip

ALONE = Split(chips=1, batch=1, tensor=1)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which model, and who draws."""

    preset: tyro.conf.Positional[str]
    """A file in experiments/presets: its model, its size of an image or a clip, its thinking."""
    teacher: Annotated[int, tyro.conf.arg(metavar="STEPS")]
    """Transitions of the teacher."""
    passes: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Evaluations of the network in each: 2 where it is guided by a second pass, 4 of LTX-2 with all of its passes."""
    students: tuple[int, ...] = (8, 4, 2, 1)
    """Transitions of students, one evaluation each."""
    chip: str = "v5p"
    """One of those that `launch.plan` knows."""


def seconds(config: RunConfig, loaded: Loaded, chip: Chip, steps: int, passes: int) -> dict[str, float]:
    """Seconds a sample by phase of the rollout, of so many transitions of so many evaluations each."""
    rollout = dataclasses.replace(config.rollout, flow_steps=steps, guidance=1.0)
    config = dataclasses.replace(config, rollout=rollout)
    work = loaded.network.work(config, len(loaded.codec.system(rollout)))
    read = work.read(ALONE)
    again = lambda name: passes if name == "drawing" else 1
    return {name: Phase(name, operations, read[name] * again(name)).seconds(chip) / config.episodes
            for name, operations in work.rollout(executed=True, passes=passes).items()}  # fmt: skip


def table(config: RunConfig, loaded: Loaded, chip: Chip, arguments: Arguments) -> list[str]:
    """Lines of a table: who draws, evaluations, seconds by phase and in all, times as fast in all."""
    ways = {"teacher": (arguments.teacher, arguments.passes)} | {f"student, {n}": (n, 1) for n in arguments.students}
    found = {name: seconds(config, loaded, chip, *way) for name, way in ways.items()}
    phases, whole = list(found["teacher"]), sum(found["teacher"].values())
    head = ["", "evaluations", *(f"{phase}, s" for phase in phases), "sample, s", "times as fast"]
    rows = [[name, str(steps * passes), *(f"{found[name][phase]:.3g}" for phase in phases),
             f"{sum(found[name].values()):.3g}", f"{whole / sum(found[name].values()):.1f}"]
            for name, (steps, passes) in ways.items()]  # fmt: skip
    first, *others = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    wide = lambda row: [row[0].ljust(first), *(cell.rjust(w) for cell, w in zip(row[1:], others, strict=True))]
    return ["  ".join(wide(row)) for row in [head, *rows]]


@command_line
def main(arguments: Arguments) -> None:
    """Prints the table."""
    require(arguments.chip in CHIPS, f"--chip {arguments.chip}: choose among {', '.join(CHIPS)}.")
    counts = {"--teacher": arguments.teacher, "--passes": arguments.passes}
    counts |= {"--students": min(arguments.students, default=1)}
    for option, value in counts.items():
        require(value >= 1, f"{option} {value}: it must be at least 1.")
    config = preset_file([arguments.preset], "")[0].config()
    loaded = known(config.model) or load_model(config.model)
    episodes = f"{config.episodes} samples at a time on one {arguments.chip}, by the roofline: an estimate"
    tell(f"{arguments.preset}: {episodes}")
    for line in table(config, loaded, CHIPS[arguments.chip], arguments):
        tell(line)


if __name__ == "__main__":
    main()
