"""The paper's table and ablations, re-run: trains every arm with every seed, judges it on held-out prompts, writes the page.

    python -m experiments.compare table|ablations [PRESET] [--seeds 0 1 2] [--updates N] [--quick] [--out DIR] ...

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
from typing import Annotated

import tyro

from experiments.command_line import complain, preset
from unigrpo_jax.config import ConfigError, RunConfig, require

SEEDS = {"table": (0, 1, 2), "ablations": (0,)}
ITERATIONS = {"table": 100, "ablations": 40}
QUICK_ITERATIONS = {"table": 30, "ablations": 20}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the command line says."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    seeds: tuple[int, ...] = ()
    """Seeds of every arm; default 0 1 2 of a table and 0 of an ablation, where more make differences surer."""
    updates: int = 0
    """Iterations of every arm; 0 is 100 of a table and 40 of an ablation."""
    arms: tuple[str, ...] = ()
    """Only these arms of the table, or these ablations."""
    quick: bool = False
    """One seed, few arms, short: to see that it works."""
    out: pathlib.Path | None = None
    """Folder of records and pages; default runs/compare/table or runs/compare/ablations."""
    jobs: int = 1
    """Arms that are trained at the same time, each on its own share of the processor's cores."""
    pages: bool = False
    """Only make the pages again from the records that are there."""


def main() -> None:
    """Parses the command line and compares."""
    given = sys.argv[1:]
    try:
        what = given[0] if given and not given[0].startswith("-") else ""
        if what not in ITERATIONS and not {"-h", "--help"} & set(given):
            raise ConfigError(f"{what or 'nothing'} is compared by no name; use `table` or `ablations`.")
        config, rest = preset(given[1:] if what else given, "shapes")
        arguments = tyro.cli(
            Arguments,
            args=rest,
            default=Arguments(config=config),
            prog="python -m experiments.compare table|ablations [PRESET]",
            description=__doc__,
        )
        sys.exit(compare(what, arguments))
    except ConfigError as error:
        complain(error, "experiments.compare")
    except KeyboardInterrupt:
        sys.exit(130)


def compare(what: str, arguments: Arguments) -> int:
    """Runs what has no record yet and writes the pages; the exit code says whether all of it is there."""
    from experiments.comparison import arms as all_arms
    from experiments.comparison.page import Study, write_ablations, write_table

    quick, config = arguments.quick, arguments.config
    out = arguments.out or pathlib.Path("runs/compare") / (what + ("-quick" if quick else ""))
    updates = arguments.updates or (QUICK_ITERATIONS if quick else ITERATIONS)[what]
    require(arguments.jobs >= 1, f"--jobs {arguments.jobs}: it must be at least 1.")
    require(updates >= 2, f"--updates {updates}: it must be at least 2, since one arm splits it in two.")
    seeds = (arguments.seeds or SEEDS[what])[: 1 if quick else None]
    require(len(set(seeds)) == len(seeds), "--seeds must name different seeds.")
    every = max(updates // 5, 1) if what == "table" else 0
    base = dataclasses.replace(
        config,
        iterations=updates,
        learning=dataclasses.replace(config.learning, cooldown=(0, 0)),  # a curve must not depend on where it ends
        evaluation=dataclasses.replace(config.evaluation, every=every),
        checkpoint=dataclasses.replace(config.checkpoint, keep_best=0),
        logging=dataclasses.replace(config.logging, samples_every=0),
    )
    if what == "table":
        arms = all_arms.table(base, learned_scorer=config.prompts == ("shapes",))
        wanted = arguments.arms or (all_arms.QUICK if quick else tuple(a.name for a in arms))
        known = {a.name for a in arms}
        studies = {}
    else:
        wanted = arguments.arms or (all_arms.QUICK_ABLATIONS if quick else tuple(a.name for a in all_arms.ABLATIONS))
        known = {a.name for a in all_arms.ABLATIONS}
    unknown = [name for name in wanted if name not in known]
    require(not unknown, f"--arms {' '.join(unknown)}: choose among {', '.join(sorted(known))}.")
    if what == "table":
        arms = [a for a in arms if a.name in wanted]
    else:
        arms, studies = all_arms.ablations(base, wanted)
    missing = 0 if arguments.pages else _run(_jobs(what, arms, base, seeds, out), arguments.jobs, out)
    if what == "table":
        write_table(out, [a.name for a in arms])
    else:
        by_name = {a.name: a for a in all_arms.ABLATIONS}
        write_ablations(
            out,
            [
                Study(
                    name=name,
                    title=by_name[name].title,
                    question=by_name[name].question,
                    metrics=by_name[name].metrics,
                    arms=tuple((arm, label) for label, arm in labels.items()),
                    evaluation=by_name[name].judged,
                )
                for name, labels in studies.items()
            ],
        )
    print(f"Wrote {out / (what + '.md')} and {out / (what + '.html')}")
    return 1 if missing else 0


def _jobs(what: str, arms, base: RunConfig, seeds: tuple[int, ...], out: pathlib.Path) -> list:
    """One job for each arm and seed; seed after seed, so that what is there early compares all arms."""
    from experiments.comparison.execute import Job

    jobs = []
    for seed, arm in itertools.product(seeds, arms):
        seeded = lambda config, seed=seed: dataclasses.replace(config, seed=seed)
        record = out / "records" / f"{arm.name}-seed{seed}.json"
        jobs.append(
            Job(
                study=what,
                arm=arm.name,
                title=arm.title,
                seed=seed,
                base=seeded(base),
                stages=tuple(map(seeded, arm.stages)),
                evaluations=arm.evaluations(base.evaluation),
                runs=out / "runs",
                record=record,
            )
        )
    return jobs


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
        print(f"{number}/{len(left)} {name}: {told}; {(time.monotonic() - began) / 60:.0f} min in all", flush=True)
        return code == 0

    with concurrent.futures.ThreadPoolExecutor(beside) as executor:
        good = list(executor.map(execute, range(1, len(left) + 1), left))
    failed = [job.record.stem for job, fine in zip(left, good, strict=True) if not fine]
    if failed:
        print(
            f"{len(failed)} of {len(left)} failed: {', '.join(failed)}; the same command tries them again.", file=sys.stderr
        )
    return len(failed)


if __name__ == "__main__":
    main()
