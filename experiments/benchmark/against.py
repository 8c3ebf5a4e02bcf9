"""Another program's rates beside ours, on the same machine: both in turn, and only rounds in which nothing else ran.

The other program is a command.  It is started anew in every round, warms itself up and prints one JSON line or several, each
with some of

    {"decode": tokens per second of all episodes, "flow": images times flow steps per second,
     "update": seconds, "iteration": seconds of a rollout and an update}

Other lines are passed over.  Where there are several, the median of a round counts.
"""

import dataclasses
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from experiments.benchmark.rows import Row
from experiments.benchmark.timing import ratios, seconds, spread
from experiments.benchmark.workload import Workload
from unigrpo_jax.config import ConfigError, require

UNITS = {"decode": "tokens/s", "flow": "image-steps/s", "update": "s", "iteration": "s"}
BUSY = 0.02  # of all cores: what other processes may take while a program is measured
TRIES = 3  # rounds that are begun, over rounds that are asked for
STAT = pathlib.Path("/proc/stat")

Program = Callable[[], dict[str, float]]


def ours(workload: Workload) -> Program:
    """Measures each quantity of `UNITS` once; what is timed has been compiled and has run before."""
    parts, config = workload.parts(), workload.config
    update, tokens = workload.updater(), float(jnp.sum(parts.thought[0].mask))

    def iteration():
        jax.block_until_ready(workload.sample())
        return update()

    for function in (parts.think, parts.draw, iteration):
        jax.block_until_ready(function())
    return lambda: {
        "decode": tokens / seconds(parts.think),
        "flow": config.episodes * config.rollout.flow_steps / seconds(parts.draw),
        "update": seconds(update),
        "iteration": seconds(iteration),
    }


def theirs(command: str) -> Program:
    """Runs the command and reads what it prints; ConfigError where it cannot be run, fails, or prints no number."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--against {command!r} is no command ({error}); quote it as a shell would.") from None
    require(bool(words), "--against names no command; give the program that prints the other numbers.")

    def run() -> dict[str, float]:
        try:
            done = subprocess.run(words, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
        except OSError as error:
            why = error.strerror
            raise ConfigError(f"--against {words[0]} cannot be run ({why}); give the path of a program.") from None
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing on stderr")
        require(done.returncode == 0, f"--against {words[0]} ended with code {done.returncode} ({last[:200]}); mend it.")
        return read(done.stdout)

    return run


def read(text: str) -> dict[str, float]:
    """The median of each quantity over the JSON lines of a text; ConfigError where a line is wrong or there is none."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        if not line.lstrip().startswith("{"):
            continue
        try:
            given = json.loads(line)
        except (ValueError, RecursionError):
            raise ConfigError(f"--against printed {line[:100]!r}, which is no JSON; print one object a line.") from None
        for name, value in given.items():
            require(name in UNITS, f"--against printed a number called {name[:40]!r}; the names are {', '.join(UNITS)}.")
            right = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
            require(right, f"--against printed {str(value)[:40]!r} for {name}; print a finite number above 0.")
            found.setdefault(name, []).append(float(value))
    require(bool(found), f"--against printed no JSON line with one of {', '.join(UNITS)}; print at least one.")
    return {name: statistics.median(values) for name, values in found.items()}


def busy_seconds(text: str) -> float:
    """Processor seconds that all processes, and whoever shares the processors, have taken; from the text of /proc/stat."""
    user, nice, system, _, _, irq, softirq, steal = map(int, text.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor seconds of this process and of the children that have ended."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def watched(program: Program) -> tuple[dict[str, float], float]:
    """What a program measures, and the share of all cores that others took meanwhile."""
    begin, busy, own = time.perf_counter(), busy_seconds(STAT.read_text()), own_seconds()
    found = program()
    others = busy_seconds(STAT.read_text()) - busy - (own_seconds() - own)
    return found, others / ((time.perf_counter() - begin) * os.cpu_count())


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Quiet rounds of two programs.

    Attributes:
      ours: {quantity: one number per round}.
      theirs: the same of the other program, with the quantities that it prints.
      thrown_away: rounds in which others were busy.
    """

    ours: dict[str, list[float]]
    theirs: dict[str, list[float]]
    thrown_away: int


def pair(first: Program, second: Program, repeats: int, watch=watched) -> Pairing:
    """Both in turn until `repeats` rounds were quiet; odd rounds go backwards.

    Raises:
      ConfigError: too few of `TRIES` * `repeats` rounds were quiet, or the other program prints now this, now that.
    """
    programs, kept, shares = (first, second), [], []
    for number in range(TRIES * repeats):
        order = (1, 0) if number % 2 else (0, 1)
        measured = {which: watch(programs[which]) for which in order}
        shares.append(max(share for _, share in measured.values()))
        if shares[-1] <= BUSY:
            kept.append([measured[which][0] for which in (0, 1)])
        if len(kept) == repeats:
            break
    require(
        len(kept) == repeats,
        f"{len(kept)} of {len(shares)} rounds were quiet, {repeats} are asked for; other processes took up to "
        f"{max(shares):.0%} of the cores, {BUSY:.0%} are allowed: stop them, or ask for fewer --repeats.",
    )
    names = kept[0][1].keys()
    require(all(other.keys() == names for _, other in kept), "--against printed other numbers in one round than in another; "
                                                             "print the same in each.")  # fmt: skip
    column = lambda which: {name: [round_[which][name] for round_ in kept] for name in UNITS if name in names}
    return Pairing(column(0), column(1), len(shares) - repeats)


def against(workload: Workload, command: str, repeats: int) -> list[Row]:
    """Medians of both, and how many times as fast ours is, round by round: above 1 it is ahead, in seconds, too."""
    require(STAT.exists(), f"--against throws busy rounds away, which {STAT} tells of; there is none here, use Linux.")
    peer = theirs(command)
    peer()  # what cannot run is said before anything compiles, and its files are read
    return rows(pair(ours(workload), peer, repeats))


def rows(found: Pairing) -> list[Row]:
    """The table of a pairing."""
    out = []
    for name, values in found.theirs.items():
        mine, unit = found.ours[name], UNITS[name]
        ahead = ratios(values, mine) if unit == "s" else ratios(mine, values)
        out += [
            Row(name=f"{name}, ours", value=spread(mine), unit=unit, measured="this program"),
            Row(name=f"{name}, theirs", value=spread(values), unit=unit, measured="the command of --against"),
            Row(name=f"{name}, ours over theirs", value=spread(ahead), unit="x", measured="speeds of one round"),
        ]
    thrown: Sequence[float] = [found.thrown_away]
    return [*out, Row(name="rounds thrown away", value=spread(thrown), unit="", measured=f"others above {BUSY:.0%}")]
