"""Compiles a preset's rollout and update for TPUs that are not there, and says what they take of each chip.

    pip install -e ".[tpu]"
    JAX_PLATFORMS=cpu python -m launch.plan bagel_7b --topology v5p:4x4x4 --mesh.fsdp 64 [--json FILE]

The programs are those of `experiments.run`, compiled by libtpu from shapes alone; no weights and no chips are needed.
"""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import sys
import time
from typing import Annotated, Any

import tyro

from experiments.command_line import complain, preset
from unigrpo_jax.config import ConfigError, RunConfig

# Memory of one chip in GiB that programs can use.
HBM = {"v5p": 95.0, "v6e": 31.0}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to compile and for what."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    topology: str
    """Chips and their arrangement, such as v5p:4x4x4 or v6e:16x16."""
    json: pathlib.Path | None = None
    """File for the same numbers."""


def plan(config: RunConfig, topology: str) -> dict[str, Any]:
    """Compiles both programs and returns bytes per chip by class, and seconds.

    Raises:
      ConfigError: the topology is none, the settings do not fit it, or there is no compiler.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from unigrpo_jax.config import require
    from unigrpo_jax.config_checks import check, check_devices
    from unigrpo_jax.models import tree
    from unigrpo_jax.models.bagel import Bagel, lora, weights
    from unigrpo_jax.models.bagel.release import AUTOENCODER, BAGEL_7B, HUB_NAME, SYSTEM_TOKENS
    from unigrpo_jax.parallel import kernels
    from unigrpo_jax.parallel import mesh as meshes
    from unigrpo_jax.parallel.rules import Layout
    from unigrpo_jax.training.programs import Programs

    check(config)
    chip = topology.partition(":")[0]
    require(chip in HBM and ":" in topology, f"topology = {topology!r}, but it must be one of {', '.join(HBM)} and a shape, "
                                             "such as v5p:4x4x4.")  # fmt: skip
    require(config.model.path == HUB_NAME, f"a plan knows the sizes of {HUB_NAME}; use a bagel_7b preset as it is.")
    require(importlib.util.find_spec("libtpu") is not None,
            "a plan needs the TPU compiler: pip install -e '.[tpu]', and set JAX_PLATFORMS=cpu.")  # fmt: skip
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask about itself
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # libtpu's errors have no common class
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"topology {topology} is none that the TPU compiler knows ({first}).") from None
    mesh = meshes.make_mesh(0, config.mesh, devices)
    check_devices(config, meshes.batch_size(mesh))
    layout, settings = Layout(mesh), config.model.lora
    scale = settings.alpha / settings.rank if settings.rank else 1.0
    attend = kernels.attend(config.model, mesh)
    network = Bagel(BAGEL_7B, config.model.dtype, config.model.remat, config.model.unroll, scale, layout.activations, attend)
    kind = lambda path: jnp.float32 if path in weights.FIXED_TABLES else jnp.dtype(config.model.param_dtype)
    shapes = tree.flatten(jax.eval_shape(lambda: network.init(jax.random.key(0))))
    stored = tree.unflatten({path: jax.ShapeDtypeStruct(x.shape, kind(path)) for path, x in shapes.items()})
    adapt = lambda p: lora.attach(p, settings.rank, settings.targets, jax.random.key(0)) if settings.rank else p
    system = tuple(range(SYSTEM_TOKENS)) if config.rollout.thinking and config.rollout.system_prompt else ()
    programs = Programs(config, network, AUTOENCODER, system, layout, jax.eval_shape(adapt, stored))
    inputs = programs.inputs(stored, AUTOENCODER.shapes())
    own = lambda part: sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(part))
    slots = len(system) + config.rollout.prompt_tokens + config.rollout.thinking_tokens + 2
    rows = config.episodes // config.rollout.micro_batches // meshes.batch_size(mesh)
    heads = max(BAGEL_7B.kv_heads // mesh.shape[meshes.TENSOR], 1)
    cache = 2 * BAGEL_7B.layers * rows * slots * heads * BAGEL_7B.head_dim * jnp.dtype(config.model.dtype).itemsize
    out = {
        "topology": topology, "chips": mesh.size, "mesh": dict(mesh.shape), "hbm": HBM[chip] * 2**30,
        "trained": own(inputs.state.trained), "optimizer": own(inputs.state.opt_state), "average": own(inputs.state.ema),
        "frozen": own(inputs.frozen), "cache": cache,
        "reference": own({p: x for p, x in tree.flatten(inputs.reference).items() if p not in inputs.frozen}),
    }  # fmt: skip
    for name, lowered in zip(("rollout", "update"), programs.lower(inputs), strict=True):
        begin = time.monotonic()
        memory = lowered.compile().memory_analysis()
        out[name] = {
            "arguments": memory.argument_size_in_bytes,
            "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "seconds": round(time.monotonic() - begin, 1),
        }
    return out


def show(numbers: dict[str, Any]) -> list[str]:
    """The numbers as lines of text, GiB per chip."""
    gib = lambda value: f"{value / 2**30:8.2f}"
    mesh = ", ".join(f"{name} {size}" for name, size in numbers["mesh"].items())
    lines = [f"{numbers['topology']}: {numbers['chips']} chips, {mesh}"]
    for name in ("trained", "optimizer", "average", "frozen", "reference", "cache"):
        lines.append(f"{gib(numbers[name])} GiB  {name}")
    # What lies on a chip all the time but is no argument of the program at hand is added to it.
    resident = sum(numbers[name] for name in ("trained", "optimizer", "average", "frozen", "reference"))
    for name in ("rollout", "update"):
        part = numbers[name]
        held = max(part["arguments"], resident)
        total = held + part["results"] + part["temporaries"]
        verdict = "fits" if total <= numbers["hbm"] else "does not fit"
        lines.append(f"{gib(total)} GiB  {name}: {gib(held).strip()} held + {gib(part['results']).strip()} results + "
                     f"{gib(part['temporaries']).strip()} temporaries of {gib(numbers['hbm']).strip()}, {verdict}; "
                     f"compiled in {part['seconds']:.0f} s")  # fmt: skip
    return lines


def main() -> None:
    """Parses, compiles, prints."""
    try:
        default, rest = preset(sys.argv[1:], "bagel_7b")
        arguments = tyro.cli(
            Arguments, args=rest, default=Arguments(default, ""), prog="python -m launch.plan [PRESET]", description=__doc__
        )
        numbers = plan(arguments.config, arguments.topology)
    except ConfigError as error:
        complain(error, "launch.plan")
    print("\n".join(show(numbers)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
