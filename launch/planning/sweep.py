"""Tries settings that change speed and memory but not what is learned, and ranks those that fit.

Tried are the meshes that divide, micro-batches of rollout and update, and rematerialisation.  Candidates are ordered by the
roofline with guessed collectives, those whose memory is guessed to fit first; then they are compiled, until the limit.
"""

import dataclasses
import itertools
import typing
from collections.abc import Callable, Iterator

from launch.planning import roofline
from launch.planning.advice import with_section, works
from launch.planning.compile import factorings
from unigrpo_jax.config import MeshConfig, ModelConfig, RunConfig
from unigrpo_jax.models.loaded import Loaded
from unigrpo_jax.models.work import Split, Work
from unigrpo_jax.parallel.chips import Chip


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Settings that could be run.

    Attributes:
      config: all of them.
      guess: samples per chip-hour by the formula.
      memory: bytes of a device by scaling, the larger program.
    """

    config: RunConfig
    guess: float
    memory: float

    def flags(self) -> str:
        """As it is typed."""
        c = self.config
        names = ("data", "fsdp", "sequence", "tensor") if c.mesh.sequence > 1 else ("data", "fsdp", "tensor")
        mesh = " ".join(f"--mesh.{name} {getattr(c.mesh, name)}" for name in names)
        micro = f"--rollout.micro-batches {c.rollout.micro_batches} --learning.micro-batches {c.learning.micro_batches}"
        return f"{mesh} {micro} --model.remat {c.model.remat}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A candidate that was compiled.

    Attributes:
      flags: its settings.
      fits: whether both programs do.
      peak: bytes of a device, the larger program; None where the compiler failed.
      seconds: of an iteration by the roofline; None where a program was refused.
      samples_per_chip_hour: with that.
      failed: the compiler's words where it failed.
    """

    flags: str
    fits: bool
    peak: int | None
    seconds: float | None
    samples_per_chip_hour: float | None
    failed: str = ""


@dataclasses.dataclass(frozen=True)
class Known:
    """What scaling starts from: the settings as asked, compiled.

    Attributes:
      config: the settings.
      mesh: data, fsdp, tensor.
      state: bytes of one device that lie there all the time.
      temporaries: of rollout and update, the cache included.
    """

    config: RunConfig
    mesh: tuple[int, int, int]
    state: float
    temporaries: tuple[float, float]


def rematerialisations() -> tuple:
    """The values of model.remat."""
    return typing.get_args(typing.get_type_hints(ModelConfig)["remat"])


def candidates(
    known: Known, chip: Chip, chips: int, devices: int, limit: int, cost: Callable[[RunConfig], Work], model: Loaded
) -> list[Candidate]:
    """All settings that divide, the most promising first.

    Args:
      known: what was compiled already.
      chip: what a chip can do.
      chips: how many.
      devices: JAX devices.
      limit: bytes of one device.
      cost: settings to what their episodes cost.
      model: for `factorings`.
    """
    out = []
    for config, (data, fsdp, tensor) in _combinations(known.config, devices, model):
        each = devices // chips
        split = Split(chips=chips, batch=data * fsdp, tensor=tensor, devices_per_chip=each, sequence=config.mesh.sequence)
        work = cost(config)
        sent = work.sent(split, fsdp)
        found = roofline.phases(config, work, split, optimizer_bytes=0.0)
        found = [dataclasses.replace(phase, sent=sent[phase.name] * split.devices_per_chip) for phase in found]
        guess = roofline.estimate(config, work, chip, chips, found).samples_per_chip_hour
        out.append(Candidate(config, guess, guessed_memory(known, config, (data, fsdp, tensor))))
    return sorted(out, key=lambda c: (c.memory > limit, -c.guess if c.memory <= limit else c.memory))


def guessed_memory(known: Known, config: RunConfig, mesh: tuple[int, int, int]) -> float:
    """Bytes of a device by scaling: the state with its parts, temporaries with the episodes at a time and their heads."""
    parts = lambda mesh: mesh[1] * mesh[2]
    at_a_time = lambda c, section, mesh: 1 / (getattr(c, section).micro_batches * mesh[0] * mesh[1] * mesh[2])
    scale = lambda section: at_a_time(config, section, mesh) / at_a_time(known.config, section, known.mesh)
    largest = max(t * scale(section) for t, section in zip(known.temporaries, ("rollout", "learning"), strict=True))
    if config.model.remat == "none" != known.config.model.remat:
        largest *= 4  # activations of every layer; only to try these later
    return known.state * parts(known.mesh) / parts(mesh) + largest


def _combinations(config: RunConfig, devices: int, model: Loaded) -> Iterator[tuple[RunConfig, tuple[int, int, int]]]:
    single = with_section(with_section(config, "rollout", micro_batches=1), "learning", micro_batches=1)
    for mesh in factorings(single, devices, model):
        counts = [_counts(single, section, mesh[0] * mesh[1]) for section in ("rollout", "learning")]
        for rollouts, updates, remat in itertools.product(*counts, rematerialisations()):
            changed = with_section(config, "rollout", micro_batches=rollouts)
            changed = with_section(changed, "learning", micro_batches=updates)
            changed = with_section(changed, "model", remat=remat)
            yield dataclasses.replace(changed, mesh=_mesh(mesh, config.mesh.sequence or 1)), mesh


def _counts(config: RunConfig, section: str, batch: int) -> list[int]:
    """Numbers of micro-batches that divide."""
    whole = config.episodes // batch
    return [n for n in range(1, whole + 1) if works(with_section(config, section, micro_batches=n), batch)]


def _mesh(sizes: tuple[int, int, int], sequence: int) -> MeshConfig:
    data, fsdp, tensor = sizes
    return MeshConfig(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor)


def sweep(
    ordered: list[Candidate], limit: int, compile_: Callable[[RunConfig], Outcome], progress: Callable[[str], None]
) -> list[Outcome]:
    """Compiles the first `limit` candidates; those that fit first, the fastest of them on top.

    Args:
      ordered: from `candidates`.
      limit: how many to compile.
      compile_: settings to what came out.
      progress: told a line per candidate.
    """
    out = []
    for number, candidate in enumerate(ordered[:limit], start=1):
        progress(f"{number} of {min(limit, len(ordered))}: {candidate.flags()}")
        outcome = dataclasses.replace(compile_(candidate.config), flags=candidate.flags())
        verdict = f"fits, {outcome.samples_per_chip_hour:.1f} samples per chip-hour" if outcome.fits else "does not fit"
        words = f"not compiled; {outcome.failed}" if outcome.failed else f"{outcome.peak / 2**30:.1f} GiB, {verdict}"
        progress(f"    {words}")
        out.append(outcome)
    return sorted(out, key=lambda o: (not o.fits, bool(o.failed), -(o.samples_per_chip_hour or 0), o.peak))
