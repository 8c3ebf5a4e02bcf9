"""Shapes -> compiled programs -> numbers: what a preset's rollout and update take of each device, by class.

The programs are those of `experiments.run`, from shapes alone; no weights and no chips are needed.
"""

import contextlib
import dataclasses
import functools
import math
import re
import time
from typing import Any, Literal

import jax
from jax.experimental.compilation_cache import compilation_cache

from launch.planning.collectives import collectives, table
from launch.planning.compiler import CompilerFailed
from launch.planning.given import Given
from launch.planning.targets import Target
from unigrpo_jax.config import ConfigError, ModelConfig, RunConfig, require
from unigrpo_jax.config_checks import check, check_devices
from unigrpo_jax.learning import modalities
from unigrpo_jax.models import tree
from unigrpo_jax.models.families import known, load_model
from unigrpo_jax.models.loaded import Loaded
from unigrpo_jax.models.work import Split, Work, with_texts
from unigrpo_jax.parallel import kernels
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.chips import CHIPS
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.training.distilled import DistilledPrograms
from unigrpo_jax.training.placement import device_bytes
from unigrpo_jax.training.programs import Inputs, Programs

ROLLOUT, UPDATE = "rollout", "update"
ProgramName = Literal["rollout", "update"]
# Classes of memory, in the order of a bar; those of `STATE` lie on a device all the time.
STATE = ("trained", "optimizer", "average", "frozen", "reference", "fake score")
CLASSES = (*STATE, "inputs", "cache", "episodes", "temporaries", "results")
# Named scopes of the rollout, and what is neither.
PHASES = ("looking", "thinking", "drawing", "images")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a program takes of one device.

    Attributes:
      memory: bytes by class.
      seconds: that compiling took.
      fits: whether all of it is below what a device has.
      refused: the compiler refused it for its memory, so there is no HLO and no table.
      collectives: rows as `launch.planning.collectives.table` makes them.
    """

    memory: dict[str, int]
    seconds: float
    fits: bool
    refused: bool
    collectives: list[dict]

    @property
    def peak(self) -> int:
        """Bytes of a device, everything together."""
        return sum(self.memory.values())


@dataclasses.dataclass(frozen=True)
class Setting:
    """A config on a target, ready to be compiled.

    Attributes:
      config: the settings.
      target: the chips.
      mesh: the devices' arrangement.
      model: sizes; its files are read only where the config names a folder.
      work: what its episodes cost.
      programs: both programs.
      inputs: their inputs' shapes.
      given: what comes with the prompts.
    """

    config: RunConfig
    target: Target
    mesh: jax.sharding.Mesh
    model: Loaded
    work: Work
    programs: Programs
    inputs: Inputs
    given: Given

    @property
    def rows(self) -> int:
        """Episodes that one device samples at a time."""
        return self.config.episodes // self.config.rollout.micro_batches // meshes.batch_size(self.mesh)

    @functools.cached_property
    def traced(self) -> tuple[jax.stages.Traced, jax.stages.Traced]:
        """Rollout and update, traced once."""
        return self.programs.trace(self.inputs)

    @property
    def tensor(self) -> int:
        """Parts that heads and MLPs are cut into."""
        return self.mesh.shape[meshes.TENSOR]

    @property
    def split(self) -> Split:
        """How the work lies on the chips."""
        batch, chips, per_chip = meshes.batch_size(self.mesh), self.target.chips, self.target.devices_per_chip
        sequence = self.mesh.shape[meshes.SEQUENCE]
        return Split(chips=chips, batch=batch, tensor=self.tensor, devices_per_chip=per_chip, sequence=sequence)


def find_model(config: ModelConfig) -> Loaded:
    """The model of a config: a release by its known sizes, anything else from its folder."""
    return known(config) or load_model(config)


def find_work(config: RunConfig, model: Loaded, given: Given) -> Work:
    """What the episodes of a run cost."""
    if config.learning.method == "dmd2":  # which draws in the steps that its student is made for
        rollout = dataclasses.replace(config.rollout, flow_steps=config.learning.distillation.steps[0])
        config = dataclasses.replace(config, rollout=rollout)
    config = with_texts(config, model.codec.shapes(1, config.rollout.prompt_tokens))
    return model.network.work(config, len(model.codec.system(config.rollout)), given.pictures, given.turns)


def prepare(config: RunConfig, target: Target, given: Given = Given()) -> Setting:  # noqa: B008 (frozen)
    """Checks a config on a target and lays its shapes out.

    Raises:
      ConfigError: the settings contradict each other or do not divide; the message lists factorings that would.
    """
    check(config)
    require(config.rollout.quantised == "none" or target.chip.int8 is not None, f"rollout.quantised = "
            f"{config.rollout.quantised!r}, but no peak of {target.name} in int8 is known; plan with 'none', or for "
            f"{', '.join(name for name, chip in CHIPS.items() if chip.int8)}.")  # fmt: skip
    model = find_model(config.model)
    try:
        model.abstract_params()
    except ValueError as error:  # adapters that hit nothing
        raise ConfigError(f"model.lora.targets: {error}") from None
    try:
        return _prepare(config, target, model, given)
    except ConfigError as error:
        devices, m = len(target.devices), config.mesh
        options = factorings(config, devices, model)
        others = max(m.fsdp * m.sequence * m.tensor, 1)
        if not options or (m.data or devices // others, m.fsdp, m.tensor) in options:
            raise
        along = f" --mesh.sequence {m.sequence}" if m.sequence > 1 else ""
        words = ", or ".join(f"--mesh.data {d} --mesh.fsdp {f}{along} --mesh.tensor {t}" for d, f, t in options[:4])
        raise ConfigError(f"{str(error).removesuffix('.')}; as settings are, {devices} devices divide as {words}.") from None


def _prepare(config: RunConfig, target: Target, model: Loaded, given: Given) -> Setting:
    mesh = meshes.make_mesh(0, config.mesh, target.devices)
    check_devices(config, meshes.batch_size(mesh))
    layout = Layout(mesh, model.network.axes)
    model.check_image_size(config.rollout)
    modalities.check(config.learning, modalities.names(model.network, config.rollout.size), str(model.folder))
    model = model.placed(
        layout.activations, kernels.attend(config.model, mesh), tokens=layout.sequence(model.network.cuts())
    )
    system = model.codec.system(config.rollout)
    kind = DistilledPrograms if config.learning.distils else Programs
    programs = kind(config, model.network, model.autoencoder, system, layout, model.abstract_params())
    text = model.codec.shapes(config.rollout.prompts_per_iteration, config.rollout.prompt_tokens)
    inputs = programs.inputs(model.stored_params(), model.autoencoder.shapes(), text, given.turns, given.pictures)
    return Setting(config, target, mesh, model, find_work(config, model, given), programs, inputs, given)


def factorings(config: RunConfig, devices: int, model: Loaded) -> list[tuple[int, int, int]]:
    """Meshes (data, fsdp, tensor) over which the episodes and the network divide; the most fsdp first.

    As many devices as the settings say hold parts of an episode's tokens.
    """
    cut, sequence, out = model.network.cuts(), config.mesh.sequence or 1, []
    if devices % sequence or (sequence > 1 and meshes.SEQUENCE not in cut):
        return []
    divides = lambda axis, parts: not any(size % parts for size in cut[axis].values())
    left = devices // sequence
    for tensor in (t for t in range(1, left + 1) if left % t == 0 and divides(meshes.TENSOR, t)):
        batch = left // tensor
        try:
            check_devices(config, batch)
        except ConfigError:
            continue
        for fsdp in (f for f in range(1, batch + 1) if batch % f == 0 and divides(meshes.FSDP, f * sequence)):
            out.append((batch // fsdp, fsdp, tensor))
    return sorted(out, key=lambda sizes: (-sizes[1], sizes[2]))


def _own(part: Any) -> int:
    """Bytes of one device's shards; what lies on the host does not count."""
    return sum(map(device_bytes, jax.tree.leaves(part)))


def state_bytes(setting: Setting) -> dict[str, int]:
    """Bytes of what lies on a device all the time, by class: exact arithmetic."""
    i, named = setting.inputs, setting.config.learning.distillation.teacher is not None
    return {
        "trained": _own(i.state.trained),
        "optimizer": _own(i.state.opt_state),
        "average": _own((i.state.ema, i.state.old)),
        "frozen": _own(i.frozen) + _own(i.autoencoder),
        "reference": _own({path: x for path, x in tree.flatten(i.reference).items() if named or path not in i.frozen}),
        "fake score": _own(i.state.fake),
    }


def slot_bytes(setting: Setting) -> int:
    """Bytes of one episode's keys and values in one slot of its context, on one device; 0 where there are none."""
    return int(setting.work.slot_bytes) // setting.tensor


def cache_by_round(setting: Setting) -> list[dict[str, Any]]:
    """Slots that each round adds to an episode's context, by what fills them, and bytes of one device."""
    each = setting.rows * slot_bytes(setting)
    return [{"blocks": b, "slots": sum(b.values()), "bytes": each * sum(b.values())} for b in setting.work.blocks()]


def cache_bytes(setting: Setting) -> int:
    """Bytes of the keys and values of the episodes that one device samples at a time."""
    return sum(row["bytes"] for row in cache_by_round(setting))


def compile_program(setting: Setting, name: ProgramName) -> Compiled:
    """Compiles one program and takes it apart; for GPUs it is lowered for CUDA first, which shows that it can be.

    Raises:
      CompilerFailed: the compiler raised something other than that a device has too little memory.
    """
    begin = time.monotonic()
    rollout, update = setting.traced
    traced = rollout if name == ROLLOUT else update
    state, cache = state_bytes(setting), cache_bytes(setting) if name == ROLLOUT else 0
    episodes = _episode_bytes(setting, setting.config.episodes if name == ROLLOUT else setting.config.trained_episodes)
    sampling = "reference" if setting.config.learning.method == "mean_flow" else "trained"
    given = (sampling, "frozen") if name == ROLLOUT else STATE
    arguments = sum(state[part] for part in given) + (0 if name == ROLLOUT else episodes)
    try:
        if setting.target.chip.kind == "gpu":
            traced.lower(lowering_platforms=("cuda",))
        with nothing_cached():
            compiled = traced.lower().compile()
        stats, text = compiled.memory_analysis(), compiled.as_text()
    except Exception as error:  # compilers' errors have no common class
        total = required(str(error))
        if total is None:
            raise CompilerFailed(error) from error
        memory = {"inputs": 0, "results": 0, "temporaries": total - arguments - cache}
        rows, refused = [], True
    else:
        cache = min(cache, stats.temp_size_in_bytes)  # a small one lies in a TPU's vector memory
        memory = {
            "inputs": max(stats.argument_size_in_bytes - arguments, 0),
            "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
            "temporaries": stats.temp_size_in_bytes - cache,
        }
        refused = False
        rows = table(_collectives(setting, text), phase)
    if name == ROLLOUT:
        memory |= {"cache": cache, "episodes": memory["results"] or episodes, "results": 0}
    else:
        memory |= {"cache": 0, "episodes": episodes}
    memory = {part: int((state | memory)[part]) for part in CLASSES}
    fits = sum(memory.values()) <= setting.target.memory
    return Compiled(memory, round(time.monotonic() - begin, 1), fits, refused, rows)


def _episode_bytes(setting: Setting, count: int) -> int:
    """Bytes of so many finished episodes on one device."""
    made = setting.traced[0].out_info
    held = lambda x, place: math.prod(place.shard_shape((count, *x.shape[1:]))) * x.dtype.itemsize
    return sum(jax.tree.leaves(jax.tree.map(held, made, setting.programs.places(made))))


@contextlib.contextmanager
def nothing_cached():
    """Without JAX's cache of compiled programs: one for chips that are not there is written, and can never be read back."""
    kept = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX looks at the setting once, at its first program
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
        compilation_cache.reset_cache()


def required(message: str) -> int | None:
    """Bytes that the compiler says a program needs when it refuses it; None for another error."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM", message)
    return int(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]]) if found else None


def _collectives(setting: Setting, text: str):
    limit = setting.config.rollout.thinking_tokens + 2
    return collectives(text, dict(setting.mesh.shape), limit, setting.target.per_node)


def phase(collective) -> str:
    """The rollout's named scope that a collective belongs to; `other` is prefill in a rollout, all of an update."""
    return next((name for name in PHASES if f"/{name}/" in f"{collective.where}/"), "other")
