"""Where the time of a run goes, as shares of what the machine can do.

    python -m experiments.bench [--sizes tiny shapes middle] [--tables speed ...] [--pictures] [--repeats 7] [--quick]
                                [--json FILE]
    python -m experiments.bench --against COMMAND [--sizes window] [--repeats 7] [--json FILE]

Programs and limits are timed in turn, round after round, after one round that is not counted.  A number is the median of
the rounds, beside it the smallest and the largest; a ratio compares times of one round, a share is one of the best rate
that the rounds saw.  On a TPU or GPU the limits are the vendor's, so that the shares are MFU and bandwidth use; elsewhere
they are measured.  With `--against` another program's rates are measured in turn with ours, see
experiments/benchmark/against.py for what it prints.
"""

import dataclasses
import pathlib
from typing import Annotated, Any

import tyro

from experiments.command_line import command_line
from experiments.destination import file_to_write


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure and how often."""

    sizes: tuple[str, ...] = ("tiny", "shapes", "middle")
    """`tiny` and `shapes` are the presets bagel_tiny and shapes; `middle` is 512 wide, 8 layers deep, 256 latent tokens;
    `window` is `middle` with 15 flow steps, three of them trained; `sd_tiny`, `flux_tiny` and `shapes_flux` are presets;
    `ltx2` is the toy of `ltx2_tiny` with the transitions, the guidance and the groups of `ltx2_rlhf`."""
    tables: tuple[str, ...] = ("speed", "savings", "loop", "costs", "rounds")
    """`speed` of programs and parts, `savings` of what they share, the `loop` around them, `costs` of other settings, and
    `rounds`: 1 to 4 of them, and guidance.  Also, where it is asked for: `pipeline`, what each setting of a model that only
    draws buys against a straightforward loop, and `students`: seconds a sample of a student and of its teacher."""
    pictures: bool = False
    """The table `rounds`: a picture comes before each prompt, as in an edit."""
    repeats: Annotated[int, tyro.conf.arg(metavar="N")] = 7
    """Rounds."""
    quick: bool = False
    """At most 3 rounds, and neither `costs` nor `rounds`, which compile most."""
    against: Annotated[str | None, tyro.conf.arg(metavar="COMMAND")] = None
    """Instead of tables: a program that prints its own rates as JSON lines, in turn with ours of the size `window`, or of
    the one in --sizes.  Rounds in which other processes are busy are thrown away."""
    json: pathlib.Path | None = None
    """File for the same numbers."""


@command_line
def main(arguments: Arguments) -> None:
    """Measures, prints, saves."""
    from experiments.benchmark import machine, pipeline, rounds, rows, students
    from experiments.benchmark.against import against
    from experiments.benchmark.workload import SIZES
    from unigrpo_jax.config import require
    from unigrpo_jax.training.console import Console
    from unigrpo_jax.training.run_folder import write_json

    default, command = Arguments(), arguments.against
    if command is not None:
        require((arguments.tables, arguments.pictures) == (default.tables, default.pictures),
                "--against makes a table of its own; leave --tables and --pictures out.")  # fmt: skip
        if arguments.sizes == default.sizes:
            arguments = dataclasses.replace(arguments, sizes=("window",))
        require(len(arguments.sizes) == 1, f"--against is about one size, not {len(arguments.sizes)}; name one in --sizes.")
    unknown = [size for size in arguments.sizes if size not in SIZES]
    require(not unknown and bool(arguments.sizes), f"--sizes {' '.join(unknown)}: choose among {', '.join(SIZES)}.")
    measures = {"speed": rows.speed, "savings": rows.savings, "loop": rows.loop, "costs": rows.costs}
    given = lambda workload: workload.pictured() if arguments.pictures else workload
    measures |= {"rounds": lambda workload, repeats: rounds.rounds(given(workload), repeats), "pipeline": pipeline.pipeline}
    measures["students"] = students.students
    unknown = [title for title in arguments.tables if title not in measures]
    require(not unknown and bool(arguments.tables), f"--tables {' '.join(unknown)}: choose among {', '.join(measures)}.")
    require(arguments.repeats > 0, f"--repeats {arguments.repeats}: it must be at least 1.")
    by_rounds = "rounds" in arguments.tables and not arguments.quick
    require(by_rounds or not arguments.pictures, "--pictures is about the table `rounds`; measure it, without --quick.")
    for size in arguments.sizes if arguments.pictures else ():
        require(SIZES[size]().network.thinks, f"--pictures are looked at, and {size} only draws; leave them out.")
    for size in arguments.sizes if "pipeline" in arguments.tables else ():
        require(not SIZES[size]().network.thinks,
                f"--tables pipeline is about models that only draw, and {size} thinks; use --sizes ltx2.")  # fmt: skip
    bare = [size for size in arguments.sizes if "students" in arguments.tables and SIZES[size]().parts_of_run is None]
    require(not bare, f"--tables students is about presets, and {' '.join(bare)} is none; use --sizes shapes.")
    repeats = min(arguments.repeats, 3) if arguments.quick else arguments.repeats
    left_out = ("costs", "rounds") if arguments.quick else ()
    tables = [(title, measures[title]) for title in arguments.tables if title not in left_out]
    if command is not None:
        tables = [("against", lambda workload, repeats: against(workload, command, repeats))]
    out = arguments.json and file_to_write(arguments.json, "--json")
    found: dict[str, Any] = {"machine": machine.description(), "repeats": repeats, "rows": []}
    with Console() as console:
        console.card("Machine", [(name, str(value)) for name, value in found["machine"].items()])
        for size in arguments.sizes:
            workload = SIZES[size]()
            for title, measure in tables:
                measured = measure(workload, repeats)
                if measured:
                    console.table(f"{size}: {title}", rows.HEADER, [row.cells() for row in measured])
                found["rows"] += [{"size": size, "table": title} | dataclasses.asdict(row) for row in measured]
        if out is not None:
            write_json(out, found)
            console.message(f"Saved {out}")


if __name__ == "__main__":
    main()
