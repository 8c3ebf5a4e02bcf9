"""Compiles a preset's rollout and update for chips that are not there: memory, collectives, time, and what to change.

    pip install -e ".[tpu-plan]"
    JAX_PLATFORMS=cpu python -m launch.plan bagel_7b --topology v5p:4x4x4 --mesh.fsdp 64 [--json FILE] [--html FILE]

TPUs are compiled for by libtpu.  For GPUs (h100:8x4, 4 nodes of 8) the program is lowered for CUDA, and compiled for as many
TPU chips, which stand in for temporaries and collectives.  With --learning.method mean_flow or dmd2 it plans what
experiments.distill would run.
"""

import dataclasses
import json
import os
import pathlib
import resource
import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from experiments.command_line import complain, given_arguments, interrupted, preset_file, presets, say, unheard
from experiments.destination import file_to_write
from launch.planning.given import Given, Said, find_given
from unigrpo_jax import foreign_text
from unigrpo_jax.config import ConfigError, RunConfig, require

GIB = 2**30
NOTHING = Given()


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to compile and for what."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    topology: str
    """Chips and their arrangement: v5p:4x4x4, v6e:16x16, v5p:4x4x4*2 (two slices), or GPUs per node x nodes, h100:8x4."""
    json: pathlib.Path | None = None
    """File for all numbers."""
    html: pathlib.Path | None = None
    """File for a page with a bar per program."""
    pictures: Said = "auto"
    """Whether each prompt comes with a picture; auto: as the first one does, or as the preset says where none are named."""
    turns: Said = "auto"
    """Whether the user says something in each later round; auto: as with the first prompt, or as the preset says."""
    sweep: bool = False
    """Also try other micro-batches, rematerialisation and meshes, and rank those that fit."""
    sweep_limit: int = 6
    """Settings that --sweep compiles."""


def tell(line: str) -> None:
    """Progress goes to stderr: a large preset compiles for minutes."""
    foreign_text.tell(line, sys.stderr)


def plan(
    config: RunConfig, topology: str, progress: Callable[[str], None] = tell, given: Given = NOTHING
) -> dict[str, Any]:
    """Compiles both programs and returns everything that is said of them, as JSON would hold it.

    Args:
      config: the settings.
      topology: what to compile for.
      progress: told what is being done.
      given: what comes with the prompts.

    Returns:
      The numbers; `failed` holds the compiler's words where it raised, and then `programs` only those compiled before.

    Raises:
      ConfigError: the topology is none, the settings do not fit it, or there is no compiler, or none that fits.
    """
    from launch.planning import advice, roofline
    from launch.planning.compile import ROLLOUT, UPDATE, cache_by_round, compile_program, prepare, slot_bytes, state_bytes
    from launch.planning.compiler import CompilerFailed
    from launch.planning.targets import STAND_IN, find_target

    target = find_target(topology)
    setting = prepare(config, target, given)
    programs, failed = {}, {}
    for name in (ROLLOUT, UPDATE):
        progress(f"compiling the {name} of {config.name} for {topology} ...")
        try:
            programs[name] = compile_program(setting, name)
        except CompilerFailed as error:
            failed[name] = str(error)
            break
    work, chip, state = setting.work, target.chip, state_bytes(setting)
    phases = roofline.phases(config, work, setting.split, state["trained"] + state["optimizer"])
    tables = {name: p.collectives for name, p in programs.items()}
    phases = roofline.with_collectives(phases, tables, target.devices_per_chip)
    estimate = roofline.estimate(config, work, chip, target.chips, phases)
    notes = [f"chip: {chip.source}"]
    if chip.kind == "gpu":
        notes.append(f"no CUDA compiler is here: weights, optimizer and cache are exact arithmetic, both programs were "
                     f"lowered for CUDA, and temporaries and collectives are those of {len(target.devices)} {STAND_IN} "
                     "chips")  # fmt: skip
    if chip.kind == "tpu" and target.per_node:
        notes.append(f"slices send each other host transfers, which are neither listed nor timed: at least the gradients, "
                     f"{state['trained'] / 1e9:.2f} GB per device and optimizer step")  # fmt: skip
    if any(row["assumed"] for rows in tables.values() for row in rows):
        notes.append(f"the token loop ends with its longest chain; {config.rollout.thinking_tokens + 2} tokens are assumed")
    if failed or any(p.refused for p in programs.values()):
        notes.append("a program that was not compiled shows no collectives, so its seconds are a lower bound")
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "name": config.name,
        "topology": topology,
        "chips": target.chips,
        "devices": len(target.devices),
        "mesh": dict(setting.mesh.shape),
        "limit": target.memory,
        "chip": dataclasses.asdict(chip),
        "episodes": config.episodes,
        "given": dataclasses.asdict(setting.given),
        "cache": {"slot": slot_bytes(setting), "rows": setting.rows, "rounds": cache_by_round(setting)},
        "state": state,
        "programs": {name: dataclasses.asdict(p) | {"peak": p.peak} for name, p in programs.items()},
        "failed": failed,
        "host": host,
        "phases": [dataclasses.asdict(p) | {"bounds": p.bounds(chip), "seconds": p.seconds(chip)} for p in phases],
        "estimate": dataclasses.asdict(estimate),
        "advice": {name: [dataclasses.asdict(k) for k in advice.knobs(setting, name, p)]
                   for name, p in programs.items() if not p.fits},
        "notes": notes,
    }  # fmt: skip


def swept(
    config: RunConfig, topology: str, numbers: dict[str, Any], limit: int, given: Given = NOTHING
) -> list[dict[str, Any]]:
    """Other settings, compiled and ranked; `numbers` are those of the settings as asked."""
    from launch.planning import sweep
    from launch.planning.compile import STATE, find_model, find_work
    from launch.planning.targets import find_target

    found = dataclasses.replace(config.mesh, sequence=numbers["mesh"]["sequence"])
    config, target, model = dataclasses.replace(config, mesh=found), find_target(topology), find_model(config.model)
    first = [numbers["programs"][name]["memory"] for name in ("rollout", "update")]
    known = sweep.Known(
        config=config,
        mesh=tuple(numbers["mesh"][name] for name in ("data", "fsdp", "tensor")),
        state=sum(first[0][part] for part in STATE),
        temporaries=tuple(m["temporaries"] + m["cache"] for m in first),
    )

    def compile_(changed: RunConfig) -> sweep.Outcome:
        out = plan(changed, topology, lambda line: None, given)
        if out["failed"]:
            return sweep.Outcome("", False, None, None, None, *out["failed"].values())
        programs = out["programs"].values()
        fits, peak = all(p["fits"] for p in programs), max(p["peak"] for p in programs)
        if any(p["refused"] for p in programs):
            return sweep.Outcome("", False, peak, None, None)
        return sweep.Outcome("", fits, peak, out["estimate"]["seconds"], out["estimate"]["samples_per_chip_hour"])

    cost = lambda changed: find_work(changed, model, Given(**numbers["given"]))
    ordered = sweep.candidates(known, target.chip, target.chips, len(target.devices), target.memory, cost, model)
    return [dataclasses.asdict(outcome) for outcome in sweep.sweep(ordered, limit, compile_, tell)]


def _rounds(cache: dict[str, Any]) -> list[str]:
    """The keys and values that each round adds."""
    lines = [f"keys and values of {cache['rows']} episodes that a device samples at a time, {cache['slot']} bytes a slot:",
             f"  {'round':<8}{'slots':>8}{'GiB':>8}   filled by"]  # fmt: skip
    for number, row in enumerate(cache["rounds"], 1):
        blocks = ", ".join(f"{name} {slots:.0f}" for name, slots in row["blocks"].items())
        lines.append(f"  {number:<8}{row['slots']:>8.0f}{row['bytes'] / GIB:>8.2f}   {blocks}")
    slots, size = (sum(row[name] for row in cache["rounds"]) for name in ("slots", "bytes"))
    return [*lines, f"  {'all':<8}{slots:>8.0f}{size / GIB:>8.2f}"]


def _state(numbers: dict[str, Any]) -> list[str]:
    """What is known of the memory though nothing was compiled."""
    known = {name: size for name, size in numbers["state"].items() if size}
    if cache := sum(row["bytes"] for row in numbers["cache"]["rounds"]):
        known["cache"] = cache
    lines = [f"  {name:<20}{size / GIB:>10.2f}" for name, size in known.items()]
    return ["GiB per device, by exact arithmetic:", *lines, f"  {'of':<20}{numbers['limit'] / GIB:>10.2f}"]


def _memory(numbers: dict[str, Any]) -> list[str]:
    """Memory by class of the programs that were compiled."""
    gib = lambda value: f"{value / GIB:.2f}"
    names = list(numbers["programs"])
    lines = [f"{'GiB per device':<22}" + "".join(f"{name:>10}" for name in names)]
    for part in numbers["programs"][names[0]]["memory"]:
        values = [numbers["programs"][name]["memory"][part] for name in names]
        if any(values):
            lines.append(f"  {part:<20}" + "".join(f"{gib(value):>10}" for value in values))
    lines.append(f"  {'together':<20}" + "".join(f"{gib(numbers['programs'][name]['peak']):>10}" for name in names))
    lines.append(f"  {'of':<20}" + f"{gib(numbers['limit']):>10}" * len(names))
    verdict = lambda p: "fits" if p["fits"] else "TOO MUCH"
    lines.append(f"  {'':<20}" + "".join(f"{verdict(numbers['programs'][name]):>10}" for name in names))
    seconds = " + ".join(f"{numbers['programs'][name]['seconds']:.0f}" for name in names)
    lines += [f"compiled in {seconds} s with {gib(numbers['host'])} GiB of host memory"]
    return lines


def show(numbers: dict[str, Any]) -> list[str]:
    """The numbers as lines of text."""
    gib = lambda value: f"{value / GIB:.2f}"
    mesh = ", ".join(f"{name} {size}" for name, size in numbers["mesh"].items())
    names = list(numbers["programs"])
    lines = [f"{numbers['name']} on {numbers['topology']}: {numbers['chips']} chips, {mesh}", ""]
    lines += (_memory(numbers) if names else _state(numbers)) + [""]
    if len(numbers["cache"]["rounds"]) > 1 and numbers["cache"]["slot"]:
        lines += [*_rounds(numbers["cache"]), ""]
    for name in names:
        rows = numbers["programs"][name]["collectives"]
        if rows:
            lines.append(f"{name} sends, GB per device and iteration:")
            lines += [f"  {row['bytes'] / 1e9:>10.2f}  {row['kind']:<18} over {row['axes']} ({row['group']}), "
                      f"{row['times']} times, {row['phase']}" for row in rows[:8]]  # fmt: skip
            rest = sum(row["bytes"] for row in rows[8:])
            lines += [f"  {rest / 1e9:>10.2f}  in {len(rows) - 8} smaller rows"] if len(rows) > 8 else []
    estimate = numbers["estimate"]
    lines += ["", f"{'roofline, s':<14}{'compute':>10}{'memory':>10}{'links':>10}{'bound':>10}"]
    for phase in numbers["phases"]:
        bounds = phase["bounds"]
        lines.append(f"  {phase['name']:<12}" + "".join(f"{bounds[b]:>10.2f}" for b in ("compute", "memory", "links"))
                     + f"{phase['seconds']:>10.2f}")  # fmt: skip
    lines.append(f"  at least {estimate['seconds']:.1f} s an iteration, at most {estimate['samples_per_chip_hour']:.1f} "
                 f"samples per chip-hour; {estimate['model_flops'] / 1e15:.3g} PFLOP, at most "
                 f"{100 * estimate['utilisation']:.0f} % of the peak")  # fmt: skip
    for name, found in numbers["advice"].items():
        over = numbers["programs"][name]["peak"] - numbers["limit"]
        lines += ["", f"{name} needs {gib(over)} GiB less; what would help, by estimate:"]
        lines += [f"  {gib(k['saves']):>8} GiB  {k['change']}{'' if k['enough'] else ' (not enough alone)'}"
                  for k in found] or ["  more chips"]  # fmt: skip
    lines += ["", *(f"({note})" for note in numbers["notes"])]
    if numbers.get("sweep"):
        lines += ["", "samples per chip-hour    s   GiB   settings"]
        for outcome in numbers["sweep"]:
            if outcome["failed"]:
                lines.append(f"{'not compiled':>33}   {outcome['flags']}")
                continue
            speed = f"{outcome['samples_per_chip_hour']:>14.1f}{outcome['seconds']:>12.1f}" if outcome["fits"] else (
                f"{'does not fit':>26}")  # fmt: skip
            lines.append(f"{speed}{outcome['peak'] / GIB:>7.1f}   {outcome['flags']}")
    return lines


def distilled(preset: RunConfig, arguments: list[str]) -> RunConfig:
    """A preset's settings, or those that experiments.distill makes of them where the command line names its method."""
    from experiments.distill import asked_method, settings

    method = asked_method(arguments, "")
    return settings(preset, method) if method else preset


def main() -> None:
    """Parses, compiles, prints, writes."""
    try:
        file, rest = preset_file(given_arguments(), "bagel_7b")
        arguments = tyro.cli(
            Arguments,
            args=rest,
            default=Arguments(distilled(file.config(), rest), ""),
            prog="python -m launch.plan [PRESET]",
            description=f"{__doc__}\nPresets: {', '.join(presets())}.",
        )
        require(arguments.topology != "", "--topology says what to compile for, such as v5p:4x4x4 or h100:8x4.")
        for path in (arguments.json, arguments.html):
            require(path is None or path.absolute().parent.is_dir(),
                    f"{path} cannot be written: its folder does not exist; make it first.")  # fmt: skip
            if path is not None and (path.is_file() or not path.exists()):  # a device or a pipe takes what comes
                file_to_write(path, "the file")
        require(arguments.sweep_limit >= 1, f"sweep-limit = {arguments.sweep_limit}, but it must be at least 1.")
        os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS") or "cpu"
        config = arguments.config
        known = Given(pictures=getattr(file, "PICTURES", False), turns=getattr(file, "TURNS", False))
        given = find_given(config, arguments.pictures, arguments.turns, known)
        numbers = plan(config, arguments.topology, given=given)
        if arguments.sweep and not numbers["failed"]:
            numbers["sweep"] = swept(config, arguments.topology, numbers, arguments.sweep_limit, given)
    except ConfigError as error:
        complain(error, "launch.plan")
    except BrokenPipeError:
        unheard()
    except KeyboardInterrupt:
        interrupted()
    foreign_text.tell("\n".join(show(numbers)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")
    if arguments.html is not None:
        from launch.planning.page import page

        arguments.html.write_text(page(numbers))
    for name, words in numbers["failed"].items():
        say("launch.plan", f"the {name} was not compiled; {words}")
        sys.exit(1)


if __name__ == "__main__":
    main()
