"""What rounds cost: programs of 1, 2, ... R rounds in turn, a straight line through them, and what guidance costs instead.

An episode thinks, draws and looks at what it drew, again and again; nobody says anything in between.  It may begin with a
picture, as an edit does: then the first round, too, has something to look at.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark.rows import Row
from experiments.benchmark.timing import alternate, ratios, spread
from experiments.benchmark.workload import Workload
from unigrpo_jax.models.building.guidance import Guidance

MOST = 4
MIB = 2**20
GUIDED = {"text guidance": Guidance(text=2.0), "text and image guidance": Guidance(text=2.0, image=2.0)}


@dataclasses.dataclass(frozen=True)
class Line:
    """A straight line through numbers of 1, 2, ... rounds, by least squares.

    Attributes:
      intercept: its value at no round.
      slope: of a round.
      deviation: the largest distance of a number from the line, as a part of the line.
    """

    intercept: float
    slope: float
    deviation: float


def line(values: Sequence[float]) -> Line:
    """The line through the values of 1, 2, ... rounds; at least two."""
    rounds = np.arange(1, len(values) + 1)
    slope, intercept = np.polyfit(rounds, np.asarray(values, float), 1)
    fitted = intercept + slope * rounds
    return Line(float(intercept), float(slope), float(np.max(np.abs(np.asarray(values) - fitted) / np.abs(fitted))))


def held(compiled: Any) -> int:
    """Bytes that a program takes beside its arguments, by the compiler."""
    stats = compiled.memory_analysis()
    return stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes


def executed(workload: Workload, passes: int | None = None) -> dict[str, float]:
    """Operations of rollout and update with full buckets, `passes` velocities in a transition of the rollout."""
    work = workload.work
    parts = {"rollout": work.rollout(executed=True, passes=passes), "update": work.update(executed=True)}
    return {program: sum(amounts.values()) for program, amounts in parts.items()}


def cache(workload: Workload) -> float:
    """Bytes of the keys and values of all episodes."""
    slots = sum(sum(block.values()) for block in workload.work.blocks())
    return workload.config.episodes * workload.work.slot_bytes * slots


def rounds(workload: Workload, repeats: int, most: int = MOST) -> list[Row]:
    """Time, operations and memory of 1 to `most` rounds, the line through each, and the cost of guidance in one round.

    Nothing for a network that only draws, which has one round.
    """
    if not workload.network.thinks:
        return []
    many = [workload.changed(rounds=count) for count in range(1, most + 1)]
    functions: dict[str, Callable[[], Any]] = {}
    sizes: dict[str, list[float]] = {"rollout": [], "update": []}
    for count, other in enumerate(many, 1):
        sample = other.programs.rollout.lower(*other.sampling()).compile()
        functions[f"rollout {count}"] = lambda sample=sample, other=other: sample(*other.sampling())
        sizes["rollout"].append(held(sample))
        given = other.learning(sample(*other.sampling()))
        update = other.programs.update.lower(*given).compile()
        functions[f"update {count}"] = other.updates(update, given)
        sizes["update"].append(held(update))
    guided = {name: _guided(workload, guidance) for name, guidance in GUIDED.items()}
    functions |= guided
    seconds = alternate(functions, repeats)
    work, out = [executed(other) for other in many], []
    for program, bytes_ in sizes.items():
        times = [seconds[f"{program} {count}"] for count in range(1, most + 1)]
        out += [
            Row(name=f"{program}, {_words(count)}", value=spread(time), unit="s", measured="whole program")
            for count, time in enumerate(times, 1)
        ]
        fits = [line(of_one) for of_one in zip(*times, strict=True)]
        out += _line(f"{program} time", fits, "s", f"1 to {most} rounds, repeat by repeat")
        out += _counted(f"{program} operations", [of[program] / 1e9 for of in work], "GFLOP", "by formula, full buckets")
        sizes_ = [size / MIB for size in bytes_]
        out += _counted(f"{program} memory", sizes_, "MiB", "beside the arguments, by the compiler")
    out += _counted("keys and values", [cache(other) / MIB for other in many], "MiB", "by formula, full buckets")
    plain = executed(workload.changed(rounds=1), 1)["rollout"]
    for name, guidance in [("no guidance", Guidance(text=1.0)), *GUIDED.items()]:
        more = executed(workload.changed(rounds=1), guidance.passes)["rollout"] / plain
        out.append(_single(f"evaluations per transition, {name}", guidance.passes, "", "by formula"))
        if name in GUIDED:
            out.append(_single(f"rollout operations, {name}", more, "x", "over none, by formula, one round"))
            over = spread(ratios(seconds[name], seconds["rollout 1"]))
            out.append(Row(name=f"rollout time, {name}", value=over, unit="x", measured="over none, one round"))
    one, two = (executed(workload.changed(rounds=1, guidance=scale))["update"] for scale in (1.0, 2.0))
    out.append(_single("update operations, text guidance", two / one, "x", "over none, by formula, one round"))
    return out


def _words(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def _counted(name: str, values: Sequence[float], unit: str, measured: str) -> list[Row]:
    """What is the same in every repeat, and the line through it."""
    each = [_single(f"{name}, {_words(count)}", value, unit, measured) for count, value in enumerate(values, 1)]
    return each + _line(name, [line(values)], unit, f"1 to {len(values)} rounds, {measured}")


def _single(name: str, value: float, unit: str, measured: str) -> Row:
    return Row(name=name, value=spread([value]), unit=unit, measured=measured)


def _line(name: str, fits: Sequence[Line], unit: str, measured: str) -> list[Row]:
    column = lambda field: spread([getattr(fit, field) for fit in fits])
    what = f"straight line through {measured}"
    return [
        Row(name=f"{name}, intercept", value=column("intercept"), unit=unit, measured=what),
        Row(name=f"{name}, slope", value=column("slope"), unit=f"{unit} a round", measured=what),
        Row(name=f"{name}, largest deviation", value=column("deviation"), unit="of the line", measured=what),
    ]


def _guided(workload: Workload, guidance: Guidance) -> Callable[[], Any]:
    """One round of the rollout with guidance, its thinking the same."""
    program = workload.changed(rounds=1).program
    program = dataclasses.replace(program, flow=dataclasses.replace(program.flow, guidance=guidance))
    sample = jax.jit(program.__call__).lower(*workload.sampling()).compile()
    return lambda: sample(*workload.sampling())
