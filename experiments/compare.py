"""Papers' tables and ablations, several rounds, few steps: trains every arm with every seed, judges it, writes the page.

    python -m experiments.compare table|ablations|dance|few_steps [PRESET] [--seeds 0 1 2] [--updates N] [--quick] ...
    python -m experiments.compare rounds [--seeds 0 1 2] [--updates N] [--quick] [--out DIR] ...

DIR gets one JSON record per arm and seed, and pages that are made from those records alone.  What is interrupted is
continued by the same command; what has a record is not run again.  Settings such as --model.path change all arms alike.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import queue
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Annotated

import tyro

from experiments.command_line import complain, given_arguments, preset, unheard
from experiments.destination import folder_to_write
from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.foreign_text import tell

SEEDS = {"table": (0, 1, 2), "ablations": (0,), "dance": (0, 1, 2), "rounds": (0, 1, 2), "few_steps": (0, 1, 2)}
ITERATIONS = {"table": 100, "ablations": 40, "dance": 100, "rounds": None, "few_steps": 40}
QUICK_ITERATIONS = {"table": 30, "ablations": 20, "dance": 20, "rounds": 10, "few_steps": 10}
PRESETS = {"dance": "shapes_flux"}  # where none is named and it is not `shapes`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the command line says."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    seeds: tuple[int, ...] = ()
    """Seeds of every arm; default 0 1 2, and 0 of an ablation, where more make differences surer."""
    updates: int = 0
    """Iterations of every arm; 0 is 100 of a table and of `dance`, 40 of an ablation and of each run of
    `few_steps`, and the preset's of several rounds."""
    arms: tuple[str, ...] = ()
    """Only these arms of the table, or these ablations."""
    quick: bool = False
    """One seed, few arms, short: to see that it works."""
    out: pathlib.Path | None = None
    """Folder of records and pages; default runs/compare/ and the name of what is compared."""
    jobs: int = 1
    """Arms that are trained at the same time, each on its own share of the processor's cores."""
    pages: bool = False
    """Only make the pages again from the records that are there."""


def main() -> None:
    """Parses the command line and compares."""
    try:
        given = given_arguments()
        what = given[0] if given and not given[0].startswith("-") else ""
        if what not in ITERATIONS and not {"-h", "--help"} & set(given):
            known = ", ".join(f"`{name}`" for name in ITERATIONS)
            raise ConfigError(f"{what or 'nothing'} is compared by no name; use one of {known}.")
        config, rest = preset(given[1:] if what else given, PRESETS.get(what, "shapes"))
        require(what != "rounds" or rest == given[1:], f"{config.name}: `rounds` has presets of its own; leave it out.")

        def read(config: RunConfig) -> Arguments:
            return tyro.cli(
                Arguments,
                args=rest,
                default=Arguments(config=config),
                prog=f"python -m experiments.compare {'|'.join(ITERATIONS)} [PRESET]",
                description=__doc__,
            )

        sys.exit(compare(what, read(config), lambda config: read(config).config))
    except ConfigError as error:
        complain(error, "experiments.compare")
    except BrokenPipeError:
        unheard()
    except KeyboardInterrupt:
        sys.exit(130)


def compare(what: str, arguments: Arguments, with_settings: Callable[[RunConfig], RunConfig]) -> int:
    """Runs what has no record yet and writes the pages; the exit code says whether all of it is there.

    `with_settings` changes another preset as the command line changes the one in `arguments`.
    """
    quick = arguments.quick
    out = arguments.out or pathlib.Path("runs/compare") / (what + ("-quick" if quick else ""))
    out = folder_to_write(out, "--out")
    require(arguments.jobs >= 1, f"--jobs {arguments.jobs}: it must be at least 1.")
    updates = arguments.updates or (QUICK_ITERATIONS if quick else ITERATIONS)[what]
    require(updates is None or updates >= 2, f"--updates {updates}: it must be at least 2, since one arm splits it in two.")
    seeds = (arguments.seeds or SEEDS[what])[: 1 if quick else None]
    require(len(set(seeds)) == len(seeds), "--seeds must name different seeds.")
    if what == "rounds":
        base, arms, pages = _rounds(arguments, updates, out, with_settings)
    else:
        base, arms, pages = MADE[what](arguments, updates, out)
    jobs = [] if arguments.pages else _jobs(what, arms, base, seeds, out)
    _check(jobs)
    missing = _run(jobs, arguments.jobs, out) if jobs else 0
    pages()
    tell(f"Wrote {out / (what + '.md')} and {out / (what + '.html')}")
    return 1 if missing else 0


def _table(arguments: Arguments, updates: int, out: pathlib.Path) -> tuple:
    """The base, the arms that are wanted, and what writes the pages."""
    from experiments.comparison import arms as all_arms
    from experiments.comparison.page import write_table

    base = _base(arguments.config, updates, every=max(updates // 5, 1))
    arms = all_arms.table(base, learned_scorer=base.prompts == ("shapes",))
    names = [a.name for a in arms]
    wanted = _wanted(arguments, names, all_arms.QUICK)
    arms = [a for a in arms if a.name in wanted]
    return base, arms, lambda: write_table(out, [a.name for a in arms])


def _ablations(arguments: Arguments, updates: int, out: pathlib.Path) -> tuple:
    """As `_table`."""
    from experiments.comparison import arms as all_arms
    from experiments.comparison.page import Study, write_ablations

    base = _base(arguments.config, updates, every=0)
    by_name = {a.name: a for a in all_arms.ABLATIONS}
    arms, named = all_arms.ablations(base, _wanted(arguments, list(by_name), all_arms.QUICK_ABLATIONS))
    studies = [
        Study(
            name=name,
            title=by_name[name].title,
            question=by_name[name].question,
            metrics=by_name[name].metrics,
            arms=tuple((arm, label) for label, arm in labels.items()),
            evaluation=by_name[name].judged,
        )
        for name, labels in named.items()
    ]
    return base, arms, lambda: write_ablations(out, studies)


def _dance(arguments: Arguments, updates: int, out: pathlib.Path) -> tuple:
    """As `_table`."""
    from experiments.comparison import dance

    base = _base(arguments.config, updates, every=0)
    arms = dance.arms(base)
    wanted = _wanted(arguments, [a.name for a in arms], dance.QUICK)
    arms = [a for a in arms if a.name in wanted]
    return base, arms, lambda: dance.write_dance(out, arms)


def _few_steps(arguments: Arguments, updates: int, out: pathlib.Path) -> tuple:
    """As `_table`."""
    from experiments.comparison import few_steps

    base = _base(arguments.config, updates, every=0)
    arms = few_steps.arms(base)
    wanted = _wanted(arguments, [a.name for a in arms], few_steps.QUICK)
    arms = [a for a in arms if a.name in wanted]
    return base, arms, lambda: few_steps.write_few_steps(out, arms)


MADE = {"table": _table, "ablations": _ablations, "dance": _dance, "few_steps": _few_steps}


def _rounds(
    arguments: Arguments, updates: int | None, out: pathlib.Path, with_settings: Callable[[RunConfig], RunConfig]
) -> tuple:
    """As `_table`; its worlds have presets of their own."""
    from experiments.comparison import rounds

    arms = rounds.arms({world: with_settings(module.config()) for world, module in rounds.WORLDS.items()}, updates)
    wanted = _wanted(arguments, [a.name for a in arms], rounds.QUICK)
    arms = [a for a in arms if a.name in wanted]
    return arguments.config, arms, lambda: rounds.write_rounds(out, arms)


def _base(config: RunConfig, updates: int, every: int) -> RunConfig:
    return dataclasses.replace(
        config,
        iterations=updates,
        learning=dataclasses.replace(config.learning, cooldown=(0, 0)),  # a curve must not depend on where it ends
        evaluation=dataclasses.replace(config.evaluation, every=every),
        checkpoint=dataclasses.replace(config.checkpoint, keep_best=0),
        logging=dataclasses.replace(config.logging, samples_every=0),
    )


def _wanted(arguments: Arguments, known: list[str], quick: tuple[str, ...]) -> tuple[str, ...]:
    """Names of what is compared; ConfigError where one is unknown."""
    wanted = arguments.arms or (quick if arguments.quick else tuple(known))
    unknown = [name for name in wanted if name not in known]
    require(not unknown, f"--arms {' '.join(unknown)}: choose among {', '.join(sorted(known))}.")
    return wanted


def _jobs(what: str, arms, base: RunConfig, seeds: tuple[int, ...], out: pathlib.Path) -> list:
    """One job for each arm and seed; seed after seed, so that what is there early compares all arms."""
    from experiments.comparison.execute import Job

    jobs = []
    for seed, arm in itertools.product(seeds, arms):
        if not arm.stages and arm.base is not None and seed != seeds[0]:
            continue  # nothing is trained, and all seeds are judged on the same prompts and noises
        own, seeded = arm.base or base, lambda config, seed=seed: dataclasses.replace(config, seed=seed)
        record = out / "records" / f"{arm.name}-seed{seed}.json"
        jobs.append(
            Job(
                study=what,
                arm=arm.name,
                title=arm.title,
                seed=seed,
                base=seeded(own),
                stages=tuple(map(seeded, arm.stages)),
                evaluations=arm.evaluations(own.evaluation),
                runs=out / "runs",
                record=record,
            )
        )
    return jobs


def _check(jobs: list) -> None:
    """ConfigError where settings of an arm cannot work, before the first of all is trained."""
    from unigrpo_jax.config_checks import check

    for job in jobs:
        for config in () if job.record.exists() else job.stages:
            try:
                check(config)
            except ConfigError as error:
                raise ConfigError(f"the arm {job.arm}, which --arms can leave out: {error}") from None


def _run(jobs: list, beside: int, out: pathlib.Path) -> int:
    """Executes the jobs that have no record, `beside` at a time; the number of those that failed."""
    for folder in ("records", "runs", "jobs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    left, began = [job for job in jobs if not job.record.exists()], time.monotonic()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    places: queue.Queue = queue.Queue()
    for place in range(beside):
        places.put(cores[place::beside])

    def execute(number: int, job) -> bool:
        name, own, begin = job.record.stem, places.get(), time.monotonic()
        path, log = out / "jobs" / f"{name}.json", out / "jobs" / f"{name}.log"
        path.write_text(json.dumps(job.to_json()))
        with log.open("w") as words:
            process = subprocess.Popen(
                [sys.executable, "-m", "experiments.comparison.execute", str(path)],
                stdout=words,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
            if beside > 1 and own:
                os.sched_setaffinity(process.pid, own)
            code = process.wait()
        places.put(own)
        told = f"failed with exit code {code}, see {log}" if code else f"{time.monotonic() - begin:.0f} s"
        tell(f"{number}/{len(left)} {name}: {told}; {(time.monotonic() - began) / 60:.0f} min in all")
        return code == 0

    with concurrent.futures.ThreadPoolExecutor(beside) as executor:
        good = list(executor.map(execute, range(1, len(left) + 1), left))
    failed = [job.record.stem for job, fine in zip(left, good, strict=True) if not fine]
    if failed:
        tell(
            f"{len(failed)} of {len(left)} failed: {', '.join(failed)}; the same command tries them again.", sys.stderr
        )
    return len(failed)


if __name__ == "__main__":
    main()
