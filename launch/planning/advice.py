"""What to change where a program does not fit: the knobs and what each would save, most first.

Savings on weights, optimizer and reference are exact arithmetic; those on temporaries scale what the compiler reported with
the episodes that are computed at a time, or with the tokens of a clip, which is an estimate: compile to know.
"""

import dataclasses
from collections.abc import Iterator

from launch.planning.compile import ROLLOUT, STATE, UPDATE, Compiled, ProgramName, Setting, prepare, state_bytes
from unigrpo_jax.config import ConfigError, RunConfig
from unigrpo_jax.config_checks import check, check_devices
from unigrpo_jax.parallel import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Knob:
    """A change of settings.

    Attributes:
      change: as it is typed.
      saves: bytes of one device, an estimate.
      enough: whether the program would fit then.
    """

    change: str
    saves: int
    enough: bool


def works(config: RunConfig, batch: int) -> bool:
    """Whether the settings pass all checks with episodes spread over `batch` devices."""
    try:
        check(config)
        check_devices(config, batch)
    except ConfigError:
        return False
    return True


def with_section(config: RunConfig, section: str, **changes) -> RunConfig:
    """The config with fields of one section changed."""
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **changes)})


def more_micro_batches(config: RunConfig, section: str, batch: int) -> Iterator[int]:
    """Larger numbers of micro-batches that divide."""
    now = getattr(config, section).micro_batches
    for count in range(now + 1, config.episodes // batch + 1):
        if works(with_section(config, section, micro_batches=count), batch):
            yield count


def knobs(setting: Setting, name: ProgramName, compiled: Compiled) -> list[Knob]:
    """Changes that save memory in a program, those that save most first."""
    excess = compiled.peak - setting.target.memory
    found = [*_fewer_at_a_time(setting, name, compiled), *_smaller_state(setting, name)]
    knob = lambda change, saves: Knob(change, int(saves), saves >= excess)
    return sorted((knob(*pair) for pair in found if pair[1] > 0), key=lambda k: -k.saves)


def _fewer_at_a_time(setting: Setting, name: ProgramName, compiled: Compiled) -> Iterator[tuple[str, float]]:
    config, batch, memory = setting.config, meshes.batch_size(setting.mesh), compiled.memory
    section, scaled = ("rollout", memory["temporaries"] + memory["cache"]) if name == ROLLOUT else (
        "learning", memory["temporaries"] - memory["trained"])  # the gradients' sum stays  # fmt: skip
    now = getattr(config, section).micro_batches
    counts = list(more_micro_batches(config, section, batch))
    for count in counts:
        saves = scaled * (1 - now / count)
        yield f"--{section}.micro-batches {count}", saves
        if compiled.peak - saves <= setting.target.memory:
            break
    if not counts:
        yield from _fewer_tokens(setting, section, scaled)
    if name == UPDATE:
        if config.model.remat == "none":
            yield "--model.remat full", min(scaled, setting.work.kept(setting.split))
        if config.learning.window_steps == "batched" and config.trained_states > 1:
            yield "--learning.window-steps scanned", scaled * (1 - 1 / config.trained_states)
    yield from _fewer_frames(setting, scaled, compiled.peak - setting.target.memory)


def _fewer_frames(setting: Setting, scaled: float, excess: int) -> Iterator[tuple[str, float]]:
    """The longest clip that would fit, where what scales does so with the tokens of a clip; attention grows faster."""
    r, network = setting.config.rollout, setting.model.network

    def tokens(frames: int) -> int:
        size = dataclasses.replace(r, frames=frames).size
        shapes = network.latent_shape(network.grid(*size))
        return sum(n for n, _ in (shapes.values() if isinstance(shapes, dict) else [shapes]))

    for frames in range(r.frames - 1, 1, -1):
        try:
            share = tokens(frames) / tokens(r.frames)
        except ValueError:  # no clip has so many
            continue
        if scaled * (1 - share) >= excess:
            yield f"--rollout.frames {frames}", scaled * (1 - share)
            return


def _fewer_tokens(setting: Setting, section: str, scaled: float) -> Iterator[tuple[str, float]]:
    """Where a device can have no fewer episodes at a time: their tokens over those that work on others, in more pieces."""
    config, shape, now = setting.config, setting.mesh.shape, getattr(setting.config, section).micro_batches
    if meshes.SEQUENCE not in setting.model.network.cuts():
        return
    for times in (2, 4, 8):
        fsdp, rest = divmod(shape[meshes.FSDP], times)
        changed = with_section(config, section, micro_batches=now * times)
        if not rest and works(changed, meshes.batch_size(setting.mesh) // times):
            mesh = f"--mesh.fsdp {fsdp} --mesh.sequence {shape[meshes.SEQUENCE] * times}"
            yield f"{mesh} --{section}.micro-batches {now * times}", scaled * (1 - 1 / times)


def _smaller_state(setting: Setting, name: ProgramName) -> Iterator[tuple[str, float]]:
    config, before = setting.config, state_bytes(setting)
    shape = dict(setting.mesh.shape)
    changes = {}
    if config.learning.reference == "device":  # refused where a leash needs it
        changes["--learning.reference none"] = with_section(config, "learning", reference="none")
    if shape[meshes.DATA] > 1:
        data, fsdp = shape[meshes.DATA], shape[meshes.FSDP]
        whole = with_section(config, "mesh", data=1, fsdp=data * fsdp)
        changes[f"--mesh.data 1 --mesh.fsdp {data * fsdp}"] = whole
    if not config.model.lora.rank:
        model = dataclasses.replace(
            config.model, param_dtype="bfloat16", lora=dataclasses.replace(config.model.lora, rank=64)
        )
        changes["--model.lora.rank 64 --model.param-dtype bfloat16"] = dataclasses.replace(config, model=model)
    elif config.model.param_dtype == "float32":
        changes["--model.param-dtype bfloat16"] = with_section(config, "model", param_dtype="bfloat16")
    for change, other in changes.items():
        try:
            after = state_bytes(prepare(other, setting.target, setting.given))
        except ConfigError:
            continue
        gradients = before["trained"] - after["trained"] if name == UPDATE else 0
        yield change, sum(before[part] - after[part] for part in STATE) + gradients
